"""Accuracy of class logits and average precision of multi-label logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, beside, by_pass, labelled, merge
from mmzoo.metrics.scores import average_precision, confusion, per_class, ranks, top_k


class Accuracy(Metric):
    """`top<k>`, `mean_class` and `macro_f1`; the figure `confusion` (rows true, columns predicted).
     With several passes each figure is also given as `<pass>/<figure>`, and the bare name is the mean over
    passes.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What to report."""

        topk: list[int] = field(default_factory=lambda: [1, 5])
        """right if among the first k classes; a k of all classes or more is left out"""

        def __post_init__(self) -> None:
            """Check the numbers."""
            check_ks("topk", self.topk)

    reads: ClassVar[PredictionKind] = PredictionKind.CLASSES

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return, for each pass, the rank of each right class, the right and the predicted class."""
        return {name: (self._rows(name, p, batch, target),) for name, p in predictions.items()}

    def _rows(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Rows:
        rows = labelled(name, prediction, batch, target)
        labels, scores = rows["labels"].astype(np.int64), rows["values"]
        columns = {
            "labels": labels,
            "predicted": scores.argmax(axis=1),
            "rank": ranks(scores, labels, f"batch.targets.{target}"),
            "classes": np.full(len(rows), scores.shape[1], dtype=np.int64),
        }
        return Rows(rows.ids, columns)

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return (*(f"top{k}" for k in self.config.topk), "mean_class", "macro_f1")

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of each pass and their means."""
        del context
        found = by_pass(state)
        return averaged(
            {
                p: {**top_k(r["rank"], self.config.topk, int(r["classes"][0])), **per_class(_table(r))}
                for p, r in found.items()
            }
        )

    def figures(self, state: RowsByPass, context: MetricContext) -> dict[str, np.ndarray]:
        """Return the confusion matrix, one for each pass where there are several."""
        del context
        found = by_pass(state)
        return {"confusion" if len(found) == 1 else f"{p}/confusion": _table(r) for p, r in found.items()}


class MeanAveragePrecision(Metric):
    """`mAP`: the mean over labels with at least one positive of the label's average precision."""

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    reads: ClassVar[PredictionKind] = PredictionKind.LABELS

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return the logits and the labels of each pass."""
        state: RowsByPass = {}
        for name, prediction in predictions.items():
            rows = beside(name, prediction, batch, target, "one 0 or 1 for each label")
            if len(rows):
                positive = (rows["labels"] > 0.5).astype(np.int8)
                state[name] = (Rows(rows.ids, {"values": rows["values"], "positive": positive}),)
        return state

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("mAP",)

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return `mAP`."""
        del context
        found: dict[str, dict[str, float]] = {}
        for name, rows in by_pass(state).items():
            scores, positive = rows["values"], rows["positive"].astype(np.int64)
            labels = np.flatnonzero(positive.any(axis=0))
            if len(labels):
                parts = [average_precision(scores[:, c], positive[:, c]) for c in labels]
                found[name] = {"mAP": float(np.mean(parts))}
        return averaged(found)


def check_ks(where: str, ks: list[int]) -> None:
    """Raise ConfigError unless the numbers are positive."""
    if not ks or min(ks) < 1:
        raise ConfigError.at(where, str(ks), "at least one number, each 1 or more", "Try [1, 5].")


def _table(rows: Rows) -> Any:
    return confusion(rows["labels"], rows["predicted"], int(rows["classes"][0]))
