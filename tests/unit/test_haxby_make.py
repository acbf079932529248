"""Scans of new people in Haxby's layout: read by its recipe, none of the world's, true to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmzoo import recipe
from mmzoo.datamodules import haxby_make
from mmzoo.datamodules.bids import Bids
from mmzoo.datamodules.haxby_make import (
    BLOCK,
    CATEGORIES,
    NCSNR,
    new_subjects,
    world_subjects,
    write_haxby,
)
from mmzoo.datamodules.make import make
from mmzoo.datamodules.world import brain
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.fmri import FmriPreprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("people") / "new"
    assert make("haxby", str(path), 12, seed=3).startswith(
        "3 runs of 4 people, 8 categories; voxels: sub001 "
    )
    return path


def read(folder: Path) -> Bids:
    config = recipe.load("haxby", [f"data.root={folder}", "data.test_runs=[3]", "data.val_runs=[2]"])
    return Bids(config.data, {"fmri": FmriPreprocess(FmriPreprocess.Config())})


def test_the_recipe_reads_them_as_it_reads_haxby(folder: Path) -> None:
    data = read(folder)
    info = data.info()
    assert set(info.labels["label"]) == set(CATEGORIES)
    assert info.counts == dict.fromkeys(("train", "val", "test"), 4 * len(CATEGORIES) * BLOCK)
    assert info.subjects == {p.name: len(p.roi) for p in new_subjects(3, 4)}


def test_volumes_tell_categories_apart_in_other_runs(folder: Path) -> None:
    data = read(folder)
    means: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for split in ("train", "test"):
        source = data.source(split)
        seen: dict[tuple[str, str], list[np.ndarray]] = {}
        for i, trial in enumerate(data.trials(split)):
            values = source.get(i, None).inputs["fmri"].values.numpy()
            seen.setdefault((trial.run.subject, trial.label), []).append(values)
        means[split] = {key: np.mean(found, axis=0) for key, found in seen.items()}
    right = 0
    for (person, label), pattern in means["test"].items():
        own = {k[1]: np.corrcoef(pattern, mean)[0, 1] for k, mean in means["train"].items() if k[0] == person}
        right += max(own, key=lambda name: own[name]) == label
    assert right >= 16  # of 32; by chance 4, and not all: blocks show other pictures, and volumes are noisy
    assert right < 32


def test_people_are_new_and_depend_on_the_seed_alone() -> None:
    one, same, other = new_subjects(0, 2), new_subjects(0, 2), new_subjects(1, 2)
    np.testing.assert_array_equal(one[1].tuning, same[1].tuning)
    assert one[0].fields.shape != other[0].fields.shape or (one[0].fields != other[0].fields).any()
    known = [brain.make_subject(name, 0, 1.0) for name in brain.SUBJECTS]
    fewest = min(len(p.roi) for p in [*one, *known])
    for person in one:
        for world in known:
            assert abs(np.corrcoef(person.ncsnr[:fewest], world.ncsnr[:fewest])[0, 1]) < 0.5
    assert all(350 <= len(p.roi) <= 480 for p in one)


def test_known_people_are_those_of_the_shipped_weights(tmp_path: Path) -> None:
    assert make("haxby_known", str(tmp_path / "known"), 12).startswith("3 runs of 4 people, 8 categories")
    assert read(tmp_path / "known").info().subjects == brain.SUBJECTS
    for person, name in zip(world_subjects(), brain.SUBJECTS, strict=True):
        known = brain.make_subject(name, 0, 1.0)
        for field in ("fields", "channels", "tuning", "mixing"):
            np.testing.assert_array_equal(getattr(person, field), getattr(known, field))
        np.testing.assert_allclose(np.median(person.ncsnr) / np.median(known.ncsnr), NCSNR, rtol=1e-6)


def test_noise_has_the_sizes_it_says() -> None:
    person = new_subjects(0, 1)[0]
    silent = np.zeros((8, BLOCK, haxby_make.EXEMPLARS, len(person.roi)))
    values = haxby_make._run(person, silent, np.arange(8), np.random.default_rng(0))
    time = np.linspace(-1.0, 1.0, len(values))
    line = np.polynomial.polynomial.polyfit(time, values, 1)
    noise = values - np.polynomial.polynomial.polyval(time, line).T
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    following = [np.corrcoef(v[1:], v[:-1])[0, 1] for v in noise.T]
    assert np.mean(following) == pytest.approx(haxby_make.AUTOCORRELATION, abs=0.05)
    shared = np.corrcoef(noise.T)[np.triu_indices(noise.shape[1], 1)]
    assert shared.mean() == pytest.approx(haxby_make.SHARED**2, abs=0.05)


def test_refusals(tmp_path: Path) -> None:
    for runs in (8, 13):
        with pytest.raises(ConfigError, match=f"{runs} runs; expected a multiple of 4, at least 12"):
            write_haxby(tmp_path / "x", runs)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="something is there already"):
        write_haxby(tmp_path, 12)
