"""Losses against labels of numbers; samples without the label are left out.

A head that learns in standard units gives the `spread` σ_j of each number j with its prediction; differences
are then (p_ij - y_ij) / σ_j, else σ_j = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.labelled import Labelled, shared_rows
from mmzoo.state import Sum


class Numeric(Labelled):
    """Sums a loss over the labelled rows of every pass; parts are named by the pass."""

    reads: ClassVar[PredictionKind] = PredictionKind.NUMBERS

    def part(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Sum:
        """Return the summed loss of the labelled rows of a pass."""
        values = prediction.values.float()
        labels = batch.targets.get(target)
        if labels is None:
            return Sum(values.sum() * 0.0, values.new_zeros(()))
        if labels.values.shape[1:] != values.shape[1:] or not labels.values.is_floating_point():
            found = f"labels {tuple(labels.values.shape)} for predictions {tuple(values.shape)}"
            raise ShapeError.at(
                f"objective/{name}", found, "as many numbers each", "Check the head and data.numbers."
            )
        rows, own = shared_rows(prediction, labels)
        chosen = values.index_select(0, rows.to(values.device))
        wanted = labels.values.index_select(0, own.to(labels.values.device)).to(values)
        if prediction.spread is not None:
            chosen, wanted = chosen / prediction.spread, wanted / prediction.spread
        return Sum(self.sum(chosen, wanted), values.new_tensor(float(len(chosen))))

    def sum(self, values: Float[Tensor, "k n"], labels: Float[Tensor, "k n"]) -> Float[Tensor, ""]:
        """Return the loss summed over rows; 0 where there are none."""
        raise NotImplementedError


class AbsoluteError(Numeric):
    """Mean absolute difference.

    Math: Σ_i 1/n Σ_j |p_ij - y_ij| / σ_j over the number of rows i; j counts the n numbers of a label.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def sum(self, values: Float[Tensor, "k n"], labels: Float[Tensor, "k n"]) -> Float[Tensor, ""]:
        """Return the loss summed over rows."""
        return (values - labels).abs().sum() / values.shape[1]


class SquaredError(Numeric):
    """Mean squared difference.

    Math: Σ_i 1/n Σ_j ((p_ij - y_ij) / σ_j)² over the number of rows i.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def sum(self, values: Float[Tensor, "k n"], labels: Float[Tensor, "k n"]) -> Float[Tensor, ""]:
        """Return the loss summed over rows."""
        return (values - labels).square().sum() / values.shape[1]


class SmoothL1(Numeric):
    """Squared for small differences, absolute for large ones.

    Math: Σ_i 1/n Σ_j f((p_ij - y_ij) / σ_j) over the number of rows i; f(e) = e² / 2β for |e| < β, else
    |e| - β/2.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Where it bends."""

        beta: float = 1.0
        """β, the difference from which on the loss is a straight line (standard deviations; unit of the label
        where the head has units=data)"""

        def __post_init__(self) -> None:
            """Check the range."""
            if not self.beta > 0:
                raise ConfigError.at("beta", f"{self.beta:g}", "a positive number", "Use type: l1 for β = 0.")

    def sum(self, values: Float[Tensor, "k n"], labels: Float[Tensor, "k n"]) -> Float[Tensor, ""]:
        """Return the loss summed over rows."""
        return F.smooth_l1_loss(values, labels, reduction="sum", beta=self.config.beta) / values.shape[1]
