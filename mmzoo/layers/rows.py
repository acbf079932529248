"""Moving whole rows of a buffer without doubles: gather, scatter and permute with cheap backward passes.

Why: every row index here occurs at most once, so the gradient of a gather is a plain copy. PyTorch's own
backward of `index_select` adds row by row instead, since it must expect doubles.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Take(torch.autograd.Function):
    """y = x[index]; dx = zeros with dx[index] = dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.rows, *grads[0].shape[1:])
        return out.index_copy_(0, index, grads[0]), None


class _Scatter(torch.autograd.Function):
    """y = zeros with y[index] = x; dx = dy[index]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0].index_select(0, index), None, None


class _Permute(torch.autograd.Function):
    """y = x[order]; dx = dy[inverse]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def take_rows(x: Float[Tensor, "r ..."], index: Int[Tensor, " p"] | None) -> Float[Tensor, "p ..."]:
    """Return x[index], where no row occurs twice; None is the identity."""
    if index is None:
        return x
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.index_select(0, index)
    return _Take.apply(x, index)


def scatter_rows(
    x: Float[Tensor, "p ..."], index: Int[Tensor, " p"] | None, rows: int
) -> Float[Tensor, "r ..."]:
    """Return zeros of `rows` rows with x at `index`, where no row occurs twice; None is the identity."""
    return x if index is None else _Scatter.apply(x, index, rows)


def permute_rows(
    x: Float[Tensor, "t ..."], order: Int[Tensor, " t"] | None, inverse: Int[Tensor, " t"] | None
) -> Float[Tensor, "t ..."]:
    """Return x[order]; `inverse` undoes `order`. None is the identity."""
    if order is None or inverse is None:
        return x
    return _Permute.apply(x, order, inverse)
