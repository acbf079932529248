"""Attention backends `segments` (one batched SDPA a run) and `dense` (one masked t x t matrix, the
tests' oracle).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo.layers.segments import Segments


def attend_segments(
    qkv: Float[Tensor, "t 3 h d"], segments: Segments, scale: float
) -> Float[Tensor, "t h d"]:
    """Run scaled_dot_product_attention on each run of equally long segments; views, no padding."""
    heads, width = qkv.shape[2], qkv.shape[3]
    causal = segments.is_causal and not segments.has_bias
    logits = (None,) * len(segments.spans) if causal else segments.logits(heads, qkv.device)
    outputs: list[Tensor] = []
    rows = (
        qkv.split([span.count * span.length for span in segments.spans])
        if len(segments.spans) > 1
        else (qkv,)
    )
    for span, part, added in zip(segments.spans, rows, logits, strict=True):
        q, k, v = part.view(span.count, span.length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if added is None else added.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def attend_dense(qkv: Float[Tensor, "t 3 h d"], segments: Segments, scale: float) -> Float[Tensor, "t h d"]:
    """Compute all t x t logits and forbid those between segments. Quadratic in the whole buffer."""
    t, _, heads, _ = qkv.shape
    q, k, v = qkv.permute(1, 2, 0, 3).unbind(0)
    added = qkv.new_full((heads, t, t), -torch.inf)
    for span, bias in zip(segments.spans, segments.logits(heads, qkv.device), strict=True):
        for i in range(span.count):
            a, b = span.start + i * span.length, span.start + (i + 1) * span.length
            added[:, a:b, a:b] = 0.0 if bias is None else bias[min(i, bias.shape[0] - 1)]
    blind = (added == -torch.inf).all(-1, keepdim=True)
    weights = (
        (q @ k.transpose(1, 2) * scale + added.masked_fill(blind, 0.0)).softmax(-1).masked_fill(blind, 0.0)
    )
    return (weights @ v).transpose(0, 1)
