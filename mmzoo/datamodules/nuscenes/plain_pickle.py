"""Pickles of plain containers, numbers, strings and numeric arrays; nothing else comes out of one.

Why: info pickles are passed around, and a pickle is a program. `checkpoints.restricted` lets NumPy rebuild
its own objects, since checkpoints hold everything NumPy can; info pickles do not, so here not even that runs.
Arrays come out as `StoredArray`, a description that is checked (kind of number, length, shape) when it is
asked for; arrays of objects have no such description and are refused by name, as is every other class.

Ref: the states that `numpy.ndarray.__reduce__` and `numpy.dtype.__reduce__` write.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.checkpoints.restricted import BUILTINS, SAFE, KnownNames, Refused
from mmzoo.errors import DataError

NUMBERS, STRINGS = "biuf", "US"
EXPECTED = "plain containers, numbers, strings and arrays of them"
DISTRUST = "It was not run. Do not load the file unless you know who wrote it."


def load(path: Path) -> Any:
    """Unpickle a file; raise DataError that names all it asks for beyond plain values."""
    try:
        data = path.read_bytes()
    except OSError as fault:
        found = "no such file" if isinstance(fault, FileNotFoundError) else f"unreadable ({fault.strerror})"
        raise DataError.at(str(path), found, "a pickle", "Check the path.") from fault
    pickled = PlainUnpickler(data)
    fault = found = None
    try:
        found = pickled.load()
    except Exception as raised:  # noqa: BLE001,RUF100 a damaged pickle can raise anything at all
        fault = raised
    if pickled.refused:
        asked = f"it asks for {', '.join(sorted(pickled.refused))}"
        raise DataError.at(str(path), asked, EXPECTED, DISTRUST)
    if fault is not None:
        raised = f"not a readable pickle ({type(fault).__name__}: {' '.join(str(fault).split())})"
        raise DataError.at(str(path), raised, EXPECTED, "Fetch the file again.") from fault
    return found


class StoredArray:
    """An array as a pickle describes it; `read` makes it."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        """Ignore what comes before the state: the class, a shape (0,) and a letter."""
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep (version, shape, dtype, whether columns come first, bytes)."""
        self.state = state

    def read(self) -> np.ndarray:
        """Return the array; raise ValueError where its state does not fit together."""
        if len(self.state) != 5 or not isinstance(self.state[2], StoredDtype):
            raise ValueError("an array without its state")
        _, shape, dtype, columns_first, data = self.state
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        return _array(data, dtype.read(), shape, "F" if columns_first else "C")


class StoredDtype:
    """The type of an array's entries, of fixed size and without references."""

    __slots__ = ("order", "spec")

    def __init__(self, spec: Any, *_: Any) -> None:
        """Take a code such as `f8`."""
        self.spec, self.order = spec, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order; what else a state has belongs to types of several fields."""
        if len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of entries with several fields")
        self.order = str(state[1]).replace("|", "=")

    def read(self) -> np.dtype[Any]:
        """Return NumPy's type; raise ValueError for one that is neither numbers nor strings."""
        spec = self.spec if isinstance(self.spec, str) else str(self.spec)
        if spec[:1] not in NUMBERS + STRINGS or not spec[1:].isdigit():
            raise ValueError(f"entries of type {spec[:20]!r}")
        return np.dtype(self.order + spec)


class PlainUnpickler(KnownNames, pickle.Unpickler):
    """Finds containers and descriptions of arrays; `refused` lists every other name."""

    def __init__(self, data: bytes) -> None:
        """Read from bytes."""
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.stand_ins: dict[str, Any] = {}
        self.refused: set[str] = set()
        self.names: dict[str, Any] = {**PLAIN, "numpy.dtype": self._dtype}
        for core in ("numpy.core", "numpy._core"):
            self.names[f"{core}.multiarray._reconstruct"] = StoredArray
            self.names[f"{core}.multiarray.scalar"] = _scalar
            self.names[f"{core}.numeric._frombuffer"] = _from_buffer

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the object of that exact name, else note the refusal."""
        full = f"{module}.{name}"
        if full not in self.names:
            self.refused.add(full)
            return Refused
        return self.names[full]

    def _dtype(self, spec: Any, *rest: Any) -> Any:
        """Describe a type of entries, noting the refusal of objects and of types with fields."""
        if str(spec)[:1] not in NUMBERS + STRINGS:
            self.refused.add(f"an array of {'objects' if str(spec)[:1] == 'O' else repr(str(spec)[:20])}")
        return StoredDtype(spec, *rest)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """Return a NumPy scalar as a plain number or string."""
    if not isinstance(dtype, StoredDtype):
        raise pickle.UnpicklingError("a number without a type")
    data = data.encode("latin1") if isinstance(data, str) else data
    return _array(data, dtype.read(), (), "C").item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> StoredArray:
    """Describe an array as protocol 5 has them."""
    found = StoredArray()
    found.state = (1, shape, dtype, order == "F", bytes(data))
    return found


def _array(data: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array without bytes or shape")
    sizes = [int(n) for n in shape]
    if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array {tuple(sizes)} of {dtype}")
    if not data:
        return np.zeros(sizes, dtype) if 0 in sizes else np.zeros(0, dtype).reshape(sizes)
    return np.frombuffer(data, dtype).reshape(sizes, order=order)


PLAIN: dict[str, Any] = {
    **{f"{m}.{name}": SAFE[f"{m}.{name}"]() for m in ("builtins", "__builtin__") for name in BUILTINS},
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": StoredArray,
    "_codecs.encode": SAFE["_codecs.encode"](),
}
"""`module.name` -> what a pickle gets under that name, beside the descriptions of arrays."""
