"""Stochastic depth by segment: a whole residual branch of a sample is left out, the others are scaled up."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def drop_path_rates(prob: float, depth: int) -> list[float]:
    """Return each layer's probability, rising linearly from 0 at the first to `prob` at the last.

    Ref: Huang et al. 2016, section 3; ONE-PEACE's trunk uses the same ramp.
    """
    return [prob * layer / max(depth - 1, 1) for layer in range(depth)]


def drop_path_scale(
    segment_of_row: Int[Tensor, " t"],
    num_segments: int,
    prob: float,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "t 1"]:
    """Return the factor of each row: 0 where its segment is dropped, else 1 / (1 - prob).

    Why: all tokens of a segment share one draw, so a sample either has the branch or has not.
    Math: E[factor] = 1. Shape: rows of the packed buffer.
    """
    keep = 1.0 - prob
    device = segment_of_row.device
    kept = torch.empty(num_segments, dtype=dtype, device=device).bernoulli_(keep, generator=generator)
    if keep > 0.0:
        kept.div_(keep)
    return kept.index_select(0, segment_of_row).unsqueeze(1)
