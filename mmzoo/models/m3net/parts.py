"""Small parts that M3Net's tasks share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Shape: (... widths[0]) -> (... widths[-1]).
    """

    def __init__(self, *widths: int) -> None:
        """Take the widths from input to output."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes e"]:
        """Transform."""
        for number, layer in enumerate(self.layers):
            x = layer(x).relu() if number + 1 < len(self.layers) else layer(x)
        return x


class PositionEmbedding(nn.Module):
    """A learned function of positions, in cells.

    Shape: (b n axes) -> (b n d).
    """

    def __init__(self, axes: int, dim: int) -> None:
        """Two layers, batch norm between them."""
        super().__init__()
        self.first, self.norm = nn.Linear(axes, dim), nn.BatchNorm1d(dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, xy: Float[Tensor, "b n axes"]) -> Float[Tensor, "b n d"]:
        """Embed."""
        hidden = self.norm(self.first(xy).flatten(0, 1)).relu()
        return self.second(hidden).unflatten(0, xy.shape[:2])


class SetAttention(nn.Module):
    """Self-attention among the members of each set, norm after.

    Shape: x, position (b n d) -> (b n d).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Attention and norm."""
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b n d"], position: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Attend; positions join queries and keys, not values."""
        where = x + position
        return self.norm(x + self.attention(where, where, x, need_weights=False)[0])


def conv_block(channels: int, dim: int) -> nn.Sequential:
    """Return a 3x3 convolution without bias, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())


def take(tokens: Float[Tensor, "b n d"], index: Tensor) -> Float[Tensor, "b q d"]:
    """Return the tokens at (b q) indices."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def concatenate(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    """Join what is there."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
