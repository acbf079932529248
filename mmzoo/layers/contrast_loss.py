"""Contrastive losses over several pairs of row sets at once, with exact gradients on one process or many.

Why: gradients are computed in the forward pass, with all communication (columns out, column normalisers
round, column gradients back), so the backward pass only scales them. No rank can then wait in its backward
pass for one that has nothing to differentiate, whatever its batch lacks; and the usual defaults' errors do
not arise: a gather without gradient shrinks the encoders' gradient by the number of ranks, a local loss
without it turns it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo.layers import distributed
from mmzoo.layers.contrast import (
    ContrastGradient,
    Keys,
    infonce_gradient,
    log_normalisers,
    sigmoid_contrast,
    sigmoid_contrast_gradient,
)


@dataclass(frozen=True)
class PairLayout:
    """How many rows of each pair each rank holds: sizes[pair][rank]; `rank` is this one.

    One rank means no communication. Local buffers hold the pairs one after another; a gathered buffer holds
    the ranks' local buffers one after another.
    """

    sizes: tuple[tuple[int, ...], ...]
    rank: int = 0

    @property
    def local(self) -> list[int]:
        """Return this rank's rows of each pair."""
        return [pair[self.rank] for pair in self.sizes]

    @property
    def totals(self) -> list[int]:
        """Return all ranks' rows of each pair."""
        return [sum(pair) for pair in self.sizes]

    @property
    def firsts(self) -> list[int]:
        """Return, for each pair, the column that this rank's first row belongs to."""
        return [sum(pair[: self.rank]) for pair in self.sizes]

    @property
    def of_ranks(self) -> list[int]:
        """Return the length of each rank's local buffer."""
        return [sum(pair[r] for pair in self.sizes) for r in range(len(self.sizes[0]))]

    def gather(self, b: Float[Tensor, "n e"]) -> list[Float[Tensor, "_ e"]]:
        """Return the columns of each pair, all ranks' together."""
        if len(self.of_ranks) == 1:
            return list(b.split(self.local))
        spans = distributed.gather_rows(b, self.of_ranks).split(self._spans())
        pairs = len(self.sizes)
        return [torch.cat(spans[p::pairs]) for p in range(pairs)]

    def reduce(self, columns: Sequence[Float[Tensor, "_ e"]]) -> Float[Tensor, "n e"]:
        """Return this rank's rows of the sum over ranks of what is given for every column."""
        if len(self.of_ranks) == 1:
            return _join(columns)
        by_pair = [c.split(list(sizes)) for c, sizes in zip(columns, self.sizes, strict=True)]
        ordered = [by_pair[p][r] for r in range(len(self.of_ranks)) for p in range(len(self.sizes))]
        return distributed.reduce_rows(torch.cat(ordered), self.of_ranks)

    def combine(self, normalisers: Sequence[Float[Tensor, " _"]]) -> list[Float[Tensor, " _"]]:
        """Return the column normalisers over the rows of all ranks, given those over each rank's own."""
        world = len(self.of_ranks)
        if world == 1:
            return list(normalisers)
        mine = torch.cat(list(normalisers))
        everyone = distributed.gather_rows(mine, [len(mine)] * world).reshape(world, -1)
        return list(everyone.logsumexp(dim=0).split(self.totals))

    def _spans(self) -> list[int]:
        return [pair[r] for r in range(len(self.of_ranks)) for pair in self.sizes]


def infonce_sums(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "n e"],
    scale: Float[Tensor, ""],
    layout: PairLayout,
    smoothing: float | tuple[float, ...],
    chunk: int,
    keys: Keys = Keys.LEARNED,
) -> Float[Tensor, " pairs"]:
    """Return this rank's share of each pair's symmetric InfoNCE, summed over its rows; `smoothing` one for
    all pairs or one each.

    Math: ½ Σ_i (row_i + column_i) - (1 - ε) Σ_i S_ii - ε/m Σ_ij S_ij: the mean of both directions'
    cross-entropy with label smoothing ε; the double sum is scale · (Σ_i a_i) · (Σ_j b_j), no matrix needed.
    Ref: Oord et al. 2018 (InfoNCE); Radford et al. 2021, figure 3 (symmetric).
    """
    wanted = _wants_gradient(layout, a, b, scale)
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        rows, columns = a.split(layout.local), layout.gather(b)
        parts = [log_normalisers(r, c, scale, chunk) for r, c in zip(rows, columns, strict=True)]
        of_columns = layout.combine([column for _, column in parts])
        norms = [(row, column) for (row, _), column in zip(parts, of_columns, strict=True)]
        work = list(zip(rows, columns, norms, layout.firsts, strict=True))
        shares = smoothing if isinstance(smoothing, tuple) else (smoothing,) * len(work)
        total = torch.stack([_infonce_sum(*w, scale, e) for w, e in zip(work, shares, strict=True)])
        if not wanted:
            return total
        grads = [
            infonce_gradient(r, c, scale, n, e, f, chunk, keys)
            for (r, c, n, f), e in zip(work, shares, strict=True)
        ]
        found = _Gradients.of(grads, layout)
    return _attach(total, (a, b, scale, torch.zeros_like(scale)), found, layout)


def _infonce_sum(
    rows: Float[Tensor, "n e"],
    columns: Float[Tensor, "m e"],
    normalisers: tuple[Float[Tensor, " n"], Float[Tensor, " m"]],
    first: int,
    scale: Float[Tensor, ""],
    smoothing: float,
) -> Float[Tensor, ""]:
    own = slice(first, first + len(rows))
    hits = (rows * columns[own]).sum()
    spread = (rows.sum(dim=0) @ columns.sum(dim=0)) / max(1, len(columns))
    taken = scale * ((1 - smoothing) * hits + smoothing * spread)
    return 0.5 * (normalisers[0].sum() + normalisers[1][own].sum()) - taken


def sigmoid_sums(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "n e"],
    scale: Float[Tensor, ""],
    offset: Float[Tensor, ""],
    layout: PairLayout,
    chunk: int,
) -> Float[Tensor, " pairs"]:
    """Return this rank's share of each pair's sigmoid contrast, summed over its rows and all columns.

    Math: Σ_ij -log σ(z_ij (scale · a_i · b_j + offset)), z = 1 on the diagonal, -1 elsewhere.
    Ref: Zhai et al. 2023 (SigLIP), algorithm 1.
    """
    wanted = _wants_gradient(layout, a, b, scale, offset)
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        work = list(zip(a.split(layout.local), layout.gather(b), layout.firsts, strict=True))
        if not wanted:
            return torch.stack([sigmoid_contrast(r, c, scale, offset, f, chunk) for r, c, f in work])
        both = [sigmoid_contrast_gradient(r, c, scale, offset, f, chunk) for r, c, f in work]
        total = torch.stack([value for value, _ in both])
        found = _Gradients.of([grad for _, grad in both], layout)
    return _attach(total, (a, b, scale, offset), found, layout)


@dataclass(frozen=True)
class _Gradients:
    """Gradients of the pairs' sums: for each local row of both sides, and for each pair."""

    a: Float[Tensor, "n e"]
    b: Float[Tensor, "n e"]
    scale: Float[Tensor, " pairs"]
    offset: Float[Tensor, " pairs"]

    @staticmethod
    def of(grads: Sequence[ContrastGradient], layout: PairLayout) -> _Gradients:
        """Join the pairs' gradients; those of columns are summed over ranks and come home."""
        b = layout.reduce([g.columns for g in grads])
        scales, offsets = [g.scale for g in grads], [g.offset for g in grads]
        return _Gradients(_join([g.rows for g in grads]), b, torch.stack(scales), torch.stack(offsets))


def _wants_gradient(layout: PairLayout, *inputs: Tensor) -> bool:
    """Whether to compute gradients: the ranks must agree, and one without rows cannot tell by its own
    inputs."""
    return torch.is_grad_enabled() and (len(layout.of_ranks) > 1 or any(x.requires_grad for x in inputs))


def _attach(
    sums: Float[Tensor, " pairs"],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    gradients: _Gradients,
    layout: PairLayout,
) -> Float[Tensor, " pairs"]:
    found = (gradients.a, gradients.b, gradients.scale, gradients.offset)
    return _Precomputed.apply(sums, *inputs, *found, tuple(layout.local))  # pyright: ignore[reportReturnType] untyped


class _Precomputed(torch.autograd.Function):
    """Sums whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, *rest: Any) -> Tensor:
        """Keep the gradients."""
        ctx.save_for_backward(*rest[4:8])
        ctx.local = rest[8]
        return sums.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] the decorator makes ctx positional
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Scale them by what each pair's sum is worth."""
        (grad,) = grad_outputs
        a, b, scale, offset = ctx.saved_tensors
        worth = _join([grad[p].expand(n) for p, n in enumerate(ctx.local)])[:, None]
        nothing: tuple[None, ...] = tuple(itertools.repeat(None, 5))
        return (None, a * worth, b * worth, (scale * grad).sum(), (offset * grad).sum(), *nothing)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
