"""Folders and tars of files: labels, parts, splits, captions, caches, what is said where data are missing."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmzoo import registry, schema
from mmzoo.datamodules.files import kind_of
from mmzoo.datamodules.folder import Folder
from mmzoo.datamodules.loader import LoaderConfig
from mmzoo.datamodules.naming import stem_of
from mmzoo.datamodules.records import Cache, RecordSource
from mmzoo.datamodules.split import SplitConfig, divide
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess

Reads = dict[str, Preprocess]


@pytest.fixture
def preprocesses() -> Reads:
    kinds = {k: registry.find("modalities", k).Config().preprocess for k in ("audio", "text", "fmri")}
    image = registry.find("modalities", "image").Config().preprocess
    return {
        "image": dataclasses.replace(image, size=(16, 16)).build(),
        **{k: c.build() for k, c in kinds.items()},
    }


def folder(root: pathlib.Path, preprocesses: Reads, **options: object) -> Folder:
    return Folder(schema.parse(Folder.Config, {"root": str(root), **options}), preprocesses)


def ids(data: Folder) -> dict[str, list[str]]:
    return {s: [r.id for r in data.source(s).records] for s in ("train", "val", "test")}  # type: ignore[attr-defined]


@pytest.fixture
def pictures(tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(Folder.fake(tmp_path).root)


@pytest.fixture
def digits(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write `digit_speaker_take.wav` files: 3 digits, 4 speakers, 5 takes."""
    root = tmp_path / "digits"
    root.mkdir()
    rng = np.random.default_rng(0)
    for digit in (0, 2, 10):
        for speaker in "abcd":
            for take in range(5):
                soundfile.write(root / f"{digit}_{speaker}_{take}.wav", rng.uniform(-0.1, 0.1, 800), 8000)
    (root / "readme.md").write_text("no data")
    return root


def test_class_folders(pictures: pathlib.Path, preprocesses: Reads) -> None:
    data = folder(pictures, preprocesses)
    info = data.info()
    assert info.labels == {"label": ("cat", "dog")}
    assert info.modalities == ("image",)
    assert info.counts == {"train": 40, "val": 4, "test": 4}
    everything = [i for part in ids(data).values() for i in part]
    assert sorted(everything) == sorted(f"{('cat', 'dog')[i % 2]}/{i:02d}" for i in range(48))
    for split in ("train", "val", "test"):
        source = data.source(split)
        for i in range(len(source)):
            sample = source.get(i, None)
            path = pictures / f"{sample.id}.png"
            expected = preprocesses["image"](np.asarray(Image.open(path)))
            assert torch.equal(sample.inputs["image"].values, expected.values)
            assert sample.targets["label"].item() == ("cat", "dog").index(path.parent.name)


def test_a_tar_gives_the_same_samples_as_its_folder(
    pictures: pathlib.Path, preprocesses: Reads, tmp_path: pathlib.Path
) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.add(pictures, ".")
    loose, packed = folder(pictures, preprocesses), folder(tmp_path / "p.tar", preprocesses)
    assert ids(loose) == ids(packed)
    for a, b in zip(loose.loader("train"), packed.loader("train"), strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.inputs["image"].values, b.inputs["image"].values)


def test_parts_that_the_data_name(pictures: pathlib.Path, preprocesses: Reads) -> None:
    root = pictures.parent
    for part, names in {"train": ["cat", "dog"], "val": ["cat", "dog"]}.items():
        for name in names:
            shutil.copytree(pictures / name, root / "set" / part / name)
    for path in (root / "set" / "val" / "cat").glob("*"):
        path.unlink()
    whole = folder(root / "set", preprocesses)
    assert whole.info().counts == {"train": 44, "val": 4, "test": 24}, "a val part alone is what is reported"
    named = folder(root / "set", preprocesses, train="train", val="val", split={"test_share": 0.25})
    assert named.info().counts == {"train": 36, "val": 24, "test": 12}
    (root / "set" / "test").mkdir()
    shutil.copy(next((pictures / "cat").glob("*")), root / "set" / "test" / "one.png")
    both = folder(root / "set", preprocesses)
    assert both.info().counts == {"train": 48, "val": 24, "test": 1}
    assert "label" not in both.source("test").get(0, None).targets


def test_labels_and_groups_from_file_names(digits: pathlib.Path, preprocesses: Reads) -> None:
    options = {
        "pattern": r"(?P<label>\d+)_(?P<speaker>\w)_",
        "targets": ["label", "speaker"],
        "class_names": {"10": "ten", "0": "zero", "2": "two"},
        "split": {"by": "speaker", "test_groups": ["c"], "val_share": 0.2},
    }
    data = folder(digits, preprocesses, **options)
    assert data.info().labels == {"label": ("ten", "zero", "two"), "speaker": ("a", "b", "c", "d")}
    speakers = {s: {i.split("_")[1] for i in names} for s, names in ids(data).items()}
    assert speakers["test"] == {"c"}
    assert len(speakers["val"]) == 1
    assert not speakers["val"] & speakers["train"]
    sample = data.source("test").get(0, None)
    assert sample.targets["speaker"].item() == 2
    assert sample.inputs["audio"].values.ndim == 1
    plain = folder(digits, preprocesses, pattern=r"(?P<label>\d+)_")
    assert plain.info().labels == {"label": ("0", "2", "10")}, "natural order"


def test_splits_hold_each_class_and_do_not_depend_on_the_runs_seed(
    digits: pathlib.Path, preprocesses: Reads
) -> None:
    options = {"pattern": r"(?P<label>\d+)_"}
    data = folder(digits, preprocesses, **options)
    shares = {s: Counter(i.split("_")[0] for i in names) for s, names in ids(data).items()}
    assert shares["test"] == {"0": 2, "2": 2, "10": 2}
    assert shares["val"] == {"0": 2, "2": 2, "10": 2}
    assert ids(Folder(data.config, preprocesses, seed=5)) == ids(data)
    assert ids(folder(digits, preprocesses, **options, split={"seed": 1})) != ids(data)


def test_captions(pictures: pathlib.Path, preprocesses: Reads) -> None:
    captions = ["a photo of a {label}", "one {label}", "{label}!"]
    data = folder(pictures, preprocesses, captions=captions, class_names={"cat": "sea_lion"})
    assert data.info().modalities == ("image", "text")
    source = data.source("train")
    at = next(i for i in range(len(source)) if source.records[i].id.startswith("cat"))
    wanted = [preprocesses["text"](t.format(label="sea lion")).values.tolist() for t in captions]
    assert source.get(at, None).inputs["text"].values.tolist() == wanted[0]
    drawn = Counter(
        wanted.index(source.get(at, torch.Generator().manual_seed(s)).inputs["text"].values.tolist())
        for s in range(200)
    )
    assert all(40 < drawn[i] < 100 for i in range(3))


def test_files_of_one_stem_are_one_sample(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    root = tmp_path / "both"
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"number {i}")
        np.save(path.with_suffix(".fmri.npy"), rng.normal(size=7 + i % 2).astype(np.float32))
    data = folder(root, preprocesses, pattern=r"(?P<label>.)/(?P<subject>\d+)")
    assert data.info().subjects == {str(i): 7 + i % 2 for i in range(12)}
    sample = data.source("train").get(0, None)
    assert set(sample.inputs) == {"image", "text", "fmri"}
    assert sample.inputs["fmri"].subject == sample.id.split("/")[1]
    assert sum(data.info().counts.values()) == 12


def test_unnamed_arrays_are_told_by_their_axes(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    for name, shape in (("scans", (6,)), ("motions", (3, 4, 25, 1))):
        (tmp_path / name).mkdir()
        for i in range(4):
            np.save(tmp_path / name / f"sub-0{i}.npy", np.ones(shape, np.float32))
    assert folder(tmp_path / "scans", preprocesses).info().modalities == ("fmri",)
    assert folder(tmp_path / "motions", {}).info().modalities == ("skeleton",)
    brain = {"brain": preprocesses["fmri"]}
    data = folder(tmp_path / "scans", brain, modality="brain")
    assert data.info().subjects == {f"sub-0{i}": 6 for i in range(4)}


@pytest.mark.parametrize("cache", list(Cache))
def test_a_corrupt_file_is_skipped_and_named(
    cache: Cache,
    pictures: pathlib.Path,
    preprocesses: Reads,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (pictures / "cat" / "02.png").write_bytes(b"\x89PNG no more")
    data = folder(pictures, preprocesses, split={"test_share": 0.0, "val_share": 0.0}, cache=cache.value)
    data.config.loader = LoaderConfig(batch_size=8, drop_last=False)
    with caplog.at_level(logging.WARNING):
        first, second = ([i for b in data.loader("train") for i in b.ids] for _ in range(2))
    assert sorted(first) == sorted(second)
    assert len(first) == 47
    assert "cat/02" not in first
    assert ["cat/02.png" in r.getMessage() for r in caplog.records if "skipped" in r.getMessage()] == [True]


def test_caches_change_nothing_but_reading(pictures: pathlib.Path, preprocesses: Reads) -> None:
    expected = [b.inputs["image"].values for b in folder(pictures, preprocesses).loader("train")]
    for cache in ("bytes", "decoded"):
        source = folder(pictures, preprocesses, cache=cache).source("train")
        for path in pictures.rglob("*.png"):
            path.rename(path.with_suffix(".away"))
        got = torch.stack([source.get(i, None).inputs["image"].values for i in range(len(source))])
        for path in pictures.rglob("*.away"):
            path.rename(path.with_suffix(".png"))
        plain = folder(pictures, preprocesses).source("train")
        assert torch.equal(
            got, torch.stack([plain.get(i, None).inputs["image"].values for i in range(len(plain))])
        )
        loader = folder(pictures, preprocesses, cache=cache, loader={"num_workers": 2}).loader("train")
        assert all(torch.equal(a, b.inputs["image"].values) for a, b in zip(expected, loader, strict=True))


def test_missing_data_are_one_line_that_says_how_to_get_them(preprocesses: Reads) -> None:
    with pytest.raises(DataError) as caught:
        folder(pathlib.Path("nowhere"), preprocesses, get="Fetch it from example.org.").info()
    assert str(caught.value) == "nowhere: nothing there; expected the data set. Fetch it from example.org."
    with pytest.raises(DataError, match=r"MMZOO_DATA, else \./data"):
        folder(pathlib.Path("nowhere"), preprocesses).info()


def test_what_does_not_fit_is_said(pictures: pathlib.Path, preprocesses: Reads) -> None:
    with pytest.raises(DataError, match=r"no such file; expected images, .* that match 'x\+y'"):
        folder(pictures, preprocesses, pattern="x+y", targets=[]).info()
    with pytest.raises(ConfigError, match=r"modalities image; expected one of the model's \(audio\)"):
        folder(pictures, {"audio": preprocesses["audio"]}).info()
    with pytest.raises(DataError, match=r"a \.png file; expected a folder or a \.tar"):
        folder(pictures / "cat" / "00.png", preprocesses).info()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"pattern": "("},
            "pattern: '(' (missing ), unterminated subpattern at position 0); expected a regular expression",
        ),
        (
            {"targets": ["lable"]},
            "targets: 'lable'; expected a named group of the pattern (label). Did you mean 'label'?",
        ),
        (
            {"captions": ["a {speaker}"], "pattern": "(?P<label>.)"},
            "captions: 'speaker'; expected a named group",
        ),
        ({"split": {"by": "speaker"}}, "split.by: 'speaker'; expected a named group"),
        ({"split": {"val_share": 1.0}}, "split.val_share: 1; expected a share of at least 0 and under 1"),
        ({"split": {"val_groups": ["a"]}}, "split.by: empty; expected the name of the groups"),
        ({"cache": "ram"}, "cache: str 'ram'; expected one of none, bytes, decoded"),
    ],
)
def test_wrong_options_are_said(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.parse(Folder.Config, {"root": "x", **options})
    assert line in str(caught.value)


def test_divide_against_counting() -> None:
    strata = ["a"] * 50 + ["b"] * 11 + ["c"]
    parts = divide(strata, None, SplitConfig(val_share=0.2, test_share=0.1))
    assert sorted(i for rows in parts.values() for i in rows) == list(range(62))
    count = {s: Counter(strata[i] for i in rows) for s, rows in parts.items()}
    assert count["test"] == {"a": 5, "b": 1}
    assert count["val"] == {"a": 9, "b": 2}
    with pytest.raises(ConfigError, match=r"no speaker 'z'; expected a speaker of the data"):
        divide(strata, strata, SplitConfig(by="speaker", test_groups=["z"]))


def test_names_tell_kinds_and_stems() -> None:
    kinds = {
        "a/b.JPG": "image",
        "x.flac": "audio",
        "n.txt": "text",
        "a.fmri.npy": "fmri",
        "skeleton.npy": "skeleton",
    }
    assert {n: kind_of(n) for n in kinds} == kinds
    assert kind_of("x.npy") is None
    assert kind_of("no_extension") is None
    assert [stem_of(n) for n in ("a/1.jpg", "a/1.fmri.npy", "a.b/c", "x.y.png")] == [
        "a/1",
        "a/1",
        "a.b/c",
        "x.y",
    ]


def test_real_tars(shared: pathlib.Path, preprocesses: Reads) -> None:
    data = folder(shared / "data" / "cifar10", preprocesses, train="val.tar")
    info = data.info()
    assert info.counts == {"train": 1620, "val": 180, "test": 200}
    assert info.labels["label"][:2] == ("airplane", "automobile")
    assert isinstance(data.source("val"), RecordSource)
    batch = next(iter(data.loader("test"))).validate()
    assert batch.inputs["image"].values.shape == (64, 3, 16, 16)
    spoken = folder(
        shared / "data" / "fsdd" / "recordings.tar",
        preprocesses,
        pattern=r"(?P<label>\d)_(?P<speaker>[a-z]+)_",
    )
    assert spoken.info().labels["label"] == tuple("0123456789")
    assert spoken.info().counts == {"train": 2190, "val": 240, "test": 270}
