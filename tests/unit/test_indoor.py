"""The indoor world: its labels agree with each other and with the geometry they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmzoo.batch import IGNORE
from mmzoo.datamodules.indoor import Indoor
from mmzoo.datamodules.world_indoor.classes import CLASS, CLASSES, FURNITURE
from mmzoo.datamodules.world_indoor.rays import Camera, enter, look
from mmzoo.datamodules.world_indoor.rooms import IndoorWorldConfig, View, make_room, make_view, plan_split
from mmzoo.datamodules.world_indoor.solids import Builder, Solids, about_x, about_y
from mmzoo.datamodules.world_indoor.view import Labelled, points, see
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.image_preprocess import ImagePreprocess

CONFIG = IndoorWorldConfig(size=(48, 64), num_train=8, num_val=4, num_test=4)
NUMBERS = range(8)


@pytest.fixture(scope="module")
def views() -> list[tuple[View, Labelled]]:
    made = [make_view(CONFIG, "train", n) for n in NUMBERS]
    return [(view, see(view, np.random.default_rng(n))) for n, view in enumerate(made)]


def solid(ball: bool, turn: np.ndarray, size: object, centre: object = (0.0, 0.0, -3.0)) -> Solids:
    builder = Builder(np.random.default_rng(0))
    paint = builder.begin("ball")
    if ball:
        builder.ball(centre, float(np.asarray(size)) / 2, paint)
    else:
        builder.box(centre, size, paint, turn)
    return builder.done()


@pytest.mark.filterwarnings("ignore:invalid value")  # a solid alone: most rays meet nothing
def test_a_ball_and_a_box_are_where_geometry_says():
    camera = Camera(np.zeros(3), np.eye(3), 50.0, (21, 21))
    seen = look(solid(True, np.eye(3), 1.0), camera)
    assert seen.depth[10, 10] == pytest.approx(2.5, abs=1e-5)
    hit = np.isfinite(seen.depth)
    radius = np.linalg.norm(seen.point[hit] - (0, 0, -3), axis=1)
    np.testing.assert_allclose(radius, 0.5, atol=1e-5)
    outline = camera.focal * np.tan(np.arcsin(0.5 / 3))
    assert hit[10].sum() == 2 * int(outline) + 1
    turn = about_y(0.5) @ about_x(0.3)
    seen = look(solid(False, turn, (1.0, 1.2, 0.8)), camera)
    hit = np.isfinite(seen.depth)
    local = np.abs((seen.point[hit] - (0, 0, -3)) @ turn) / (0.5, 0.6, 0.4)
    np.testing.assert_allclose(local.max(axis=1), 1.0, atol=1e-5)


def test_the_window_of_a_solid_hides_nothing_of_it():
    """Each solid's entry is compared with a search over the whole picture, pixel by pixel."""
    view = make_view(CONFIG, "train", 1)
    seen = look(view.solids, view.camera)
    rays = view.camera.directions() @ view.camera.turn.T.astype(np.float32)
    origin = view.camera.place.astype(np.float32)
    every = np.stack([enter(view.solids, n, origin, rays) for n in range(len(view.solids.ball))])
    every = np.where(every > 0.05, every, np.inf)
    np.testing.assert_allclose(seen.depth, every.min(axis=0), rtol=1e-6)


def test_points_of_one_face_lie_in_the_plane_of_its_normal(views):
    """Depth and normals agree: on a flat face, the step between points is at right angles to the normal."""
    checked = 0
    for view, labels in views:
        at = points(view.camera, labels["depth"])
        seen = look(view.solids, view.camera)
        flat = ~view.solids.ball[seen.solid]
        same = (
            (seen.solid[:, 1:] == seen.solid[:, :-1])
            & flat[:, 1:]
            & (labels["normals"][:, 1:] * labels["normals"][:, :-1]).sum(-1).__gt__(0.9999)
        )
        step = at[:, 1:] - at[:, :-1]
        off = (step * labels["normals"][:, 1:]).sum(-1)[same]
        assert np.abs(off).max() < 1e-3  # metres, over steps of up to a decimetre
        checked += int(same.sum())
    assert checked > 0.5 * len(views) * 48 * 64


def test_normals_are_unit_and_face_the_camera(views):
    for view, labels in views:
        np.testing.assert_allclose(np.linalg.norm(labels["normals"], axis=-1), 1, atol=1e-5)
        assert ((labels["normals"] * view.camera.directions()).sum(-1) < 1e-4).all()


def test_the_floor_points_up(views):
    for view, labels in views:
        floor = labels["semseg"] == CLASS["floor"]
        up = labels["normals"][floor] @ view.camera.turn[1]
        np.testing.assert_allclose(up, 1, atol=1e-5)


def test_boundaries_lie_at_discontinuities_and_no_jump_is_without_one(views):
    for view, labels in views:
        seen = look(view.solids, view.camera)
        edge, depth, solids = labels["edge"].astype(bool), labels["depth"], seen.solid
        differs = np.zeros_like(edge)
        differs[:, :-1] |= solids[:, :-1] != solids[:, 1:]
        differs[:-1] |= solids[:-1] != solids[1:]
        assert not (edge & ~differs).any()
        semantic = np.zeros_like(edge)
        semantic[:, :-1] |= labels["semseg"][:, :-1] != labels["semseg"][:, 1:]
        semantic[:-1] |= labels["semseg"][:-1] != labels["semseg"][1:]
        assert not (semantic & ~edge).any()
        jump = np.abs(np.diff(1 / depth, n=2, axis=1)) > 0.05  # planes are linear in inverse depth
        near = edge[:, :-2] | edge[:, 1:-1] | edge[:, 2:]
        behind = jump & ~near & (np.abs(depth[:, 2:] - depth[:, :-2]) > 0.3)
        assert behind.sum() <= 2
        assert 0.005 < edge.mean() < 0.2


def test_one_object_is_salient_and_parts_are_on_people(views):
    found = 0
    for view, labels in views:
        seen = look(view.solids, view.camera)
        sal, parts = labels["sal"].astype(bool), labels["human_parts"]
        assert len(np.unique(view.solids.object[seen.solid][sal])) <= 1
        person = labels["semseg"] == CLASS["person"]
        assert np.array_equal(person, (parts != 0) & (parts != IGNORE))
        assert person.any() != (parts == IGNORE).all()
        found += int(sal.any())
    assert found >= len(views) // 2


def test_the_same_options_give_the_same_bits_and_views_differ():
    first, again, other = (see(make_view(CONFIG, "train", n), np.random.default_rng(0)) for n in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["depth"], other["depth"])
    seed = IndoorWorldConfig(size=(48, 64), world_seed=1)
    assert not np.array_equal(
        first["depth"], see(make_view(seed, "train", 3), np.random.default_rng(0))["depth"]
    )


def test_splits_have_plans_of_their_own():
    plans = {
        split: {
            frozenset(CLASSES[i] for i in room.builder.done().semantic[6:])
            for n in range(15)
            for room in (make_room(np.random.default_rng([0, n]), split),)
        }
        for split in ("train", "val", "test")
    }
    assert all(plan_split(tuple(FURNITURE[:n])) in plans for n in range(3, 11))
    assert len(plans["train"]) > 5


def test_each_split_is_made_once_and_by_itself(tmp_path):
    config = Indoor.fake(tmp_path)
    data = config.build({"image": ImagePreprocess.Config(size=(16, 16)).build()}, seed=0)
    assert data.info().counts == {"train": 12, "val": 4, "test": 4}
    assert not list(tmp_path.iterdir())
    data.source("val")
    folders = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert [p.name.rpartition("-")[2] for p in folders] == ["val"]
    stamp = (folders[0] / "depth.npy").stat().st_mtime_ns
    sample = (
        config.build({"image": ImagePreprocess.Config(size=(16, 16)).build()}, seed=3)
        .source("val")
        .get(0, None)
    )
    assert (folders[0] / "depth.npy").stat().st_mtime_ns == stamp
    view = make_view(config, "val", 0)
    depth = torch.from_numpy(look(view.solids, view.camera).depth)
    torch.testing.assert_close(sample.targets["depth"][0], depth)


def test_wrong_options_and_an_unwritable_folder_say_so(tmp_path):
    with pytest.raises(ConfigError, match=r"num_val: 0; expected at least 1"):
        Indoor.Config(num_val=0)
    with pytest.raises(ConfigError, match="depht"):
        Indoor.Config(targets=["depht"]).build({}, seed=0)
    (tmp_path / "file").write_text("")
    config = Indoor.Config(num_val=1, cache_dir=str(tmp_path / "file"))
    with pytest.raises(DataError, match="MMZOO_HOME"):
        config.build({}, seed=0).source("val")
