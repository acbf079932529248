"""The score of the answer that a model gives, where several answers are right to some degree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, beside, by_pass, merge


class SoftAccuracy(Metric):
    """`accuracy`: the mean over samples of the true score of the label with the highest logit.

    Math: 1/n Σ_i y_i[argmax_l x_il]; with scores min(1, people who said so / 3) this is VQA's accuracy.
    Ref: Antol et al. 2015 (arXiv:1505.00468); ONE-PEACE scores VQAv2 so.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    reads: ClassVar[PredictionKind] = PredictionKind.LABELS

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return the score that each sample's answer has."""
        state: RowsByPass = {}
        for name, prediction in predictions.items():
            rows = beside(name, prediction, batch, target, "one score, 0 … 1, for each label")
            if len(rows):
                best = rows["values"].argmax(axis=1)[:, None]
                chosen = np.take_along_axis(rows["labels"], best, axis=1)[:, 0]
                state[name] = (Rows(rows.ids, {"score": chosen.astype(np.float64)}),)
        return state

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("accuracy",)

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return `accuracy`."""
        del context
        return averaged({p: {"accuracy": float(rows["score"].mean())} for p, rows in by_pass(state).items()})
