"""The labels of a key frame on the model's grids: boxes, map, occupancy. What is not there is None."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mmzoo.datamodules.dense_files import read_map as read_picture
from mmzoo.datamodules.faults import decoding
from mmzoo.datamodules.nuscenes import road_map
from mmzoo.datamodules.nuscenes.infos import Boxes, Info
from mmzoo.datamodules.nuscenes.points import Space
from mmzoo.errors import DataError

NUM_LAYERS = 6
"""Layers of a map label."""
MAP_RANGE_M = 50.0
"""Published rasters reach so far to all sides."""
VOXELS = (40, 512, 512)
VOXEL_RANGE_M, VOXEL_BOTTOM_M, VOXEL_M = 51.2, -5.0, 0.2
"""Grid of the published occupancy files: (z, y, x) voxels of 0.2 m."""
VOXEL_CLASSES = (
    *("free", "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian"),
    *("traffic_cone", "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain"),
    *("manmade", "vegetation"),
)
"""Voxel classes by number; in a file 0 is noise, and free voxels are not listed."""
NOISE, UNKNOWN, NUM_VOXEL_CLASSES = 0, 255, len(VOXEL_CLASSES)
Array = np.ndarray


def boxes_in(
    boxes: Boxes, names: Sequence[str], range_m: float, min_points: int
) -> tuple[Float[Array, "n 9"], Int[Array, " n"]]:
    """Return boxes and class numbers of those of the named classes, hit by points, centred within range."""
    known = {name: number for number, name in enumerate(names)}
    classes = np.array([known.get(name, -1) for name in boxes.names], dtype=np.int64)
    kept = (classes >= 0) & (boxes.num_points >= min_points)
    kept &= (np.abs(boxes.values[:, :2]) < range_m).all(axis=1)
    return boxes.values[kept], classes[kept]


def read_occupancy(folder: Path, info: Info, space: Space) -> Int[Array, "z y x"] | None:
    """Read the voxels of a key frame on the model's grid.

    Math: a cell has the class that most of its occupied voxels have (the lowest of equals), is 255 where all
    of them are noise or it lies outside the published grid, and 0 (free) where none is occupied.
    """
    path = folder / f"scene_{info.scene}" / "occupancy" / f"{info.token}.npy"
    if not path.is_file():
        return None
    with decoding(path.name):
        rows = np.load(path, allow_pickle=False)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise DataError.at(str(path), f"shape {rows.shape}", "rows z y x class", "Fetch the file again.")
    rows = rows.astype(np.int64)
    if len(rows) and (rows.min() < 0 or (rows.max(axis=0) >= (*VOXELS, NUM_VOXEL_CLASSES)).any()):
        found = f"a row up to {tuple(rows.max(axis=0).tolist())}"
        expected = f"z y x within {VOXELS} and classes 0 … {NUM_VOXEL_CLASSES - 1}"
        raise DataError.at(str(path), found, expected, "Fetch the file again.")
    return to_space(rows, space)


def to_space(rows: Int[Array, "n 4"], space: Space) -> Int[Array, "z y x"]:
    """Bring rows z y x class of the published grid to another one."""
    low = np.array([-VOXEL_RANGE_M, -VOXEL_RANGE_M, VOXEL_BOTTOM_M])
    index, inside = space.index((rows[:, 2::-1] + 0.5) * VOXEL_M + low)
    shape = (space.levels, space.cells, space.cells)
    cell = np.ravel_multi_index(tuple(index[inside].T), shape)
    total = int(np.prod(shape))
    votes = np.bincount(cell * NUM_VOXEL_CLASSES + rows[inside, 3], minlength=total * NUM_VOXEL_CLASSES)
    votes = votes.reshape(*shape, NUM_VOXEL_CLASSES)
    best = 1 + votes[..., 1:].argmax(axis=-1)
    classes = np.where(votes[..., 1:].any(axis=-1), best, np.where(votes[..., NOISE] > 0, UNKNOWN, 0))
    return np.where(_published(space), classes, UNKNOWN)


def _published(space: Space) -> Bool[Array, "z y x"]:
    """Return the cells whose middle the published grid has."""
    side = (np.arange(space.cells) + 0.5) * space.cell_m - space.range_m
    step = (space.top_m - space.bottom_m) / space.levels
    height = (np.arange(space.levels) + 0.5) * step + space.bottom_m - VOXEL_BOTTOM_M
    flat = np.abs(side) < VOXEL_RANGE_M
    tall = (height > 0) & (height < VOXELS[0] * VOXEL_M)
    return tall[:, None, None] & flat[:, None] & flat


def read_map(
    root: Path, folder: Path, info: Info, cells: int, range_m: float
) -> Float[Array, "k y x"] | None:
    """Return the map around a key frame: its raster, else drawn from the map expansion, else None.

    A raster is TOKEN.npy (6 y x), not 0 where a layer holds, or TOKEN.png of one channel whose bit k is
    layer k; it reaches to 50 m, row 0 is at y = -50 m.
    """
    for ending in ("npy", "png"):
        path = folder / f"{info.token}.{ending}"
        if path.is_file():
            return _resampled(_raster(path), cells, range_m).astype(np.float32)
    place = root / road_map.FOLDER / f"{info.location}.json"
    if info.to_global is None or not place.is_file():
        return None
    return road_map.draw(road_map.read_place(place), info.to_global, cells, range_m).astype(np.float32)


def _raster(path: Path) -> Bool[Array, "k y x"]:
    with decoding(path.name):
        if path.suffix == ".png":
            bits = read_picture(path)
            return (bits >> np.arange(NUM_LAYERS, dtype=np.uint8)[:, None, None]) & 1 > 0
        made = np.load(path, allow_pickle=False)
    if made.ndim != 3 or made.shape[0] != NUM_LAYERS or made.shape[1] != made.shape[2]:
        raise DataError.at(str(path), f"shape {made.shape}", "(6, n, n)", "Write layers first, then y, x.")
    return made > 0


def _resampled(layers: Bool[Array, "k n n"], cells: int, range_m: float) -> Bool[Array, "k y x"]:
    """Take, for each cell, the value of the raster at its middle; outside of it nothing holds."""
    size = layers.shape[1]
    metres = (np.arange(cells) + 0.5) * 2 * range_m / cells - range_m
    at = np.floor((metres + MAP_RANGE_M) * size / (2 * MAP_RANGE_M)).astype(int)
    within = (at >= 0) & (at < size)
    at = at.clip(0, size - 1)
    return layers[:, at[:, None], at] & within[:, None] & within
