"""Attention backend `bmm`: bmm - softmax - bmm over each run in one autograd node.

Why: the gradients of q, k and v are written straight into one buffer like qkv (no zero fills, no
concatenation), a bias gets its gradient, and in 16 bits on CPU the two GEMMs beat the flash kernel 2-5
times (performance.md section 1d). The probabilities are kept for the backward pass: h * length^2 numbers
a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmzoo.layers.segments import Segments, Span


def attend_bmm(qkv: Float[Tensor, "t 3 h d"], segments: Segments, scale: float) -> Float[Tensor, "t h d"]:
    """Attend within each segment."""
    added = segments.logits(qkv.shape[2], qkv.device)
    blind = segments.mask_mod is not None
    return _Bmm.apply(qkv, segments.spans, scale, blind, *added)


class _Bmm(torch.autograd.Function):
    """Math: P = softmax(s Q K^T + B), O = P V; dV = P^T dO, dP = dO V^T, dB = dS = P (dP - sum(dP P)),
    dQ = s dS K, dK = s dS^T Q."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        spans: Sequence[Span],
        scale: float,
        blind: bool,  # noqa: FBT001 apply() takes no keywords
        *added: Tensor | None,
    ) -> Tensor:
        t, _, heads, width = qkv.shape
        out = qkv.new_empty(t, heads, width)
        kept: list[Tensor] = []
        copy = any(span.count > 1 for span in spans)
        with torch.autocast(qkv.device.type, enabled=False):
            for span, bias in zip(spans, added, strict=True):
                q, k, v = _heads(qkv, span, copy=copy)
                logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
                if bias is not None:
                    logits.view(span.count, heads, span.length, span.length).add_(bias)
                weights = torch.softmax(logits, -1, out=logits)
                if blind:
                    weights.nan_to_num_(0.0)
                _write(out, span, torch.bmm(weights, v))
                kept += [q, k, v, weights]
        ctx.save_for_backward(*kept)
        ctx.spans, ctx.scale, ctx.shape = spans, scale, qkv.shape
        ctx.shapes = [(None if b is None else (b.shape, b.dtype)) for b in added]
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] once_differentiable hides names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        heads = ctx.shape[2]
        d_out, d_qkv = grads[0], grads[0].new_empty(ctx.shape)
        d_added: list[Tensor | None] = []
        for i, span in enumerate(ctx.spans):
            q, k, v, weights = kept[4 * i : 4 * i + 4]
            d_o = _one(d_out, span)
            d_weights = torch.bmm(d_o, v.transpose(1, 2))
            d_logits = torch.ops.aten._softmax_backward_data.out(
                d_weights, weights, -1, weights.dtype, grad_input=d_weights
            )
            _write(d_qkv[:, 2], span, torch.bmm(weights.transpose(1, 2), d_o))
            _write(d_qkv[:, 0], span, torch.bmm(d_logits, k).mul_(ctx.scale))
            _write(d_qkv[:, 1], span, torch.bmm(d_logits.transpose(1, 2), q).mul_(ctx.scale))
            shape = ctx.shapes[i]
            if shape is None or not ctx.needs_input_grad[4 + i]:
                d_added.append(None)
            else:
                d_added.append(
                    d_logits.view(span.count, heads, span.length, span.length)
                    .sum_to_size(shape[0])
                    .to(shape[1])
                )
        return d_qkv, None, None, None, *d_added


def _heads(qkv: Tensor, span: Span, *, copy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of a run, each (count * h, length, d), as views or as copies.

    Why: the GEMM wants one batch axis, which segments and heads form only in a copy. Where some run
    needs copies, all runs take them: they are then kept for the backward pass in place of the qkv
    buffer, at the same size.
    """
    _, _, heads, width = qkv.shape
    rows = qkv[span.start : span.start + span.count * span.length]
    if not copy:
        q, k, v = rows.permute(1, 2, 0, 3).unbind(0)
        return q, k, v
    packed = rows.view(span.count, span.length, 3, heads, width).permute(2, 0, 3, 1, 4)
    q, k, v = packed.contiguous().view(3, span.count * heads, span.length, width).unbind(0)
    return q, k, v


def _one(x: Tensor, span: Span) -> Tensor:
    """Return the rows of a run, head by head: (count * h, length, d)."""
    _, heads, width = x.shape
    rows = x[span.start : span.start + span.count * span.length]
    return rows.view(span.count, span.length, heads, width).transpose(1, 2).reshape(-1, span.length, width)


def _write(out: Tensor, span: Span, value: Tensor) -> None:
    """Put (count * h, length, d) into the rows of a run of [t h d]."""
    _, heads, width = out.shape
    rows = out[span.start : span.start + span.count * span.length]
    target = rows.unflatten(0, (span.count, span.length))
    target.copy_(value.view(span.count, heads, span.length, width).transpose(1, 2))
