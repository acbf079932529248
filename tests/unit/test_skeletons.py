"""Skeleton files: three formats, what a damaged one says, splits without shared frames, balanced draws."""

from __future__ import annotations

import collections
import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.datamodules import motions, ntu
from mmzoo.datamodules.loader import LoaderConfig, ResumableLoader
from mmzoo.datamodules.motions import ArrayKeys
from mmzoo.datamodules.skeletons import Format, Sampling, Skeletons
from mmzoo.datamodules.split import SplitConfig
from mmzoo.datamodules.windows import Within, divide_windows
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.joints import LayoutName
from mmzoo.modalities.motion import SkeletonPreprocess


class Raw(Preprocess):
    """Hands the motion through; its mask too."""

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        if isinstance(raw, str):
            return Item(torch.tensor(list(raw.encode())))
        values = torch.as_tensor(raw.values)
        return Item(values.nan_to_num(), torch.as_tensor(raw.valid) if raw.valid is not None else None)


def data(config: Skeletons.Config, **changes: Any) -> Skeletons:
    return Skeletons(dataclasses.replace(config, **changes), {"skeleton": Raw(), "text": Raw()}, seed=3)


@pytest.fixture
def windows(tmp_path: Path) -> Skeletons.Config:
    return Skeletons.fake(tmp_path)


def test_arrays_keep_each_window_under_its_name(windows: Skeletons.Config) -> None:
    archive = np.load(windows.root)
    module = data(windows)
    names = module.info().labels["label"]
    assert names == ("jump", "kick", "wave")
    seen: set[str] = set()
    for split in ("train", "val", "test"):
        source = module.source(split)
        for i in range(len(source)):
            sample = source.get(i, None)
            trial, number = sample.id.split("/")
            row = np.flatnonzero(archive["trial"] == trial)[int(number)]
            expected = archive["positions"][row].astype(np.float32).transpose(2, 0, 1)[..., None]
            np.testing.assert_array_equal(sample.inputs["skeleton"].values.numpy(), expected)
            assert names[int(sample.targets["label"])] == archive["label"][row]
            sentence = bytes(sample.inputs["text"].values.tolist()).decode()
            assert sentence == f"someone does a {archive['label'][row]}"
            seen.add(sample.id)
    assert len(seen) == 36
    assert schema.parse(Skeletons.Config, windows.to_dict()) == windows


@pytest.mark.parametrize("axes", ["ntvc", "nctvp", "pvtcn"])
def test_axes_are_read_by_name(tmp_path: Path, axes: str) -> None:
    sizes = {"n": 4, "t": 5, "v": 6, "c": 3, "p": 2}
    values = np.random.default_rng(0).standard_normal([sizes[a] for a in axes])
    np.savez(tmp_path / "x.npz", positions=values, label=np.arange(4))
    clips = motions.read_arrays(tmp_path / "x.npz", ArrayKeys(axes=axes))
    for i, clip in enumerate(clips):
        found = clip.read().values
        one = np.take(values, i, axes.index("n")).astype(np.float32)
        rest = axes.replace("n", "")
        expected = np.einsum(f"{rest}->{'ctvp' if 'p' in axes else 'ctv'}", one)
        np.testing.assert_array_equal(found, expected if "p" in axes else expected[..., None])
        assert (clip.id, clip.label, clip.trial) == (f"{i}/0000", str(i), "")


def test_arrays_that_do_not_fit(tmp_path: Path, windows: Skeletons.Config) -> None:
    with pytest.raises(ConfigError, match=r"axes: 'ntv'; expected each of n t v c"):
        data(windows, axes="ntv")
    with pytest.raises(DataError, match=r"positions of shape \(36, 10, 25, 3\); expected the axes ntvcp"):
        data(windows, axes="ntvcp").info()
    with pytest.raises(DataError, match=r"no array 'position'; .* Did you mean 'positions'"):
        data(windows, values_key="position").info()
    with pytest.raises(DataError, match=r"no class 'kock'; .* Did you mean 'kick'"):
        data(windows, classes=["kock"]).info()
    with pytest.raises(DataError, match="no clip is left"):
        data(windows, min_per_class=13).info()
    np.savez(tmp_path / "y.npz", positions=np.zeros((3, 2, 2, 3)), label=np.zeros(2))
    with pytest.raises(DataError, match=r"label of shape \(2,\) for 3 clips; expected one for each clip"):
        data(windows, root=str(tmp_path / "y.npz")).info()
    (tmp_path / "z.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"z\.npz: unreadable"):
        data(windows, root=str(tmp_path / "z.npz")).info()
    (tmp_path / "clip.txt").write_text("")
    with pytest.raises(DataError, match=r"clip\.txt: an unknown format; .* Set data\.format"):
        data(windows, root=str(tmp_path / "clip.txt")).info()
    with pytest.raises(DataError, match=r"gone\.npz: nothing there; expected the data set\. Record some\."):
        data(windows, root=str(tmp_path / "gone.npz"), get="Record some.").info()


def test_classes_are_chosen_renamed_and_need_enough_clips(tmp_path: Path) -> None:
    labels = np.array(["a"] * 10 + ["b"] * 3 + ["c"] * 8)
    np.savez(tmp_path / "x.npz", positions=np.zeros((21, 2, 2, 3)), label=labels)
    config = Skeletons.Config(root=str(tmp_path / "x.npz"), class_names={"c": "sea"})
    assert data(config, min_per_class=8).classes() == ("a", "sea")
    assert data(config, classes=["b", "c"]).classes() == ("b", "sea")
    assert sum(data(config, min_per_class=8).info().counts.values()) == 18


def test_whole_trials_are_held_out_where_there_are_several() -> None:
    sizes = {
        "a": {"a1": 37, "a2": 37, "a3": 37, "a4": 30},
        "b": {"b1": 70, "b2": 68},
        "c": {"c1": 2, "c2": 1, "c3": 3},
    }
    labels = [label for label, trials in sizes.items() for trial, n in trials.items() for _ in range(n)]
    trials = [trial for of in sizes.values() for trial, n in of.items() for _ in range(n)]
    found = divide_windows(labels, trials, SplitConfig(test_share=0.34, val_share=0.0), 3)
    held = {trials[i] for i in found["test"]}
    assert not held & {trials[i] for i in found["train"]}
    assert len(held & {"a1", "a2", "a3"}) == 1  # 37 fits 0.34 x 141 = 48, and nothing more does
    assert "a4" not in held
    assert {"b2", "c1"} <= held  # nothing fits a third of b: the smaller; two windows fit c's share
    assert found["val"] == []
    assert sorted(found["train"] + found["test"]) == list(range(len(labels)))
    again = {
        seed: divide_windows(labels, trials, SplitConfig(test_share=0.34, seed=seed), 3) for seed in range(9)
    }
    drawn = {
        next(t for t in ("a1", "a2", "a3") if t in {trials[i] for i in f["test"]}) for f in again.values()
    }
    assert drawn == {"a1", "a2", "a3"}


def test_named_trials_are_held_out_and_must_exist() -> None:
    labels, trials = ["a"] * 12 + ["b"] * 20, ["a1"] * 4 + ["a2"] * 4 + ["a3"] * 4 + ["b1"] * 20
    config = SplitConfig(by="trial", test_groups=["a2"], val_groups=["a3"], test_share=0.2, val_share=0.2)
    found = divide_windows(labels, trials, config, 2)
    assert found["test"][:4] == [4, 5, 6, 7]
    assert found["val"][:4] == [8, 9, 10, 11]
    assert len(found["test"]) == 4 + 4
    bad = SplitConfig(by="trial", test_groups=["a9"])
    with pytest.raises(ConfigError, match=r"split: no trial 'a9'; .* Did you mean"):
        divide_windows(labels, trials, bad, 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_single_trial_is_cut_by_time_with_a_gap(seed: int) -> None:
    config = SplitConfig(test_share=0.25, val_share=0.2, seed=seed)
    found = divide_windows(["a"] * 40, ["t"] * 40, config, 3)
    assert len(found["test"]) == 10
    assert len(found["val"]) == round(0.2 * 27)
    assert len(found["train"]) == 40 - 10 - 3 - 5 - 3
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        distance = min(abs(i - j) for i in found[one] for j in found[other])
        assert distance > 3
    for part in found.values():
        assert part == list(range(part[0], part[0] + len(part)))
    with pytest.raises(
        DataError, match=r"class 'a': no window left to train on; .* or lower the shares or the gap"
    ):
        divide_windows(["a"] * 4, ["t"] * 4, config, 3)


def test_real_windows_share_no_frame_between_splits(shared: Path) -> None:
    root = str(shared / "data/cmu_mocap/windows.npz")
    module = Skeletons(Skeletons.Config(root=root, min_per_class=8, split_gap=3), {"skeleton": Raw()})
    frames: dict[str, set[bytes]] = {}
    for split, clips in module.parts.items():
        values = [c.read().values for c in clips]
        frames[split] = {f.tobytes() for v in values for f in v.transpose(1, 0, 2, 3)}
        assert {c.label for c in clips} == {"climb", "hop", "swordplay", "wash", "bend", "punch", "walk"}
    assert not frames["train"] & frames["test"]
    assert not frames["val"] & frames["test"]
    assert not frames["train"] & frames["val"]


def test_balanced_draws_are_even_and_stay_distinct_in_a_batch(
    windows: Skeletons.Config, tmp_path: Path
) -> None:
    labels = np.array(["a"] * 20 + ["b"] * 4 + ["c"] * 6)
    np.savez(tmp_path / "x.npz", positions=np.zeros((30, 2, 2, 3)), label=labels)
    config = Skeletons.Config(
        root=str(tmp_path / "x.npz"),
        sampling=Sampling.BALANCED,
        split=SplitConfig(test_share=0.0, val_share=0.0),
        loader=LoaderConfig(batch_size=30),
    )
    module = data(config)
    assert [len(module.source(s)) for s in ("train", "val", "test")] == [30, 0, 0]
    loader = module.train_dataloader()
    assert isinstance(loader, ResumableLoader)
    (batch,) = list(loader)
    assert collections.Counter(batch.targets["label"].values.tolist()) == {0: 10, 1: 10, 2: 10}
    assert len(set(batch.ids)) == 30
    stems = collections.Counter(i.partition("~")[0] for i in batch.ids)
    assert sorted(stems[f"b/{i:04d}"] for i in range(4)) == [2, 2, 3, 3]
    assert all(n == 1 for name, n in stems.items() if name.startswith("a"))
    (second,) = list(loader)
    assert second.ids != batch.ids
    with pytest.raises(ConfigError, match=r"no split 'training'; .*Did you mean 'train'"):
        module.source("training")
    assert not hasattr(data(config, sampling=Sampling.NATURAL).source("train"), "order")


def pyskl(path: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    names = [f"S001C001P{p:03d}R001A{a:03d}" for p in (1, 2, 3, 4) for a in (1, 2)]
    annotations = [
        {
            "frame_dir": name,
            "label": int(name[-3:]) - 1,
            "total_frames": 6,
            "keypoint": rng.standard_normal((1 + i % 2, 6, 25, 3)).astype(np.float16),
            **changes,
        }
        for i, name in enumerate(names)
    ]
    split = {
        "xsub_train": names[:6],
        "xsub_val": names[6:],
        "xset_train": names[::2],
        "xset_val": names[1::2],
    }
    path.write_bytes(pickle.dumps({"split": split, "annotations": annotations}))
    return path


def test_pyskl_splits_axes_and_unseen_joints(tmp_path: Path) -> None:
    path = pyskl(tmp_path / "ntu.pkl")
    content = pickle.loads(path.read_bytes())
    content["annotations"][0]["keypoint"][0, 2, 3] = 0.0
    path.write_bytes(pickle.dumps(content))
    config = Skeletons.Config(root=str(path), class_names={"0": "drink"}, split=SplitConfig(val_share=0.3))
    module = data(config)
    assert module.info().counts == {"train": 4, "val": 2, "test": 2}
    assert module.classes() == ("1", "drink")
    performers = {s: {c.trial for c in clips} for s, clips in module.parts.items()}
    assert performers["test"] == {"P004"}
    assert not performers["train"] & performers["val"]
    first = next(
        c for clips in module.parts.values() for c in clips if c.id == content["annotations"][0]["frame_dir"]
    )
    motion = first.read()
    keypoint = content["annotations"][0]["keypoint"]
    np.testing.assert_array_equal(motion.values, np.einsum("mtvc->ctvm", keypoint.astype(np.float32)))
    assert motion.valid.shape == (6, 25, 1)
    assert np.argwhere(~motion.valid).tolist() == [[2, 3, 0]]
    other = data(config, train_part="xset_train", test_part="xset_val")
    assert other.info().counts["test"] == 4
    with pytest.raises(DataError, match=r"no split 'xview_val'; .* Did you mean"):
        data(config, test_part="xview_val").info()


def test_pyskl_in_the_picture_plane(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    keypoint = rng.uniform(0, 200, (1, 3, 17, 2)).astype(np.float16)
    score = rng.uniform(size=(1, 3, 17)).astype(np.float16)
    entry = {"frame_dir": "v", "label": 0, "keypoint": keypoint, "keypoint_score": score}
    for shape in ((100, 200), None):
        path = tmp_path / "coco.pkl"
        path.write_bytes(pickle.dumps({"split": {}, "annotations": [{**entry, "img_shape": shape}]}))
        (clip,) = motions.read_pyskl(path, 0.5)
        motion = clip.read()
        x, y = keypoint[0, 1, 4].astype(np.float32)
        expected = ((x - 100) / 50, (y - 50) / 50) if shape else (x, y)
        np.testing.assert_allclose(motion.values[:, 1, 4, 0], expected, rtol=1e-5)
        np.testing.assert_array_equal(motion.valid[:, :, 0], score[0] >= 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keypoint": None},
            r"bad\.pkl: annotation 0: no keypoint; expected keypoint with the axes \(M T V C\)",
        ),
        (
            {"keypoint": np.zeros((6, 25, 3))},
            r"keypoint of shape \(6, 25, 3\); expected keypoint with the axes",
        ),
        ({"keypoint": np.zeros((3, 6, 25, 1))}, r"keypoint of shape \(3, 6, 25, 1\); expected"),
        (
            {"keypoint_score": np.zeros((6, 25))},
            r"keypoint_score of shape \(6, 25\) .*expected the axes \(M T V\)",
        ),
        ({"label": None}, "annotation 0: no label"),
    ],
)
def test_pyskl_annotations_are_checked_up_front(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = pyskl(tmp_path / "bad.pkl", **changes)
    with pytest.raises(DataError, match=message):
        data(Skeletons.Config(root=str(path))).info()


def test_a_pickle_with_a_command_is_refused(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"annotations": [], "split": Bad()}))
    with pytest.raises(DataError, match=rf"x\.pkl: it asks for {os.name}\.system"):
        data(Skeletons.Config(root=str(tmp_path / "x.pkl"))).info()
    assert not (tmp_path / "ran").exists()
    (tmp_path / "y.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match=r"y\.pkl: list with no keys; expected a dict with annotations"):
        data(Skeletons.Config(root=str(tmp_path / "y.pkl"))).info()


def test_ntu_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written: dict[str, np.ndarray] = {}
    for performer in (1, 2, 3, 4, 6):
        for action in (50, 60):
            name = f"S001C001P{performer:03d}R001A{action:03d}"
            written[name] = rng.standard_normal((3, 15, 25, 2)).astype(np.float32)
            written[name][1] *= 5.0  # higher than wide, or it would pass for furniture
            (tmp_path / f"{name}.skeleton").write_text(ntu.write(written[name]))
    config = Skeletons.Config(
        root=str(tmp_path), split=SplitConfig(val_share=0.3), class_names={"A060": "walk apart"}
    )
    module = data(config)
    assert module.info().counts == {"train": 4, "val": 2, "test": 4}
    assert module.classes() == ("A050", "walk apart")
    assert {c.trial for c in module.parts["test"]} == {"P003", "P006"}
    source = module.source("test")
    for i in range(len(source)):
        sample = source.get(i, None)
        found = sample.inputs["skeleton"].values.numpy()
        slots = [found[..., p] for p in range(2)]
        matched = [
            [np.allclose(s, written[sample.id][..., p], rtol=1e-4, atol=1e-5) for p in range(2)]
            for s in slots
        ]
        assert matched in ([[True, False], [False, True]], [[False, True], [True, False]])
    (tmp_path / "S001C001P003R001A050.skeleton").write_text("2\n1\n")
    with pytest.raises(DataError, match=r"S001C001P003R001A050\.skeleton, line 3: the end of the file"):
        [source.get(i, None) for i in range(len(source))]
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"sub: no \.skeleton file; expected files SsssCcccPpppRrrrAaaa"):
        data(config, root=str(tmp_path / "sub"), format=Format.NTU).info()


def test_windows_of_an_only_recording_may_be_drawn_one_by_one() -> None:
    labels = ["a"] * 20 + ["b"] * 12
    trials = ["t"] * 20 + ["u"] * 6 + ["v"] * 6
    config = SplitConfig(test_share=0.25, val_share=0.0)
    found = divide_windows(labels, trials, config, 3, Within.WINDOWS)
    held = [i for i in found["test"] if i < 20]
    assert len(held) == 5
    assert held != list(range(held[0], held[0] + 5))  # no stretch
    assert sorted(found["train"] + found["test"]) == list(range(32))  # no gap either
    whole = [{trials[i] for i in part if i >= 20} for part in (found["train"], found["test"])]
    assert not whole[0] & whole[1]  # an action with two recordings still gives a whole one
    stretch = divide_windows(labels, trials, config, 3)
    assert [i for i in stretch["test"] if i >= 20] == [i for i in found["test"] if i >= 20]


def test_files_say_their_layout_and_the_model_gets_its_own(windows: Skeletons.Config) -> None:
    ntu25 = SkeletonPreprocess(SkeletonPreprocess.Config(centre=False, num_frames=None))
    kept = Skeletons(dataclasses.replace(windows, layout=LayoutName.NTU25), {"skeleton": ntu25}, seed=3)
    plain = Skeletons(windows, {"skeleton": ntu25}, seed=3)
    same = [module.source("val").get(0, None).inputs["skeleton"].values for module in (kept, plain)]
    assert torch.equal(*same)
    wrong = Skeletons(dataclasses.replace(windows, layout=LayoutName.CMU31), {"skeleton": ntu25}, seed=3)
    with pytest.raises(DataError, match="joints=31, entities\\) for cmu31"):
        wrong.source("val").get(0, None)
