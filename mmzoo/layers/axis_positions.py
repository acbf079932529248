"""Learned absolute positions along one axis, for sequences of any length."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class AxisPositions(nn.Module):
    """A learned table of positions along one axis; rows longer than the table stretch it over their length.

    Why: lengths differ from row to row in a ragged batch, so stretching depends on a row's own length alone
    and padding cannot change it.
    Shape: table (size, d); forward(lengths (k), n) gives (k, n, d), or (1, n, d) where no row is stretched.
    Math: position i of a row of L blocks reads the table at i * min(1, (size - 1) / (L - 1)), linearly
    between entries.
    """

    def __init__(self, size: int, dim: int, std: float = 0.02) -> None:
        """Draw the table from a normal distribution of standard deviation `std`."""
        super().__init__()
        self.table = nn.Parameter(torch.randn(size, dim) * std)

    def forward(self, lengths: Int[Tensor, " k"], n: int) -> Float[Tensor, "_ n d"]:
        """Return the positions 0 … n - 1 of rows whose real lengths (on the host) are `lengths`."""
        size = self.table.shape[0]
        if n <= size:
            return self.table[None, :n]
        last = (lengths - 1).clamp(min=1).to(torch.float64)
        stretch = ((size - 1) / last).clamp(max=1.0)
        place = (torch.arange(n) * stretch[:, None]).clamp(max=size - 1)
        low = place.floor().long().clamp(max=max(size - 2, 0))
        share = (place - low).to(self.table.dtype).to(self.table.device, non_blocking=True)[..., None]
        low = low.to(self.table.device, non_blocking=True)
        high = (low + 1).clamp(max=size - 1)
        return torch.lerp(self.table[low], self.table[high], share)
