"""Tests that every row of a table must pass, a plug-in's too; a package, since file names come again in
unit/."""
