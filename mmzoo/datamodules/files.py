"""Where files come from: a folder, a tar, or either held in memory; and the kind of data a file name
tells."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from mmzoo.datamodules.tar import IndexedTar, is_tar
from mmzoo.errors import DataError

EXTENSIONS = {
    "image": ("jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "ppm", "pgm"),
    "audio": ("wav", "flac", "ogg", "mp3", "aif", "aiff"),
    "text": ("txt",),
}
"""Kind -> file name extensions. `.npy` holds a scan or a motion: see `kind_of`."""
ARRAYS = ("npy",)
KINDS = ("image", "audio", "text", "fmri", "skeleton")
KIND_OF = {extension: kind for kind, extensions in EXTENSIONS.items() for extension in extensions}


@runtime_checkable
class Files(Protocol):
    """Files by name; `root` is what error messages call the place."""

    @property
    def root(self) -> Path:
        """Return the folder or tar."""
        ...

    def names(self) -> list[str]:
        """Return every file's name, relative to the root with forward slashes."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's content; raise DataError or OSError where it cannot be read."""
        ...


class FolderFiles:
    """The files below a folder, hidden ones left out, in sorted order."""

    def __init__(self, root: Path) -> None:
        """List nothing yet."""
        self.root = root

    def names(self) -> list[str]:
        """Walk the folder, links to folders included."""
        found: list[str] = []
        for folder, folders, files in os.walk(self.root, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            below = Path(folder).relative_to(self.root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            found.extend(f"{prefix}{f}" for f in sorted(files) if not f.startswith("."))
        return found

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.root / name).read_bytes()


class TarFiles:
    """The members of an uncompressed tar."""

    def __init__(self, root: Path) -> None:
        """Open nothing yet."""
        self.root = root
        self._tar = IndexedTar(root)

    def names(self) -> list[str]:
        """List the members, hidden ones left out, in sorted order."""
        names = (n.removeprefix("./") for n in self._tar.names())
        return sorted(n for n in names if not n.rpartition("/")[2].startswith("."))

    def read(self, name: str) -> bytes:
        """Read a member."""
        return self._tar.read(name if name in self._tar.members else f"./{name}")


class MemoryFiles:
    """Files read once and kept; forked workers share the memory."""

    def __init__(self, files: Files, names: Iterable[str]) -> None:
        """Read the named files now; one that cannot be read raises when it is asked for."""
        self.root, self._files = files.root, files
        self._content = {name: data for name in names if (data := _try_read(files, name)) is not None}

    def names(self) -> list[str]:
        """List the kept files."""
        return list(self._content)

    def read(self, name: str) -> bytes:
        """Return a kept file."""
        return self._content[name] if name in self._content else self._files.read(name)


def _try_read(files: Files, name: str) -> bytes | None:
    try:
        return files.read(name)
    except (OSError, DataError):
        return None


def open_files(path: Path, get: str = "") -> FolderFiles | TarFiles:
    """Open a folder or a tar; a missing one is one clear line with `get`, how to come by it."""
    found = require(path, get)
    if found.is_dir():
        return FolderFiles(found)
    if is_tar(found):
        return TarFiles(found)
    raise DataError.at(
        str(path), f"a {found.suffix or 'nameless'} file", "a folder or a .tar", "Name one of these."
    )


def require(path: Path, get: str = "") -> Path:
    """Return a path that exists, else raise the one line that says what was looked for and how to get it."""
    if not path.exists():
        do = get or "Put the data there, or set data.root (default: the variable MMZOO_DATA, else ./data)."
        raise DataError.at(str(path), "nothing there", "the data set", do)
    return path


def extension(name: str) -> str:
    """Return a name's last extension in lower case, without the dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def kind_of(name: str) -> str | None:
    """Tell the kind of data from a file name: `x.jpg` image; `x.fmri.npy` and `fmri.npy` fmri; plain
    `.npy` None."""
    if extension(name) in ARRAYS:
        parts = name.rpartition("/")[2].lower().split(".")
        return next((p for p in parts[-2::-1] if p in KINDS), None)
    return KIND_OF.get(extension(name))


def is_data(name: str) -> bool:
    """Say whether a file name has an extension that some modality reads."""
    return extension(name) in KIND_OF or extension(name) in ARRAYS
