"""The bird's-eye-view grid: cells, metres, and the smaller map grid resampled from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.errors import ConfigError


@dataclass(kw_only=True)
class GridConfig(schema.Config):
    """Where the cells lie; axes are [y, x], positions (x, y)."""

    cells: int = 180
    """cells of the bird's-eye view along x and y"""
    range_m: float = 54.0
    """the view reaches from -range to +range, in metres"""
    map_cells: int = 200
    """cells of the map along x and y"""
    map_range_m: float = 50.0
    """the map reaches from -range to +range, in metres"""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if min(self.cells, self.map_cells) < 1 or not 0 < self.map_range_m <= self.range_m:
            found = f"{self.cells} and {self.map_cells} cells, {self.map_range_m:g} of {self.range_m:g} m"
            raise ConfigError.at("grid", found, "cells, and a map within the view", "Lower map_range_m.")

    @property
    def cell_m(self) -> float:
        """Size of a cell in metres."""
        return 2 * self.range_m / self.cells

    def centres(self) -> Float[Tensor, "cells_squared 2"]:
        """Return (x, y) of every cell in cells, row by row: column + 1/2, row + 1/2."""
        at = torch.arange(self.cells) + 0.5
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([x, y], dim=-1).reshape(-1, 2)

    def to_map(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c hm wm"]:
        """Resample a view to the map's cells.

        compat(m3net): cells are sampled at their lower edges, with corners aligned to the outer cells'
        centres, so that the map lies a fraction of a cell off; weights are trained so.
        """
        step = 2 * self.map_range_m / self.map_cells
        at = (torch.arange(self.map_cells, device=features.device) * step - self.map_range_m) / self.range_m
        y, x = torch.meshgrid(at, at, indexing="ij")
        grid = torch.stack([x, y], dim=-1).to(features.dtype)[None].expand(len(features), -1, -1, -1)
        return F.grid_sample(features, grid, mode="bilinear", align_corners=True)

    def map_centres(self) -> Float[Tensor, "map_cells_squared 2"]:
        """Return (x, y) of every map cell in cells of the view, as `to_map` samples them."""
        centres = self.centres().T.reshape(1, 2, self.cells, self.cells)
        return self.to_map(centres).flatten(2)[0].T
