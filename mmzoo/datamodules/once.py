"""A folder that is made once and then read by everybody: complete or absent, never half made."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from mmzoo.errors import DataError


def make_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `fill(temporary folder)` if nobody has.

    It is filled under another name beside it and renamed when complete; a lock keeps a second process waiting
    rather than making the same again.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _make(folder, fill)
    except OSError as error:
        found = f"cannot write ({error.strerror or error})"
        do = "Set MMZOO_HOME to a folder with space."
        raise DataError.at(str(folder), found, "a writable cache folder", do) from error
    return folder


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold a lock that ends with the process; where the system has none, both make it and the first rename
    wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
