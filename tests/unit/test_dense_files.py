"""NYUD and PASCAL-Context folders, written by `data make` and read back: the labels are the world's own."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo.batch import IGNORE, DenseKind, Sample
from mmzoo.datamodules import pascal_context, pascal_parts
from mmzoo.datamodules.dense import DenseSource, Fit
from mmzoo.datamodules.dense_layouts import NYUD_CLASSES, VOC_CLASSES
from mmzoo.datamodules.dense_make import TO_NYUD, TO_VOC, write_nyud, write_pascal_context
from mmzoo.datamodules.indoor import Indoor
from mmzoo.datamodules.inspect import inspect_path
from mmzoo.datamodules.make import make
from mmzoo.datamodules.mixture import Mixture, Targets
from mmzoo.datamodules.nyud import Nyud
from mmzoo.datamodules.pascal_context import NormalsOf, PascalContext
from mmzoo.datamodules.world_indoor.classes import CLASS, CLASSES
from mmzoo.datamodules.world_indoor.rooms import IndoorWorldConfig, make_view
from mmzoo.datamodules.world_indoor.view import Labelled, see
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.image_augment import ImageAugment
from mmzoo.modalities.image_preprocess import ImagePreprocess

SIZE = (24, 32)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def nyud_root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("nyud") / "NYUDv2"
    assert write_nyud(root, 12, size=SIZE) == "9 images in train.txt, 3 images in val.txt"
    return root


@pytest.fixture(scope="module")
def pascal_root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("pascal") / "PASCALContext"
    write_pascal_context(root, 12, size=SIZE)
    return root


def truth(split: str, number: int) -> Labelled:
    """Make what a file was written from."""
    config = IndoorWorldConfig(size=SIZE, views_per_room=1)
    return see(make_view(config, split, number), np.random.default_rng([0, number]))


def source(config, split: str = "test", size: tuple[int, int] = SIZE) -> DenseSource:
    return config.build({"image": ImagePreprocess.Config(size=size, **IMAGENET).build()}, seed=0).source(
        split
    )


def pascal(root: pathlib.Path, **options) -> PascalContext.Config:
    names = {"context_names": "names/context.txt", "nyu_names": "names/nyu.txt"}
    return PascalContext.Config(root=str(root), **{**names, **options})


def test_nyud_gives_back_what_was_written(nyud_root):
    found = source(Nyud.Config(root=str(nyud_root)))
    assert len(found) == 3
    for number in range(3):
        sample, made = found.get(number, None), truth("test", number)
        assert set(sample.targets) == {"semseg", "normals", "edge", "depth"}
        names = [NYUD_CLASSES[i] for i in sample.targets["semseg"].flatten().tolist()]
        assert names == [TO_NYUD[CLASSES[i]] for i in made["semseg"].flatten()]
        np.testing.assert_array_equal(sample.targets["depth"][0].numpy(), made["depth"])
        np.testing.assert_array_equal(sample.targets["edge"][0].numpy(), made["edge"])
        off = sample.targets["normals"].permute(1, 2, 0).numpy() - made["normals"]
        assert np.abs(off).max() <= 1 / 255 + 1e-6
        mean, std = (torch.tensor(IMAGENET[k])[:, None, None] for k in ("mean", "std"))
        pixels = 255 * (sample.inputs["image"].values * std + mean)
        torch.testing.assert_close(
            pixels, torch.from_numpy(made["image"]).permute(2, 0, 1).float(), atol=1e-3, rtol=0
        )


def test_nyud_encodings_by_hand(tmp_path):
    write_nyud(tmp_path / "x", 4, size=(8, 8))
    name = (tmp_path / "x/gt_sets/val.txt").read_text().split()[0]
    numbers = np.full((8, 8), 40, np.uint8)
    numbers[0] = 0
    numbers[1] = 1
    Image.fromarray(numbers).save(tmp_path / "x/segmentation" / f"{name}.png")
    depth = np.full((8, 8), 2.5, np.float64)
    depth[0, :3] = 0, np.nan, -1
    np.save(tmp_path / "x/depth" / f"{name}.npy", depth)
    colours = np.full((8, 8, 3), 128, np.uint8)
    colours[1] = 255, 0, 128
    Image.fromarray(colours).save(tmp_path / "x/normals" / f"{name}.png")
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(tmp_path / "x/edge" / f"{name}.png")
    labels = source(Nyud.Config(root=str(tmp_path / "x")), size=(8, 8)).get(0, None).targets
    assert labels["semseg"][:3, 0].tolist() == [IGNORE, 0, 39]
    assert labels["depth"][0, 0, :4].tolist() == [0, 0, 0, 2.5]
    assert (labels["normals"][:, 0] == IGNORE).all()
    assert labels["normals"][:, 1, 0].tolist() == pytest.approx([1, -1, 1 / 255], abs=1e-6)
    assert labels["edge"].unique().tolist() == pytest.approx([0.2])


def test_evaluation_pads_and_the_pads_are_ignored(nyud_root):
    sample: Sample = source(Nyud.Config(root=str(nyud_root)), size=(30, 40)).get(0, None)
    whole: Sample = source(Nyud.Config(root=str(nyud_root))).get(0, None)
    inside = (..., slice(3, 27), slice(4, 36))
    image = sample.inputs["image"].values
    assert torch.equal(image[inside], whole.inputs["image"].values)
    border = torch.ones(30, 40, dtype=torch.bool)
    border[inside] = False
    assert (image[:, border] == 0).all()
    for target, nothing in (("semseg", IGNORE), ("normals", IGNORE), ("edge", IGNORE), ("depth", 0)):
        assert (sample.targets[target][..., border] == nothing).all()
        assert torch.equal(sample.targets[target][inside], whole.targets[target])


def test_images_larger_than_the_model_are_refused_or_shrunk(nyud_root):
    config = Nyud.Config(root=str(nyud_root))
    too_large = r"24 x 32; expected at most the model's 12 x 16.*fit=shrink"
    with pytest.raises(ConfigError, match=too_large):  # before training, not at its first validation
        source(config, size=(12, 16))
    small = source(Nyud.Config(root=str(nyud_root), fit=Fit.SHRINK), size=(12, 20)).get(0, None)
    whole = source(config).get(0, None)
    assert (small.targets["depth"][0, :, :2] == 0).all()
    torch.testing.assert_close(small.targets["depth"][0, :, 2:18], whole.targets["depth"][0, 1::2, 1::2])


def test_training_draws_from_the_generator(nyud_root):
    train = source(Nyud.Config(root=str(nyud_root)), "train", size=(16, 24))
    first, again, other = (train.get(0, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    assert torch.equal(first.inputs["image"].values, again.inputs["image"].values)
    assert all(torch.equal(first.targets[t], again.targets[t]) for t in first.targets)
    assert not torch.equal(first.targets["depth"], other.targets["depth"])
    assert first.inputs["image"].values.shape == (3, 16, 24)


def test_pascal_gives_back_what_was_written(pascal_root):
    found, nobody = source(pascal(pascal_root), "test"), 0
    kept = {CLASS[n] for n in CLASSES if n != "ball"}
    for number in range(len(found)):
        labels, made = found.get(number, None).targets, truth("test", number)
        names = [VOC_CLASSES[i] for i in labels["semseg"].flatten().tolist()]
        assert names == [TO_VOC.get(CLASSES[i], "background") for i in made["semseg"].flatten()]
        np.testing.assert_array_equal(labels["sal"].numpy(), made["sal"])
        np.testing.assert_array_equal(labels["human_parts"].numpy(), made["human_parts"])
        nobody += int((made["human_parts"] == IGNORE).all())
        ignored = (labels["normals"] == IGNORE).all(0).numpy()
        np.testing.assert_array_equal(ignored, ~np.isin(made["semseg"], list(kept)))
        off = labels["normals"].permute(1, 2, 0).numpy() - made["normals"]
        assert np.abs(off[~ignored]).max() <= 1 / 255 + 1e-6
        near = labels["edge"][0].bool().numpy()
        changes = np.zeros(SIZE, bool)
        for axis in (0, 1):
            differs = np.diff(made["semseg"].astype(int), axis=axis) != 0
            pad = [(0, 1) if a == axis else (0, 0) for a in (0, 1)]
            after = [(1, 0) if a == axis else (0, 0) for a in (0, 1)]
            changes |= np.pad(differs, pad) | np.pad(differs, after)
        assert not (near & ~changes).any()
        assert near.sum() >= 0.3 * changes.sum()
    assert nobody > 0


def test_boundaries_of_a_straight_change_are_one_pixel_wide():
    numbers = np.ones((9, 12), np.uint16)
    numbers[:, 6:] = 7
    edge = pascal_context.boundaries(numbers)[0]
    assert edge[1:-1].sum(1).tolist() == [1] * 7
    assert edge.sum(0).nonzero().flatten().tolist() in ([5], [6])


def test_parts_of_people_are_grouped_and_other_objects_left_out(tmp_path):
    from scipy.io import savemat

    mask = np.zeros((4, 5), np.uint8)
    top, row, low = mask.copy(), mask.copy(), mask.copy()
    top[0], row[1], low[2] = 1, 1, 1
    kinds = [("part_name", object), ("mask", object)]
    fields = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    person = np.array([[("lebrow", top), ("rhand", row), ("lfoot", low)]], dtype=kinds)
    horse = np.array([[("head", np.ones((4, 5), np.uint8))]], dtype=kinds)
    objects = np.array([[("person", 15, mask, person), ("horse", 13, mask, horse)]], dtype=fields)
    savemat(tmp_path / "a.mat", {"anno": {"imname": "a", "objects": objects}})
    assert pascal_parts.read_parts(tmp_path / "a.mat")[:, 0].tolist() == [1, 4, 6, 0]
    strange = np.array([[("tail", top)]], dtype=kinds)
    savemat(
        tmp_path / "b.mat", {"anno": {"objects": np.array([[("person", 15, mask, strange)]], dtype=fields)}}
    )
    with pytest.raises(DataError, match="'tail'"):
        pascal_parts.read_parts(tmp_path / "b.mat")
    with pytest.raises(DataError, match="LabelMap"):
        pascal_parts.read_mat(tmp_path / "a.mat", "LabelMap")


def test_normals_are_kept_where_both_lists_name_the_class():
    kept = pascal_context.shared(
        ("table", "unknown", "cloud", "tvmonitor"), ("table", "unknown", "television")
    )
    assert kept.tolist() == [False, True, False, False, True]


def test_pascal_without_the_lists_says_what_to_do(pascal_root):
    with pytest.raises(ConfigError, match="normals_of=all"):
        source(PascalContext.Config(root=str(pascal_root)))
    sample = source(PascalContext.Config(root=str(pascal_root), normals_of=NormalsOf.ALL)).get(0, None)
    assert (sample.targets["normals"] != IGNORE).all()
    sample = source(PascalContext.Config(root=str(pascal_root), targets=["semseg", "sal"])).get(0, None)
    assert set(sample.targets) == {"semseg", "sal"}
    with pytest.raises(DataError, match="names"):
        source(pascal(pascal_root, nyu_names="names/none.txt"))


def test_a_label_that_is_missing_is_missing_not_made_up(tmp_path):
    write_nyud(tmp_path / "x", 4, size=(8, 8))
    name = (tmp_path / "x/gt_sets/val.txt").read_text().split()[0]
    (tmp_path / "x/edge" / f"{name}.png").unlink()
    config = Nyud.Config(root=str(tmp_path / "x"))
    assert set(source(config, size=(8, 8)).get(0, None).targets) == {"semseg", "normals", "depth"}
    (tmp_path / "x/edge").rename(tmp_path / "x/none")
    assert "edge" not in config.build({}, seed=0).info().labels
    asked = Nyud.Config(root=str(tmp_path / "x"), targets=["edge"])
    with pytest.raises(DataError, match="no labels of edge"):
        asked.build({}, seed=0).info()
    Image.new("L", (3, 3)).save(tmp_path / "x/segmentation" / f"{name}.png")
    with pytest.raises(DataError, match="semseg of 3 x 3"):
        source(config, size=(8, 8)).get(0, None)


def test_the_images_own_augmentation_is_refused(nyud_root):
    prep = ImagePreprocess.Config(size=SIZE, augment=ImageAugment(flip_prob=0.5)).build()
    with pytest.raises(ConfigError, match=r"data\.augment"):
        Nyud.Config(root=str(nyud_root)).build({"image": prep}, seed=0)


def test_both_layouts_are_made_and_recognised(tmp_path):
    for kind, row in (("nyud", "NYUD-v2 layout"), ("pascal_context", "PASCAL-Context layout")):
        assert "4 images in val.txt" in make(kind, str(tmp_path / kind), 16)
        report = inspect_path(tmp_path / kind)
        assert (report.format, report.samples, report.faults) == (row, 16, ())
        assert report.modalities["image"].shapes == {"96x128": 16}
        assert "semseg" in report.classes
        assert "normals 16" in report.hints[0]
        assert f"type: {kind}" in str(report)
    with pytest.raises(ConfigError, match="at least 4"):
        make("nyud", str(tmp_path / "few"), 2)
    with pytest.raises(DataError, match="new folder"):
        make("nyud", str(tmp_path / "nyud"), 16)


def test_two_sets_mix_under_one_numbering_of_classes(nyud_root, tmp_path):
    world = Indoor.Config(num_train=4, num_val=1, num_test=2, size=SIZE, cache_dir=str(tmp_path))
    sets = {"world": world, "rooms": Nyud.Config(root=str(nyud_root))}
    config = Mixture.Config(sets=sets, targets=Targets.SHARED)
    data = config.build({"image": ImagePreprocess.Config(size=SIZE).build()}, seed=0)
    info = data.info()
    names = info.labels["semseg"]
    assert names[: len(CLASSES)] == CLASSES
    assert len(names) == len(set(CLASSES) | set(NYUD_CLASSES))
    assert info.dense["semseg"] is DenseKind.CLASSES
    sample = data.source("test").get(2, None)  # the first of the rooms
    assert sample.id.startswith("rooms/")
    found = [names[i] for i in sample.targets["semseg"].flatten().tolist()]
    assert found == [TO_NYUD[CLASSES[i]] for i in truth("test", 0)["semseg"].flatten()]
    np.testing.assert_array_equal(sample.targets["depth"][0].numpy(), truth("test", 0)["depth"])
