"""How alike rows are to a student, compared with how alike they are to a teacher, with exact gradients over
ranks.

Why: as in `contrast_loss`, gradients over several ranks are computed in the forward pass, so that no rank
waits in its backward pass for one that has nothing to differentiate.
Axis letters: n rows of all pairs, i rows of this rank, j rows of all ranks, e and f widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.layers import distributed
from mmzoo.layers.contrast_loss import PairLayout

Sides = list[tuple[Tensor, Tensor]]
"""For each pair, the rows of its two passes."""


@dataclass(frozen=True)
class Relations:
    """Which rows are compared: how the pairs lie in the buffers, which pairs are of a pass with itself, and
    the teacher's inverse temperature."""

    layout: PairLayout
    itself: tuple[bool, ...]
    sharpness: float

    def sums(
        self,
        student: tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]],
        teacher: tuple[Float[Tensor, "n f"], Float[Tensor, "n f"]],
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, " pairs"]:
        """Return, for each pair, the sum over this rank's rows of the divergence from the teacher.

        Shape: both sides of all pairs, one pair after another, as unit vectors.
        Math: Σ_i ½ [KL(softmax_j U_ij ‖ softmax_j S_ij) + KL(softmax_j U_ji ‖ softmax_j S_ji)],
        S = scale a bᵀ, U = sharpness u vᵀ; of a pass with itself the first term alone, doubled, without
        j = i.
        """
        layout = self.layout
        rows, lessons = torch.cat(student), torch.cat(teacher).detach()
        mine, true = (_by_pair(x, [layout.local]) for x in (rows, lessons))
        if len(layout.of_ranks) == 1:
            return torch.stack(self._sums(mine, mine, true, true, scale))
        sizes = [2 * n for n in layout.of_ranks]
        ranks = [[pair[r] for pair in layout.sizes] for r in range(len(sizes))]
        with torch.enable_grad():
            leaves = rows.detach(), distributed.gather_rows(rows, sizes), scale.detach().clone()
            for leaf in leaves:
                leaf.requires_grad_()
            own, every = _by_pair(leaves[0], [layout.local]), _by_pair(leaves[1], ranks)
            taught = _by_pair(distributed.gather_rows(lessons, sizes), ranks)
            sums = self._sums(own, every, true, taught, leaves[2])
            found = [torch.autograd.grad(x, leaves) for x in sums]
        grad_rows, grad_columns, grad_scale = (torch.stack(g) for g in zip(*found, strict=True))
        grad_rows = grad_rows.sum(0) + distributed.reduce_rows(grad_columns.sum(0), sizes)
        pair_of = torch.arange(len(sums)).repeat_interleave(torch.tensor(layout.local)).repeat(2)
        known = _Known(torch.stack(sums).detach(), grad_rows, grad_scale, pair_of.to(rows.device))
        return _Scaled.apply(rows, scale, known)  # pyright: ignore[reportReturnType] torch types apply() as Any | None

    def _sums(
        self, own: Sides, every: Sides, true: Sides, taught: Sides, scale: Float[Tensor, ""]
    ) -> list[Float[Tensor, ""]]:
        """Return the sums; `own` and `true` are this rank's rows, `every` and `taught` those of all ranks."""
        sums: list[Tensor] = []
        for p, (a, b) in enumerate(own):
            (all_a, all_b), (u, v), (all_u, all_v) = every[p], true[p], taught[p]
            student, teacher = scale * a @ all_b.T, self.sharpness * u @ all_v.T
            if self.itself[p]:
                first = self.layout.firsts[p]
                sums.append(divergence(_others(student, first), _others(teacher, first)))
                continue
            back = divergence(scale * b @ all_a.T, self.sharpness * v @ all_u.T)
            sums.append((divergence(student, teacher) + back) / 2)
        return sums


def divergence(student: Float[Tensor, "k c"], teacher: Float[Tensor, "k c"]) -> Float[Tensor, ""]:
    """Return Σ KL(softmax(teacher) ‖ softmax(student)) over rows of logits."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True)


@dataclass(frozen=True)
class _Known:
    """Sums and their gradients; rows of different pairs are apart, `pair_of` says whose each is."""

    sums: Float[Tensor, " pairs"]
    grad_rows: Float[Tensor, "m e"]
    grad_scale: Float[Tensor, " pairs"]
    pair_of: Int[Tensor, " m"]


class _Scaled(torch.autograd.Function):
    """Gives sums whose gradients are known; backward scales them by what each sum is worth."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, known: _Known) -> Tensor:
        """Return the sums."""
        del rows, scale
        ctx.known = known
        return known.sums.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale."""
        known: _Known = ctx.known
        worth = grad_outputs[0]
        return worth[known.pair_of][:, None] * known.grad_rows, worth @ known.grad_scale, None


def _by_pair(buffer: Float[Tensor, "m e"], ranks: Sequence[Sequence[int]]) -> Sides:
    """Return both sides of each pair; `ranks` are the pairs' rows, rank by rank.

    Of each rank all first sides lie before all second ones.
    """
    pairs = len(ranks[0])
    spans = buffer.split([n for rank in ranks for _ in range(2) for n in rank])
    sides = [[torch.cat(spans[s * pairs + p :: 2 * pairs]) for s in (0, 1)] for p in range(pairs)]
    return [(a, b) for a, b in sides]


def _others(logits: Float[Tensor, "i j"], first: int) -> Float[Tensor, "i c"]:
    """Return the logits without each row's own column; row 0's is `first`."""
    rows, columns = logits.shape
    own = torch.arange(rows, device=logits.device)
    others = torch.ones(rows, columns, dtype=torch.bool, device=logits.device)
    others[own, own + first] = False
    return logits[others].view(rows, columns - 1)
