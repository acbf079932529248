"""What losses against labels share: a sum for each pass, and their total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmzoo.batch import Batch, Prediction, Target
from mmzoo.errors import ConfigError
from mmzoo.objectives.base import Objective
from mmzoo.state import LossState, Sum


class Labelled(Objective):
    """Sums a loss over what is labelled in every pass; parts are named by the pass."""

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def parts(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the passes."""
        return passes

    def __call__(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> LossState:
        """Return this rank's share of the loss."""
        if not target:
            raise ConfigError.at("objective", "no target", "the name of a label", "Set the task's target.")
        parts = {name: self.part(name, p, batch, target) for name, p in predictions.items()}
        if not parts:
            nothing = torch.zeros((), requires_grad=torch.is_grad_enabled())
            return LossState(Sum(nothing, torch.zeros(())))
        total = Sum(
            torch.stack([p.sum for p in parts.values()]).sum(),
            torch.stack([p.count for p in parts.values()]).sum(),
        )
        return LossState(total, parts)

    def part(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Sum:
        """Return the summed loss of one pass and what its mean divides by."""
        raise NotImplementedError


def shared_rows(prediction: Prediction, labels: Target) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"]]:
    """Return, on the host, which rows of a prediction are labelled, and the row of each one's label."""
    _, rows, own = np.intersect1d(
        prediction.index.numpy(), labels.index.numpy(), assume_unique=True, return_indices=True
    )
    return torch.from_numpy(rows), torch.from_numpy(own)
