"""Weight files of every kind come out tensor by tensor; what else they ask for is named and not run."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mmzoo.checkpoints.archives import open_archive
from mmzoo.errors import CheckpointError

STATE = {
    "a": torch.randn(300, 50, generator=torch.Generator().manual_seed(0)),
    "t": torch.arange(6).reshape(2, 3).t(),
    "h": torch.tensor([1.5, -2.0]).bfloat16(),
    "f": torch.tensor([[0.5]]).half(),
    "b": torch.tensor([True, False]),
    "p": torch.nn.Parameter(torch.ones(3)),
    "e": torch.zeros(0, 3),
    "s": torch.tensor(3.0),
}
SHARED = torch.arange(10.0)
KINDS = ("zip", "legacy", "pickle2", "pickle3", "pickle4", "pickle5")


class Runs:
    """Pickles to a call of `call(*args)`."""

    def __init__(self, call: object, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, self.args


def write(path: pathlib.Path, kind: str, content: object) -> pathlib.Path:
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_come_out_equal_beside_objects_of_unknown_classes(tmp_path: pathlib.Path, kind: str) -> None:
    config = argparse.Namespace(model=argparse.Namespace(width=3), tasks=[argparse.Namespace(x={1: 2})])
    state = {**STATE, "left": SHARED[:4], "right": SHARED[4:]}
    content = {"cfg": config, "model": state, "optimizer": {"m": torch.ones(9)}, "step": 7}
    archive = open_archive(write(tmp_path / "w.pt", kind, content))
    assert archive.keys() == list(state)
    assert archive.refused == ("argparse.Namespace",)
    for name, expected in state.items():
        found = archive.read(name)
        assert found.dtype == expected.dtype
        assert archive.shape(name) == tuple(expected.shape)
        assert torch.equal(found, expected.detach()), name
    assert archive.shapes()["a"] == (300, 50)


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_is_named_and_not_run(tmp_path: pathlib.Path, kind: str) -> None:
    mark = tmp_path / "ran"
    content = {"cfg": Runs(os.system, f"touch {mark}"), "model": {"a": torch.ones(2)}}
    archive = open_archive(write(tmp_path / "w.pkl", kind, content))
    assert archive.refused == (f"{os.name}.system",)
    assert torch.equal(archive.read("a"), torch.ones(2))
    assert not mark.exists()
    only = write(tmp_path / "only.pkl", kind, Runs(os.system, f"touch {mark}"))
    with pytest.raises(CheckpointError, match=rf"no tensors \(it asks for {os.name}\.system\)"):
        open_archive(only)
    assert not mark.exists()


def test_a_bare_state_dict_and_safetensors(tmp_path: pathlib.Path) -> None:
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "bare.pth")
    assert open_archive(tmp_path / "bare.pth").keys() == ["weight", "bias"]
    save_file({"a": STATE["a"], "h": STATE["h"]}, tmp_path / "w.safetensors")
    archive = open_archive(tmp_path / "w.safetensors")
    assert archive.shape("h") == (2,)
    assert torch.equal(archive.read("h"), STATE["h"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_told(tmp_path: pathlib.Path, kind: str) -> None:
    path = write(tmp_path / "w.pt", kind, {"model": {"a": STATE["a"]}})
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(CheckpointError, match=r"unreadable|of \d+ bytes of a tensor") as caught:
        open_archive(path).read("a")
    assert "\n" not in str(caught.value)


def test_what_is_no_weight_file_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_archive(tmp_path / "none.pt")
    (tmp_path / "junk.pt").write_bytes(b"hello, this is text")
    with pytest.raises(CheckpointError, match=r"junk\.pt: unreadable"):
        open_archive(tmp_path / "junk.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"hello, this is text")
    with pytest.raises(CheckpointError, match="expected safetensors"):
        open_archive(tmp_path / "junk.safetensors")


PROBE = """
import pathlib, sys
from mmzoo.checkpoints.archives import open_archive
def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")) * 1024
before = peak()
archive = open_archive(pathlib.Path(sys.argv[1]))
kept = {name: archive.read(name) for name in archive.keys()}
print(sum(t.numel() * t.element_size() for t in kept.values()), peak() - before)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize("kind", ["zip", "pickle4"])
def test_peak_memory_is_that_of_the_tensors_kept(tmp_path: pathlib.Path, kind: str) -> None:
    """64 MB of weights beside 128 MB of optimiser state, which must not be read."""
    state = {f"w{i}": torch.rand(1024, 1024) for i in range(16)}
    moments = {f"m{i}": torch.rand(1024, 1024) for i in range(32)}
    path = write(tmp_path / "w.pt", kind, {"optimizer": moments, "model": state, "cfg": argparse.Namespace()})
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=True
    )
    kept, extra = (int(word) for word in done.stdout.split())
    assert kept == 16 * 4 * 1024**2
    assert kept * 0.9 < extra < 1.3 * kept
