"""Inspecting a path: format guessed, counts, shapes, classes, faults, and options that really read it."""

from __future__ import annotations

import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from mmzoo import registry, schema
from mmzoo.datamodules.folder import Folder
from mmzoo.datamodules.inspect import hint_labels, inspect_path, open_path
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.shards import Shards
from mmzoo.datamodules.sniff import sniff
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess

Reads = dict[str, Preprocess]


@pytest.fixture
def preprocesses() -> Reads:
    return {k: registry.find("modalities", k).Config().preprocess.build() for k in ("image", "text", "audio")}


def test_a_folder(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(Folder.fake(tmp_path).root)
    (root / "cat" / "00.png").write_bytes(b"broken")
    report = inspect_path(root)
    assert (report.format, report.samples, report.read) == ("folder", 48, 48)
    assert report.splits == {"train": 40, "val": 4, "test": 4}
    assert report.classes == {"label": {"cat": 24, "dog": 24}}
    assert report.modalities["image"].count == 48
    assert report.modalities["image"].shapes == {"12x16": 47}
    assert len(report.faults) == 1
    assert "cat/00.png" in report.faults[0]
    assert json.loads(json.dumps(report.to_dict()))["config"] == {"type": "folder", "root": str(root)}
    text = str(report)
    for part in (
        "folder, 48 samples (train 40",
        "47 of 12x16",
        "2 classes: cat 24, dog 24",
        "1 faults",
        "type: folder",
    ):
        assert part in text


def test_the_options_it_prints_read_the_data(tmp_path: pathlib.Path) -> None:
    for fake in (
        Folder.fake(tmp_path / "a").root,
        Manifest.fake(tmp_path / "b").path,
        Shards.fake(tmp_path / "c").root,
    ):
        report = inspect_path(fake, probes=4)
        options = dict(report.config)
        cls = registry.find("datamodules", options.pop("type"))
        counts = schema.parse(cls.Config, options).build({}).info().counts
        assert sum(counts.values()) == report.samples == 48
        assert report.read <= 6


def test_sounds_texts_and_arrays_are_measured(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(10):
        soundfile.write(tmp_path / f"{i % 2}_{i}.wav", rng.uniform(-0.5, 0.5, 800 + 80 * i), 8000)
        (tmp_path / f"{i % 2}_{i}.txt").write_text("x" * (i + 1))
        np.save(tmp_path / f"{i % 2}_{i}.skeleton.npy", np.zeros((3, 4 + i % 2, 25, 1), np.float32))
        np.save(tmp_path / f"{i % 2}_{i}.fmri.npy", np.zeros(7, np.float32))
    report = inspect_path(tmp_path)
    audio = report.modalities["audio"].numbers
    assert audio["duration_s"] == pytest.approx((0.1, 0.145, 0.19))
    assert audio["sample_rate_hz"] == (8000, 8000, 8000)
    assert report.modalities["text"].numbers["characters"] == (1, 5.5, 10)
    assert report.modalities["text"].example == "x"
    assert report.modalities["skeleton"].shapes == {"3x4x25x1": 5, "3x5x25x1": 5}
    assert report.modalities["fmri"].shapes == {"7": 10}
    assert "duration 0.1 to 0.19 s (median 0.145)" in str(report)
    assert any("(0, 1)" in hint and "(?P<label>" in hint for hint in report.hints)
    guessed = {**report.config, "pattern": report.hints[0].split("'")[1]}
    guessed.pop("type")
    assert Folder(schema.parse(Folder.Config, guessed), {}).info().labels == {"label": ("0", "1")}


def test_formats_are_told_apart(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(Folder.fake(tmp_path).root)
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(root, ".")
    (tmp_path / "tars").mkdir()
    for part in ("train", "test"):
        (tmp_path / "tars" / f"{part}.tar").write_bytes((tmp_path / "pictures.tar").read_bytes())
    manifest = pathlib.Path(Manifest.fake(tmp_path / "m").path)
    shutil.copytree(manifest.parent, tmp_path / "named")
    (tmp_path / "named" / manifest.name).rename(tmp_path / "named" / "manifest.csv")
    shards = pathlib.Path(Shards.fake(tmp_path / "s").root)
    expected = {
        root: ("folder", "folder"),
        tmp_path / "pictures.tar": ("tar", "folder"),
        tmp_path / "tars": ("folder of tars", "folder"),
        root / "cat" / "00.png": ("file", "folder"),
        manifest: ("manifest", "manifest"),
        tmp_path / "named": ("manifest", "manifest"),
        shards: ("webdataset", "webdataset"),
        shards / "train-000001.tar": ("webdataset", "webdataset"),
    }
    assert {p: (sniff(p).format, sniff(p).row) for p in expected} == expected
    assert inspect_path(tmp_path / "tars", probes=2).samples == 96


@pytest.mark.parametrize(("row", "expected"), [("bids", "bids"), ("skeletons", "skeleton file")])
def test_formats_of_other_rows(row: str, expected: str, tmp_path: pathlib.Path) -> None:
    config = registry.find("datamodules", row).fake(tmp_path)
    report = inspect_path(config.root)
    assert report.format == expected
    assert report.config["type"] == row
    assert report.samples > 0
    assert not report.faults


def test_unknown_data_are_one_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.xyz").write_text("?")
    for path in (tmp_path, tmp_path / "x.xyz"):
        with pytest.raises(DataError, match=r"nothing that mmzoo reads; expected images, sounds") as caught:
            inspect_path(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"none: nothing there"):
        inspect_path(tmp_path / "none")


def test_open_path_gives_every_sample_in_one_source(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    root = pathlib.Path(Folder.fake(tmp_path / "a").root)
    source = open_path(root, {"image": preprocesses["image"]})
    assert sorted(source.get(i, None).id for i in range(len(source))) == sorted(
        f"{('cat', 'dog')[i % 2]}/{i:02d}" for i in range(48)
    )
    one = open_path(root / "cat" / "04.png", preprocesses)
    assert len(one) == 1
    same = next(s for i in range(48) if (s := source.get(i, None)).id == "cat/04")
    assert torch.equal(one.get(0, None).inputs["image"].values, same.inputs["image"].values)
    rows = open_path(Manifest.fake(tmp_path / "b").path, preprocesses)
    assert sorted(int(rows.get(i, None).id[1:]) for i in range(len(rows))) == list(range(48))
    shards = open_path(Shards.fake(tmp_path / "c").root, {"text": preprocesses["text"]})
    assert len({shards.get(i, None).id for i in range(48)}) == len(shards) == 48
    with pytest.raises(IndexError):
        rows.get(48, None)
    with pytest.raises(ConfigError, match=r"modalities image; expected one of the model's \(audio\)"):
        open_path(root, {"audio": preprocesses["audio"]})


def test_hints_need_names_of_one_form() -> None:
    assert hint_labels([]) == ()
    assert hint_labels(["abc", "def"]) == ()
    assert hint_labels(["a_1", "b_2_3"]) == ()
    assert len(hint_labels([f"{'ab'[i % 2]}-{i}" for i in range(10)])) == 1


def test_real_data(shared: pathlib.Path) -> None:
    digits = inspect_path(shared / "data" / "fsdd", probes=60)
    assert (digits.samples, digits.format) == (2700, "tar")
    assert digits.modalities["audio"].numbers["sample_rate_hz"] == (8000, 8000, 8000)
    assert len(digits.hints) == 3
    motions = inspect_path(shared / "data" / "cmu_mocap", probes=50)
    assert (motions.samples, motions.config["type"]) == (825, "skeletons")
