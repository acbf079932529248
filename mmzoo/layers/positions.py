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


class TableCache(SizeCache):
    """Remembers what was computed from a table, as long as the table stays the same.

    Why: in evaluation a table never changes, so resizing or gathering it again for every batch is waste.
    While it is being trained nothing is remembered, since the gradient needs a fresh graph each time.
    A result is good for one identity, version counter, address, dtype and device of the table. Writing
    through `table.data` escapes the version counter, so the owner calls `clear` when its mode changes.
    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._table: Tensor | None = None
        self._stamp: tuple[Any, ...] = ()

    def of(self, table: Tensor, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return `compute()`, from memory where the table is as it was and no gradient is asked for."""
        if (
            (torch.is_grad_enabled() and table.requires_grad)
            or torch.compiler.is_compiling()
            or table.is_inference()
        ):
            return compute()
        stamp = (table._version, table.data_ptr(), table.dtype, table.device)
        if table is not self._table or stamp != self._stamp:
            self.clear()
            self._table, self._stamp = table, stamp
        return self.get(key, compute)


class _TableModule(nn.Module):
    """A module around one table; what it remembers of the table is forgotten whenever the mode changes."""

    table: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self._results, self._indices = TableCache(), SizeCache()

    def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002 torch's signature
        self._results.clear()
        return super().train(mode)

    def _gather(self, key: tuple[int, ...], index: Callable[[], Tensor]) -> Tensor:
        """Return table[index] as [1 h n n]; gathering along the head-major table is fastest on CPU."""
        device = self.table.device
        rows = self._indices.get((key, device), lambda: index().to(device))

        def gather() -> Tensor:
            return self.table.t().index_select(1, rows.flatten()).unflatten(1, rows.shape)[None]

        return self._results.of(self.table, key, gather)


class GridPositions(_TableModule):
    """Learned absolute positions of a CLS token and a `size` x `size` grid, resized to the grid asked for.

    Why: one table serves every image size, rectangular ones included; at its own size it is read as it is.
    Shape: table (1 + size * size, d), row 0 for CLS, then the grid row-major; forward gives (1 + rows * cols,
    d).
    Math: see `resize_grid`.
    Ref: ONE-PEACE's image adapter, which resizes in every forward; here once a size, outside training.
    """

    def __init__(self, size: int, dim: int) -> None:
        """Draw the table from a normal of 0.02 cut at one standard deviation."""
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.empty(1 + size * size, dim))
        nn.init.trunc_normal_(self.table, std=0.02, a=-0.02, b=0.02)

    def forward(self, rows: int, cols: int) -> Float[Tensor, "n d"]:
        """Return the positions of CLS and of a `rows` x `cols` grid."""
        if (rows, cols) == (self.size, self.size):
            return self.table
        return self._results.of(self.table, (rows, cols), lambda: resize_grid(self.table, rows, cols))


class RelativeBias1d(_TableModule):
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
        return self._gather((n,), lambda: self.index(n))


class RelativeBias2d(_TableModule):
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
        return self._gather((rows, cols), lambda: self.index(rows, cols))


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


def resize_grid(table: Float[Tensor, "m d"], rows: int, cols: int) -> Float[Tensor, "n d"]:
    """Resize the grid of an absolute table (row 0 is CLS and stays) from its square to `rows` x `cols`.

    Math: bicubic interpolation (a = -0.75, half-pixel centres, no antialias) in float32.
    """
    side = math.isqrt(table.shape[0] - 1)
    grid = table[1:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]
    resized = F.interpolate(grid, size=(rows, cols), mode="bicubic", align_corners=False)[0]
    return torch.cat([table[:1], resized.flatten(1).t().to(table.dtype)])


def _mark_cls(index: Tensor, entries: int) -> Tensor:
    """Point row 0 (CLS asks), column 0 (CLS is asked) and their corner at the table's last three entries."""
    index = index.clone()
    index[0, :] = entries - 3
    index[:, 0] = entries - 2
    index[0, 0] = entries - 1
    return index
