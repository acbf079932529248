"""The additive logits of every run: padding cut away, samples in attention order, zero across modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo.batch import TokenSequence
from mmzoo.errors import ShapeError
from mmzoo.trunk.plan import Run

Bias = Float[Tensor, "_ h n n"]


def run_biases(
    groups: Sequence[Sequence[TokenSequence]], runs: Sequence[Run], rows: Sequence[tuple[int, ...]]
) -> tuple[tuple[Tensor | None, ...], ...]:
    """Return () without biases, else for one layer (shared) or each layer the logits of each run.

    Shape: (1 or count, h, length, length); the leading axis stays 1 where all samples of a run share them.
    rows: for each segment, its row in each sequence of its group, or -1.
    """
    sequences = [s for group in groups for s in group]
    depth = max((len(s.biases) for s in sequences), default=0)
    if not depth:
        return ()
    for s in sequences:
        if len(s.biases) not in (0, 1, depth):
            found = f"{len(s.biases)} biases on {s.modality}, {depth} elsewhere"
            raise ShapeError.at(
                "trunk", found, "none, one, or one a layer", "Mend the adapter's relative bias."
            )
    corners = _Corners()
    prefix = [[is_prefix(s) for s in group] for group in groups]
    made: list[list[Tensor | None]] = [[] for _ in range(depth)]
    for run in runs:
        for g, name, length in run.pieces:
            s = next(s for s in groups[g] if s.modality == name)
            corners.ask(s.biases, length)
    for run in runs:
        own = rows[run.segment : run.segment + run.count]
        g = run.pieces[0][0]
        places = [i for i, row in enumerate(own[0]) if row >= 0]
        cutters = [
            _Cutter(groups[g][i], [r[i] for r in own], piece[2], corners if prefix[g][i] else None)
            for i, piece in zip(places, run.pieces, strict=True)
        ]
        shared = all(len(c.biases) <= 1 for c in cutters)
        for layer in range(depth):
            made[layer].append(made[0][-1] if shared and layer else _assemble(cutters, layer, run.length))
    return tuple(tuple(layer) for layer in made)


class _CutCorners(torch.autograd.Function):
    """Views of the upper left corners of a table; their gradients are added up in one table.

    Why: plain slicing fills a table of zeros for each slice in the backward pass, which dominates with
    long tables and many lengths.
    """

    @staticmethod
    def forward(ctx: Any, bias: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.like, ctx.lengths = bias.new_empty(0), lengths
        ctx.shape = bias.shape
        return tuple(bias[:, :, :n, :n] for n in lengths)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor, None]:
        total = ctx.like.new_zeros(ctx.shape)
        for n, grad in zip(ctx.lengths, grads, strict=True):
            if grad is not None:
                total[:, :, :n, :n] += grad
        return total, None


class _Corners:
    """The corners that the runs need of each shared table, all cut at once, each length once."""

    def __init__(self) -> None:
        self.lengths: dict[int, dict[int, None]] = {}
        self.cut: dict[int, dict[int, Tensor]] = {}

    def ask(self, biases: tuple[Bias, ...], length: int) -> None:
        for bias in biases:
            self.lengths.setdefault(id(bias), {})[length] = None

    def get(self, bias: Bias, length: int) -> Float[Tensor, "1 h l l"]:
        key = id(bias)
        if key not in self.cut:
            lengths = tuple(self.lengths[key])
            self.cut[key] = dict(zip(lengths, _CutCorners.apply(bias, lengths), strict=True))
        return self.cut[key][length]


class _Cutter:
    """Cuts the bias of one piece of a run out of its sequence's padded one."""

    def __init__(self, s: TokenSequence, rows: list[int], length: int, corners: _Corners | None) -> None:
        self.biases, self.rows, self.length, self.corners = s.biases, rows, length, corners
        self.places: Tensor | None = None
        if s.biases and corners is None:
            places = s.valid[torch.tensor(rows)].nonzero()[:, 1].view(len(rows), length)
            alike = bool((places == places[:1]).all())
            self.places = (places[:1] if alike else places).to(s.biases[0].device, non_blocking=True)

    def cut(self, layer: int) -> Float[Tensor, "_ h l l"] | None:
        if not self.biases:
            return None
        bias = self.biases[layer if len(self.biases) > 1 else 0]
        if bias.shape[0] > 1:
            bias = _take(bias, self.rows)
        elif self.corners is not None:
            return self.corners.get(bias, self.length)
        if self.places is None:
            return bias[:, :, : self.length, : self.length]
        if self.places.shape[0] == 1:
            return bias.index_select(2, self.places[0]).index_select(3, self.places[0])
        count, n = self.places.shape[0], bias.shape[3]
        heads = bias.shape[1]
        bias = bias.expand(count, -1, -1, -1)
        down = self.places[:, None, :, None].expand(-1, heads, -1, n)
        across = self.places[:, None, None, :].expand(-1, heads, self.length, -1)
        return bias.gather(2, down).gather(3, across)


def _assemble(cutters: list[_Cutter], layer: int, length: int) -> Tensor | None:
    """Put the pieces' biases on the diagonal; zero between modalities."""
    cut = [c.cut(layer) for c in cutters]
    if len(cut) == 1:
        return cut[0]
    like = next((bias for bias in cut if bias is not None), None)
    if like is None:
        return None
    count = max(bias.shape[0] for bias in cut if bias is not None)
    strips: list[Tensor] = []
    offset = 0
    for c, bias in zip(cutters, cut, strict=True):
        if bias is None:
            strips.append(like.new_zeros(count, like.shape[1], c.length, length))
        else:
            strip = F.pad(bias, (offset, length - offset - c.length))
            strips.append(strip.expand(count, -1, -1, -1))
        offset += c.length
    return torch.cat(strips, dim=2)


def _take(bias: Bias, rows: list[int]) -> Bias:
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return bias[rows[0] : rows[0] + len(rows)]
    return bias.index_select(0, torch.tensor(rows).to(bias.device, non_blocking=True))


def is_prefix(s: TokenSequence) -> bool:
    """Say whether the real tokens of every row come first."""
    valid = s.valid
    return not bool((valid[:, 1:] & ~valid[:, :-1]).any())
