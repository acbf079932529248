"""The five_senses data set: cache, samples, missing modalities, subjects; slow: what can be learnt."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.datamodules.five_senses import FiveSenses, Keep, Scanned
from mmzoo.datamodules.world import brain, cache
from mmzoo.datamodules.world.events import ATTRIBUTES, SENSES, SPLITS
from mmzoo.datamodules.world.render import Renderer, chunks, voxel_slices
from mmzoo.errors import ConfigError, DataError
from mmzoo.home import home
from mmzoo.modalities.base import Preprocess


class AsIs(Preprocess):
    """Hands over what it gets, and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, raw, *, generator=None):
        self.calls += 1
        if isinstance(raw, str):
            return Item(torch.tensor(list(raw.encode())))
        if hasattr(raw, "subject"):
            return Item(torch.as_tensor(raw.values), subject=raw.subject)
        values = torch.as_tensor(raw[0] if isinstance(raw, tuple) else raw)
        return Item(torch.nan_to_num(values.float()))


def as_is(names=SENSES):
    return {name: AsIs() for name in names}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return FiveSenses.fake(tmp_path_factory.mktemp("world"))


def test_info_says_what_there_is_without_rendering(tmp_path):
    info = FiveSenses(FiveSenses.Config(cache_dir=str(tmp_path)), {}).info()
    assert dict(info.labels) == ATTRIBUTES
    assert dict(info.subjects) == {"sub-01": 472, "sub-02": 430, "sub-05": 391, "sub-07": 380}
    assert info.modalities == SENSES
    assert dict(info.counts) == {"train": 3584, "val": 256, "test": 256}
    assert not list(tmp_path.iterdir())


def test_samples_hold_every_sense_and_label(config):
    source = FiveSenses(config, as_is()).source("test")
    sample = source.get(1, None).validate()
    event = source.events[1]
    assert sample.id == "test-00001"
    assert {m: tuple(i.values.shape) for m, i in sample.inputs.items() if m not in ("text", "fmri")} == {
        "image": (32, 32, 3), "audio": (10240,), "skeleton": (3, 32, 25, 2),
    }  # fmt: skip
    scan = sample.inputs["fmri"]
    assert tuple(scan.values.shape) == (3, brain.SUBJECTS[scan.subject])
    assert {k: int(v) for k, v in sample.targets.items()} == {k: getattr(event, k) for k in ATTRIBUTES}
    assert all(v.dtype == torch.int64 for v in sample.targets.values())


def test_arrays_are_what_the_renderer_makes(config):
    renderer = Renderer(config)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        arrays = cache.open_world(config, split, cache.Path(config.cache_dir))
        assert {len(values) for values in arrays.values()} == {count}
        for row, events in chunks(config, split):
            for name, values in renderer(events).items():
                expected = values.astype(arrays[name].dtype)
                np.testing.assert_array_equal(arrays[name][row : row + len(events)], expected)


def test_a_split_is_rendered_without_the_others(config, tmp_path):
    FiveSenses(dataclasses.replace(config, cache_dir=str(tmp_path)), {}).source("test")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [
        cache.world_folder(config, "test", tmp_path).name
    ]


def test_a_world_is_rendered_once_and_found_again(config, tmp_path, monkeypatch):
    folder = cache.world_folder(config, "train", tmp_path)
    monkeypatch.setattr(cache, "render_share", lambda unfinished, share, of: calls.append(unfinished))
    calls = []
    for _ in range(2):
        arrays = cache.open_world(config, "train", tmp_path)
    assert len(calls) == 1
    assert calls[0].parent == folder.parent
    assert not calls[0].exists(), "the temporary folder was renamed"
    assert arrays["image"].shape == (12, 32, 32, 3)
    saved = json.loads((folder / "options.json").read_text())
    assert saved == {"split": "train", "world": cache.world_options(config)}
    other = dataclasses.replace(config, world_seed=1)
    assert cache.world_folder(other, "train", tmp_path) != folder
    shown = dataclasses.replace(config, missing_prob=0.5, num_captions=2)
    assert cache.world_folder(shown, "train", tmp_path) == folder, "how a world is shown does not change it"


def test_a_failed_rendering_leaves_nothing_behind(config, tmp_path, monkeypatch):
    def fail(folder, share, of):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "render_share", fail)
    with pytest.raises(KeyboardInterrupt):
        cache.open_world(config, "train", tmp_path)
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_a_failed_worker_is_named(tmp_path):
    with pytest.raises(DataError, match="a rendering process ended with 1"):
        cache._run_workers(tmp_path, 1)


def test_workers_render_the_same_bits_as_one_process(config, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SMALL", 0)
    monkeypatch.setattr(cache, "_workers", lambda: 2)
    roots = (cache.Path(config.cache_dir), tmp_path)
    first, second = (cache.open_world(config, "train", root) for root in roots)
    for name in ("image", "audio", "skeleton"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_allclose(first["fmri"], second["fmri"], atol=2e-3)


def test_an_unwritable_cache_is_an_error(config, tmp_path):
    (tmp_path / "file").write_text("")
    broken = dataclasses.replace(config, cache_dir=str(tmp_path / "file" / "x"))
    with pytest.raises(DataError, match="Set MMZOO_HOME to a folder with space"):
        FiveSenses(broken, {}).source("val")


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("MMZOO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "mmzoo"


def test_training_draws_subject_and_phrasing_evaluation_does_not(config):
    source = FiveSenses(config, as_is(("text", "fmri"))).source("train")
    draws = [source.get(0, torch.Generator().manual_seed(s)).inputs for s in range(30)]
    assert {d["fmri"].subject for d in draws} == set(brain.SUBJECTS)
    assert len({tuple(d["text"].values.tolist()) for d in draws}) > 3
    again = source.get(0, torch.Generator().manual_seed(3)).inputs
    assert torch.equal(again["text"].values, draws[3]["text"].values)
    fixed = [source.get(0, None).inputs for _ in range(3)]
    assert len({(d["fmri"].subject, tuple(d["text"].values.tolist())) for d in fixed}) == 1


def test_all_subjects_as_samples_of_their_own(config):
    every = dataclasses.replace(config, scanned=Scanned.ALL)
    data = FiveSenses(every, as_is(("fmri", "image")))
    source = data.source("train")
    assert len(source) == data.info().counts["train"] == 12 * 4
    samples = [source.get(i, None) for i in range(4, 8)]
    assert [s.inputs["fmri"].subject for s in samples] == list(brain.SUBJECTS)
    assert len({s.id for s in samples}) == 4
    assert all(torch.equal(s.inputs["image"].values, samples[0].inputs["image"].values) for s in samples)
    assert len(data.source("test")) == 4
    assert len(FiveSenses(every, as_is(("image",))).source("train")) == 12


def test_scans_are_the_subjects_columns(config):
    source = FiveSenses(config, as_is()).source("val")
    whole = source._arrays["fmri"][2]
    columns = voxel_slices()["sub-05"]
    np.testing.assert_array_equal(source.raw("fmri", 2, 2).values, whole[:, columns])
    assert (columns.start, columns.stop) == (902, 1293)


@pytest.mark.parametrize("least", [1, 2])
def test_missing_modalities(config, least):
    some = dataclasses.replace(
        config, num_events=2000, num_val=8, num_test=8, missing_prob=0.6, min_modalities=least
    )
    present = _present(some, "train")
    assert present.sum(axis=1).min() == least
    # with k of 5 kept at least: expected share = 1 - p + what the floor gives back
    rng = np.random.default_rng(0)
    free = rng.random((200_000, 5)) >= 0.6
    expected = np.maximum(free.sum(axis=1), least).mean() / 5
    assert abs(present.mean() - expected) < 0.02
    np.testing.assert_array_equal(_present(some, "train"), present)
    assert _present(some, "test").all()


def _present(config, split):
    """Return which senses each event has, without rendering a world."""
    from mmzoo.datamodules.five_senses import EventSource
    from mmzoo.datamodules.world.render import shapes

    arrays = {name: np.empty((config.num_events, 0)) for name in shapes(config, split)}
    return EventSource(config, split, arrays, as_is())._present


def test_a_model_of_two_senses_keeps_its_own(config):
    some = dataclasses.replace(config, missing_prob=0.9)
    source = FiveSenses(some, as_is(("text", "fmri"))).source("train")
    assert all(set(source.get(i, None).inputs) == {"text", "fmri"} for i in range(len(source)))
    single = FiveSenses(dataclasses.replace(some, min_modalities=1), as_is(("text", "fmri"))).source("train")
    assert {len(single.get(i, None).inputs) for i in range(len(single))} == {1}


@pytest.mark.parametrize(("keep", "calls"), [(Keep.NONE, 4), (Keep.EVAL, 3), (Keep.ALL, 1)])
def test_kept_inputs_are_not_preprocessed_again(config, keep, calls):
    preprocesses = as_is(("image",))
    source = FiveSenses(dataclasses.replace(config, keep=keep), preprocesses).source("train")
    generators = (None, torch.Generator(), None, torch.Generator())
    values = [source.get(0, g).inputs["image"].values for g in generators]
    assert all(torch.equal(v, values[0]) for v in values)
    assert preprocesses["image"].calls == calls


def test_batches_come_out_of_the_loaders(config):
    data = FiveSenses(dataclasses.replace(config, missing_prob=0.5), as_is(), seed=3)
    data.config.loader.batch_size = 6
    batches = list(data.train_dataloader())
    assert sum(len(b.validate()) for b in batches) == 12
    assert all(set(b.targets) == set(ATTRIBUTES) for b in batches)


def test_noise_ceiling_is_the_formula(config):
    ncsnr = brain.make_subject("sub-02", config.world_seed, config.ncsnr).ncsnr
    expected = ncsnr**2 / (ncsnr**2 + 1 / 3)
    np.testing.assert_allclose(FiveSenses(config, {}).noise_ceiling("sub-02"), expected)


def test_config_round_trip(config):
    assert schema.parse(FiveSenses.Config, config.to_dict()) == config


def test_wrong_names_are_told(config):
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        FiveSenses(config, {}).source("tset")
    with pytest.raises(ConfigError, match=r"the model wants 'images'.*Did you mean 'image'"):
        FiveSenses(config, {"images": AsIs()}).source("val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing_prob": 1.0}, "missing_prob: 1; expected at least 0, below 1"),
        ({"min_modalities": 6}, "min_modalities: 6; expected 1 to 5"),
        ({"num_captions": 0}, "num_captions: 0; expected at least 1"),
        (
            {"missing_splits": ["tran"]},
            "missing_splits: 'tran'; expected names of splits. Did you mean 'train'",
        ),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError) as error:
        FiveSenses.Config(**options)
    assert str(error.value).startswith(message)


def test_the_world_needs_no_torch():
    code = "import sys, mmzoo.datamodules.world.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_every_attribute_can_be_read_from_every_sense(tmp_path):
    """A ridge on raw features finds each attribute well above chance, on combinations never seen.

    A still picture shows one instant of an action: of 16 the ridge names a third, five times chance.
    """
    data = FiveSenses(FiveSenses.Config(num_events=2000, cache_dir=str(tmp_path)), {})
    sources = {split: data.source(split) for split in SPLITS}
    for sense in SENSES:
        train, test = (_features(sources[s], sense) for s in ("train", "test"))
        mean, deviation = train.mean(0), train.std(0) + 1e-3
        x, z = (train - mean) / deviation, (test - mean) / deviation
        gram = x @ x.T
        gram.diagonal().add_(0.02 * gram.diagonal().mean())
        for name, values in ATTRIBUTES.items():
            truth = [torch.tensor([getattr(e, name) for e in sources[s].events]) for s in ("train", "test")]
            hot = torch.nn.functional.one_hot(truth[0], len(values)).float() - 1 / len(values)
            guess = (z @ x.T @ torch.linalg.solve(gram, hot)).argmax(1)
            accuracy = float((guess == truth[1]).float().mean())
            assert accuracy > 1 / len(values) + 0.25 * (1 - 1 / len(values)), (
                f"{sense}: {name} {accuracy:.2f}"
            )


def _features(source, sense):
    raws = [source.raw(sense, i) for i in range(len(source))]
    if sense == "text":
        words = {w: k for k, w in enumerate(sorted({w for r in raws for w in r.lower().split()}))}
        rows = torch.zeros(len(raws), 4096)
        for row, text in zip(rows, raws, strict=True):
            row[[sum(map(ord, w)) * 31 % 4096 for w in text.lower().strip(".").split() if w in words]] = 1.0
        return rows
    if sense == "fmri":
        return torch.stack([torch.as_tensor(r.values).mean(0) for r in raws])
    if sense == "audio":
        waves = torch.stack([torch.as_tensor(r[0]) for r in raws])
        spectra = torch.stft(waves, 256, 256, window=torch.hann_window(256), return_complex=True).abs()
        level = torch.log(spectra + 1e-2)
        rhythm = torch.fft.rfft(level, dim=-1).abs()[..., 1:12]
        return torch.cat([level.mean(-1), rhythm.flatten(1)], dim=1)
    values = torch.stack([torch.as_tensor(r).float() for r in raws])
    if sense == "image":
        return torch.nn.functional.avg_pool2d(values.permute(0, 3, 1, 2) / 255.0, 2).flatten(1)
    values = torch.nan_to_num(values - values[:, :, :1, 1:2, :1])
    rhythm = torch.fft.rfft(values, dim=2).abs()[:, :, 1:8]
    return torch.cat([values.flatten(1), rhythm.flatten(1)], dim=1)
