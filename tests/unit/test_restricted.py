"""The restricted unpickler: what passes comes out equal, what does not is named and was not run."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmzoo.checkpoints import restricted
from mmzoo.errors import CheckpointError, DataError


class Runs:
    """Pickles to a call of `call(*args)`."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_pass_in_every_protocol(protocol: int) -> None:
    arrays = [
        np.arange(6).reshape(2, 3).astype(d) for d in ("float16", "float32", ">i4", "bool", "complex64")
    ]
    values = {
        "a": [1, 2.5, None, True, "é", b"\x00\xff"],
        "b": (1, {2}, frozenset({3})),
        "n": np.float32(3),
        "x": arrays,
    }
    values |= {
        "o": np.array(["ab", None], dtype=object),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    values |= {"d": collections.OrderedDict(z=1), "e": collections.defaultdict(list, k=[1]), "s": slice(1, 3)}
    found = restricted.load(pickle.dumps(values, protocol))
    for mine, theirs in zip(found.pop("x"), values.pop("x"), strict=True):
        assert mine.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
        np.testing.assert_array_equal(mine, theirs)
    for key in ("o", "f"):
        np.testing.assert_array_equal(found.pop(key), values.pop(key))
    assert found == values


def test_tensors_pass() -> None:
    tensors = {
        "w": torch.randn(2, 3),
        "i": torch.arange(4),
        "p": torch.nn.Parameter(torch.randn(2)),
        "s": torch.Size([1]),
    }
    found = restricted.load(pickle.dumps(tensors))
    assert found["s"] == tensors["s"]
    for key in ("w", "i", "p"):
        torch.testing.assert_close(found[key], tensors[key], rtol=0, atol=0)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"a": Runs(os.system, f"touch {mark}")}, protocol))
    with pytest.raises(CheckpointError, match=rf"bad\.pkl: it asks for {os.name}\.system; expected plain"):
        restricted.load(path)
    assert not mark.exists()


def test_all_refused_names_are_listed(tmp_path: Path) -> None:
    data = pickle.dumps([Runs(os.system, "true"), Runs(eval, "1"), Runs(print, "x"), argparse.Namespace(a=1)])
    with pytest.raises(DataError) as caught:
        restricted.load(data, where="x.pkl", error=DataError)
    for name in (f"{os.name}.system", "builtins.eval", "builtins.print", "argparse.Namespace"):
        assert name in str(caught.value)
    assert str(caught.value).startswith("x.pkl: ")
    assert "\n" not in str(caught.value)


def test_an_attribute_path_below_a_safe_name_is_refused() -> None:
    data = b"\x80\x04\x8c\x08builtins\x8c\x14str.__class__.mro...\x93."
    with pytest.raises(CheckpointError, match=r"builtins\.str\.__class__"):
        restricted.load(data)


def test_torch_bytes_hidden_in_a_storage_are_read_weights_only(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    inner = tmp_path / "inner.pt"
    torch.save(Runs(os.system, f"touch {mark}"), inner)
    data = pickle.dumps(Runs(torch.storage._load_from_bytes, inner.read_bytes()))
    with pytest.raises(CheckpointError, match="not a readable pickle"):
        restricted.load(data)
    assert not mark.exists()


def test_a_codec_other_than_latin1_is_refused() -> None:
    import _codecs

    assert restricted.load(pickle.dumps(Runs(_codecs.encode, "\xe9", "latin1"))) == b"\xe9"
    with pytest.raises(CheckpointError, match="hex"):
        restricted.load(pickle.dumps(Runs(_codecs.encode, "ab", "hex")))


def test_a_stand_in_takes_the_place_of_a_class() -> None:
    class Plain(dict[str, Any]):
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.update(state)

    data = pickle.dumps(argparse.Namespace(arch="x", layers=2))
    assert restricted.load(data, stand_ins={"argparse.Namespace": Plain}) == {"arch": "x", "layers": 2}


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1, 2])[:-2], b"\x80\x04Pstorage\n."])
def test_damage_is_one_clear_line(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^pickle: (not a readable|it asks for persistent)") as caught:
        restricted.load(data)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (restricted.load, restricted.load_torch):
        with pytest.raises(CheckpointError, match=r"none\.pkl: no such file"):
            read(tmp_path / "none.pkl")


def test_torch_archives(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.arange(3.0), "epoch": 2}, path)
    found = restricted.load_torch(path)
    assert found["epoch"] == 2
    torch.testing.assert_close(found["w"], torch.arange(3.0))

    torch.save({"args": argparse.Namespace(a=1)}, path)
    with pytest.raises(CheckpointError, match=r"w\.pt: it asks for argparse\.Namespace; expected tensors"):
        restricted.load_torch(path)
    allowed = restricted.load_torch(path, allow={"argparse.Namespace": argparse.Namespace})
    assert allowed["args"].a == 1

    mark = tmp_path / "ran"
    torch.save(Runs(os.system, f"touch {mark}"), path)
    with pytest.raises(CheckpointError, match=rf"{os.name}\.system"):
        restricted.load_torch(path)
    assert not mark.exists()
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match=r"w\.pt: unreadable"):
        restricted.load_torch(path)
