"""Random access to the members of an uncompressed tar: headers are read once, then each member by its
offset."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from mmzoo.errors import DataError

BLOCK = 512
REGULAR, LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"0\0", b"L", b"K", b"x", b"g"


class Member(NamedTuple):
    """Where one file lies in the tar: offset and size of its content in bytes."""

    offset: int
    size: int


class IndexedTar:
    """The regular files of a tar, read by name from any process.

    Why: a streamed tar gives samples in the order of writing; with the offsets known, any order costs one
    `pread`. The index is built at the first use and stays in memory; reading moves no shared file
    position, so forked workers may share the open file. Reads ustar, GNU (long names) and pax headers.
    """

    def __init__(self, path: str | Path) -> None:
        """Open nothing yet."""
        self.path = Path(path)
        self._members: dict[str, Member] | None = None
        self._file = -1

    @property
    def members(self) -> dict[str, Member]:
        """Return name -> place of every regular file, in the order of the tar (a repeated name: its last)."""
        if self._members is None:
            self._members = self._scan()
        return self._members

    def names(self) -> list[str]:
        """Return the names of the regular files."""
        return list(self.members)

    def read(self, name: str) -> bytes:
        """Return a member's content."""
        if name not in self.members:
            raise DataError.at(
                f"{self.path}/{name}", "no such member", "a file of the tar", "Check the name."
            )
        place = self.members[name]
        data = os.pread(self._open(), place.size, place.offset)
        if len(data) != place.size:
            found = f"{len(data)} of {place.size} bytes"
            raise DataError.at(
                f"{self.path}/{name}", found, "the whole member", "The tar is cut: fetch it again."
            )
        return data

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        """Close the file."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the open file."""
        return {**self.__dict__, "_file": -1}

    def _open(self) -> int:
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDONLY)
        return self._file

    def _scan(self) -> dict[str, Member]:
        file, members = self._open(), dict[str, Member]()
        end, at = os.fstat(file).st_size, 0
        long_name, pax = "", dict[str, str]()
        while at + BLOCK <= end:
            header = os.pread(file, BLOCK, at)
            if not header.strip(b"\0"):
                break
            name, size, kind = self._header(header, at)
            size = int(pax.get("size", size))
            start = at + BLOCK
            at = start + -(-size // BLOCK) * BLOCK
            if kind == LONG_NAME:
                long_name = os.pread(file, size, start).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == PAX:
                pax = _pax(os.pread(file, size, start))
            elif kind not in (LONG_LINK, PAX_GLOBAL):
                if kind in REGULAR:
                    members[pax.get("path") or long_name or name] = Member(start, size)
                long_name, pax = "", {}
        return members

    def _header(self, header: bytes, at: int) -> tuple[str, int, bytes]:
        """Return name, size and type of a header block; raise DataError where its checksum is wrong."""
        try:
            claimed = int(header[148:156].strip(b" \0") or b"0", 8)
            size = _number(header[124:136])
        except ValueError:
            claimed, size = -1, 0
        if claimed != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            found = (
                "a compressed file"
                if header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7")
                else f"no header at byte {at}"
            )
            do = "Unpack it, or write it again without compression."
            raise DataError.at(str(self.path), found, "an uncompressed tar", do)
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        return name, size, header[156:157]


def is_tar(path: Path) -> bool:
    """Say whether a path is taken for a tar, by its name."""
    return path.suffix == ".tar" and path.exists() and stat.S_ISREG(path.stat().st_mode)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Read an octal number, or a binary one where GNU tar marks a size of 8 GiB and more."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _pax(records: bytes) -> dict[str, str]:
    """Read `length key=value` records."""
    found: dict[str, str] = {}
    while records:
        length = int(records.split(b" ", 1)[0])
        key, _, value = records[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        found[key.decode()] = value.decode("utf-8", "surrogateescape")
        records = records[length:]
    return found
