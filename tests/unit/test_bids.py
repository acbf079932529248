"""fMRI on disk: layouts, masks, lag, normalisation and splits against slow formulas; Haxby's real runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.datamodules import scan_files, scans
from mmzoo.datamodules.bids import Bids, Normalise, Unit, leave_one_run_out
from mmzoo.datamodules.scans import Event
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.fmri import FmriPreprocess


class Words(Preprocess):
    """Keeps the bytes of a sentence."""

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        return Item(torch.tensor(list(raw.encode())))


@pytest.fixture
def small(tmp_path: Path) -> Bids.Config:
    return Bids.fake(tmp_path)


def data(config: Bids.Config, **changes: Any) -> Bids:
    made = dataclasses.replace(config, **changes)
    return Bids(made, {"fmri": FmriPreprocess(FmriPreprocess.Config()), "text": Words()})


def samples(module: Bids, split: str) -> list[Any]:
    source = module.source(split)
    return [source.get(i, None) for i in range(len(source))]


def slow_volumes(config: Bids.Config, subject: str, run: int) -> np.ndarray:
    """Voxels of the mask, each a straight line taken away, by numpy.polyfit."""
    folder = Path(config.root) / subject
    mask = np.asarray(nibabel.load(folder / "masks/roi.nii.gz").dataobj) > 0
    grid = nibabel.load(folder / f"func/{subject}_task-view_run-{run}_bold.nii.gz").get_fdata()
    values = np.stack([grid[x, y, z] for x, y, z in np.argwhere(mask)], axis=1)
    time = np.arange(len(values))
    return values - np.stack([np.polyval(np.polyfit(time, v, 1), time) for v in values.T], axis=1)


@pytest.mark.parametrize("normalise", list(Normalise))
def test_values_are_detrended_and_scaled_by_the_volumes_that_may_be_used(
    small: Bids.Config, normalise: Normalise
) -> None:
    module = data(small, normalise=normalise)
    found = {s.id: s for s in samples(module, "test")}
    for subject in ("sub-01", "sub-02"):
        training = np.concatenate([slow_volumes(small, subject, r) for r in (1, 2)])
        test = slow_volumes(small, subject, 4)
        scale = {Normalise.TRAIN: training, Normalise.RUN: test}.get(normalise)
        expected = test if scale is None else (test - scale.mean(0)) / scale.std(0)
        mine = {k: v for k, v in found.items() if k.startswith(subject)}
        assert len(mine) == 4 * 4
        for key, sample in mine.items():
            item = sample.inputs["fmri"]
            assert item.subject == subject
            volume = int(key.rsplit("/", 1)[1])
            np.testing.assert_allclose(item.values.numpy(), expected[volume], rtol=1e-3, atol=2e-4)


def test_training_statistics_ignore_held_out_runs(small: Bids.Config) -> None:
    before = [s.inputs["fmri"].values for s in samples(data(small), "train")]
    for run in (3, 4):
        path = Path(small.root) / f"sub-01/func/sub-01_task-view_run-{run}_bold.nii.gz"
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(image.get_fdata() ** 2, image.affine, image.header), path)
    after = [s.inputs["fmri"].values for s in samples(data(small), "train")]
    assert len(before) == len(after) == 2 * 2 * 16
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_labels_come_with_the_lag_and_rest_has_none(small: Bids.Config) -> None:
    module = data(small, lag_s=4.0)
    names = module.info().labels["label"]
    assert names == ("cat", "house")
    events = scans.read_events(
        Path(small.root) / "sub-01/func/sub-01_task-view_run-4_events.tsv", "trial_type"
    )
    expected = {
        f"sub-01/sub-01_task-view_run-4_bold/{v:04d}": e.label
        for v in range(50)
        for e in events
        if e.onset_s + 4.0 <= v * 2.0 < e.onset_s + e.duration_s + 4.0
    }
    found = {
        s.id: names[int(s.targets["label"])] for s in samples(module, "test") if s.id.startswith("sub-01")
    }
    assert found == expected
    without = data(small, exclude=["cat"])
    assert without.info().labels["label"] == ("house",)
    assert without.info().counts == {"train": 32, "val": 16, "test": 16}


def test_a_block_is_the_mean_of_its_volumes(small: Bids.Config) -> None:
    volumes = {s.id: s.inputs["fmri"].values for s in samples(data(small), "val")}
    blocks = samples(data(small, unit=Unit.BLOCK), "val")
    assert len(blocks) == 2 * 4
    for block in blocks:
        run, first = block.id.rsplit("/", 1)
        mean = torch.stack([volumes[f"{run}/{int(first) + k:04d}"] for k in range(4)]).mean(0)
        torch.testing.assert_close(block.inputs["fmri"].values, mean)


def test_splits_name_runs_of_every_subject(small: Bids.Config) -> None:
    module = data(small, test_runs=[1], val_runs=[3])
    runs = {s: {t.run.number for t in module.trials(s)} for s in ("train", "val", "test")}
    assert runs == {"train": {2, 4}, "val": {3}, "test": {1}}
    assert data(small).info().counts == {"train": 64, "val": 32, "test": 32}
    folds = leave_one_run_out(small, 4)
    assert [(f.test_runs, f.val_runs) for f in folds] == [([1], [4]), ([2], [1]), ([3], [2]), ([4], [3])]
    with pytest.raises(DataError, match=r"test_runs of sub-01: \[9\] \(the subject has 4 runs\)"):
        data(small, test_runs=[9]).info()
    with pytest.raises(ConfigError, match=r"val_runs: \[2\] are in test_runs too"):
        data(small, test_runs=[1, 2], val_runs=[2])


def test_info_and_captions(small: Bids.Config) -> None:
    captions = ["a scan of a {label}", "brain, {label}"]
    module = data(small, captions=captions, class_names={"cat": "tabby_cat"})
    info = module.info()
    assert info.subjects == {"sub-01": 12, "sub-02": 9}
    assert info.modalities == ("fmri", "text")
    assert info.labels == {"label": ("house", "tabby_cat")}
    source, generator = module.source("train"), torch.Generator().manual_seed(0)
    drawn = {bytes(source.get(0, generator).inputs["text"].values.tolist()).decode() for _ in range(20)}
    name = module.trials("train")[0].label.replace("_", " ")
    assert drawn == {f"a scan of a {name}", f"brain, {name}"}
    assert bytes(source.get(0, None).inputs["text"].values.tolist()).decode() == f"a scan of a {name}"
    only = Bids(small, {"text": Words()}).source("val").get(0, None)
    assert set(only.inputs) == {"text"}
    with pytest.raises(ConfigError, match=r"captions: 'a cat'; expected a sentence with \{label\}"):
        dataclasses.replace(small, captions=["a cat"])
    assert schema.parse(Bids.Config, small.to_dict()) == small


def test_values_return_to_their_voxels(small: Bids.Config) -> None:
    module = data(small)
    image = module.to_image("sub-02", np.arange(1.0, 10.0, dtype=np.float32))
    mask = nibabel.load(Path(small.root) / "sub-02/masks/roi.nii.gz")
    np.testing.assert_array_equal(image.affine, mask.affine)
    found = np.asarray(image.dataobj)
    np.testing.assert_array_equal(found[np.asarray(mask.dataobj) > 0], np.arange(1.0, 10.0))
    assert np.count_nonzero(found) == 9


def test_without_a_mask_the_bright_voxels_that_vary_count(small: Bids.Config) -> None:
    found = data(small, mask="").subjects["sub-01"].mask
    expected = np.asarray(nibabel.load(Path(small.root) / "sub-01/masks/roi.nii.gz").dataobj) > 0
    np.testing.assert_array_equal(found, expected)


def test_masks_that_miss_or_do_not_fit(small: Bids.Config) -> None:
    with pytest.raises(DataError, match=r"mask of sub-01: no mask 'rio'; .* Did you mean 'roi'\?"):
        data(small, mask="rio").info()
    path = Path(small.root) / "sub-01/masks/other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), path)
    with pytest.raises(
        DataError, match=r"other\.nii\.gz has the grid \(5, 5, 5\); expected that of .*\(4, 4, 3\)"
    ):
        data(small, mask="other", subjects=["sub-01"]).info()
    by_path = data(small, mask="{subject}/masks/roi.nii.gz").info()
    assert by_path.subjects == {"sub-01": 12, "sub-02": 9}
    with pytest.raises(DataError, match="mask of sub-01: no voxel; expected at least one"):
        data(small, mask_threshold=2.0).info()


def test_repetition_time_of_sidecar_header_and_option(small: Bids.Config) -> None:
    run = scans.find_runs(Path(small.root), "bold")["sub-01"][0]
    side = run.image.with_name("sub-01_task-view_run-1_bold.json")
    assert scans.read_geometry(run)[1] == 2.0
    side.write_text(json.dumps({"RepetitionTime": 1.25}))
    assert scans.read_geometry(run)[1] == 1.25
    assert scans.read_geometry(run, 3.0)[1] == 3.0
    side.unlink()
    (Path(small.root) / "task-view_bold.json").write_text(json.dumps({"RepetitionTime": 1.5}))
    assert scans.read_geometry(run)[1] == 1.5
    (Path(small.root) / "task-view_bold.json").unlink()
    image = nibabel.load(run.image)
    image.header.set_xyzt_units("mm", "msec")
    image.header.set_zooms((3, 3, 3, 1500.0))
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), image.affine, image.header), run.image)
    assert scans.read_geometry(run)[1] == pytest.approx(1.5)
    image.header.set_zooms((3, 3, 3, 0.0))
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), image.affine, image.header), run.image)
    with pytest.raises(DataError, match=r"repetition time 0 s; .* Set data\.tr_s"):
        scans.read_geometry(run)


def test_sessions_and_derivatives_find_their_events(tmp_path: Path) -> None:
    event = [Event(0.0, 4.0, "cat")]
    for session in ("a", "b"):
        name = scan_files.RunName("03", "look", 1, session)
        scan_files.write_run(tmp_path, name, np.ones((2, 2, 2, 5), np.float32), event, 2.0)
    func = tmp_path / "sub-03/ses-b/func"
    (func / "sub-03_ses-b_task-look_run-1_bold.nii.gz").rename(
        func / "sub-03_ses-b_task-look_run-1_space-T1w_desc-preproc_bold.nii.gz"
    )
    runs = scans.find_runs(tmp_path, "bold", "look")["sub-03"]
    assert [(r.number, r.events.parent.parent.name) for r in runs] == [(1, "ses-a"), (2, "ses-b")]
    with pytest.raises(DataError, match=r"no fMRI runs; expected .*_bold\.nii\.gz"):
        scans.find_runs(tmp_path, "bold", "listen")
    with pytest.raises(DataError, match=r"Did you mean 'bold'\?"):
        scans.find_runs(tmp_path, "bald")
    with pytest.raises(DataError, match=r"no subject 'sub-3'; .* Did you mean 'sub-03'"):
        scans.find_runs(tmp_path, "bold", subjects=["sub-3"])
    (func / "sub-03_ses-b_task-look_run-1_events.tsv").unlink()
    with pytest.raises(DataError, match=r"events files: none; expected exactly one \*_events\.tsv"):
        scans.find_runs(tmp_path, "bold")
    with pytest.raises(
        DataError, match=r"nowhere: nothing there; expected the data set\. Copy it from the shelf\."
    ):
        Bids(Bids.Config(root=str(tmp_path / "nowhere"), get="Copy it from the shelf."), {}).info()


def test_events_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\n1.5\tn/a\tcat\n")
    with pytest.raises(
        DataError, match=r"events\.tsv, line 2: onset '1.5', duration 'n/a'; expected numbers of seconds"
    ):
        scans.read_events(path, "trial_type")
    with pytest.raises(
        DataError, match=r"columns onset, duration, trial_type; expected onset, duration and stim"
    ):
        scans.read_events(path, "stim")
    path.write_text("onset\tduration\tlabel\n3\t1\tb\n1\t1\tn/a\n2\t0.5\ta\n")
    assert scans.read_events(path, "label") == [Event(2.0, 0.5, "a"), Event(3.0, 1.0, "b")]


def test_a_cut_image_is_named(small: Bids.Config) -> None:
    path = Path(small.root) / "sub-01/func/sub-01_task-view_run-1_bold.nii.gz"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"run-1_bold\.nii\.gz: unreadable"):
        data(small).source("train").get(0, None)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_detrend_is_the_residual_of_a_polynomial_fit(order: int) -> None:
    values = np.random.default_rng(0).standard_normal((40, 3)).cumsum(axis=0).astype(np.float32) + 100
    time = np.arange(40)
    expected = np.stack([v - np.polyval(np.polyfit(time, v, order), time) for v in values.T], axis=1)
    np.testing.assert_allclose(scans.detrend(values, order), expected, atol=1e-4)


def test_detrend_and_z_score_agree_with_nilearn(shared: Path) -> None:
    signal = pytest.importorskip("nilearn.signal", reason="nilearn is not installed (extra fmri)")
    module = Bids(
        Bids.Config(
            root=str(shared / "data/haxby"), image="bold_25mm", mask="brain", normalise=Normalise.RUN
        ),
        {},
    )
    subject = module.subjects["sub001"]
    run = subject.runs[4]
    raw = scans.read_volumes(run)[subject.mask].T
    expected = signal.clean(raw, detrend=True, standardize="zscore_sample", t_r=2.5)
    expected *= np.sqrt(len(raw) / (len(raw) - 1))  # nilearn divides by the sample deviation
    np.testing.assert_allclose(subject.volumes(run), expected, atol=2e-3)


def test_haxby_has_the_published_counts(shared: Path) -> None:
    root = str(shared / "data/haxby")
    config = Bids.Config(root=root, image="bold_1slice", lag_s=0.0, test_runs=[11, 12], val_runs=[10])
    info = Bids(config, {}).info()
    assert len(info.labels["label"]) == 8
    assert info.counts == {"train": 9 * 72, "val": 72, "test": 144}
    masks = {"brain": 129, "hoc": 45}
    for mask, voxels in masks.items():
        made = Bids.Config(root=root, image="bold_25mm", mask=mask)
        assert Bids(made, {}).info().subjects == {"sub001": voxels}
