"""How far numbers are off, and how well boxes overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.layers.boxes import iou
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, beside, by_pass, merge


class NumericMetric(Metric):
    """Keeps, for each labelled sample of a pass, what `measure` makes of it; `sum_up` gives the figures."""

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return what is kept of each pass."""
        state: RowsByPass = {}
        for name, prediction in predictions.items():
            rows = beside(name, prediction, batch, target, "as many numbers each")
            if len(rows):
                state[name] = (Rows(rows.ids, self.measure(rows["values"], rows["labels"])),)
        return state

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of each pass and their means."""
        del context
        return averaged({p: self.sum_up(rows) for p, rows in by_pass(state).items()})

    def measure(self, values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return columns with an entry for each of the samples (k n)."""
        raise NotImplementedError

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the figures of all samples."""
        raise NotImplementedError


class RegressionError(NumericMetric):
    """`MAE`, `RMSE` and `R2` of numbers.

    Math: mean |p - y| and sqrt(mean (p - y)²) over samples and numbers; R2 is the mean over the numbers that
    vary of 1 - Σ (p - y)² / Σ (y - ȳ)² over samples; left out where none varies.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    reads: ClassVar[PredictionKind] = PredictionKind.NUMBERS

    def measure(self, values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Keep both."""
        return {"values": values.astype(np.float64), "labels": labels.astype(np.float64)}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("MAE", "RMSE", "R2")

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the three figures."""
        labels, off = rows["labels"], rows["values"] - rows["labels"]
        found = {"MAE": float(np.abs(off).mean()), "RMSE": float(np.sqrt(np.square(off).mean()))}
        spread = np.square(labels - labels.mean(axis=0)).sum(axis=0)
        if (spread > 0).any():
            unexplained = np.square(off).sum(axis=0)[spread > 0] / spread[spread > 0]
            found["R2"] = float(1 - unexplained.mean())
        return found


class BoxIou(NumericMetric):
    """`Acc@0.5`, the share of boxes whose IoU with the true one is 0.5 or more, and `mean_IoU`.

    A predicted box without an extent (x2 <= x1 or y2 <= y1) has IoU 0.
    Ref: Acc@0.5 is how RefCOCO is scored.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What to report."""

        thresholds: list[float] = field(default_factory=lambda: [0.5])
        """least IoU at which a box counts as right; one figure `Acc@…` each"""

        def __post_init__(self) -> None:
            """Check the numbers."""
            if not self.thresholds or not all(0 < t <= 1 for t in self.thresholds):
                raise ConfigError.at("thresholds", str(self.thresholds), "shares above 0", "Try [0.5].")

    reads: ClassVar[PredictionKind] = PredictionKind.BOXES

    def measure(self, values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Keep the overlap of each box with the true one."""
        found, true = (torch.from_numpy(x).double() for x in (values, labels))
        return {"iou": iou(found, true).numpy()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return (*(f"Acc@{t:g}" for t in self.config.thresholds), "mean_IoU")

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the shares and the mean."""
        shares = {f"Acc@{t:g}": float((rows["iou"] >= t).mean()) for t in self.config.thresholds}
        return {**shares, "mean_IoU": float(rows["iou"].mean())}
