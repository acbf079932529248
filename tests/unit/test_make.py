"""Files made of the simulated world are read by every reader and hold what the world says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmzoo.batch import Item, Sample
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.bids import Bids, Unit
from mmzoo.datamodules.five_senses import FiveSenses
from mmzoo.datamodules.make import (
    MIN_SAMPLES,
    Kind,
    Made,
    make,
    see_events,
    write_bids,
    write_ntu,
    write_pyskl,
    write_webdataset,
)
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.shards import Shards
from mmzoo.datamodules.skeletons import Skeletons
from mmzoo.datamodules.world import brain
from mmzoo.datamodules.world.events import ACTIONS
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.fmri import FmriPreprocess
from mmzoo.modalities.motion import SkeletonPreprocess
from mmzoo.modalities.sound import SoundPreprocess, Standardise

COUNT = 24


class Picture(Preprocess):
    """The picture's numbers."""

    def decode(self, data: bytes, name: str) -> Any:
        import io

        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(data)))

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        return Item(torch.tensor(np.asarray(raw)))


class Words(Preprocess):
    """The sentence's bytes."""

    def decode(self, data: bytes, name: str) -> Any:
        return data.decode()

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        return Item(torch.tensor(list(raw.encode())))


def preprocesses() -> dict[str, Preprocess]:
    sound = SoundPreprocess.Config(sample_rate_hz=8000, standardise=Standardise.NONE, min_duration_s=0.0)
    motion = SkeletonPreprocess.Config(num_frames=None, centre=False)
    return {
        "image": Picture(),
        "audio": SoundPreprocess(sound),
        "text": Words(),
        "fmri": FmriPreprocess(FmriPreprocess.Config()),
        "skeleton": SkeletonPreprocess(motion),
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one world of this file is rendered."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def events(cache: Path) -> list[Made]:
    return list(see_events(COUNT, 5, cache))


@pytest.fixture
def world(cache: Path) -> FiveSenses:
    config = FiveSenses.Config(num_events=COUNT, num_val=3, num_test=3, world_seed=5, cache_dir=str(cache))
    return FiveSenses(config, preprocesses())


def samples(data: DataModule) -> dict[str, Sample]:
    sources = [data.source(split) for split in ("train", "val", "test")]
    found = [source.get(i, None) for source in sources for i in range(len(source))]
    return {sample.id.split("/")[-1]: sample for sample in found}


def check_same(found: dict[str, Sample], world: FiveSenses) -> None:
    """Compare files with the world; its scans are of another subject, so scans are only measured."""
    expected = samples(world)
    assert found.keys() == expected.keys()
    for name, sample in found.items():
        for sense in ("image", "text", "audio", "skeleton"):
            if sense not in sample.inputs:
                assert sense == "audio"
                continue
            mine, theirs = sample.inputs[sense], expected[name].inputs[sense]
            torch.testing.assert_close(
                mine.values, theirs.values, rtol=0, atol=2e-4 if sense == "audio" else 0
            )
            if theirs.valid is not None:
                assert mine.valid is not None
                assert mine.valid.equal(theirs.valid)
        subject = sample.inputs["fmri"].subject
        assert subject is not None
        assert sample.inputs["fmri"].values.shape == (brain.SUBJECTS[subject],)
    assert {s.inputs["fmri"].subject for s in found.values()} == set(brain.SUBJECTS)


def test_manifest(tmp_path: Path, world: FiveSenses) -> None:
    said = make("manifest", str(tmp_path / "m"), COUNT, seed=5)
    assert said.startswith("24 rows in manifest.csv")
    data = Manifest(Manifest.Config(path=str(tmp_path / "m/manifest.csv")), preprocesses())
    assert data.info().counts == {"train": 18, "val": 3, "test": 3}
    assert set(data.info().labels) == {"action", "colour", "tempo", "side", "setting"}
    found = samples(data)
    check_same(found, world)
    assert sum("audio" not in s.inputs for s in found.values()) == COUNT // 7


def test_webdataset(tmp_path: Path, events: list[Made], world: FiveSenses) -> None:
    write_webdataset(tmp_path, iter(events))
    options = {"root": str(tmp_path), "train": "train*.tar", "val": "val*.tar", "test": "test*.tar"}
    data = Shards(Shards.Config(**options), preprocesses())
    found: dict[str, Sample] = {}
    for split in ("train", "val", "test"):
        source = data.source(split)
        found |= {(s := source.get(i, None)).id.split("/")[-1]: s for i in range(len(source))}
    check_same(found, world)


def test_skeleton_text_and_pickle_hold_the_same_motions(tmp_path: Path, events: list[Made]) -> None:
    for name, write in (("n", write_ntu), ("p", write_pyskl)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, iter(events))
    prep = {"skeleton": preprocesses()["skeleton"]}
    text = samples(Skeletons(Skeletons.Config(root=str(tmp_path / "n")), prep))
    pickled = samples(Skeletons(Skeletons.Config(root=str(tmp_path / "p/five_senses.pkl")), prep))
    assert text.keys() == pickled.keys()
    assert len(text) == COUNT
    same = 0
    for name in text:
        one, other = text[name].inputs["skeleton"], pickled[name].inputs["skeleton"]
        assert one.valid is not None
        assert other.valid is not None
        order = [1, 0] if not one.valid.equal(other.valid) or not _close(one, other, [0, 1]) else [0, 1]
        same += _close(one, other, order)
    assert same == COUNT


def _close(one: Item, other: Item, order: list[int]) -> bool:
    values = other.values[..., order]
    return values.shape == one.values.shape and bool(torch.allclose(one.values, values, atol=6e-3))


def test_pickle_labels_are_the_actions(tmp_path: Path, events: list[Made]) -> None:
    write_pyskl(tmp_path, iter(events))
    names = {str(i): name for i, name in enumerate(ACTIONS)}
    config = Skeletons.Config(root=str(tmp_path / "five_senses.pkl"), class_names=names)
    for clips in Skeletons(config, {}).parts.values():
        for clip in clips:
            assert int(clip.id[-3:]) - 1 == int(clip.label)


def test_bids_responses_follow_the_simulated_scans(tmp_path: Path, events: list[Made]) -> None:
    write_bids(tmp_path, iter(events))
    config = Bids.Config(root=str(tmp_path), mask="brain", unit=Unit.BLOCK, lag_s=4.0)
    data = Bids(config, {"fmri": FmriPreprocess(FmriPreprocess.Config())})
    assert data.info().subjects == brain.SUBJECTS
    assert sum(data.info().counts.values()) == COUNT
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for split in ("train", "val", "test"):
        source = data.source(split)
        for i, trial in enumerate(data.trials(split)):
            values = source.get(i, None).inputs["fmri"].values.numpy()
            found.setdefault((trial.run.subject, trial.run.number), []).append(values)
    assert len(found) == 4 * 3
    right, wrong = [], []
    for (subject, run), values in found.items():
        truth = [m.senses["fmri"].mean(axis=0) for m in events if m.subject == subject][run - 1 :: 3]
        assert len(truth) == len(values)
        if len(truth) == 1:
            continue
        right += [np.corrcoef(v, t)[0, 1] for v, t in zip(values, truth, strict=True)]
        wrong += [np.corrcoef(v, t)[0, 1] for v, t in zip(values, truth[1:] + truth[:1], strict=True)]
    assert min(right) > 0.5
    assert all(r > w for r, w in zip(right, wrong, strict=True))


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'manifst'; expected a format it can write\. Did you mean 'manifest'"
    ):
        make("manifst", str(tmp_path / "x"), COUNT)
    with pytest.raises(ConfigError) as caught:
        make("zzz", str(tmp_path / "x"), COUNT)
    words = re.findall(r"\w+", str(caught.value))
    assert [words.count(kind.value) for kind in Kind] == [1] * len(Kind)
    with pytest.raises(ConfigError, match=f"data make: 3 samples; expected at least {MIN_SAMPLES}"):
        make("ntu", str(tmp_path / "x"), 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(DataError, match="full: something is there already; expected a new folder"):
        make("ntu", str(tmp_path / "full"), COUNT)
