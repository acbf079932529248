"""A loss or a metric is a state: sums and counts that merge; the mean is taken once, at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sum:
    """A sum (with gradient, for losses) and the number of things summed."""

    sum: Float[Tensor, ""]
    count: Float[Tensor, ""]

    def merge(self, other: Sum) -> Sum:
        """Add another part of the data."""
        return Sum(self.sum + other.sum, self.count + other.count)

    def mean(self) -> Float[Tensor, ""]:
        """Return sum / count, zero where nothing was counted (the gradient stays defined)."""
        return self.sum / torch.where(self.count > 0, self.count, torch.ones_like(self.count))


@dataclass(frozen=True)
class LossState:
    """What an objective returns for a batch: the total and its named parts; merges over batches and ranks.

    Math: loss = total.sum / total.count, the mean over all rows of the whole (global) batch; where `weights`
    name parts, it is Σ weight · mean of the part instead, each part's mean over rows of its own.
    """

    total: Sum
    parts: Mapping[str, Sum] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def merge(self, other: LossState) -> LossState:
        """Add the state of another part of the data."""
        parts = dict(self.parts)
        for name, part in other.parts.items():
            parts[name] = parts[name].merge(part) if name in parts else part
        return LossState(self.total.merge(other.total), parts, {**self.weights, **other.weights})

    def mean(self) -> Float[Tensor, ""]:
        """Return the mean loss."""
        means = [w * self.parts[name].mean() for name, w in self.weights.items() if name in self.parts]
        return torch.stack(means).sum() if means else self.total.mean()

    @staticmethod
    def zero(like: Float[Tensor, ...]) -> LossState:
        """Return the state of no data, on the device of `like`."""
        zero = torch.zeros((), device=like.device)
        return LossState(Sum(zero, zero.clone()))
