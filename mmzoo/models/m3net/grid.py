"""The bird's-eye-view grid: cells, metres, and the smaller map grid resampled from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo.modalities.bev import BevGrid


@dataclass(kw_only=True)
class GridConfig(BevGrid):
    """The grid of views and labels, and tensors that lie on it."""

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
