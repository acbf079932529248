"""Accuracy of multiple choice: is the right answer the one that scores highest?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, by_pass, merge, plain


class ChoiceAccuracy(Metric):
    """`top1`, and `chance`: what guessing would give, the mean of 1 / answers. With several passes each
    figure is also given as `<pass>/<figure>`, and the bare name is the mean over passes.

    Math: a sample whose right answer shares the highest score with t others counts 1 / (t + 1), so that a
    model that scores all alike stands exactly at chance.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    reads: ClassVar[PredictionKind] = PredictionKind.CHOICES
    takes_several: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return, for each labelled sample of each pass, what it counts and what a guess would."""
        if not target:
            do = "Set the task's target, or drop the metric."
            raise ConfigError.at("metric", "no target", "the name of a label", do)
        return {name: (self._rows(name, p, batch, target),) for name, p in predictions.items()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("top1", "chance")

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of each pass and their means."""
        del context
        names = {"top1": "credit", "chance": "chance"}
        return averaged(
            {
                p: {k: float(r[column].mean()) for k, column in names.items()}
                for p, r in by_pass(state).items()
            }
        )

    def _rows(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Rows:
        scores, index = plain(name, prediction, batch)["values"][:, 0], prediction.index.numpy()
        labels = batch.targets.get(target)
        right = dict(zip(labels.index.tolist(), labels.values.tolist(), strict=True)) if labels else {}
        ids: list[str] = []
        credit: list[float] = []
        chance: list[float] = []
        for sample in np.unique(index).tolist():
            if sample not in right:
                continue
            own = scores[index == sample]
            if not 0 <= right[sample] < len(own):
                found = f"answer {right[sample]} of {len(own)}"
                raise ShapeError.at(f"batch.targets.{target}", found, "one of them", "Check the choices.")
            best = own == own.max()
            ids.append(batch.ids[sample])
            credit.append(float(best[right[sample]]) / float(best.sum()))
            chance.append(1 / len(own))
        return Rows(tuple(ids), {"credit": np.array(credit), "chance": np.array(chance)})
