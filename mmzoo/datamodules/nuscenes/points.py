"""Lidar points as a bird's-eye view: statistics of the points above each cell.

Why: the released model voxelises points and runs sparse 3-D convolutions over them; without those, a cell's
statistics are what a plain 2-D network can start from. They are raw input, not features of a trained network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mmzoo.datamodules.nuscenes.infos import Info
from mmzoo.errors import DataError

NUM_NUMBERS = 5
"""Of each point in a file: x y z intensity ring, float32."""
MAX_INTENSITY = 255.0
CLOSE_M = 1.0
"""Earlier sweeps drop points nearer than this along both x and y: the car itself."""
STATISTICS = ("log_count", "max_height", "mean_intensity", "mean_lag", "mean_height", "std_height")
"""Of the points above a cell, in the order in which `pillars` gives them."""
Array = np.ndarray


@dataclass(frozen=True)
class Space:
    """The part of the world that views and labels show, in the lidar's frame.

    Axes are [z, y, x], lowest first; cell (row, column) reaches from y = row * cell_m - range_m on.
    """

    cells: int
    range_m: float
    levels: int
    bottom_m: float
    top_m: float

    @property
    def cell_m(self) -> float:
        """Side of a cell in metres."""
        return 2 * self.range_m / self.cells

    def index(self, xyz: Float[Array, "n 3"]) -> tuple[Int[Array, "n 3"], Bool[Array, " n"]]:
        """Return level, row and column of points, and which lie within."""
        low = np.array([-self.range_m, -self.range_m, self.bottom_m])
        size = np.array([self.cell_m, self.cell_m, (self.top_m - self.bottom_m) / self.levels])
        found = np.floor((xyz - low) / size)[:, ::-1]
        extent = np.array([self.levels, self.cells, self.cells])
        return found.astype(np.int64), np.all((found >= 0) & (found < extent), axis=1)


@dataclass(frozen=True)
class Points:
    """Points in the lidar's frame: place (m), intensity 0 … 1, age (s)."""

    xyz: Float[Array, "n 3"]
    intensity: Float[Array, " n"]
    lag_s: Float[Array, " n"]


def read_points(root: Path, info: Info, sweeps: int) -> Points:
    """Read the key frame's points and those of up to `sweeps` - 1 earlier turns, moved to its frame."""
    parts = [(*_read(root / info.lidar_file), 0.0)]
    for sweep in info.sweeps[: sweeps - 1]:
        xyz, intensity = _read(root / sweep.file)
        far = (np.abs(xyz[:, :2]) >= CLOSE_M).any(axis=1)
        motion = sweep.to_lidar
        parts.append((xyz[far] @ motion[:3, :3].T + motion[:3, 3], intensity[far], sweep.lag_s))
    return Points(
        np.concatenate([xyz for xyz, _, _ in parts]),
        np.concatenate([intensity for _, intensity, _ in parts]),
        np.concatenate([np.full(len(xyz), lag) for xyz, _, lag in parts]),
    )


def _read(path: Path) -> tuple[Float[Array, "n 3"], Float[Array, " n"]]:
    if not path.is_file():
        do = "Is data.root the folder of samples and sweeps?"
        raise DataError.at(str(path), "no such file", "a sweep of the lidar", do)
    numbers = np.fromfile(path, np.dtype("<f4"))
    if numbers.size % NUM_NUMBERS:
        found, expected = f"{numbers.size} numbers", f"{NUM_NUMBERS} a point (x y z intensity ring)"
        raise DataError.at(str(path), found, expected, "Fetch the file again.")
    rows = numbers.reshape(-1, NUM_NUMBERS).astype(np.float64)
    rows = rows[np.isfinite(rows[:, :4]).all(axis=1)]
    return rows[:, :3], rows[:, 3] / MAX_INTENSITY


def occupied(points: Points, space: Space) -> Bool[Array, "z y x"]:
    """Return which voxels hold a point."""
    index, inside = space.index(points.xyz)
    out = np.zeros((space.levels, space.cells, space.cells), dtype=bool)
    out[tuple(index[inside].T)] = True
    return out


def channels(space: Space, statistics: int = len(STATISTICS)) -> tuple[str, ...]:
    """Return what `pillars` gives, in order."""
    return (*STATISTICS[:statistics], *(f"share_of_level_{n}" for n in range(space.levels)))


def pillars(points: Points, space: Space, statistics: int = len(STATISTICS)) -> Float[Array, "c y x"]:
    """Return statistics of the points above each cell, the first so many; without points all are 0.

    Math: log(1 + n); highest (z - bottom) / (top - bottom); mean intensity (0 … 1); mean age (s); mean and
    standard deviation of the height, scaled as above; then for each level the share of the cell's points.
    """
    index, inside = space.index(points.xyz)
    z, y, x = index[inside].T
    cell, total = y * space.cells + x, space.cells**2
    height = (points.xyz[inside, 2] - space.bottom_m) / (space.top_m - space.bottom_m)
    count = np.bincount(cell, minlength=total)
    some = np.maximum(count, 1)

    def mean(values: Float[Array, " n"]) -> Float[Array, " cells"]:
        return np.bincount(cell, values, minlength=total) / some

    highest = np.zeros(total)
    np.maximum.at(highest, cell, height)
    middle = mean(height)
    spread = np.sqrt(mean((height - middle[cell]) ** 2))
    intensity, lag = mean(points.intensity[inside]), mean(points.lag_s[inside])
    found = np.stack([np.log1p(count), highest, intensity, lag, middle, spread])[:statistics]
    levels = np.bincount(z * total + cell, minlength=space.levels * total).reshape(space.levels, total) / some
    view = np.concatenate([found, levels])
    return view.reshape(-1, space.cells, space.cells).astype(np.float32)
