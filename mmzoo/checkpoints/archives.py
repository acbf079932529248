"""Other people's weight files, tensor by tensor: torch archives (zip and older), plain pickles, safetensors.

Why: unpickling a checkpoint runs whatever it says and holds all of it in memory at once. Here the pickle is
read by the restricted unpickler, tensors come out as descriptions (dtype, shape, place in the file), and only
what is asked for is read. Objects of the program that wrote the file (fairseq's `cfg`, optimiser state of
classes of its own) become inert placeholders and are named in `refused`; nothing of theirs runs.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo.checkpoints.restricted import TORCH_STORAGES, Refused, RestrictedUnpickler, damage
from mmzoo.checkpoints.skipping import FileBytes, SkippingUnpickler
from mmzoo.errors import CheckpointError

ENTRIES = ("model", "state_dict", "module")
"""Where checkpoints keep their weights beside other things, in this order."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a torch file from before zip archives."""
NUMEL_BYTES = 8
"""Such a file writes a storage's length before its numbers."""
NUM_LEGACY_PICKLES = 3
"""Magic number, protocol, facts of the writer's machine; then the object."""


@dataclass
class Storage:
    """Where the numbers of one or several tensors lie: at `start` of a file, or in memory."""

    dtype: torch.dtype
    numel: int
    source: Path | bytes
    start: int = 0

    def bytes(self, begin: int, count: int) -> bytearray:
        """Read `count` bytes from byte `begin` on; raise CheckpointError where the file ends before."""
        if isinstance(self.source, bytes):
            found = bytearray(self.source[self.start + begin : self.start + begin + count])
        else:
            found = bytearray(count)
            with self.source.open("rb") as file:
                file.seek(self.start + begin)
                found = found[: file.readinto(found)]
        if len(found) < count:
            short = f"{len(found)} of {count} bytes of a tensor"
            raise CheckpointError.at(str(self.source)[:200], short, "a whole file", "Fetch the file again.")
        return found


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: a strided window of a storage. `start` and `stride` count entries."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Read the window, and nothing else of the storage."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        reach = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        size = self.storage.dtype.itemsize
        data = self.storage.bytes(self.start * size, reach * size)
        return torch.frombuffer(data, dtype=self.storage.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Archive:
    """The tensors of a file by name (`loading.Weights`). `refused` names what was replaced by nothing."""

    path: Path
    tensors: Mapping[str, Any]
    refused: tuple[str, ...] = ()

    def keys(self) -> list[str]:
        """Return the names."""
        return list(self.tensors)

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self.tensors[name].shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        return {name: self.shape(name) for name in self.tensors}

    def read(self, name: str, /) -> Tensor:
        """Read a tensor."""
        return self.tensors[name].read()


def open_archive(path: Path) -> Archive:
    """Open a weight file of any known kind; raise CheckpointError where it is none or holds no tensors."""
    if not path.is_file():
        raise CheckpointError.at(str(path), "no such file", "a weight file", "Check the path.")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    refused: set[str] = set()
    try:
        content = _content(path, refused)
    except Exception as fault:  # noqa: BLE001,RUF100 a damaged pickle can raise anything at all
        if isinstance(fault, CheckpointError):
            raise
        found = f"unreadable: {damage(fault)}"
        raise CheckpointError.at(str(path), found, "a torch or pickle file", "Fetch it again.") from fault
    tensors = dict(_tensors(content))
    if not tensors:
        found = f"no tensors (it asks for {', '.join(sorted(refused)[:4])})" if refused else "no tensors"
        raise CheckpointError.at(str(path), found, "a state dict", "Check that this is a checkpoint.")
    return Archive(path, tensors, tuple(sorted(refused)))


def _content(path: Path, refused: set[str]) -> Any:
    if zipfile.is_zipfile(path):
        return _read_zip(path, refused)
    with path.open("rb") as file:
        if _is_legacy(file):
            file.seek(0)
            return _read_legacy(file, path, refused)
        file.seek(0)
        pickled = SkippingUnpickler(file, path, _stand_ins(refused))
        content = pickled.load()
    refused |= pickled.refused
    return content


def _tensors(content: Any) -> Iterator[tuple[str, StoredTensor]]:
    """Go through the state dict of a checkpoint, or the checkpoint itself where it is one."""
    if not isinstance(content, Mapping):
        return
    for entry in ENTRIES:
        if isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    for name, value in content.items():
        if isinstance(value, StoredTensor):
            yield str(name), value


def _open_safetensors(path: Path) -> Archive:
    from safetensors import SafetensorError, safe_open

    @dataclass(frozen=True)
    class Slice:
        name: str
        shape: tuple[int, ...]

        def read(self) -> Tensor:
            with safe_open(path, "pt") as file:
                return file.get_tensor(self.name)

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return Archive(path, {n: Slice(n, tuple(file.get_slice(n).get_shape())) for n in names})
    except (SafetensorError, OSError) as fault:
        found = f"unreadable ({fault})"
        raise CheckpointError.at(str(path), found, "safetensors", "Fetch the file again.") from fault


def _read_zip(path: Path, refused: set[str]) -> Any:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise CheckpointError.at(
                str(path), "a zip without data.pkl", "a torch archive", "Check the file."
            )
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CheckpointError.at(str(path), "big-endian numbers", "little-endian", "Save it again.")

        def storage(pid: tuple[Any, ...]) -> Storage:
            _, dtype, key, _, numel = pid[:5]
            return Storage(dtype, numel, path, _start_of(file, entries[f"data/{key}"]))

        pickled = _Unpickler(io.BytesIO(archive.read(entries["data.pkl"])), _stand_ins(refused), storage)
        content = pickled.load()
    refused |= pickled.refused
    return content


def _start_of(file: io.BufferedReader, info: zipfile.ZipInfo) -> int:
    """Return where an entry's bytes begin: behind its local header, whose name and extra field vary."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError.at(file.name, "compressed tensors", "stored ones", "Save it with torch.save.")
    file.seek(info.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra


def _is_legacy(file: io.BufferedReader) -> bool:
    """Tell by the first bytes: unpickling another file to see what it is would read all of it."""
    magic = pickle.dumps(LEGACY_MAGIC, protocol=2)
    return file.read(len(magic)) == magic


def _read_legacy(file: Any, source: Path | bytes, refused: set[str]) -> Any:
    """Read a torch file from before zip archives: pickles, then every storage's length and numbers."""
    for _ in range(NUM_LEGACY_PICKLES):
        RestrictedUnpickler(file, {}).load()
    made: dict[str, Storage] = {}

    def storage(pid: tuple[Any, ...]) -> Storage:
        _, dtype, key, _, numel = pid[:5]
        return made.setdefault(key, Storage(dtype, numel, source))

    pickled = _Unpickler(file, _stand_ins(refused), storage)
    content = pickled.load()
    refused |= pickled.refused
    order = RestrictedUnpickler(file, {}).load()
    place = file.tell()
    for key in order:
        made[key].start = place + NUMEL_BYTES
        place += NUMEL_BYTES + made[key].numel * made[key].dtype.itemsize
    return content


class _Unpickler(RestrictedUnpickler):
    """Knows torch's references to storages."""

    def __init__(
        self, file: Any, stand_ins: Mapping[str, Any], storage: Callable[[tuple[Any, ...]], Any]
    ) -> None:
        super().__init__(file, stand_ins)
        self.storage = storage

    def persistent_load(self, pid: Any) -> Any:
        if (
            isinstance(pid, tuple)
            and len(pid) >= 5
            and pid[0] == "storage"
            and isinstance(pid[1], torch.dtype)
        ):
            return self.storage(pid)
        return super().persistent_load(pid)


def _stand_ins(refused: set[str]) -> dict[str, Any]:
    """Return what takes the place of torch's own names: dtypes for storage classes, descriptions for
    tensors.
    """

    def rebuild(storage: Any, start: int, size: Any, stride: Any, *rest: Any) -> Any:
        del rest
        if not isinstance(storage, Storage):
            return Refused()
        return StoredTensor(storage, start, tuple(size), tuple(stride))

    def parameter(data: Any, *rest: Any) -> Any:
        del rest
        return data

    def storage_of(data: Any) -> Any:
        return _storage_in(data, refused)

    names = {f"torch.{kind}Storage": dtype for kind, dtype in _dtypes().items()}
    names |= {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}
    return {
        **names,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_parameter": parameter,
        "torch.storage._load_from_bytes": storage_of,
    }


def _storage_in(data: Any, refused: set[str]) -> Any:
    """Return the storage that a pickled tensor carries as a torch file of its own."""
    if isinstance(data, FileBytes):
        head, source, start = data.head(), data.path, data.start
    elif isinstance(data, bytes):
        head, source, start = data, data, 0
    else:
        return Refused()
    found = _read_legacy(io.BytesIO(head), source, refused)
    if not isinstance(found, Storage):
        return Refused()
    return Storage(found.dtype, found.numel, source, start + found.start)


def _dtypes() -> dict[str, torch.dtype]:
    names = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    return {kind: getattr(torch, name) for kind, name in zip(TORCH_STORAGES, names, strict=True)}
