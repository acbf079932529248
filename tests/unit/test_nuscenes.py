"""nuScenes on files: what is written is read back where it is; steps against independent computations."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmzoo import recipe
from mmzoo.datamodules.inspect import inspect_path
from mmzoo.datamodules.nuscenes import cameras, labels, points, road_map, sensors, write
from mmzoo.datamodules.nuscenes.augment import Motion, SceneAugment, move
from mmzoo.datamodules.nuscenes.data import NuScenes, read_views
from mmzoo.datamodules.nuscenes.infos import Info, read_infos, rotation
from mmzoo.datamodules.nuscenes.layout import HeightFrom
from mmzoo.datamodules.nuscenes.points import Points, Space
from mmzoo.datamodules.scene import Scene
from mmzoo.datamodules.world_driving.scene import BOX_CLASSES
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.bev import BevGrid, BevPreprocess, VoxelPreprocess

FRAMES = 5

INFOS = ("nuscenes_infos_10sweeps_train.pkl", "nuscenes_infos_10sweeps_val.pkl")
SPACE = Space(cells=12, range_m=24.0, levels=3, bottom_m=-3.0, top_m=3.0)
GRID = BevGrid(cells=20, range_m=25.0, map_cells=30, map_range_m=24.0, bottom_m=-1.0, top_m=4.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "nuscenes"
    write.write_nuscenes(folder, FRAMES, size=(72, 128))
    return folder


@pytest.fixture(scope="module")
def infos(root: Path) -> tuple[Info, ...]:
    return tuple(i for name in INFOS for i in read_infos(root / name))


def preprocesses(camera: int = 8, lidar: int = 9, levels: int = 3, grid: BevGrid = GRID) -> dict[str, Any]:
    """Return a model's, of a small grid."""
    options = {"grid": grid, "levels": levels}
    return {
        "camera": BevPreprocess.Config(channels=camera, **options).build(),
        "lidar": BevPreprocess.Config(channels=lidar, **options).build(),
        "occupied": VoxelPreprocess.Config(**options).build(),
    }


def copy_with(root: Path, to: Path, change: Any) -> Path:
    """Return a data set whose info pickles have been changed, its files linked."""
    to.mkdir()
    for entry in root.iterdir():
        if entry.suffix != ".pkl":
            (to / entry.name).symlink_to(entry)
    for name in INFOS:
        entries = pickle.loads((root / name).read_bytes())
        for entry in entries:
            change(entry)
        (to / name).write_bytes(pickle.dumps(entries))
    return to


FAULTS = [
    ("lidar_token", None, "lidar_token: no such field"),
    ("lidar_token", "../x", "name without folders"),
    ("lidar_path", "/etc/passwd", "lidar_path: .* below samples or sweeps"),
    ("lidar_path", "samples/../../x", "lidar_path: .* below samples or sweeps"),
    ("gt_boxes", np.zeros((2, 7)), r"gt_boxes: shape \(2, 7\); expected numbers of shape \(n, 9\)"),
    ("gt_boxes", np.full((1, 9), np.nan), "gt_boxes: NaN"),
    ("gt_names", ["car"] * 99, "gt_names: 99 names"),
    ("num_lidar_pts", [1, 2] * 40, "num_lidar_pts: 80 of"),
    ("sweeps", {"a": 1}, "sweeps: a dict; expected a list"),
    ("sweeps", [{"lidar_path": "sweeps/x"}], r"sweeps\[0\], time_lag: no such field"),
    ("sweeps", [{"lidar_path": "x", "transform_matrix": np.ones((4, 4)), "time_lag": 0.1}], "no rotation"),
    ("cams", {"CAM_FRONT": {"data_path": "samples/x"}}, r"cams\[CAM_FRONT\], sensor2lidar_rotation: no such"),
    ("car_from_global", np.eye(3), r"global_from_ref|car_from_global: shape \(3, 3\)"),
]


@pytest.mark.parametrize(("field", "value", "line"), FAULTS)
def test_a_bad_field_is_one_line_with_sample_and_field(
    root: Path, tmp_path: Path, field: str, value: Any, line: str
) -> None:
    entries = pickle.loads((root / INFOS[0]).read_bytes())
    entries[2] |= {field: value, "token": None, "global_from_ref": None}
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(entries))
    with pytest.raises(DataError, match=line) as caught:
        read_infos(path)
    assert str(caught.value).startswith("infos.pkl, sample 2, ")
    assert "\n" not in str(caught.value)


def test_what_other_writers_do_is_read_alike(root: Path, tmp_path: Path, infos: tuple[Info, ...]) -> None:
    def change(entry: dict[str, Any]) -> None:
        del entry["global_from_ref"]
        entry["lidar_path"] = "./data/nuscenes/" + entry["lidar_path"]
        entry["gt_names"] = list(entry["gt_names"])
        for camera in entry["cams"].values():
            turn = camera["sensor2lidar_rotation"]
            camera["sensor2lidar_rotation"] = write.quaternion(turn).tolist()

    other = copy_with(root, tmp_path / "other", change)
    for mine, theirs in zip((i for n in INFOS for i in read_infos(other / n)), infos, strict=True):
        assert (mine.lidar_file, mine.boxes is not None) == (theirs.lidar_file, True)
        assert mine.boxes.names == theirs.boxes.names
        np.testing.assert_allclose(mine.to_global, theirs.to_global, atol=1e-9)
        for a, b in zip(mine.cameras, theirs.cameras, strict=True):
            np.testing.assert_allclose(a.to_lidar, b.to_lidar, atol=1e-9)


def test_a_key_frame_repeated_as_a_sweep_is_left_out(infos: tuple[Info, ...]) -> None:
    assert [len(i.sweeps) for i in infos] == [0, 2, 2, 2, 2]


def test_a_quaternion_turns_as_axis_and_angle_say() -> None:
    axis, angle = np.array([2.0, -1.0, 2.0]) / 3, 0.7
    q = np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)])
    x = np.array([0.3, 0.5, -1.0])
    around = np.cos(angle) * x + np.sin(angle) * np.cross(axis, x) + (1 - np.cos(angle)) * (axis @ x) * axis
    np.testing.assert_allclose(rotation(q) @ x, around, atol=1e-12)
    np.testing.assert_allclose(write.quaternion(rotation(q)), q, atol=1e-12)


def test_sweeps_come_to_the_key_frame(tmp_path: Path, infos: tuple[Info, ...]) -> None:
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation(np.array([0.9, 0.1, -0.2, 0.3])), (1.0, 2.0, 3.0)
    there = np.array([[5.0, 0.5, 0.1], [0.5, -0.9, 2.0], [-7.0, 3.0, -1.0]])  # the second: the car itself
    for name, places in (("key", there[:1]), ("old", there)):
        rows = np.concatenate([places, np.full((len(places), 2), 51.0)], axis=1)
        rows.astype("<f4").tofile(tmp_path / name)
    sweep = dataclasses.replace(infos[1].sweeps[0], file="old", to_lidar=motion, lag_s=0.25)
    info = dataclasses.replace(infos[1], lidar_file="key", sweeps=(sweep, sweep))
    found = points.read_points(tmp_path, info, 2)
    moved = (motion @ np.concatenate([there[[0, 2]], np.ones((2, 1))], axis=1).T).T[:, :3]
    np.testing.assert_allclose(found.xyz, np.concatenate([there[:1], moved]), atol=1e-6)
    assert found.lag_s.tolist() == [0.0, 0.25, 0.25]
    np.testing.assert_allclose(found.intensity, 0.2)
    assert len(points.read_points(tmp_path, info, 1).xyz) == 1
    (tmp_path / "key").write_bytes(b"1234")
    with pytest.raises(DataError, match="1 numbers; expected 5 a point"):
        points.read_points(tmp_path, info, 1)


def test_sweeps_of_a_still_world_agree(root: Path, infos: tuple[Info, ...]) -> None:
    """Houses stand still: an earlier sweep's points of them lie where they are, once it is moved."""
    info = infos[2]
    cloud = points.read_points(root, info, 3)
    house = np.isclose(cloud.intensity * 255, 10 * labels.VOXEL_CLASSES.index("manmade"))
    top, _ = sensors.make_world(0, 2).columns()
    row, column, inside = sensors._cells(cloud.xyz)
    for lag in np.unique(cloud.lag_s):
        chosen = house & inside & (cloud.lag_s == lag)
        assert chosen.sum() > 50
        near = [
            top[np.clip(row[chosen] + dy, 0, 255), np.clip(column[chosen] + dx, 0, 255)] == sensors.HOUSE_M
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        assert np.any(near, axis=0).mean() > 0.97


def random_points(rng: np.random.Generator, count: int = 400) -> Points:
    xyz = rng.uniform((-26, -26, -4), (26, 26, 4), (count, 3))
    return Points(xyz, rng.uniform(0, 1, count), rng.choice([0.0, 0.05], count))


def test_pillars_against_loops(rng: np.random.Generator) -> None:
    cloud = random_points(rng)
    view, voxels = points.pillars(cloud, SPACE), points.occupied(cloud, SPACE)
    assert len(points.channels(SPACE)) == len(view) == 9
    for row in range(12):
        for column in range(12):
            x0, y0 = column * 4.0 - 24, row * 4.0 - 24
            x, y, z = cloud.xyz.T
            inside = (x >= x0) & (x < x0 + 4) & (y >= y0) & (y < y0 + 4) & (z >= -3) & (z < 3)
            heights = (z[inside] + 3) / 6
            level = [((z[inside] >= low) & (z[inside] < low + 2)).sum() for low in (-3, -1, 1)]
            if not inside.any():
                assert not view[:, row, column].any()
                continue
            expected = [np.log(1 + inside.sum()), heights.max(), cloud.intensity[inside].mean()]
            expected += [cloud.lag_s[inside].mean(), heights.mean(), heights.std()]
            expected += [n / inside.sum() for n in level]
            np.testing.assert_allclose(view[:, row, column], expected, atol=1e-5)
            assert (voxels[:, row, column] == (np.array(level) > 0)).all()


def colours_of(root: Path, info: Info, turn: np.ndarray) -> float:
    """Return the share of lidar points whose class has its colour where the calibration puts them."""
    from PIL import Image

    cloud, right, total = points.read_points(root, info, 1), 0, 0
    kinds = np.rint(cloud.intensity * 25.5).astype(int)
    for camera in info.cameras:
        pose = camera.to_lidar.copy()
        pose[:3, :3] = pose[:3, :3] @ turn
        at, depth = cameras.project(dataclasses.replace(camera, to_lidar=pose), cloud.xyz)
        pixels = np.asarray(Image.open(root / camera.file)).astype(int)
        h, w = pixels.shape[:2]
        seen = (depth > 1) & (at >= 0).all(axis=1) & (at[:, 0] < w) & (at[:, 1] < h)
        column, row = at[seen].astype(int).T
        near = np.abs(pixels[row, column] - sensors.COLOURS[kinds[seen]]).max(axis=1) < 40
        right, total = right + int(near.sum()), total + int(seen.sum())
    return right / total


def test_points_have_their_colour_in_the_pictures(root: Path, infos: tuple[Info, ...]) -> None:
    few_degrees = rotation(np.array([1.0, 0.06, 0.12, 0.0]))
    for info in infos[:2]:
        assert colours_of(root, info, np.eye(3)) > 0.9
        assert colours_of(root, info, few_degrees) < colours_of(root, info, np.eye(3)) - 0.1


def test_the_middle_of_a_box_has_its_colour(root: Path, infos: tuple[Info, ...]) -> None:
    from PIL import Image

    found: list[bool] = []
    for info in infos:
        many = info.boxes.num_points > 60
        places = info.boxes.values[many, :3].astype(np.float64)
        for camera in info.cameras:
            at, depth = cameras.project(camera, places)
            pixels = np.asarray(Image.open(root / camera.file)).astype(int)
            for kind, (u, v), d in zip(np.array(info.boxes.names)[many], at, depth, strict=True):
                if d > 2 and 0 <= u < 128 and 0 <= v < 72:
                    wanted = sensors.COLOURS[labels.VOXEL_CLASSES.index(kind)]
                    found.append(bool(np.abs(pixels[int(v), int(u)] - wanted).max() < 40))
    assert len(found) >= 8
    assert np.mean(found) > 0.85  # a nearer box hides some


def test_camera_view_against_loops(root: Path, infos: tuple[Info, ...], rng: np.random.Generator) -> None:
    info, xyz = infos[1], points.read_points(root, infos[1], 1).xyz
    xyz = xyz + rng.normal(0, 0.01, xyz.shape)  # away from the edges of cells
    view = cameras.camera_view(root, info.cameras, xyz, SPACE, 2, 4)
    total = np.zeros((2, 4, 12, 12))
    for camera in info.cameras:
        small, (w, h) = cameras.read_picture(root / camera.file, 4)
        assert (small.shape, w, h) == ((18, 32, 3), 128, 72)
        matrix = np.linalg.inv(camera.to_lidar)
        for x in xyz:
            p = camera.intrinsics @ (matrix @ [*x, 1])[:3]
            if p[2] <= 1 or not (0 <= p[0] / p[2] < w and 0 <= p[1] / p[2] < h):
                continue
            row, column = int((x[1] + 24) // 4), int((x[0] + 24) // 4)
            if 0 <= row < 12 and 0 <= column < 12 and -3 <= x[2] < 3:
                rgb = small[int(p[1] / p[2] // 4), int(p[0] / p[2] // 4)] / 127.5 - 1
                total[int(x[2] >= 0), :, row, column] += [*rgb, 1]
    mean = total[:, :3] / np.maximum(total[:, 3:], 1)
    expected = np.concatenate([mean, total[:, 3:] > 0], axis=1).reshape(8, 12, 12)
    np.testing.assert_allclose(view, expected, atol=1e-4)


def test_voxels_on_another_grid_against_loops(rng: np.random.Generator) -> None:
    rows = np.unique(np.stack([rng.integers(0, n, 4000) for n in (40, 512, 512)], axis=1), axis=0)
    rows = np.concatenate([rows, rng.integers(0, 17, (len(rows), 1))], axis=1)
    space = Space(cells=11, range_m=55.0, levels=2, bottom_m=-4.0, top_m=2.0)
    found = labels.to_space(rows, space)
    for cell in np.ndindex(2, 11, 11):
        low = np.array([cell[2] * 10 - 55.0, cell[1] * 10 - 55.0, cell[0] * 3 - 4.0])
        xyz = np.array([-51.2, -51.2, -5]) + (rows[:, [2, 1, 0]] + 0.5) * 0.2
        kinds = rows[((xyz >= low) & (xyz < low + np.array([10, 10, 3]))).all(axis=1), 3]
        real = kinds[kinds > 0]
        expected = np.bincount(real).argmax() if len(real) else 255 if len(kinds) else 0
        assert found[cell] == (expected if max(abs(low[:2] + 5)) < 51.2 else 255)
    assert labels.to_space(rows[:0], space)[:, 1:-1, 1:-1].max() == 0


def test_points_lie_in_occupied_voxels(root: Path, infos: tuple[Info, ...]) -> None:
    space = Space(cells=64, range_m=25.6, levels=10, bottom_m=-5.0, top_m=3.0)
    for info in infos[:2]:
        voxels = labels.read_occupancy(root / "nuScenes-Occupancy", info, space)
        cloud = points.read_points(root, info, 1)
        index, inside = space.index(cloud.xyz)
        kinds = voxels[tuple(index[inside].T)]
        assert (kinds > 0).mean() > 0.97
        assert (kinds == np.rint(cloud.intensity[inside] * 25.5)).mean() > 0.9


def test_the_expansion_is_drawn_where_the_raster_is(root: Path, infos: tuple[Info, ...]) -> None:
    bare = next(i for i in infos if not (root / "map" / f"{i.token}.npy").is_file())
    layers = road_map.read_place(root / "maps/expansion/streets.json")
    for info in (*infos[:2], bare):
        number = int(info.lidar_file.split("__")[0][-4:])
        truth = sensors.make_world(0, number).truth.map > 0
        drawn = labels.read_map(root, root / "map", dataclasses.replace(info, token="none"), 200, 50.0)
        assert (drawn == road_map.draw(layers, info.to_global, 200, 50.0)).all()
        assert (drawn[:5] != truth[:5]).mean() < 0.001
        assert drawn[:4].any(axis=(1, 2)).all()
        assert (drawn[5].astype(bool) & ~truth[5] & truth[0]).sum() <= 8  # the lines' round ends
        assert drawn[5].sum() > 0.4 * truth[5].sum()


def test_areas_are_filled_by_the_even_odd_rule(rng: np.random.Generator) -> None:
    outline, hole = rng.uniform(-3, 15, (9, 2)), rng.uniform(3, 9, (4, 2))
    found = road_map.fill([outline, hole], 12)
    for row in range(12):
        for column in range(12):
            x, y, odd = column + 0.5, row + 0.5, False
            for ring in (outline, hole):
                for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                    odd ^= (y0 > y) != (y1 > y) and x > x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            assert found[row, column] == odd


def test_an_expansion_with_a_hole_around_a_turned_vehicle(tmp_path: Path) -> None:
    corners = {
        "o": ((100, 200), (110, 200), (110, 230), (100, 230)),
        "h": ((102, 206), (104, 206), (104, 208), (102, 208)),
    }
    tables: dict[str, Any] = {
        "node": [
            {"token": f"{r}{i}", "x": x, "y": y}
            for r, ring in corners.items()
            for i, (x, y) in enumerate(ring)
        ],
        "polygon": [
            {
                "token": "p",
                "exterior_node_tokens": [f"o{i}" for i in range(4)],
                "holes": [{"node_tokens": [f"h{i}" for i in range(4)]}],
            }
        ],
        "line": [],
        "walkway": [{"polygon_token": "p"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(tables))
    pose = np.eye(4)
    pose[:3, :3], pose[:2, 3] = rotation(np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])), (105, 205)
    found = road_map.draw(road_map.read_place(tmp_path / "x.json"), pose, 20, 10.0)
    assert not np.delete(found, 2, axis=0).any()
    for row, column in np.ndindex(20, 20):  # x of the vehicle is north, y is west
        east, north = 105 - (row + 0.5 - 10), 205 + (column + 0.5 - 10)
        inside = 100 < east < 110 and 200 < north < 230 and not (102 < east < 104 and 206 < north < 208)
        assert found[2, row, column] == inside
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(DataError, match=r"y\.json: unreadable"):
        road_map.read_place(tmp_path / "y.json")


def test_rasters_as_bits_and_on_a_smaller_map(tmp_path: Path, infos: tuple[Info, ...], rng: Any) -> None:
    from PIL import Image

    layers, info = rng.random((6, 200, 200)) < 0.5, dataclasses.replace(infos[0], token="t")
    Image.fromarray((layers * (1 << np.arange(6))[:, None, None]).sum(0).astype(np.uint8)).save(
        tmp_path / "t.png"
    )
    np.testing.assert_array_equal(labels.read_map(tmp_path, tmp_path, info, 200, 50.0), layers)
    np.testing.assert_array_equal(
        labels.read_map(tmp_path, tmp_path, info, 100, 25.0), layers[:, 50:150, 50:150]
    )
    np.save(tmp_path / "t.npy", layers[:3])
    with pytest.raises(DataError, match=r"shape \(3, 200, 200\); expected \(6, n, n\)"):
        labels.read_map(tmp_path, tmp_path, info, 200, 50.0)


MOTIONS = [Motion(fx, fy, q) for fx in (False, True) for fy in (False, True) for q in range(4)]


@pytest.mark.parametrize("motion", MOTIONS, ids=str)
def test_a_moved_scene_is_the_view_of_moved_points(motion: Motion, rng: np.random.Generator) -> None:
    cloud, boxes = random_points(rng), rng.uniform(-20, 20, (6, 10)).astype(np.float32)
    scene = Scene(
        {"lidar": points.pillars(cloud, SPACE), "occupied": points.occupied(cloud, SPACE)},
        boxes,
        rng.random((6, 10, 10)),
        points.occupied(cloud, SPACE).astype(np.int64),
    )
    moved = move(scene, motion)

    def by_hand(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = -x if motion.flip_x else x, -y if motion.flip_y else y
        for _ in range(motion.quarters):
            x, y = -y, x
        return x, y

    turned = Points(
        np.stack([*by_hand(*cloud.xyz.T[:2]), cloud.xyz[:, 2]], axis=1), cloud.intensity, cloud.lag_s
    )
    np.testing.assert_allclose(moved.inputs["lidar"], points.pillars(turned, SPACE), atol=1e-5)
    np.testing.assert_array_equal(moved.inputs["occupied"], points.occupied(turned, SPACE))
    np.testing.assert_array_equal(moved.occupancy, points.occupied(turned, SPACE))
    x, y = by_hand(*(np.mgrid[:10, :10][::-1] - 4.5))
    rows, columns = (y + 4.5).astype(int), (x + 4.5).astype(int)
    np.testing.assert_array_equal(moved.map[:, rows, columns], scene.map)
    for old, new in zip(boxes.astype(np.float64), moved.boxes, strict=True):
        np.testing.assert_allclose(new[:2], by_hand(*old[:2]), atol=1e-4)
        tip = old[:2] + old[3] / 2 * np.array([np.cos(old[6]), np.sin(old[6])])
        np.testing.assert_allclose(
            new[:2] + new[3] / 2 * np.array([np.cos(new[6]), np.sin(new[6])]), by_hand(*tip), atol=1e-4
        )
        np.testing.assert_allclose(new[:2] + new[7:9], by_hand(*(old[:2] + old[7:9])), atol=1e-4)
        np.testing.assert_array_equal(new[[2, 3, 4, 5, 9]], old[[2, 3, 4, 5, 9]].astype(np.float32))


def test_motions_are_drawn_as_often_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    options = SceneAugment(flip_x_prob=0.5, flip_y_prob=0.0, turn_prob=1.0)
    drawn = [Motion.draw(options, generator) for _ in range(300)]
    assert 110 < sum(m.flip_x for m in drawn) < 190
    assert not any(m.flip_y for m in drawn)
    assert {m.quarters for m in drawn} == {1, 2, 3}
    with pytest.raises(ConfigError, match="turn_prob: 2"):
        SceneAugment(turn_prob=2.0)


def test_a_sample_has_views_and_labels_of_its_frame(root: Path, infos: tuple[Info, ...]) -> None:
    options = NuScenes.Config(root=str(root), val_share=0.34, min_points=60)
    data = options.build(preprocesses(), seed=0)
    info = data.info()
    assert info.counts == {"train": 3, "val": 1, "test": 1}
    sample, frame = data.source("test").get(0, None), infos[-1]
    assert sample.id == frame.token
    boxes, kept = sample.lists["boxes"].numpy(), frame.boxes.num_points >= 60
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_allclose(boxes[:, 2], frame.boxes.values[kept, 2] + 1.84, atol=1e-5)
    np.testing.assert_allclose(boxes[:, 2], boxes[:, 5] / 2, atol=1e-5)  # they stand on the ground
    names = [BOX_CLASSES[int(n)] for n in boxes[:, 9]]
    assert names == [n for n, k in zip(frame.boxes.names, kept, strict=True) if k]
    filled = sample.inputs["occupied"].values
    assert filled.sum() > 100
    assert (sample.targets["occupancy"][filled] > 0).float().mean() > 0.95
    assert torch.equal(filled.any(dim=0), sample.inputs["lidar"].values[0] > 0)
    assert not (sample.inputs["camera"].values[[3, 7]].bool() & ~filled.any(dim=0)).any()
    assert {t: tuple(v.shape) for t, v in sample.targets.items()} == {
        "map": (6, 30, 30),
        "occupancy": (3, 20, 20),
    }


def test_missing_labels_are_left_out(root: Path, tmp_path: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        if entry["lidar_path"].split("__")[0].endswith("0002"):
            del entry["gt_boxes"]
            entry.update(scene_token="other", lidar_token="other", location="unknown")

    other = copy_with(root, tmp_path / "other", change)
    data = NuScenes.Config(root=str(other), val_share=0.0).build(preprocesses(), seed=0)
    source = data.source("train")
    samples = {s.id: s for s in (source.get(i, None) for i in range(len(source)))}
    bare = samples.pop("other")
    assert (dict(bare.targets), dict(bare.lists)) == ({}, {})
    assert all({*s.targets, *s.lists} == {"map", "occupancy", "boxes"} for s in samples.values())
    (other / "nuScenes-Occupancy").unlink()
    assert sorted(data.info().labels) == ["boxes", "map"]
    few = NuScenes.Config(root=str(other), targets=["occupancy"]).build(preprocesses(), seed=0)
    with pytest.raises(DataError, match="no labels of occupancy; expected nuScenes-Occupancy"):
        few.info()


def test_precomputed_views_take_the_place_of_files(root: Path, tmp_path: Path, infos: Any, rng: Any) -> None:
    for info in infos:
        views = {"camera": rng.random((80, 20, 20), "f4"), "lidar": rng.random((256, 20, 20), "f4")}
        np.savez(tmp_path / f"{info.token}.npz", **views)
    wanted = preprocesses(camera=80, lidar=256)
    data = NuScenes.Config(root=str(root), bev=str(tmp_path)).build(wanted, seed=0)
    assert data.info().modalities == ("camera", "lidar")
    sample = data.source("test").get(0, None)
    held = read_views(tmp_path, infos[-1].token, ("camera", "lidar"))
    for name in ("camera", "lidar"):
        np.testing.assert_array_equal(sample.inputs[name].values, held[name])
    (tmp_path / f"{infos[-1].token}.npz").unlink()
    with pytest.raises(DataError, match=r"\.npz: no such file; expected the views camera and lidar"):
        data.source("test").get(0, None)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (preprocesses(camera=10), "reads 10 camera channels; expected a multiple of 4"),
        (preprocesses(lidar=10), "reads 10 lidar channels; .* Set model\\.lidar_channels=9"),
        (preprocesses(grid=BevGrid(bottom_m=0.5)), "the ground, at 0 m"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(root: Path, wanted: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        NuScenes.Config(root=str(root)).build(wanted, seed=0)


def test_heights_from_the_lidar_are_as_published(root: Path, infos: tuple[Info, ...]) -> None:
    options = NuScenes.Config(root=str(root), height_from=HeightFrom.LIDAR)
    data = options.build(preprocesses(grid=BevGrid()), seed=0)
    boxes = data.source("test").get(0, None).lists["boxes"].numpy()
    kept = infos[-1].boxes.num_points > 0
    np.testing.assert_allclose(boxes[:, 2], infos[-1].boxes.values[kept, 2], atol=1e-6)


def test_inspect_knows_the_layout(root: Path, infos: tuple[Info, ...]) -> None:
    report = inspect_path(root)
    assert (report.format, report.samples, report.read, report.faults) == ("nuScenes layout", 5, 5, ())
    assert {m: dict(r.shapes) for m, r in report.modalities.items()} == {
        "camera": {"8x180x180": 5},
        "lidar": {"11x180x180": 5},
        "occupied": {"5x180x180": 5},
    }
    cars = sum(
        n == "car" and k > 0 for i in infos for n, k in zip(i.boxes.names, i.boxes.num_points, strict=True)
    )
    assert report.classes["boxes"]["car"] == cars
    assert report.classes["map"]["walkway"] == report.classes["occupancy"]["sidewalk"] == 5
    assert report.config == {"type": "nuscenes", "root": str(root)}


@pytest.mark.parametrize("name", ["driving", "nuscenes"])
def test_recipes_train_on_it_though_a_frame_lacks_its_labels(root: Path, tmp_path: Path, name: str) -> None:
    def change(entry: dict[str, Any]) -> None:
        if entry["lidar_path"].split("__")[0].endswith("0002"):
            del entry["gt_boxes"]
            entry.update(scene_token="other", lidar_token="other", location="unknown")

    other = copy_with(root, tmp_path / "other", change)
    options = ["data=nuscenes", f"data.root={other}", "data.val_share=0", "data.loader.batch_size=4"]
    options += ["model.grid.cells=12", "model.grid.map_cells=10", "model.layers=1", "model.dim=16"]
    options += ["model.neck_channels=8", "model.hidden_dim=16", "model.num_boxes=6", "model.num_heads=2"]
    options += ["data.height_from=lidar"] * (name == "nuscenes")
    built = recipe.build(recipe.load(name, options))
    batch = next(iter(built.datamodule.loader("train")))
    assert {t: len(v.index) for t, v in batch.targets.items()} == dict.fromkeys(
        ("map", "occupancy", "boxes"), 3
    )
    out = built.model(batch)
    assert built.learner.tasks["occupancy"].objective.counts == ()  # those of each batch: nothing is known
    losses = [task.loss(out, batch).mean() for task in built.learner.tasks.values()]
    torch.stack(losses).sum().backward()
    assert all(bool(loss > 0) for loss in losses)
    silent = [n for n, p in built.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in silent if n.startswith(("fusion", "near", "far"))]
