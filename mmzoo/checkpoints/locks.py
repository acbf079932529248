"""A lock between processes that ends with the one that holds it, however that one ends."""

from __future__ import annotations

import contextlib
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
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
