"""Deformable attention on one feature map or volume, by `grid_sample`: exact, and runs everywhere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each query looks at a few points around its reference, at places and with weights it predicts.

    Math: head h of query q: sum_p softmax_p(A q) * (V value)(reference + (O q)_p / size), linear
    interpolation, zero outside; then the output projection. An offset of 1 is one cell.
    Shape: query (b q d); reference (b q axes), x first, 0..1 from edge to edge; value (b d *grid), grid (y x)
    or (z y x); out (b q d).
    Ref: Zhu et al. 2021 (Deformable DETR), one level; the state dict's names are its own.
    """

    def __init__(self, dim: int, *, num_heads: int = 8, num_points: int = 4, axes: int = 2) -> None:
        """Start with heads looking in different directions, 1 to `num_points` cells away."""
        super().__init__()
        self.num_heads, self.num_points, self.axes = num_heads, num_points, axes
        self.sampling_offsets = nn.Linear(dim, num_heads * num_points * axes)
        self.attention_weights = nn.Linear(dim, num_heads * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(self._directions().flatten())

    def _directions(self) -> Float[Tensor, "h p axes"]:
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ways = torch.stack([angles.cos(), angles.sin()], dim=-1)
        if self.axes == 3:
            level = torch.arange(self.num_heads) % 3 - 1.0
            ways = torch.cat([ways, level[:, None]], dim=-1)
        ways = ways / ways.abs().amax(dim=-1, keepdim=True)
        return ways[:, None] * torch.arange(1, self.num_points + 1)[None, :, None]

    def forward(
        self,
        query: Float[Tensor, "b q d"],
        reference: Float[Tensor, "b q axes"],
        value: Float[Tensor, "b d *grid"],
    ) -> Float[Tensor, "b q d"]:
        """Attend."""
        b, q, d = query.shape
        size = torch.tensor(value.shape[:1:-1], dtype=query.dtype, device=query.device)
        offsets = self.sampling_offsets(query).view(b, q, self.num_heads, self.num_points, self.axes)
        weights = self.attention_weights(query).view(b, q, self.num_heads, self.num_points).softmax(dim=-1)
        places = reference[:, :, None, None] + offsets / size
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # (b h) q p axes
        projected = self.value_proj(value.movedim(1, -1)).movedim(-1, 1)
        volume = projected.reshape(b * self.num_heads, d // self.num_heads, *value.shape[2:])
        if self.axes == 3:
            grid = grid[:, None]
        sampled = F.grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = sampled.reshape(b, self.num_heads, d // self.num_heads, q, self.num_points)
        # a product and a sum: einsum would run one small matrix product for each query and head, 1.5x slower
        mixed = (sampled * weights.transpose(1, 2)[:, :, None]).sum(dim=-1)  # b h c q
        return self.output_proj(mixed.permute(0, 3, 1, 2).reshape(b, q, d))
