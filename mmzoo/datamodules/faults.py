"""Unreadable samples: skipped, counted, named once in the log; too many of them end the run."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mmzoo.errors import DataError, MmzooError

log = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, RuntimeError, KeyError, struct.error, zlib.error)
"""What decoders raise on damaged content (soundfile RuntimeError, PIL OSError or SyntaxError, …)."""


@dataclass(frozen=True)
class Fault:
    """One sample that could not be used: which one and why, in one line."""

    sample: str
    reason: str


@contextmanager
def decoding(name: str) -> Generator[None]:
    """Make whatever a decoder raises on damaged content a DataError that names the file."""
    try:
        yield
    except MmzooError as error:
        if name.rpartition("/")[2] in str(error):
            raise
        raise DataError(f"{name}: {error}") from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError.at(name, f"unreadable ({reason})", "an intact file", "Mend or remove it.") from error


class FaultLog:
    """Counts the unreadable samples of one split.

    Why: a damaged file among thousands must not end a night's run, nor may a wrong path pass for damage. Each
    sample is named once, however many epochs meet it; `max_share` bounds the share of an epoch's samples.
    """

    def __init__(self, split: str, max_share: float) -> None:
        """Start with nothing found; `split` is what the log calls the data."""
        self.split, self.max_share = split, max_share
        self.named: dict[str, str] = {}
        self._epoch: set[str] = set()
        self._told = 0

    def start_epoch(self) -> None:
        """Forget which samples were bad in the last epoch (not that they were named)."""
        self._epoch.clear()

    def add(self, faults: Sequence[Fault], total: int) -> None:
        """Record faults; raise DataError once they are more than `max_share` of an epoch's `total`."""
        for fault in faults:
            self._epoch.add(fault.sample)
            if fault.sample not in self.named:
                self.named[fault.sample] = fault.reason
                log.warning("%s: skipped %s", self.split, fault.reason)
        if len(self._epoch) > self.max_share * total:
            raise self._too_many(total)

    def end_epoch(self, total: int) -> None:
        """Say how many of the epoch's samples were skipped, where it is another number than last time."""
        if self._epoch and len(self._epoch) != self._told:
            self._told = len(self._epoch)
            log.warning("%s: %d of %d samples were unreadable", self.split, self._told, total)

    def summary(self) -> str:
        """Say in one line how many samples were skipped, or return an empty string."""
        return f"{self.split}: {len(self.named)} unreadable samples skipped" if self.named else ""

    def _too_many(self, total: int) -> MmzooError:
        first = next(iter(self.named.values()), "")
        found = f"{len(self._epoch)} of {total} samples are unreadable (the first: {first.rstrip('.')})"
        expected = f"at most a share of {self.max_share:g} (loader.max_bad_share)"
        return DataError.at(self.split, found, expected, "Mend the data, or raise loader.max_bad_share.")
