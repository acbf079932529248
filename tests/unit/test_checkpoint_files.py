from __future__ import annotations

import json
import pathlib

import pytest
import torch

from mmzoo.checkpoints import files
from mmzoo.errors import CheckpointError


def test_export_round_trip_and_hash(tmp_path: pathlib.Path):
    state = {"a.b": torch.randn(3, 2), "c": torch.arange(4)}
    files.write_export(tmp_path / "e", state, {"architecture": "x"})
    config, read = files.read_export(tmp_path / "e")
    assert config["architecture"] == "x"
    assert config["sha256"] == files.sha256_of(tmp_path / "e" / files.WEIGHTS)
    assert all(torch.equal(read[k], v) for k, v in state.items())
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["config.json", "model.safetensors"]


def test_a_changed_file_is_refused(tmp_path: pathlib.Path):
    folder = files.write_export(tmp_path, {"a": torch.ones(8)}, {})
    data = bytearray((folder / files.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / files.WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 .* expected sha256"):
        files.read_export(folder)


def test_missing_and_malformed_exports_are_one_line(tmp_path: pathlib.Path):
    with pytest.raises(
        CheckpointError, match=r"no config\.json; expected model\.safetensors and config\.json"
    ):
        files.read_export(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        files.read_export(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="unreadable"):
        files.read_export(tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: pathlib.Path):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "touched",))

    torch.save({"mmzoo": Evil(), "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"it asks for .*pathlib"):
        files.read_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "touched").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        files.read_checkpoint(tmp_path / "y.ckpt")
    for noise in (b"", b"PK\x03\x04cut", bytes(range(256))):
        (tmp_path / "noise.ckpt").write_bytes(noise)
        with pytest.raises(CheckpointError) as caught:
            files.read_checkpoint(tmp_path / "noise.ckpt")
        assert str(caught.value).endswith(
            "noise.ckpt: unreadable: damaged, cut short, or no file that torch wrote; expected a torch "
            "checkpoint. Fetch it again, or use another."
        )
    torch.save({"state_dict": {}}, tmp_path / "z.ckpt")
    with pytest.raises(CheckpointError, match="no mmzoo entry"):
        files.read_checkpoint(tmp_path / "z.ckpt")


def test_atomic_write_leaves_nothing_half_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    files.write_atomic(tmp_path / "a", b"old")

    def fail(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_fit_state_reports_what_does_not_fit():
    model = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    fitting, report = files.fit_state({"a": torch.ones(2), "b": torch.ones(4), "d": torch.ones(1)}, model)
    assert list(fitting) == ["a"]
    assert report == {"missing": ["c"], "unexpected": ["d"], "reshaped": ["b"]}
