"""The bird's-eye-view grid: cells, metres, and the smaller map grid resampled from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo.modalities.bev import BevGrid


class MapSampling(str, Enum):
    """Where a view is sampled for a cell of the map: at the cell's centre, or as the released M3Net does."""

    CENTRE = "centre"
    RELEASED = "released"


@dataclass(kw_only=True)
class GridConfig(BevGrid):
    """The grid of views and labels, and tensors that lie on it."""

    def centres(self) -> Float[Tensor, "cells_squared 2"]:
        """Return (x, y) of every cell in cells, row by row: column + 1/2, row + 1/2."""
        at = torch.arange(self.cells) + 0.5
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([x, y], dim=-1).reshape(-1, 2)

    def to_map(
        self, features: Float[Tensor, "b c h w"], sampling: MapSampling = MapSampling.CENTRE
    ) -> Float[Tensor, "b c hm wm"]:
        """Resample a view to the map's cells, bilinearly.

        compat(m3net): the release samples at the cells' lower edges and takes the view's outer centres for
        its edges, so that its map lies askew by up to a cell; weights are trained so.
        """
        released = sampling is MapSampling.RELEASED
        step = 2 * self.map_range_m / self.map_cells
        number = torch.arange(self.map_cells, device=features.device) + (0.0 if released else 0.5)
        at = (number * step - self.map_range_m) / self.range_m
        y, x = torch.meshgrid(at, at, indexing="ij")
        grid = torch.stack([x, y], dim=-1).to(features.dtype)[None].expand(len(features), -1, -1, -1)
        return F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=released)

    def map_centres(self, sampling: MapSampling = MapSampling.CENTRE) -> Float[Tensor, "map_cells_squared 2"]:
        """Return (x, y) of every map cell in cells of the view, as `to_map` samples them."""
        if sampling is MapSampling.RELEASED:
            centres = self.centres().T.reshape(1, 2, self.cells, self.cells)
            return self.to_map(centres, sampling).flatten(2)[0].T
        step = 2 * self.map_range_m / self.map_cells
        at = ((torch.arange(self.map_cells) + 0.5) * step - self.map_range_m + self.range_m) / self.cell_m
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([x, y], dim=-1).reshape(-1, 2)
