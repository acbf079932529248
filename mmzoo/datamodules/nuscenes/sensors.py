"""The sensors of a vehicle in a simulated street: what its lidar and its six cameras measure, by ray casting.

Why: files made of these can be checked: a box is where its points and its colour are. The street is a height
field, so a ray walks until it is below it; places in metres in the lidar's frame, whose ground is `GROUND_M`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mmzoo.datamodules.nuscenes.infos import CAMERAS
from mmzoo.datamodules.nuscenes.labels import VOXEL_CLASSES
from mmzoo.datamodules.world_driving.scene import (
    BOX_CLASSES,
    BUILDING,
    CARPARK,
    DRIVABLE,
    GROUND,
    PLANTS,
    WALKWAY,
    Layout,
    Street,
    street,
)
from mmzoo.datamodules.world_driving.views import DrivingConfig

Array = np.ndarray
CELLS, RANGE_M = 256, 25.6
"""Of the street: columns of 0.2 m, as the published voxels."""
GRIDS = DrivingConfig(cells=CELLS, range_m=RANGE_M, map_cells=200, map_range_m=50.0, levels=4)
GROUND_M = -1.84
"""Height of the ground below the lidar."""
HOUSE_M, PLANT_M = 4.0, 2.0
BEAMS, TURNS = np.radians(np.linspace(-30.7, 10.7, 32)), np.radians(np.arange(0.0, 360.0, 1.0))
START_M, STEP_M, REACH_M = 1.2, 0.15, 45.0
YAWS_DEGREES = dict(zip(CAMERAS, (0.0, -55.0, 55.0, 180.0, 110.0, -110.0), strict=True))
"""Which way each camera looks, from straight ahead to the left; the lidar's y axis is straight ahead."""
VIEW_DEGREES, WIDE_VIEW_DEGREES = 70.0, 110.0
"""Width of a camera's view; of the one that looks back."""
MOUNT_M, BELOW_LIDAR_M = 0.6, 0.3
"""Cameras sit so far from the lidar's axis in the direction they look, and so far below it."""
SKY = 0
COLOURS = np.random.default_rng(17).permuted(
    np.array([[r, g, b] for r in (30, 120, 210) for g in (30, 120, 210) for b in (30, 120, 210)])
)[: len(VOXEL_CLASSES)]
TO_VOXEL = {DRIVABLE: 11, CARPARK: 12, WALKWAY: 13, GROUND: 14, BUILDING: 15, PLANTS: 16}
NUMBERS = np.array(
    [0, *(VOXEL_CLASSES.index(name) for name in BOX_CLASSES), *(TO_VOXEL[n] for n in range(DRIVABLE, 17))]
)
"""The world's voxel classes as the published ones."""


@dataclass(frozen=True)
class World:
    """A street: what is true of it, how it was laid out, and its ground and background as columns.

    Shape: floor (y x) class of the ground; top (y x) height above the ground of what stands on it, of `kind`.
    """

    truth: Street
    layout: Layout
    floor: Int[Array, "y x"]
    top: Float[Array, "y x"]
    kind: Int[Array, "y x"]

    def columns(self, lag_s: float = 0.0) -> tuple[Float[Array, "y x"], Int[Array, "y x"]]:
        """Return top and class (published numbers) of each column, moving boxes where they were before."""
        top, kind = self.top.copy(), np.where(self.top > 0, self.kind, self.floor)
        for box, number in zip(self.truth.boxes, self.truth.classes, strict=True):
            at = box.astype(np.float64)
            at[:2] -= lag_s * at[7:9]
            inside = covered(at)
            top[inside], kind[inside] = at[5], 1 + number
        return top, NUMBERS[kind]


def make_world(seed: int, number: int) -> World:
    """Draw a street; it depends on (seed, number) alone."""
    made = street(np.random.default_rng((seed, number)), GRIDS)
    layout = Layout.draw(np.random.default_rng((seed, number)))  # the street's first draw
    behind = np.isin(made.occupancy[1:], (BUILDING, PLANTS))
    kind = np.where(behind, made.occupancy[1:], 0).max(axis=0)
    top = np.where(kind == BUILDING, HOUSE_M, np.where(kind == PLANTS, PLANT_M, 0.0))
    return World(made, layout, made.occupancy[0], top, kind)


def covered(box: Float[Array, " 9"]) -> Bool[Array, "y x"]:
    """Return the columns whose middle a box covers, and the one below its own middle."""
    at = (np.arange(CELLS) + 0.5) * 2 * RANGE_M / CELLS - RANGE_M
    dx, dy = at[None] - box[0], at[:, None] - box[1]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    inside = (np.abs(dx * cos + dy * sin) <= box[3] / 2) & (np.abs(dy * cos - dx * sin) <= box[4] / 2)
    return inside | ((np.abs(dx) <= RANGE_M / CELLS) & (np.abs(dy) <= RANGE_M / CELLS))


def cast(
    columns: tuple[Float[Array, "y x"], Int[Array, "y x"]],
    origin: Float[Array, " 3"],
    rays: Float[Array, "n 3"],
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """Return how far rays of length 1 get, and the class of what they hit; infinity and 0 where nothing.

    Beyond the street there is flat ground. A ray walks no farther than the ground, the street's edge, or the
    height of its tallest column.
    """
    top, kind = columns
    far, hit = np.full(len(rays), np.inf), np.full(len(rays), SKY)
    ground, end = _ends(origin, rays, float(top.max()))
    walking = np.arange(len(rays))
    for t in np.arange(START_M, REACH_M, STEP_M):
        walking = walking[end[walking] > t]
        row, column, _ = _cells(origin + t * rays[walking])
        below = origin[2] + t * rays[walking, 2] - GROUND_M <= top[row, column]
        ray = walking[below]
        far[ray], hit[ray] = t, kind[row[below], column[below]]
        walking = walking[~below]
    flat = np.isinf(far) & (ground < REACH_M)
    row, column, inside = _cells(origin + ground[flat, None] * rays[flat])
    far[flat], hit[flat] = ground[flat], np.where(inside, kind[row, column], NUMBERS[GROUND])
    return far, hit


def _ends(
    origin: Float[Array, " 3"], rays: Float[Array, "n 3"], tallest_m: float
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Return where rays meet flat ground, and where nothing more can come before that."""
    down = rays[:, 2]
    ground = np.where(down < 0, (GROUND_M - origin[2]) / np.minimum(down, -1e-9), np.inf)
    over = np.where(down > 0, (GROUND_M + tallest_m - origin[2]) / np.maximum(down, 1e-9), np.inf)
    flat = np.where(np.abs(rays[:, :2]) < 1e-9, 1e-9, rays[:, :2])
    edge = ((np.sign(flat) * RANGE_M - origin[:2]) / flat).min(axis=1)
    return ground, np.minimum(np.minimum(ground, edge), np.maximum(over, 0))


def _cells(places: Float[Array, "n 3"]) -> tuple[Int[Array, " n"], Int[Array, " n"], Bool[Array, " n"]]:
    """Return row and column of what places are in (outside: the nearest), and which are inside."""
    found = np.floor((places[:, :2] + RANGE_M) * CELLS / (2 * RANGE_M))
    column, row = np.clip(found, 0, CELLS - 1).astype(np.int64).T
    return row, column, np.all((found >= 0) & (found < CELLS), axis=1)


def lidar(
    world: World, to_key: Float[Array, "4 4"], lag_s: float, rng: np.random.Generator
) -> Float[Array, "n 5"]:
    """Return the points x y z intensity ring of one turn, in the frame that `to_key` brings to the key frame.

    Intensity is ten times the class of what was hit.
    """
    up, turn = np.meshgrid(BEAMS, TURNS, indexing="ij")
    rays = np.stack([np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up)], axis=-1)
    rays, ring = rays.reshape(-1, 3), np.repeat(np.arange(len(BEAMS)), len(TURNS))
    far, kind = cast(world.columns(lag_s), to_key[:3, 3], rays @ to_key[:3, :3].T)
    seen = np.isfinite(far)
    places = rays[seen] * (far[seen] + rng.normal(0, 0.02, int(seen.sum())))[:, None]
    return np.concatenate([places, 10.0 * kind[seen, None], ring[seen, None]], axis=1)


def camera(name: str, size: tuple[int, int]) -> tuple[Float[Array, "3 3"], Float[Array, "4 4"]]:
    """Return a camera's intrinsics for pictures of (height, width), and the motion from it to the lidar."""
    angle = np.radians(90.0 + YAWS_DEGREES[name])
    forward = np.array([np.cos(angle), np.sin(angle), 0.0])
    right, down = np.array([np.sin(angle), -np.cos(angle), 0.0]), np.array([0.0, 0.0, -1.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, forward], axis=1)
    pose[:3, 3] = MOUNT_M * forward + BELOW_LIDAR_M * down
    wide = WIDE_VIEW_DEGREES if name == "CAM_BACK" else VIEW_DEGREES
    focal = size[1] / 2 / np.tan(np.radians(wide) / 2)
    return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]]), pose


def picture(world: World, name: str, size: tuple[int, int]) -> UInt8[Array, "h w 3"]:
    """Return what a camera sees at the key frame's time: every class in its colour."""
    lens, pose = camera(name, size)
    v, u = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    rays = pixels @ np.linalg.inv(lens).T @ pose[:3, :3].T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    _, kind = cast(world.columns(), pose[:3, 3], rays)
    return COLOURS[kind].reshape(*size, 3).astype(np.uint8)


def voxels(world: World) -> Int[Array, "n 4"]:
    """Return the occupied voxels as rows z y x class of the published grid of 0.2 m."""
    top, kind = world.columns()
    first = 512 // 2 - CELLS // 2
    ground = int((GROUND_M + 5.0) / 0.2)
    y, x = np.mgrid[first : first + CELLS, first : first + CELLS]
    rows = [np.stack([np.full_like(y, ground), y, x, NUMBERS[world.floor]], axis=-1).reshape(-1, 4)]
    for level in range(1, int(np.ceil(top.max() / 0.2)) + 1):
        tall = (level - 0.5) * 0.2 < top
        z = np.full(int(tall.sum()), ground + level)
        rows.append(np.stack([z, y[tall], x[tall], kind[tall]], axis=-1))
    return np.concatenate(rows)
