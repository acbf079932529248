"""Overlap of boxes x1, y1, x2, y2, row by row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def has_extent(boxes: Float[Tensor, "k 4"]) -> Bool[Tensor, " k"]:
    """Say of each box whether x1 < x2 and y1 < y2."""
    return (boxes[:, :2] < boxes[:, 2:]).all(dim=1)


def iou(a: Float[Tensor, "k 4"], b: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    """Return intersection over union of each pair of boxes that have an extent; 0 where one has none."""
    shared, union = _overlap(a, b)
    real = has_extent(a) & has_extent(b)
    return torch.where(real, shared / torch.where(real, union, 1.0), 0.0)


def generalised_iou(a: Float[Tensor, "k 4"], b: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    """Return the generalised IoU of each pair; all boxes must have an extent.

    Math: IoU - |H minus (A ∪ B)| / |H|, H the smallest box around both; from -1 (far apart) to 1 (the same).
    Ref: Rezatofighi et al. 2019 (arXiv:1902.09630).
    """
    shared, union = _overlap(a, b)
    hull = _area(torch.cat([torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])], dim=1))
    return shared / union - (hull - union) / hull


def _overlap(
    a: Float[Tensor, "k 4"], b: Float[Tensor, "k 4"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Return the areas of intersection and union."""
    corner, opposite = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=1)
    return shared, _area(a) + _area(b) - shared


def _area(boxes: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
