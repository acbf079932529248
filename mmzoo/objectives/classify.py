"""Losses against labels; samples without the label are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.labelled import Labelled, shared_rows
from mmzoo.state import Sum


class Classification(Labelled):
    """Sums a loss over the labelled rows of every pass; parts are named by the pass."""

    def part(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Sum:
        """Return the summed loss of the labelled rows of a pass."""
        logits = prediction.values.float()
        if logits.ndim != 2:
            raise ShapeError.at(
                f"objective/{name}",
                f"predictions {tuple(logits.shape)}",
                "(rows, classes)",
                "Use a classifier.",
            )
        labels = batch.targets.get(target)
        if labels is None:
            return Sum(logits.sum() * 0.0, logits.new_zeros(()))
        rows, own = shared_rows(prediction, labels)
        chosen = logits.index_select(0, rows.to(logits.device))
        values = labels.values.index_select(0, own.to(labels.values.device)).to(logits.device)
        return self.sum(chosen, values, f"batch.targets.{target}")

    def sum(self, logits: Float[Tensor, "k classes"], labels: Shaped[Tensor, "k ..."], where: str) -> Sum:
        """Return the summed loss of labelled rows and what its mean divides by."""
        raise NotImplementedError


class CrossEntropy(Classification):
    """Softmax cross-entropy.

    Math: Σ_i w_{y_i} [(1 - ε) (-log p_{i,y_i})] + ε/C Σ_c w_c (-log p_ic), over Σ_i w_{y_i}; w = 1 without
    weights.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Smoothing and weights."""

        label_smoothing: float = 0.0
        """ε, the share of the target spread evenly over all classes"""
        class_weights: list[float] = field(default_factory=list)
        """weight of each class, in index order; empty: all 1"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not 0 <= self.label_smoothing < 1:
                found = str(self.label_smoothing)
                raise ConfigError.at("label_smoothing", found, "a share in [0, 1)", "Try 0.1.")
            _check_weights("class_weights", self.class_weights)

    reads: ClassVar[PredictionKind] = PredictionKind.CLASSES

    def sum(self, logits: Float[Tensor, "k classes"], labels: Shaped[Tensor, "k ..."], where: str) -> Sum:
        """Return the summed cross-entropy and the sum of the labels' weights."""
        classes = logits.shape[1]
        if labels.ndim != 1 or labels.is_floating_point():
            found = f"{tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
            raise ShapeError.at(
                where, found, "one class number a sample", "Use objective.type=bce for several labels."
            )
        if (
            labels.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < classes
        ):
            found = f"class {int(labels.max() if labels.min() >= 0 else labels.min())}"
            raise ShapeError.at(
                where, found, f"0..{classes - 1}", "Check the label names and head.num_classes."
            )
        weight = _weights("class_weights", self.config.class_weights, logits)
        loss = F.cross_entropy(
            logits, labels, weight, reduction="sum", label_smoothing=self.config.label_smoothing
        )
        count = logits.new_tensor(float(len(labels))) if weight is None else weight[labels].sum()
        return Sum(loss, count)


class OverLabels(str, Enum):
    """What the losses of a row's labels become."""

    MEAN = "mean"
    """their mean"""
    SUM = "sum"
    """their sum (ONE-PEACE's VQA)"""


class BinaryCrossEntropy(Classification):
    """Sigmoid cross-entropy of every label by itself, averaged over rows.

    Math: Σ_i c Σ_l -[w_l y_il log σ(x_il) + (1 - y_il) log σ(-x_il)], over the number of rows; c is 1/L
    (mean) or 1 (sum); y_il is 0, 1 or a score between.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Weights and reduction."""

        over_labels: OverLabels = OverLabels.MEAN
        """mean or sum over a row's labels; with thousands of rare ones the mean gives tiny gradients"""

        pos_weight: list[float] = field(default_factory=list)
        """weight of each label's positives, in index order; empty: all 1"""

        def __post_init__(self) -> None:
            """Check the weights."""
            _check_weights("pos_weight", self.pos_weight)

    reads: ClassVar[PredictionKind] = PredictionKind.LABELS

    def sum(self, logits: Float[Tensor, "k classes"], labels: Shaped[Tensor, "k ..."], where: str) -> Sum:
        """Return the summed row losses and the number of rows."""
        if labels.shape != logits.shape:
            found = f"labels {tuple(labels.shape)} for logits {tuple(logits.shape)}"
            raise ShapeError.at(
                where, found, "one score, 0 … 1, for each label", "Check head.num_classes and the data."
            )
        weight = _weights("pos_weight", self.config.pos_weight, logits)
        loss = F.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), reduction="sum", pos_weight=weight
        )
        share = 1.0 if self.config.over_labels is OverLabels.SUM else 1.0 / logits.shape[1]
        return Sum(loss * share, logits.new_tensor(float(len(logits))))


def _check_weights(name: str, weights: list[float]) -> None:
    if weights and not (min(weights) >= 0 and max(weights) > 0):
        raise ConfigError.at(
            name, str(weights), "numbers of 0 or more, not all 0", "Leave it empty for equal weights."
        )


def _weights(
    name: str, weights: list[float], logits: Float[Tensor, "k classes"]
) -> Float[Tensor, " classes"] | None:
    if not weights:
        return None
    if len(weights) != logits.shape[1]:
        found = f"{len(weights)} weights for {logits.shape[1]} classes"
        raise ConfigError.at(f"objective.{name}", found, "one each", "Mend the list.")
    return logits.new_tensor(weights)
