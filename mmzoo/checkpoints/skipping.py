"""A restricted unpickler that leaves long byte strings in the file: pickled tensors are such strings.

Why: pickle keeps every byte string it meets until the end, so a checkpoint that was written by plain `pickle`
would be in memory whole, optimiser state and all. This one notes where the string lies and moves on. It is
Python's own (slow) unpickler, which is fast enough since only the small rest is read.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmzoo.checkpoints.restricted import KnownNames

SHORTEST = 4096
"""Bytes from which on a string stays in the file."""


PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue]
"""The only one whose opcodes can be replaced."""


@dataclass(frozen=True)
class FileBytes:
    """A byte string that was left in a file."""

    path: Path
    start: int
    length: int

    def head(self, most: int = 8192) -> bytes:
        """Read its beginning."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(min(self.length, most))


class SkippingUnpickler(KnownNames, PythonUnpickler):
    """Finds only the names of `SAFE` and its stand-ins; `refused` lists the others."""

    def __init__(self, file: io.BufferedReader, path: Path, stand_ins: Mapping[str, Any]) -> None:
        """Read from `file`, which is `path` opened."""
        PythonUnpickler.__init__(self, file, encoding="latin1")  # it is Any, which hides it from super()
        self.file, self.path, self.stand_ins = file, path, dict(stand_ins)
        self.refused: set[str] = set()

    def push_bytes(self, length: int) -> None:
        """Put a byte string of that length, or its place in the file, on the stack."""
        if length < SHORTEST or self._unframer.current_frame is not None:
            self.append(self.read(length))
            return
        self.append(FileBytes(self.path, self.file.tell(), length))
        self.file.seek(length, io.SEEK_CUR)

    def load_binbytes(self) -> None:
        """Opcode BINBYTES."""
        self.push_bytes(int.from_bytes(self.read(4), "little"))

    def load_binbytes8(self) -> None:
        """Opcode BINBYTES8."""
        self.push_bytes(int.from_bytes(self.read(8), "little"))

    dispatch: ClassVar[dict[int, Any]] = {
        **PythonUnpickler.dispatch,
        pickle.BINBYTES[0]: load_binbytes,
        pickle.BINBYTES8[0]: load_binbytes8,
    }
