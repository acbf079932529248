"""The gated GELU as one autograd node."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Geglu(torch.autograd.Function):
    """y = gelu(a) * b with [a b] = h; da = dy b gelu'(a), db = dy gelu(a)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        gate, up = h.chunk(2, dim=-1)
        return F.gelu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> Tensor:
        (h,) = ctx.saved_tensors
        gate, up = h.chunk(2, dim=-1)
        d_h = torch.empty_like(h)
        d_gate, d_up = d_h.chunk(2, dim=-1)
        torch.mul(grads[0], F.gelu(gate), out=d_up)
        torch.ops.aten.gelu_backward.grad_input(grads[0] * up, gate, grad_input=d_gate)
        return d_h


def geglu(h: Float[Tensor, "t h2"]) -> Float[Tensor, "t h1"]:
    """Return gelu(first half) * second half of the last axis, with the exact GELU.

    Why: keeps only `h` for the backward pass (plain autograd keeps gelu(a) too: a quarter of a block's
    activations) and writes both halves of the gradient into one tensor. Ref: Shazeer 2020, GLU variants.
    """
    if not (torch.is_grad_enabled() and h.requires_grad):
        gate, up = h.chunk(2, dim=-1)
        return F.gelu(gate).mul_(up)
    return _Geglu.apply(h)
