"""Reading other people's pickles without running their code.

A pickle is a program: `GLOBAL os system` followed by `REDUCE` runs a command. Here only the constructors
named in `SAFE` exist for it (plain containers and scalars, numpy arrays, torch tensors); every other name is
refused, and all of them are listed at once. Whoever needs one more class names it and gives its substitute.

Ref: the Python documentation, "Restricting Globals" (pickle). torch.load(weights_only=True) is the same idea
for torch's own archives, and what `load_torch` uses.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmzoo.errors import CheckpointError, MmzooError

BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "range", "set"),
    *("slice", "str", "tuple"),
)
TORCH_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
EXPECTED = "plain containers, numpy arrays, tensors"
DISTRUST = (
    "It was not run. Unless you trust the file do not load it; if you do, convert it to safetensors or npz."
)


def load(
    source: Path | bytes,
    *,
    where: str = "",
    stand_ins: Mapping[str, Any] | None = None,
    error: type[MmzooError] = CheckpointError,
    encoding: str = "latin1",
) -> Any:
    """Unpickle a file, or bytes, with nothing but `SAFE` and the stand-ins (`module.name` -> its substitute).

    `where` is what errors call the source, `error` the class they raise, `encoding` that of Python 2 strings.
    """
    place = where or (str(source) if isinstance(source, Path) else "pickle")
    if isinstance(source, bytes):
        return _Reader(place, error).read(RestrictedUnpickler(io.BytesIO(source), stand_ins or {}, encoding))
    if not source.is_file():
        raise error.at(place, "no such file", "a pickle", "Check the path.")
    with source.open("rb") as file:
        return _Reader(place, error).read(RestrictedUnpickler(file, stand_ins or {}, encoding))


class _Reader:
    """Runs the unpickler and turns what it refused, or choked on, into one line."""

    def __init__(self, where: str, error: type[MmzooError]) -> None:
        self.where, self.error = where, error

    def read(self, pickled: RestrictedUnpickler) -> Any:
        found, fault = None, None
        try:
            found = pickled.load()
        except Exception as raised:  # noqa: BLE001,RUF100 a damaged pickle can raise anything at all
            fault = raised
        if pickled.refused:
            raise self.error.at(
                self.where, f"it asks for {', '.join(sorted(pickled.refused))}", EXPECTED, DISTRUST
            )
        if fault is not None:
            found = f"not a readable pickle ({type(fault).__name__}: {fault})"
            raise self.error.at(self.where, found, EXPECTED, "Fetch the file again.") from fault
        return found


class KnownNames:
    """The rule of every unpickler: safe names and stand-ins are found; `refused` lists the others."""

    stand_ins: dict[str, Any]
    refused: set[str]

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the safe object of that exact name, never an attribute path, else note the refusal."""
        full = f"{module}.{name}"
        if full in self.stand_ins:
            return self.stand_ins[full]
        if full in SAFE:
            return SAFE[full]()
        self.refused.add(full)
        return Refused

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to data kept elsewhere (torch archives have them: see `load_torch`)."""
        self.refused.add(f"persistent data {str(pid)[:60]!r}")
        return Refused()


class RestrictedUnpickler(KnownNames, pickle.Unpickler):
    """Finds only the names it was given; `refused` lists the others, which come out as `Refused`."""

    def __init__(
        self, stream: io.BufferedIOBase, stand_ins: Mapping[str, Any], encoding: str = "latin1"
    ) -> None:
        """Read from `stream`; `stand_ins` add to the safe names."""
        super().__init__(stream, encoding=encoding)
        self.stand_ins = dict(stand_ins)
        self.refused: set[str] = set()


class Refused:
    """Takes the place of what was refused: swallows arguments, state and items, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget the item."""

    def append(self, value: Any) -> None:
        """Forget the value."""

    def extend(self, values: Any) -> None:
        """Forget the values."""

    def add(self, value: Any) -> None:
        """Forget the value."""


def load_torch(path: Path, *, allow: Mapping[str, Any] | None = None) -> Any:
    """Read a torch archive onto the host, weights and plain containers only; name what else it asks for.

    `allow` maps `module.name` to the class that is let through for this call.
    """
    import torch

    if not path.is_file():
        raise CheckpointError.at(str(path), "no such file", "a torch checkpoint", "Check the path.")
    extra: list[Any] = [(cls, name) for name, cls in (allow or {}).items()]
    try:
        with torch.serialization.safe_globals(extra):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # noqa: BLE001,RUF100 a damaged pickle can raise anything at all
        names = _unsafe_names(path) if isinstance(fault, pickle.UnpicklingError) else []
        if names:
            found, expected = f"it asks for {', '.join(names)}", "tensors and plain containers"
            raise CheckpointError.at(str(path), found, expected, DISTRUST) from fault
        found, do = f"unreadable: {damage(fault)}", "Fetch it again, or use another."
        raise CheckpointError.at(str(path), found, "a torch checkpoint", do) from fault


def damage(fault: Exception) -> str:
    """Say why a file could not be read; what exactly a pickle stumbles over in noise says nothing."""
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return "damaged, cut short, or no file that torch wrote"


def _unsafe_names(path: Path) -> list[str]:
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001,RUF100 as above
        return []


def _builtin(name: str) -> Callable[[], Any]:
    import builtins

    return lambda: getattr(builtins, name)


def _numpy(*path: str) -> Callable[[], Any]:
    def find() -> Any:
        import numpy as np

        core: Any = getattr(np, "_core", None) or np.core  # numpy 1 has no _core
        found = core if path[0] == "core" else np
        for name in path[1:] if path[0] == "core" else path:
            found = getattr(found, name)
        return found

    return find


def _torch(*path: str) -> Callable[[], Any]:
    def find() -> Any:
        import torch

        found: Any = torch
        for name in path:
            found = getattr(found, name)
        return found

    return find


def _ordered_dict() -> Any:
    from collections import OrderedDict

    return OrderedDict


def _default_dict() -> Any:
    from collections import defaultdict

    return defaultdict


def _encode() -> Any:
    def encode(text: str, encoding: str = "latin1") -> bytes:
        """Turn Python 2 style byte strings back to bytes; other codecs could do work of their own."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r}")
        return text.encode("latin1")

    return encode


def _storage_from_bytes() -> Any:
    def storage(data: bytes) -> Any:
        """Read a storage as torch's own function does, but weights only."""
        import torch

        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    return storage


def _safe_names() -> dict[str, Callable[[], Any]]:
    names: dict[str, Callable[[], Any]] = {}
    for module in ("builtins", "__builtin__"):
        names |= {f"{module}.{n}": _builtin(n) for n in BUILTINS}
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray._reconstruct"] = _numpy("core", "multiarray", "_reconstruct")
        names[f"{core}.multiarray.scalar"] = _numpy("core", "multiarray", "scalar")
        names[f"{core}.numeric._frombuffer"] = _numpy("core", "numeric", "_frombuffer")
    names |= {"numpy.ndarray": _numpy("ndarray"), "numpy.dtype": _numpy("dtype")}
    names["torch._utils._rebuild_tensor_v2"] = _torch("_utils", "_rebuild_tensor_v2")
    names["torch._utils._rebuild_parameter"] = _torch("_utils", "_rebuild_parameter")
    names |= {"torch.Size": _torch("Size"), "torch.device": _torch("device")}
    names |= {f"torch.{k}Storage": _torch(f"{k}Storage") for k in TORCH_STORAGES}
    names["torch.storage._load_from_bytes"] = _storage_from_bytes
    names |= {"collections.OrderedDict": _ordered_dict, "collections.defaultdict": _default_dict}
    return names | {"_codecs.encode": _encode}


SAFE: dict[str, Callable[[], Any]] = _safe_names()
"""`module.name` as a pickle writes it -> how to get the object that a pickle may use under that name."""
