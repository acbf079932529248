"""Cosine attention: logits from the angle between query and key, and a relative bias from a small network.

Axis letters: t rows of the packed buffer, h heads, d width of a head, m offsets between cells, l length of a
segment.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo.layers.init import trunc_normal_
from mmzoo.layers.segments import Segments
from mmzoo.trunk.plan import Run, SeqInfo

RELATIVE = "relative"
"""Under this key `SeqInfo.cache` keeps the plan's `Relative`."""
TEMPERATURE_INIT = 1 / 0.24
"""Factor of the cosines at the start."""
EXTENT = 8.0
"""Offsets run from -8 to 8 over a grid before their logarithm is taken, which is 1 at an offset of 7."""


@dataclass(frozen=True)
class Relative:
    """Offsets between the cells of a plan's grids, and which of them each pair of tokens has.

    coords: log-spaced (rows, columns); index: for each run (1 or count, length, length), m where a pair has
    none (prefix tokens, tokens without a grid, tokens of two modalities).
    """

    coords: Float[Tensor, "m 2"]
    index: tuple[Int[Tensor, "_ _ _"], ...]


class CosineLogits(nn.Module):
    """(q / |q| + e_h) softplus(T_h) ln(n) . k / |k| + bias_h(offset), n the keys that the query may see.

    Why: logits stay bounded whatever the scale of the weights, and their spread grows with the length as that
    of a softmax must to stay as sharp; the bias is a function of the offset, so other grids need no resizing.
    Math: bias = W2 relu(W1 o + b1) + b2 at o = sign(r) log2(|r| + 1) / 3, r = 8 (query - key) / (extent - 1)
    for rows and columns.
    Weights: `temperature` (h), `query_embedding` (h, d), `bias_in.*` (hidden, 2), `bias_out.*` (h, hidden).
    Ref: Shi 2024 (TransNeXt), section 3.2: length-scaled cosine attention, query embedding, log-spaced
    continuous position bias (from Swin v2); its released code, last stage.
    """

    def __init__(self, num_heads: int, head_dim: int, hidden_dim: int) -> None:
        """Make the weights; softplus(temperature) starts at 1 / 0.24."""
        super().__init__()
        start = math.log(math.expm1(TEMPERATURE_INIT))
        self.temperature = nn.Parameter(torch.full((num_heads,), start))
        self.query_embedding = nn.Parameter(trunc_normal_(torch.empty(num_heads, head_dim)))
        self.bias_in = nn.Linear(2, hidden_dim)
        self.bias_out = nn.Linear(hidden_dim, num_heads)

    def forward(self, qkv: Float[Tensor, "t 3 h d"], visible: Int[Tensor, "t _"]) -> Float[Tensor, "t 3 h d"]:
        """Return queries and keys whose products, unscaled, are the cosine part of the logits."""
        q, k, v = qkv.unbind(1)
        length = visible.clamp(min=1).float().log()
        scale = F.softplus(self.temperature.float()) * length
        q = (F.normalize(q.float(), dim=-1) + self.query_embedding.float()) * scale[:, :, None]
        return torch.stack([q.to(v.dtype), F.normalize(k.float(), dim=-1).to(v.dtype), v], dim=1)

    def bias(self, relative: Relative) -> tuple[Float[Tensor, "_ h _ _"], ...]:
        """Return the additive logits of each run; 0 for pairs without an offset."""
        table = self.bias_out(F.relu(self.bias_in(relative.coords)))
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        return tuple(F.embedding(own, table).permute(0, 3, 1, 2).contiguous() for own in relative.index)

    def added(self, segments: Segments, seq: SeqInfo) -> Segments:
        """Return the geometry with this layer's bias on top of what the plan adds."""
        own = self.bias(relative_of(seq))
        given = segments.biases or (None,) * len(own)
        biases = tuple(b if g is None else b + g for b, g in zip(own, given, strict=True))
        return dataclasses.replace(segments, biases=biases, cache={})


def visible_keys(segments: Segments, seq: SeqInfo, heads: int) -> Int[Tensor, "t _"]:
    """Return how many keys each row, in attention order, may see; made once a forward."""
    if "visible" not in seq.cache:
        seq.cache["visible"] = segments.visible(heads, seq.cu_seqlens.device)
    return seq.cache["visible"]


def relative_of(seq: SeqInfo) -> Relative:
    """Return the offsets of the plan's grids; made once a forward, whatever the number of layers.

    A grid of one axis lies along the rows, axes beyond the second are read as one with it; tokens in front
    of the grid, and those without one, have no offsets.
    """
    if RELATIVE not in seq.cache:
        device = seq.cu_seqlens.device
        grids = _Grids()
        layouts = [[_places(seq, run, run.segment + i) for i in range(run.count)] for run in seq.runs]
        for place in (place for own in layouts for places in own for place in places):
            grids.add(place.cells)
        tables = {places: _pairs(places, grids) for own in layouts for places in own}
        index: list[Tensor] = []
        for own in layouts:
            kinds = own[:1] if len(set(own)) == 1 else own
            index.append(torch.stack([tables[places] for places in kinds]).to(device, non_blocking=True))
        seq.cache[RELATIVE] = Relative(grids.coords().to(device, non_blocking=True), tuple(index))
    return seq.cache[RELATIVE]


@dataclass(frozen=True)
class _Place:
    """Where one piece of a segment lies: its grid as (rows, columns), (0, 0) without one, how many tokens
    stand before it, and which places of the padded row are kept, None for the first ones.
    """

    cells: tuple[int, int]
    prefix: int
    length: int
    kept: tuple[int, ...] | None

    def columns(self) -> Int[Tensor, " l"]:
        """Return each token's cell, -1 where it has none."""
        place = torch.arange(self.length) if self.kept is None else torch.tensor(self.kept)
        cell = place - self.prefix
        return torch.where((cell >= 0) & (cell < math.prod(self.cells)), cell, -1)


class _Grids:
    """The offsets of all grids, one table after the other."""

    def __init__(self) -> None:
        self.start: dict[tuple[int, int], int] = {}
        self.total = 0

    def add(self, grid: tuple[int, int]) -> None:
        if grid not in self.start:
            self.start[grid] = self.total
            self.total += math.prod(max(2 * n - 1, 0) for n in grid)

    def coords(self) -> Float[Tensor, "m 2"]:
        return torch.cat([log_offsets(grid) for grid in self.start] or [torch.zeros(0, 2)])


def log_offsets(grid: tuple[int, int]) -> Float[Tensor, "m 2"]:
    """Return the log-spaced offsets of a grid, row-major from (1 - rows, 1 - columns)."""
    if not math.prod(grid):
        return torch.zeros(0, 2)
    axes = [torch.arange(1 - n, n, dtype=torch.float32) / max(n - 1, 1) * EXTENT for n in grid]
    offsets = torch.cartesian_prod(*axes)
    return offsets.sign() * (offsets.abs() + 1).log2() / math.log2(EXTENT)


def _places(seq: SeqInfo, run: Run, segment: int) -> tuple[_Place, ...]:
    layout = zip(seq.grids[segment], seq.prefixes[segment], seq.kept[segment], run.pieces, strict=True)
    return tuple(_Place(_cells(grid), prefix, piece[2], kept) for grid, prefix, kept, piece in layout)


def _cells(grid: tuple[int, ...] | None) -> tuple[int, int]:
    return (0, 0) if grid is None else (grid[0], math.prod(grid[1:]))


def _pairs(places: tuple[_Place, ...], grids: _Grids) -> Int[Tensor, "l l"]:
    """Return the table entry of every pair of a segment's tokens."""
    total = sum(place.length for place in places)
    index = torch.full((total, total), grids.total)
    start = 0
    for place in places:
        end, (rows, cols) = start + place.length, place.cells
        cell = place.columns()
        row, col = (x[:, None] - x[None, :] for x in (cell // max(cols, 1), cell % max(cols, 1)))
        entry = grids.start[place.cells] + (row + rows - 1) * (2 * cols - 1) + col + cols - 1
        known = (cell[:, None] >= 0) & (cell[None, :] >= 0)
        index[start:end, start:end] = torch.where(known, entry, grids.total)
        start = end
    return index
