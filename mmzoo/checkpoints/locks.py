"""A lock between processes that ends with the one that holds it, however that one ends; it leaves no file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Generator[None, None, None]:
    """Hold the lock file `path`; `waiting` is called once if another process holds it, before waiting for it.

    Where the system has no flock nobody waits, and two processes do the same work.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if not told:
                    waiting()
                told = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):  # whoever held it has taken the file away: lock the new one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(number: int, path: Path) -> bool:
    """Say whether an open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
