"""Bird's-eye views: feature maps of the ground around a vehicle, and the grids that views and labels lie on.

Axes are [y, x] with the vehicle in the middle, positions (x, y) in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.modalities.arrays import read_npy
from mmzoo.modalities.base import Preprocess


@dataclass(kw_only=True)
class BevGrid(schema.Config):
    """Where the cells of views, maps and voxels lie; axes are [y, x], positions (x, y)."""

    cells: int = 180
    """cells of the bird's-eye view along x and y"""
    range_m: float = 54.0
    """the view reaches from -range to +range, in metres"""
    map_cells: int = 200
    """cells of the map along x and y"""
    map_range_m: float = 50.0
    """the map reaches from -range to +range, in metres"""
    bottom_m: float = -5.0
    """height of the lowest voxels' lower side, in metres"""
    top_m: float = 3.0
    """height of the highest voxels' upper side, in metres"""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if min(self.cells, self.map_cells) < 1 or not 0 < self.map_range_m <= self.range_m:
            found = f"{self.cells} and {self.map_cells} cells, {self.map_range_m:g} of {self.range_m:g} m"
            raise ConfigError.at("grid", found, "cells, and a map within the view", "Lower map_range_m.")
        if not self.bottom_m < self.top_m:
            found = f"voxels from {self.bottom_m:g} to {self.top_m:g} m"
            raise ConfigError.at("grid", found, "bottom_m below top_m", "Swap them.")

    @property
    def cell_m(self) -> float:
        """Size of a cell in metres."""
        return 2 * self.range_m / self.cells


@dataclass(kw_only=True)
class VoxelConfig(schema.Config):
    """Where views and voxels lie."""

    levels: int = 5
    """voxels along z, in labels and masks"""
    grid: BevGrid = field(default_factory=BevGrid)
    """where the cells lie"""


class BevPreprocess(Preprocess):
    """A feature map (channels, cells, cells) that lies on the model's grid already: checked, made float32.

    Why: what a sensor's own network or rasteriser makes of the ground is the input here. A data set that
    draws its scenes takes channels and grids from these options, as pictures take their size from the model.
    """

    @dataclass(kw_only=True)
    class Config(VoxelConfig):
        """What the model takes."""

        channels: int = 0
        """channels of the view; 0: any"""

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Read a .npy file."""
        return read_npy(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Check and convert an array or tensor (channels, cells, cells)."""
        del generator
        values, cells = as_tensor(raw).float(), self.config.grid.cells
        return Item(_checked(values, (self.config.channels or values.shape[0], cells, cells)))


class VoxelPreprocess(Preprocess):
    """Which voxels hold points: a mask (levels, cells, cells) on the model's grid, made bool."""

    @dataclass(kw_only=True)
    class Config(VoxelConfig):
        """What the model takes."""

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Read a .npy file; what is not 0 holds points."""
        return read_npy(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Check and convert an array or tensor (levels, cells, cells)."""
        del generator
        cells = self.config.grid.cells
        return Item(_checked(as_tensor(raw) != 0, (self.config.levels, cells, cells)))


def as_tensor(raw: Any) -> Tensor:
    """Return an array or tensor as a tensor."""
    return raw if isinstance(raw, Tensor) else torch.from_numpy(np.ascontiguousarray(raw))


def _checked(values: Tensor, wanted: tuple[int, ...]) -> Tensor:
    if tuple(values.shape) != wanted:
        found, expected = f"{tuple(values.shape)}", f"{wanted}, as the model was built"
        do = "Check the model's channels, levels and grid against the data."
        raise ShapeError.at("bird's-eye view", found, expected, do)
    return values
