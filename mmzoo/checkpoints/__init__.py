"""Read, write and verify weights; knows no model."""
