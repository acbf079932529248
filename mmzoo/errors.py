"""The errors a user may see: one clear line each, and the exit code the command line leaves with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmzooError(Exception):
    """Base of all errors that are the user's to mend; the command line prints the line and exits with
    `exit_code`."""

    exit_code = 2

    @classmethod
    def at(cls, where: str, found: str, expected: str, do: str) -> MmzooError:
        """Build the house's one line: `<where>: <found>; expected <expected>. <do>`."""
        return cls(f"{where}: {found}; expected {expected}. {do}")


class ConfigError(MmzooError):
    """A recipe, an override or a component's options are wrong."""


class DataError(MmzooError):
    """A data set is missing, malformed, or too much of it is unreadable."""


class CheckpointError(MmzooError):
    """A checkpoint or an exported model cannot be read, or does not fit the model."""


class DownloadError(CheckpointError):
    """The network, or the other end of it, failed; nothing here needs mending, so trying again may help."""

    exit_code = 1


class ShapeError(MmzooError):
    """A tensor has a shape, dtype or range that the component cannot take."""


SHOWN = 12
"""Names in an error before the rest is counted."""


def close_matches(name: str, known: Iterable[str], limit: int = 3, *, listing: str = "") -> str:
    """Say which of the known names resemble `name`, else list them, as a sentence to end an error with.

    Where they are too many for a line, `listing` is the command that shows them.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    if not names:
        return "There is nothing to choose from."
    if len(names) <= SHOWN:
        return f"Choose one of: {', '.join(names)}."
    if listing:
        return f"`{listing}` shows all {len(names)}."
    return f"Choose one of: {', '.join(names[:SHOWN])} … ({len(names)} in all)."
