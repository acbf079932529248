"""Where a token is: learned absolute tables on a grid, and learned relative biases in one and two dimensions.

Relative biases are additive attention logits [1 h n n] gathered from a table [entries h] by an integer index
that depends on the two positions only. Every module counts the CLS token as position 0 and keeps three
entries of its own for it: CLS asking, CLS being asked, CLS on itself. Axis letters: n tokens with CLS, h
heads, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo.errors import ConfigError
from mmzoo.layers.splines import spline_matrix

NUM_CLS_ENTRIES = 3
"""Entries at the end of every relative table: CLS as query, CLS as key, CLS with CLS."""


class SizeCache:
    """Remembers the results for the last few sizes; copies and pickles as an empty one."""

    limit = 8

    def __init__(self) -> None:
        """Start empty."""
        self._kept: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return `compute()`, from memory where `key` was asked for before; never part of a graph."""
        if torch.compiler.is_compiling():
            return compute()
        if key not in self._kept:
            if len(self._kept) >= self.limit:
                self._kept.pop(next(iter(self._kept)))
            with torch.inference_mode(mode=False), torch.no_grad():
                self._kept[key] = compute()
        return self._kept[key]

    def clear(self) -> None:
        """Forget everything."""
        self._kept = {}

    def __reduce__(self) -> tuple[type[SizeCache], tuple[()]]:
        """Leave the contents behind."""
        return type(self), ()


class TableModule(nn.Module):
    """A module around one table that remembers what it computed from it, as long as that cannot change.

    Why: in evaluation resizing or gathering a table again for every batch is waste; while the table is being
    trained every forward needs a fresh value, and a fresh graph where gradients flow.
    A result is good for one identity, version counter, address, dtype and device of the table. Fused
    optimisers and writes through `.data` escape the version counter, so everything is forgotten too when the
    mode changes or a forward builds a graph.
    """

    table: nn.Parameter

    def __init__(self) -> None:
        """Start with nothing remembered."""
        super().__init__()
        self._results, self._indices = SizeCache(), SizeCache()
        self._stamp: tuple[Any, ...] = ()

    def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002 torch's signature
        """Switch the mode and forget what was computed from the table."""
        self._results.clear()
        return super().train(mode)

    def remembered(self, key: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
        """Return `compute()`, from memory where the table is as it was and is not being trained."""
        table = self.table
        trained = table.requires_grad and (self.training or torch.is_grad_enabled())
        if trained or table.is_inference() or torch.compiler.is_compiling():
            self._results.clear()
            return compute()
        stamp = (id(table), table._version, table.data_ptr(), table.dtype, table.device)
        if stamp != self._stamp:
            self._results.clear()
            self._stamp = stamp
        return self._results.get(key, compute)

    def gathered(self, key: tuple[int, ...], index: Callable[[], Tensor]) -> Tensor:
        """Return table[index] as [1 h n n]; gathering along the head-major table is fastest on CPU."""
        device = self.table.device
        rows = self._indices.get((key, device), lambda: index().to(device))

        def gather() -> Tensor:
            return self.table.t().index_select(1, rows.flatten()).unflatten(1, rows.shape)[None]

        return self.remembered(key, gather)


class GridPositions(TableModule):
    """Learned absolute positions of a CLS token and a `size` x `cols` grid, resized to the grid asked for.

    Why: one table serves every image size, rectangular ones included; at its own size it is read as it is.
    Shape: table (1 + size * cols, d), row 0 for CLS, then the grid row-major; forward gives (1 + rows * cols,
    d).
    Math: see `resize_grid`.
    Ref: ONE-PEACE's image adapter, which resizes in every forward; here once a size, outside training.
    """

    def __init__(self, size: int, dim: int, cols: int | None = None) -> None:
        """Draw the table from a normal of 0.02 cut at one standard deviation; without `cols` it is square."""
        super().__init__()
        self.size, self.cols = size, cols or size
        self.table = nn.Parameter(torch.empty(1 + size * self.cols, dim))
        nn.init.trunc_normal_(self.table, std=0.02, a=-0.02, b=0.02)

    def forward(self, rows: int, cols: int) -> Float[Tensor, "n d"]:
        """Return the positions of CLS and of a `rows` x `cols` grid."""
        if (rows, cols) == (self.size, self.cols):
            return self.table
        return self.remembered((rows, cols), lambda: resize_grid(self.table, rows, cols, self.size))


class RelativeBias1d(TableModule):
    """Bucketed 1-D relative position bias: exact for near tokens, logarithmic for far ones.

    Shape: table (2 * num_buckets - 1 + 3, h), zero at the start; forward(n), CLS counted, gives (1, h, n, n).
    Math: bias[h, q, k] = table[bucket(q - k), h], see `token_buckets`; distances of `max_positions` and more
    fall into the outermost bucket.
    Ref: ONE-PEACE's text and audio adapters (after T5 and OFA).
    """

    def __init__(self, num_buckets: int, num_heads: int, max_positions: int = 1024) -> None:
        """Make the table and the bucket of every distance."""
        super().__init__()
        self.num_buckets, self.max_positions = num_buckets, max_positions
        self.buckets = token_buckets(num_buckets, max_positions)
        self.table = nn.Parameter(torch.zeros(2 * num_buckets - 1 + NUM_CLS_ENTRIES, num_heads))

    def index(self, n: int) -> Int[Tensor, "n n"]:
        """Return (on the host) the table row of every pair (query, key) among CLS and n - 1 tokens."""
        position, limit = torch.arange(n), self.max_positions - 1
        distance = (position[:, None] - position[None, :]).clamp(-limit, limit)
        return _mark_cls(self.buckets[distance + limit], self.table.shape[0])

    def forward(self, n: int) -> Float[Tensor, "1 h n n"]:
        """Return the bias of `n` positions, CLS the first of them."""
        return self.gathered((n,), lambda: self.index(n))


class RelativeBias2d(TableModule):
    """2-D relative position bias of an image grid, square or rectangular.

    Why: ONE-PEACE fixes the grid to `size` x `size`; its index depends on row and column offsets only, so it
    holds for any grid. Offsets beyond size - 1 take the outermost entry, so larger grids run too; to give
    them entries of their own, make a larger module and load the table through `resize_relative_table`.
    Shape: table ((2 * size - 1)^2 + 3, h), zero at the start; forward(rows, cols) gives (1, h, n, n), n = 1 +
    rows * cols.
    Math: patch (i, j) asking (k, l) reads row (i - k + size - 1) * (2 * size - 1) + (j - l + size - 1) of the
    table.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        """Make the table."""
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.zeros((2 * size - 1) ** 2 + NUM_CLS_ENTRIES, num_heads))

    def index(self, rows: int, cols: int) -> Int[Tensor, "n n"]:
        """Return (on the host) the table row of every pair (query, key) of CLS and row-major patches."""
        limit = self.size - 1
        row, col = torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)
        down = (row[:, None] - row[None, :]).clamp(-limit, limit) + limit
        right = (col[:, None] - col[None, :]).clamp(-limit, limit) + limit
        inner = down * (2 * self.size - 1) + right
        return _mark_cls(F.pad(inner, (1, 0, 1, 0)), self.table.shape[0])

    def forward(self, rows: int, cols: int) -> Float[Tensor, "1 h n n"]:
        """Return the bias of CLS and a `rows` x `cols` grid."""
        return self.gathered((rows, cols), lambda: self.index(rows, cols))


def token_buckets(num_buckets: int, max_positions: int) -> Int[Tensor, " m"]:
    """Return the table row of every distance 1 - max_positions … max_positions - 1.

    Math: with m = num_buckets // 2 a distance |d| <= m is its own bucket, a longer one falls into bucket
    sign(d) * (m + ceil((m - 1) * ln(|d| / m) / ln((max_positions - 1) / m))); the row is the bucket +
    num_buckets - 1.
    # compat(onepeace): logarithm and quotients in float32, whose rounding decides some buckets.
    """
    middle = num_buckets // 2
    if middle < 1 or max_positions < 2:
        found = f"num_buckets {num_buckets}, max_positions {max_positions}"
        raise ConfigError.at(
            "relative bias", found, "at least 2 of each", "Raise them or switch the bias off."
        )
    distance = torch.arange(1 - max_positions, max_positions)
    far = distance.abs().clamp(min=middle)
    span = math.log((max_positions - 1) / middle) if max_positions - 1 > middle else 1.0
    steps = torch.ceil(torch.log(far / middle) / span * (middle - 1)).long()
    return (
        torch.where(distance.abs() <= middle, distance, distance.sign() * (middle + steps)) + num_buckets - 1
    )


def resize_grid(
    table: Float[Tensor, "m d"], rows: int, cols: int, own_rows: int | None = None
) -> Float[Tensor, "n d"]:
    """Resize the grid of an absolute table (row 0 is CLS and stays) to `rows` x `cols`, from a square or from
    `own_rows` rows.

    Math: bicubic interpolation (a = -0.75, half-pixel centres, no antialias) in float32.
    """
    side = own_rows or math.isqrt(table.shape[0] - 1)
    grid = table[1:].float().unflatten(0, (side, -1)).permute(2, 0, 1)[None]
    resized = F.interpolate(grid, size=(rows, cols), mode="bicubic", align_corners=False)[0]
    return torch.cat([table[:1], resized.flatten(1).t().to(table.dtype)])


def resize_relative_table(table: Float[Tensor, "m h"], size: int) -> Float[Tensor, "n h"]:
    """Fit the table of a `RelativeBias2d` to another `size`, for loading weights trained on a smaller or
    larger grid.

    Math: larger: the old offsets are spread to 0, ±1, ±(1 + q), ±(1 + q + q^2) …, with q such that they reach
    the new border (see `_spread`), and a cubic spline through them is read at the whole offsets of the new
    grid, along both axes; near offsets keep their values almost exactly. Smaller: offsets that no longer
    occur are cut away. The CLS entries are copied.
    Ref: ONE-PEACE's checkpoint loader (after BEiT), which grows tables and refuses to shrink them.
    """
    side, new_side = math.isqrt(table.shape[0] - NUM_CLS_ENTRIES), 2 * size - 1
    inner, cls_entries = table[: side * side].unflatten(0, (side, side)), table[side * side :]
    if new_side > side:
        reach = new_side // 2
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = spline_matrix(_spread(side // 2, reach), offsets)
        grown = torch.einsum("ay,bx,yxh->abh", weights, weights, inner.detach().double().cpu())
        inner = grown.to(table)
    elif new_side < side:
        cut = (side - new_side) // 2
        inner = inner[cut : side - cut, cut : side - cut]
    return torch.cat([inner.flatten(0, 1), cls_entries])


def _spread(reach: int, new_reach: int) -> Float[Tensor, " n"]:
    """Return the offsets -reach … reach moved apart in a geometric sequence whose sum comes nearest
    `new_reach`.

    Math: q in [1.01, 1.5] by bisection to 1e-6, from (1 - q^reach) / (1 - q) = new_reach.
    """
    low, high = 1.01, 1.5
    q = high
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**reach) / (1 - q) > new_reach else (q, high)
    steps = torch.tensor([q**i for i in range(reach)], dtype=torch.float64)
    offsets = steps.cumsum(0)
    return torch.cat([-offsets.flip(0), torch.zeros(1, dtype=torch.float64), offsets])


def _mark_cls(index: Tensor, entries: int) -> Tensor:
    """Point row 0 (CLS asks), column 0 (CLS is asked) and their corner at the table's last three entries."""
    index = index.clone()
    index[0, :] = entries - 3
    index[:, 0] = entries - 2
    index[0, 0] = entries - 1
    return index
