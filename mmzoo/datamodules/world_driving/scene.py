"""One simulated street: roads, what stands on and beside them, as map, boxes and occupancy.

Axes are [y, x] with the vehicle in the middle; metres, radians, metres a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mmzoo import schema

Array = np.ndarray
Generator = np.random.Generator
MAP_CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
BOX_CLASSES = (
    *("car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle"),
    *("pedestrian", "traffic_cone"),
)
SIZES_M = np.array(
    [
        *[[4.6, 1.9, 1.7], [7.0, 2.5, 2.9], [6.4, 2.8, 3.2], [11.0, 2.9, 3.5], [12.0, 2.9, 3.9]],
        *[[0.5, 2.5, 1.0], [2.1, 0.8, 1.5], [1.7, 0.6, 1.3], [0.7, 0.7, 1.8], [0.4, 0.4, 1.1]],
    ]
)
"""Mean length, width, height of each box class."""
SHARES = np.array([0.4, 0.07, 0.02, 0.04, 0.04, 0.08, 0.06, 0.06, 0.16, 0.07])
"""How often each box class is drawn."""
DRIVABLE, WALKWAY, GROUND, BUILDING, PLANTS, CARPARK = range(11, 17)
"""Voxel classes beyond free (0) and the box classes (1 … 10)."""
NUM_VOXEL_CLASSES = 17
VOXEL_CLASSES = (
    *("free", *BOX_CLASSES),
    *("driveable_surface", "sidewalk", "terrain", "building", "vegetation", "carpark"),
)
VOXEL_COUNTS = (
    *(1_617_000, 11_500, 3_070, 1_100, 3_410, 3_560, 800, 760, 550, 3_290, 620),
    *(134_000, 70_800, 352_000, 118_000, 5_280, 32_700),
)
"""About how many voxels of each class 1,024 streets have on 4 x 24 x 24 voxels within 27 m (M3Net tiny)."""


@dataclass(frozen=True)
class Street:
    """What is true of a scene.

    Shape: map (6 hm wm) 0 or 1; boxes (n 9) x y z (middle) length width height yaw vx vy, classes (n);
    occupancy (z y x) classes.
    """

    map: Float[Array, "k hm wm"]
    boxes: Float[Array, "n 9"]
    classes: Int[Array, " n"]
    occupancy: Int[Array, "z y x"]


@dataclass(frozen=True)
class Layout:
    """The road: heading, distance from the vehicle, half its width; where a crossing and a car park lie."""

    heading: float
    offset_m: float
    half_m: float
    crossing_m: float
    park_m: float
    park_side: int

    @staticmethod
    def draw(rng: Generator) -> Layout:
        """Draw a layout."""
        return Layout(
            float(rng.uniform(0, 2 * np.pi)),
            float(rng.uniform(-3, 3)),
            float(rng.uniform(4, 7)),
            float(rng.uniform(-18, 18)),
            float(rng.uniform(-15, 15)),
            int(rng.choice([-1, 1])),
        )

    def along(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return distances along the road and across it."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return x * cos + y * sin, -x * sin + y * cos - self.offset_m

    def place(self, u: float, v: float) -> tuple[float, float]:
        """Return the point at a distance along and across the road."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        v = v + self.offset_m
        return float(u * cos - v * sin), float(u * sin + v * cos)

    def classes(self, x: Array, y: Array) -> Float[Array, "k ..."]:
        """Return which map classes hold at points."""
        u, v = self.along(x, y)
        side = np.abs(v)
        road = side < self.half_m
        zebra = road & (np.abs(u - self.crossing_m) < 1.8)
        walk = (side >= self.half_m) & (side < self.half_m + 3.0)
        stop = road & (np.abs(u - self.crossing_m + 3.5) < 0.9) & (v < 0)
        depth = v * self.park_side - self.half_m - 3.0
        park = (depth >= 0) & (depth < 9) & (np.abs(u - self.park_m) < 9)
        divider = road & (side < 0.9) & (np.abs(u - self.crossing_m) > 3)
        return np.stack([road, zebra, walk, stop, park, divider]).astype(np.float32)


@dataclass(kw_only=True)
class StreetGrids(schema.Config):
    """Where the cells of views, map and voxels lie."""

    cells: int = 32
    """cells of the views along x and y"""
    range_m: float = 27.0
    """the views reach from -range to +range"""
    map_cells: int = 40
    """cells of the map"""
    map_range_m: float = 25.0
    """the map reaches from -range to +range"""
    levels: int = 4
    """voxels along z"""
    bottom_m: float = -1.0
    """height of the lowest voxels' lower side; the ground is at 0"""
    top_m: float = 4.0
    """height of the highest voxels' upper side"""


def street(rng: Generator, grids: StreetGrids) -> Street:
    """Draw a street and raster it on the grids of boxes, map and voxels."""
    cells, range_m, levels = grids.cells, grids.range_m, grids.levels
    layout = Layout.draw(rng)
    boxes, classes = _objects(rng, layout, range_m)
    truth = layout.classes(*_centres(grids.map_cells, grids.map_range_m))
    x, y = _centres(cells, range_m)
    occupancy = np.zeros((levels, cells, cells), dtype=np.int64)
    _ground(occupancy, layout.classes(x, y))
    _background(rng, occupancy, layout, x, y)
    height = (grids.top_m - grids.bottom_m) / levels
    for box, kind in zip(boxes, classes, strict=True):
        inside = _inside(box, x, y, 2 * range_m / cells)
        for level in range(1, levels):
            bottom = grids.bottom_m + level * height
            if bottom < box[2] + box[5] / 2:
                occupancy[level][inside] = 1 + kind
    return Street(truth, boxes.astype(np.float32), classes, occupancy)


def _centres(cells: int, range_m: float) -> tuple[Array, Array]:
    at = (np.arange(cells) + 0.5) * 2 * range_m / cells - range_m
    y, x = np.meshgrid(at, at, indexing="ij")
    return x, y


def _objects(rng: Generator, layout: Layout, range_m: float) -> tuple[Array, Array]:
    boxes: list[Array] = []
    kinds: list[int] = []
    for _ in range(int(rng.integers(6, 16))):
        kind = int(rng.choice(len(SHARES), p=SHARES / SHARES.sum()))
        size = SIZES_M[kind] * rng.uniform(0.9, 1.1, 3)
        u = float(rng.uniform(-0.9, 0.9) * range_m)
        lane = int(rng.choice([-1, 1]))
        if kind == 8:
            v, yaw, speed = lane * (layout.half_m + rng.uniform(0.4, 2.6)), rng.uniform(-np.pi, np.pi), 1.3
        elif kind in (5, 9):
            v, yaw, speed = lane * (layout.half_m - 0.6), layout.heading + np.pi / 2, 0.0
        else:
            v, speed = lane * layout.half_m * 0.5, float(rng.choice([0.0, rng.uniform(3, 9)]))
            yaw = layout.heading + (np.pi if lane > 0 else 0.0) + rng.normal(0, 0.04)
        x, y = layout.place(u, float(v))
        reach = (size[0] + 1.0) / 2
        near = any(np.hypot(x - b[0], y - b[1]) < reach + b[3] / 2 for b in boxes)
        if near or max(abs(x), abs(y)) > 0.95 * range_m:
            continue
        yaw = float((yaw + np.pi) % (2 * np.pi) - np.pi)
        moving = [speed * np.cos(yaw), speed * np.sin(yaw)]
        boxes.append(np.array([x, y, size[2] / 2, *size, yaw, *moving]))
        kinds.append(kind)
    return np.array(boxes).reshape(-1, 9), np.array(kinds, dtype=np.int64)


def _inside(box: Array, x: Array, y: Array, cell_m: float) -> Array:
    """Return the cells whose centre a box covers; a box smaller than a cell covers the one it is in."""
    dx, dy = x - box[0], y - box[1]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = dx * cos + dy * sin, -dx * sin + dy * cos
    covered = (np.abs(along) <= box[3] / 2) & (np.abs(across) <= box[4] / 2)
    return covered | ((np.abs(dx) <= cell_m / 2) & (np.abs(dy) <= cell_m / 2))


def _ground(occupancy: Array, classes: Array) -> None:
    floor = occupancy[0]
    floor[:] = GROUND
    floor[classes[4] > 0] = CARPARK
    floor[classes[2] > 0] = WALKWAY
    floor[classes[0] > 0] = DRIVABLE


def _background(rng: Generator, occupancy: Array, layout: Layout, x: Array, y: Array) -> None:
    """Put houses and plants beside the road."""
    u, v = layout.along(x, y)
    free = (np.abs(v) > layout.half_m + 4) & (layout.classes(x, y)[4] == 0)
    for _ in range(int(rng.integers(3, 8))):
        cu, cv = rng.uniform(-30, 30), rng.choice([-1, 1]) * rng.uniform(layout.half_m + 8, 30)
        house = bool(rng.random() < 0.6)
        wide, deep = rng.uniform(3, 8, 2) if house else rng.uniform(1, 2.5, 2)
        inside = free & (np.abs(u - cu) < wide) & (np.abs(v - cv) < deep)
        occupancy[1 : len(occupancy) if house else 3, inside] = BUILDING if house else PLANTS
