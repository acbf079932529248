"""Denoising contrast of hidden tokens with all tokens of a teacher, by blocks: exact, never the whole matrix.

Why: 8,192 keys and 6,144 queries are 50 million logits, which autograd would keep three times; by blocks the
gradient is computed with the value. Keys carry no gradient.
Axis letters: q queries, n keys, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def denoising_sum(
    queries: Float[Tensor, "q d"],
    keys: Float[Tensor, "n d"],
    own: Int[Tensor, " q"],
    scale: float,
    smoothing: float,
    chunk: int,
) -> Float[Tensor, ""]:
    """Return the summed cross-entropy of each query against its own key among all keys.

    Math: logits x = scale · q kᵀ; e' = ε / (n - 1); loss_i = (1 - ε - e') (-log p_i,own) + e' Σ_j (-log p_ij)
    = logsumexp_j x_ij - (1 - ε - e') x_i,own - e' Σ_j x_ij, since the shares add up to one.
    Ref: ONE-PEACE section 3.2 (denoising contrast) and its code's label smoothing.
    """
    return _DenoisingSum.apply(queries, keys.detach(), own, scale, smoothing, chunk)  # pyright: ignore[reportReturnType] untyped


class _DenoisingSum(torch.autograd.Function):
    """Math: G = softmax(x) - (1 - ε - e') 1[own] - e'; d queries = scale · G k."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, own: Tensor, scale: float, smoothing: float, chunk: int
    ) -> Tensor:
        spread = smoothing / max(keys.shape[0] - 1, 1)
        hit = 1.0 - smoothing - spread if keys.shape[0] > 1 else 1.0 - spread
        total = queries.new_zeros(())
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(queries) if wanted else None
        size = max(1, min(chunk, queries.shape[0]))
        logits = queries.new_empty(size, keys.shape[0])
        with torch.autocast(queries.device.type, enabled=False):
            for start in range(0, queries.shape[0], size):
                block, places = queries[start : start + size], own[start : start + size, None]
                x = torch.mm(block * scale, keys.T, out=logits[: len(block)])
                norm = x.logsumexp(1, keepdim=True)
                total += norm.sum() - hit * x.gather(1, places).sum() - spread * x.sum()
                if grad is not None:
                    weight = x.sub_(norm).exp_().sub_(spread)
                    weight.scatter_add_(1, places, weight.new_full(places.shape, -hit))
                    torch.mm(weight, keys, out=grad[start : start + size])
        if grad is not None:
            ctx.save_for_backward(grad.mul_(scale))
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] the decorator makes ctx positional
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0], None, None, None, None, None
