"""Writes simulated streets in the folder layout of nuScenes, to try and test the reader on.

Layout: nuscenes_infos_10sweeps_{train,val}.pkl, samples/{LIDAR_TOP,CAM_*}, sweeps/LIDAR_TOP,
nuScenes-Occupancy/scene_*/occupancy, map/TOKEN.npy and maps/expansion/streets.json. Every fourth frame has no
raster of its own: its map is drawn from the expansion.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.datamodules.nuscenes import sensors
from mmzoo.datamodules.nuscenes.infos import CAMERAS
from mmzoo.datamodules.world_driving.scene import BOX_CLASSES, Layout
from mmzoo.errors import ConfigError

MIN_FRAMES = 4
SIZE = (90, 160)
"""Height and width of pictures."""
LOCATION = "streets"
APART_M = 400.0
"""Distance between streets on the common map."""
ROAD_M = 90.0
"""A road reaches so far to both sides."""
SWEEP_S, SPEED_M_S, TURN_RAD_S = 0.05, 6.0, 0.1
SWEEPS = 2
"""Earlier turns of the lidar that are written."""
PROTOCOL = 4
MOUNT_M = (0.94, 0.0, 1.84)
"""Where the lidar sits on the car, whose x axis is straight ahead."""
Array = np.ndarray


@into_new_folder
def write_nuscenes(folder: Path, frames: int, *, seed: int = 0, size: tuple[int, int] = SIZE) -> str:
    """Write so many key frames, each of its own street, a quarter of them for val; say what was written."""
    if frames < MIN_FRAMES:
        raise ConfigError.at("data make", f"{frames} samples", f"at least {MIN_FRAMES}", "Ask for 8.")
    for name in ("LIDAR_TOP", *CAMERAS):
        (folder / "samples" / name).mkdir(parents=True)
    for name in ("sweeps/LIDAR_TOP", "map", "maps/expansion"):
        (folder / name).mkdir(parents=True)
    place = Place()
    infos = [_write_frame(folder, place, number, seed, size) for number in range(frames)]
    (folder / "maps/expansion" / f"{LOCATION}.json").write_text(json.dumps(place.tables))
    held = frames // 4
    for part, rows in (("train", infos[:-held]), ("val", infos[-held:])):
        (folder / f"nuscenes_infos_10sweeps_{part}.pkl").write_bytes(pickle.dumps(rows, PROTOCOL))
    return f"{frames - held} key frames in nuscenes_infos_10sweeps_train.pkl, {held} in …_val.pkl"


class Place:
    """A map expansion that grows by the road of each street."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        layers = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
        names = ("node", "polygon", "line", "road_divider", "lane_divider", *layers)
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def add(self, layout: Layout, to_global: Float[Array, "4 4"]) -> None:
        """Add a road; its middle line is a lane divider before the crossing, a road divider behind it."""
        half, at, park, side = layout.half_m, layout.crossing_m, layout.park_m, layout.park_side
        low, high = sorted((side * (half + 3.0), side * (half + 12.0)))
        spans: dict[str, list[tuple[float, float, float, float]]] = {
            "drivable_area": [(-ROAD_M, ROAD_M, -half, half)],
            "ped_crossing": [(at - 1.8, at + 1.8, -half, half)],
            "walkway": [(-ROAD_M, ROAD_M, half, half + 3), (-ROAD_M, ROAD_M, -half - 3, -half)],
            "stop_line": [(at - 4.4, at - 2.6, -half, 0.0)],
            "carpark_area": [(park - 9, park + 9, low, high)],
        }
        for layer, areas in spans.items():
            tokens = [self._polygon(layout, to_global, area) for area in areas]
            rows = [
                {"polygon_tokens": [t]} if layer == "drivable_area" else {"polygon_token": t} for t in tokens
            ]
            self.tables[layer] += rows
        for layer, (start, end) in (("lane_divider", (-ROAD_M, at - 3)), ("road_divider", (at + 3, ROAD_M))):
            nodes = [self._node(layout, to_global, u, 0.0) for u in (start, end)]
            self.tables["line"].append({"token": f"l{len(self.tables['line'])}", "node_tokens": nodes})
            self.tables[layer].append({"line_token": self.tables["line"][-1]["token"]})

    def _polygon(
        self, layout: Layout, to_global: Float[Array, "4 4"], area: tuple[float, float, float, float]
    ) -> str:
        u0, u1, v0, v1 = area
        corners = ((u0, v0), (u1, v0), (u1, v1), (u0, v1))
        nodes = [self._node(layout, to_global, u, v) for u, v in corners]
        token = f"p{len(self.tables['polygon'])}"
        self.tables["polygon"].append({"token": token, "exterior_node_tokens": nodes, "holes": []})
        return token

    def _node(self, layout: Layout, to_global: Float[Array, "4 4"], u: float, v: float) -> str:
        x, y, _, _ = to_global @ np.array([*layout.place(u, v), sensors.GROUND_M, 1.0])
        token = f"n{len(self.tables['node'])}"
        self.tables["node"].append({"token": token, "x": float(x), "y": float(y)})
        return token


def _write_frame(folder: Path, place: Place, number: int, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng((seed, number, 1))
    world, token = sensors.make_world(seed, number), rng.bytes(16).hex()
    drive, time_s = f"n000-streets-{seed:04d}-{number:04d}", 1.5e9 + 0.5 * number
    points = sensors.lidar(world, np.eye(4), 0.0, rng)
    lidar_path = _write_points(folder, "samples", drive, time_s, points)
    sweeps = [_write_sweep(folder, world, (drive, time_s, lidar_path), k, rng) for k in range(1, SWEEPS + 1)]
    to_global = _pose((APART_M * number, 50.0, MOUNT_M[2]), float(rng.uniform(-np.pi, np.pi)))
    place.add(world.layout, to_global)
    scene = rng.bytes(16).hex()
    _write_labels(folder, world, number, scene, token)
    boxes = world.truth.boxes.astype(np.float64)
    boxes[:, 2] += sensors.GROUND_M
    to_car = _pose(MOUNT_M, -np.pi / 2)
    return {
        "token": rng.bytes(16).hex(),
        **{"scene_token": scene, "lidar_token": token, "lidar_path": lidar_path, "sweeps": sweeps},
        **{"timestamp": time_s, "is_first": True, "location": LOCATION},
        "cams": {name: _write_camera(folder, world, name, (drive, time_s), size) for name in CAMERAS},
        "global_from_ref": to_global,
        "ref_from_car": np.linalg.inv(to_car),
        "car_from_global": to_car @ np.linalg.inv(to_global),
        "gt_boxes": boxes,
        "gt_names": np.array([BOX_CLASSES[kind] for kind in world.truth.classes], dtype=str),
        "num_lidar_pts": np.array([points_in(box, points) for box in boxes], dtype=np.int64),
        "instance_inds": np.arange(len(boxes)),
    }


def points_in(box: Float[Array, " 9"], points: Float[Array, "n _"]) -> int:
    """Return how many points a box holds, with a margin of a column's width."""
    x, y, z = (points[:, :3] - box[:3]).T
    cos, sin = np.cos(box[6]), np.sin(box[6])
    half = box[3:6] / 2 + 0.2
    inside = (np.abs(x * cos + y * sin) < half[0]) & (np.abs(y * cos - x * sin) < half[1])
    return int((inside & (np.abs(z) < half[2]) & (z > 0.3 - box[5] / 2)).sum())


def _write_points(folder: Path, part: str, drive: str, time_s: float, points: Float[Array, "n 5"]) -> str:
    path = f"{part}/LIDAR_TOP/{drive}__LIDAR_TOP__{round(1e6 * time_s)}.pcd.bin"
    points.astype("<f4").tofile(folder / path)
    return path


def _write_sweep(
    folder: Path, world: sensors.World, key: tuple[str, float, str], number: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Write an earlier turn, as the car came along an arc; a drive's first frame has none, as published."""
    drive, time_s, lidar_path = key
    if drive.endswith("0000"):
        return {"lidar_path": lidar_path, "transform_matrix": None, "time_lag": 0.0}
    lag = SWEEP_S * number
    to_key = _pose((0.0, -SPEED_M_S * lag, 0.0), -TURN_RAD_S * lag)
    path = _write_points(folder, "sweeps", drive, time_s - lag, sensors.lidar(world, to_key, lag, rng))
    return {"lidar_path": path, "transform_matrix": to_key, "time_lag": np.float64(lag)}


def _write_camera(
    folder: Path, world: sensors.World, name: str, key: tuple[str, float], size: tuple[int, int]
) -> dict[str, Any]:
    from PIL import Image

    path = f"samples/{name}/{key[0]}__{name}__{round(1e6 * key[1])}.jpg"
    Image.fromarray(sensors.picture(world, name, size)).save(folder / path, quality=95, subsampling=0)
    lens, to_lidar = sensors.camera(name, size)
    to_car = _pose(MOUNT_M, -np.pi / 2) @ to_lidar
    return {
        **{"data_path": path, "type": name, "timestamp": round(1e6 * key[1]), "camera_intrinsics": lens},
        "sensor2lidar_rotation": to_lidar[:3, :3],
        "sensor2lidar_translation": to_lidar[:3, 3],
        "sensor2ego_rotation": quaternion(to_car[:3, :3]).tolist(),
        "sensor2ego_translation": to_car[:3, 3].tolist(),
    }


def _write_labels(folder: Path, world: sensors.World, number: int, scene: str, token: str) -> None:
    occupancy = folder / "nuScenes-Occupancy" / f"scene_{scene}" / "occupancy"
    occupancy.mkdir(parents=True)
    rows: Int[Array, "n 4"] = sensors.voxels(world)
    np.save(occupancy / f"{token}.npy", rows.astype(np.uint16))
    if number % 4 != 3:
        np.save(folder / "map" / f"{token}.npy", world.truth.map.astype(np.uint8))


def _pose(place: tuple[float, float, float], heading: float) -> Float[Array, "4 4"]:
    made = np.eye(4)
    cos, sin = np.cos(heading), np.sin(heading)
    made[:2, :2], made[:3, 3] = [[cos, -sin], [sin, cos]], place
    return made


def quaternion(turn: Float[Array, "3 3"]) -> Float[Array, " 4"]:
    """Return a rotation as w x y z, w at least 0.

    Math: the eigenvector to the largest eigenvalue of the symmetric matrix of Bar-Itzhack 2000.
    """
    t = turn
    k = np.array(
        [
            [t[0, 0] + t[1, 1] + t[2, 2], t[2, 1] - t[1, 2], t[0, 2] - t[2, 0], t[1, 0] - t[0, 1]],
            [t[2, 1] - t[1, 2], t[0, 0] - t[1, 1] - t[2, 2], t[1, 0] + t[0, 1], t[2, 0] + t[0, 2]],
            [t[0, 2] - t[2, 0], t[1, 0] + t[0, 1], t[1, 1] - t[0, 0] - t[2, 2], t[2, 1] + t[1, 2]],
            [t[1, 0] - t[0, 1], t[2, 0] + t[0, 2], t[2, 1] + t[1, 2], t[2, 2] - t[0, 0] - t[1, 1]],
        ]
    )
    found = np.linalg.eigh(k / 3)[1][:, -1]
    return found * (1 if found[0] >= 0 else -1)
