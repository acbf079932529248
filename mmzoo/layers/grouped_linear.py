"""Matrix products of rows sorted by group: each group has its own weights, none is padded, none dropped.

`grouped_linear(x, weight, ends)` has two kernels, tested equal: torch's grouped_mm, and one product a group.
`Order` holds a sort by group and moves rows there and back.

Axis letters: p rows (token, choice) sorted by group, t tokens, k choices a token, e groups, i in, o out.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo.errors import ConfigError

log = logging.getLogger(__name__)
ALIGNMENT = 16
"""Bytes that every stride of a grouped_mm operand must be a multiple of."""
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class GroupedKernel(str, Enum):
    """Which kernel multiplies; `auto` takes grouped_mm where torch has it and the sizes are aligned."""

    AUTO = "auto"
    GROUPED_MM = "grouped_mm"
    SLICES = "slices"


@dataclass(frozen=True)
class Order:
    """A sort of (token, choice) pairs by group.

    token: the token of each sorted row; place: the sorted row of each pair (t k), -1 where it was dropped;
    ends: int32, the row after the last of each group.
    """

    token: Int[Tensor, " p"]
    place: Int[Tensor, "t k"]
    ends: Int[Tensor, " e"]


def sort_by_group(
    groups_tk: Int[Tensor, "t k"], num_groups: int, *, capacity: int | None = None
) -> tuple[Order, Int[Tensor, " e"]]:
    """Sort all pairs by group, tokens in order within; return it and how many pairs each group was asked for.

    capacity: most rows of a group; later ones are dropped, second choices before first ones.
    """
    tokens, choices = groups_tk.shape
    flat = groups_tk.reshape(-1) if capacity is None else groups_tk.t().reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = flat.new_zeros(num_groups).scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.shape[0], device=order.device)
    if capacity is None:
        token = torch.div(order, choices, rounding_mode="floor")
        return Order(token, place.view(tokens, choices), ends.to(torch.int32)), counts
    sorted_groups = flat[order]
    within = torch.arange(order.shape[0], device=order.device) - (ends - counts)[sorted_groups]
    kept = within < capacity
    place = torch.where(kept[place], (kept.cumsum(0) - 1)[place], -1)
    kept_ends = counts.clamp(max=capacity).cumsum(0).to(torch.int32)
    return Order((order % tokens)[kept], place.view(choices, tokens).t().contiguous(), kept_ends), counts


def grouped_linear(
    x: Float[Tensor, "p i"],
    weight: Float[Tensor, "e o i"],
    ends: Int[Tensor, " e"],
    bias: Float[Tensor, "e o"] | None = None,
    kernel: GroupedKernel = GroupedKernel.AUTO,
) -> Float[Tensor, "p o"]:
    """Return x W_g^T + b_g, g the group of each row; rows are sorted, the last group ends with the last row.

    Why: a stacked parameter indexed group by group makes each backward pass fill a table of zeros for
    every group; both kernels write the gradient of all groups at once. Ref: performance.md section 2.
    """
    if not x.shape[0]:
        return x.new_zeros(0, weight.shape[1])
    x, weight, bias = _same_dtype(x, weight, bias)
    if kernel is GroupedKernel.AUTO:
        kernel = _choose(x, weight)
        _announce(kernel, x.device.type, x.dtype)
    if kernel is GroupedKernel.SLICES:
        return _Slices.apply(x, weight, bias, ends)
    if not hasattr(F, "grouped_mm"):
        found = f"torch {torch.__version__} without grouped_mm"
        raise ConfigError.at("grouped_linear", found, "torch 2.10 or later", "Choose kernel slices.")
    y = _grouped_mm(x, weight, ends)
    return y if bias is None else _AddBias.apply(y, bias, ends)


def _choose(x: Tensor, weight: Tensor) -> GroupedKernel:
    """Choose grouped_mm on CUDA, where slices wait for the device, if nothing must be padded for it."""
    aligned = all(n * x.element_size() % ALIGNMENT == 0 for n in weight.shape[1:])
    able = hasattr(F, "grouped_mm") and aligned and x.dtype in GROUPED_DTYPES
    return GroupedKernel.GROUPED_MM if able and x.device.type == "cuda" else GroupedKernel.SLICES


def _same_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring all to one dtype, that of autocast where it is on: it does not know these kernels itself."""
    kind = x.device.type
    cast = kind != "meta" and torch.is_autocast_enabled(kind)  # the meta device has no autocast
    dtype = torch.get_autocast_dtype(kind) if cast else weight.dtype
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@functools.cache
def _announce(kernel: GroupedKernel, device_type: str, dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    log.info("grouped matrix products: %s (%s, %s)", kernel.value, device_type, kind)


def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Pad the inner sizes to what grouped_mm can stride over, multiply, cut the padding off."""
    step = ALIGNMENT // x.element_size()
    columns, rows = (-weight.shape[2]) % step, (-weight.shape[1]) % step
    if columns or rows:
        weight = F.pad(weight, (0, columns, 0, rows))
        x = F.pad(x, (0, columns))
    y = F.grouped_mm(x.contiguous(), weight.transpose(1, 2), offs=ends)
    y = _ContiguousGrad.apply(y)
    return y[:, : y.shape[1] - rows] if rows else y


class _ContiguousGrad(torch.autograd.Function):
    """The identity; its gradient is made contiguous, since grouped_mm refuses an expanded one."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        del ctx
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        return grads[0].contiguous()


class _AddBias(torch.autograd.Function):
    """y + b_g; db_g = sum of dy over the group's rows, as one product with the groups' one-hot rows."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
        rows = torch.arange(y.shape[0], device=y.device, dtype=ends.dtype)
        group = torch.bucketize(rows, ends, right=True)
        ctx.save_for_backward(group)
        ctx.groups = bias.shape[0]
        return y + bias.index_select(0, group)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        (group,) = ctx.saved_tensors
        names = torch.arange(ctx.groups, device=group.device)
        return grads[0], (group == names[:, None]).to(grads[0].dtype) @ grads[0], None


class _Slices(torch.autograd.Function):
    """y_g = x_g W_g^T + b_g, one product a group; dx_g = dy_g W_g, dW_g = dy_g^T x_g, db_g = sum dy_g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
        ctx.spans, ctx.has_bias = _spans(ends), bias is not None
        ctx.save_for_backward(x, weight)
        y = x.new_empty(x.shape[0], weight.shape[1])
        for g, start, end in ctx.spans:
            if bias is None:
                torch.mm(x[start:end], weight[g].t(), out=y[start:end])
            else:
                torch.addmm(bias[g], x[start:end], weight[g].t(), out=y[start:end])
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        d_y = grads[0].contiguous()
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = weight.new_zeros(weight.shape[:2]) if ctx.has_bias else None
        if d_weight is not None:
            for g in set(range(weight.shape[0])).difference(g for g, _, _ in ctx.spans):
                d_weight[g].zero_()
        for g, start, end in ctx.spans:
            if d_x is not None:
                torch.mm(d_y[start:end], weight[g], out=d_x[start:end])
            if d_weight is not None:
                torch.mm(d_y[start:end].t(), x[start:end], out=d_weight[g])
            if d_bias is not None:
                torch.sum(d_y[start:end], 0, out=d_bias[g])
        return d_x, d_weight, d_bias, None


def _spans(ends: Tensor) -> list[tuple[int, int, int]]:
    """Return (group, start, end) of every group that has rows."""
    bounds: list[int] = ends.tolist()
    return [(g, a, b) for g, (a, b) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True)) if b > a]


class _Spread(torch.autograd.Function):
    """y = x[token]; dx_t = sum of dy over the choices of t: a gather, where autograd would add row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return _summed(grads[0], place, None), None, None


class _Gather(torch.autograd.Function):
    """y_t = sum_k w_tk z[place_tk]; dz = w dy at its place, dw_tk = dy_t . z[place_tk]."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(z, weights, token, place)
        return _summed(z, place, weights)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        z, weights, token, place = ctx.saved_tensors
        d_y, flat, values = grads[0], place.reshape(-1), weights.reshape(-1)
        if z.shape[0] != flat.shape[0]:
            kept = flat >= 0
            flat, values = flat[kept], values[kept]
        rows = values.new_zeros(z.shape[0]).index_copy_(0, flat, values)
        d_y = d_y.index_select(0, token)
        products = torch.linalg.vecdot(d_y, z)[:, None]
        return d_y.mul_(rows[:, None]), _taken(products, place)[:, :, 0], None, None


def spread(x: Float[Tensor, "t d"], order: Order) -> Float[Tensor, "p d"]:
    """Return the row of each pair's token, sorted by group."""
    return _Spread.apply(x, order.token, order.place)


def gather(z: Float[Tensor, "p d"], weights_tk: Float[Tensor, "t k"], order: Order) -> Float[Tensor, "t d"]:
    """Return for each token the weighted sum of its choices' rows; a dropped pair counts nothing."""
    return _Gather.apply(z, weights_tk.to(z.dtype), order.token, order.place)


def choices(z: Float[Tensor, "p d"], order: Order) -> Float[Tensor, "t k d"]:
    """Return each token's rows in the order of its choices; none may have been dropped."""
    return z.index_select(0, order.place.reshape(-1)).unflatten(0, order.place.shape)


def _summed(z: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    """Return sum_k w_tk z[place_tk], rows at -1 left out; a bag reads and writes each row only once."""
    if z.shape[0] == place.numel():  # nothing was dropped
        return F.embedding_bag(place, z, per_sample_weights=weights, mode="sum")
    taken = _taken(z, place)
    return taken.sum(1) if weights is None else torch.bmm(weights[:, None, :], taken)[:, 0]


def _taken(z: Tensor, place: Tensor) -> Tensor:
    """Return z[place], zero where place is -1."""
    flat = place.reshape(-1)
    if z.shape[0] == flat.shape[0]:  # nothing was dropped
        return z.index_select(0, flat).view(*place.shape, z.shape[1])
    if not z.shape[0]:
        return z.new_zeros(*place.shape, z.shape[1])
    taken = z.index_select(0, flat.clamp(min=0)) * (flat >= 0)[:, None].to(z.dtype)
    return taken.view(*place.shape, z.shape[1])
