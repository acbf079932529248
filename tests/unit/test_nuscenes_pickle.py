"""Info pickles: plain values and arrays pass in every protocol, all else is named and was not run."""

from __future__ import annotations

import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmzoo.datamodules.nuscenes import plain_pickle
from mmzoo.datamodules.nuscenes.infos import read_infos
from mmzoo.datamodules.nuscenes.plain_pickle import StoredArray
from mmzoo.errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Runs:
    """Pickles to a call of `call(*args)`, with a state if there is one."""

    def __init__(self, call: Any, *args: Any, state: Any = None) -> None:
        self.call, self.args, self.state = call, args, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args, self.state


def load(path: Path, value: Any, protocol: int = 4) -> Any:
    file = path / "x.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    return plain_pickle.load(file)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_and_arrays_pass(tmp_path: Path, protocol: int) -> None:
    plain = {
        "a": [1, 2.5, None, True, "é", b"\x00\xff"],
        "b": (1, {2}),
        "n": np.float64(0.25),
        "i": np.int32(7),
    }
    assert load(tmp_path, plain, protocol) == plain
    square = np.arange(6.0).reshape(2, 3)
    arrays = [square.astype(d) for d in ("f4", "f8", ">i4", "i8", "u1", "?", "f2")]
    arrays += [np.asfortranarray(square), np.array(["car", "bus"]), np.zeros((0, 9)), np.array(3.0)]
    for mine, theirs in zip(load(tmp_path, arrays, protocol), arrays, strict=True):
        assert isinstance(mine, StoredArray)
        np.testing.assert_array_equal(mine.read(), theirs)
        assert mine.read().dtype == theirs.dtype


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_not_plain_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(DataError, match=rf"x\.pkl: it asks for {os.name}\.system; expected plain"):
        load(tmp_path, [{"token": Runs(os.system, f"touch {mark}")}], protocol)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.array([{}, None], dtype=object), "an array of objects"),
        (np.zeros(2, dtype=[("x", "f4")]), "an array of 'V4'"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "an array of 'M8'"),
        (torch.zeros(2), "torch"),
        (datetime.date(2020, 1, 1), r"datetime\.date"),
        (Path("x"), r"pathlib\..*Path"),
        (Runs(np.load, "x.npy"), r"numpy.*load"),
    ],
)
def test_objects_are_refused(tmp_path: Path, value: Any, named: str) -> None:
    with pytest.raises(DataError, match=f"it asks for .*{named}") as caught:
        load(tmp_path, {"a": [1, value]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (-1,), (2**40, 2**40), ("a",)])
def test_an_array_that_lies_of_its_size_is_refused(tmp_path: Path, shape: Any) -> None:
    _, args, state = np.zeros(2).__reduce__()
    forged = Runs(np.zeros(2).__reduce__()[0], *args, state=(state[0], shape, *state[2:]))
    with pytest.raises((ValueError, TypeError)):
        load(tmp_path, forged).read()


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1, 2])[:-2], pickle.dumps([]), pickle.dumps(3)])
def test_damage_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.pkl: .*; expected") as caught:
        read_infos(tmp_path / "x.pkl")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pkl: no such file"):
        read_infos(tmp_path / "none.pkl")
