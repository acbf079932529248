"""Figures of scenes around a vehicle, over a whole set: map IoU, occupancy IoU; boxes are in `boxes_3d`.

Kept of each scene are its counts by class, so that scenes seen twice count once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, Batch, Prediction, PredictionKind, SceneKind
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, by_pass, each_labelled, merge


class SceneMetric(Metric):
    """Measures each labelled scene by itself (`measure`), then sums up all scenes (`sum_up`)."""

    kind: ClassVar[SceneKind]
    lists: ClassVar[tuple[str, ...]] = ()
    """Columns of `measure` that have another length in each scene."""

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return what `measure` says of each labelled scene, by pass."""
        state: RowsByPass = {}
        for name, ids, values, every in each_labelled(predictions, batch, target):
            measured = [self.measure(one, true) for one, true in zip(values, every, strict=True)]
            columns = {k: _column([m[k] for m in measured], ragged=k in self.lists) for k in measured[0]}
            state[name] = (Rows(ids, columns),)
        return state

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of each pass and their means."""
        names = tuple(context.info.labels.get(context.target, ()))
        return averaged({p: self.sum_up(rows, names) for p, rows in by_pass(state).items()})

    def measure(self, values: Float[Tensor, ...], true: Shaped[Tensor, ...]) -> dict[str, np.ndarray]:
        """Return what is kept of one scene, by column."""
        raise NotImplementedError

    def sum_up(self, rows: Rows, names: tuple[str, ...]) -> dict[str, float]:
        """Return the figures of all scenes; `names` are those of the classes, where the data tell."""
        raise NotImplementedError


class MapIou(SceneMetric):
    """`mIoU` of the ground's classes, each at its best threshold, and `IoU/<class>`.

    Math: IoU_c(t) = sum of intersections / sum of unions of {p >= t} and the label over all cells of the set;
    IoU_c = max over thresholds; mIoU = mean over classes. A class that is never there nor found counts 0.
    Ref: the map segmentation protocol of BEVFusion (Liu et al. 2023), which M3Net reports.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Which thresholds are tried."""

        thresholds: list[float] = field(default_factory=lambda: [0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65])
        """of the probability"""

        def __post_init__(self) -> None:
            """Check the range."""
            if not self.thresholds or not all(0 < t < 1 for t in self.thresholds):
                found = f"{self.thresholds}"
                raise ConfigError.at("thresholds", found, "shares between 0 and 1", "Try [0.5].")

    reads: ClassVar[PredictionKind] = PredictionKind.GROUND_MAP
    kind: ClassVar[SceneKind] = SceneKind.GROUND_MAP

    def measure(self, values: Float[Tensor, "k h w"], true: Float[Tensor, "_ _ _"]) -> dict[str, np.ndarray]:
        """Return intersections and unions (thresholds, classes)."""
        _check(tuple(values.shape), tuple(true.shape))
        at = values.new_tensor(self.config.thresholds)[:, None, None, None]
        found, label = values.sigmoid()[None] >= at, true[None] > 0.5
        counts = {"inter": found & label, "union": found | label}
        return {k: x.sum(dim=(2, 3)).numpy() for k, x in counts.items()}

    def sum_up(self, rows: Rows, names: tuple[str, ...]) -> dict[str, float]:
        """Return the mean over classes and each class's."""
        inter, union = (rows[k].sum(axis=0) for k in ("inter", "union"))
        best = (inter / np.maximum(union, 1)).max(axis=0)
        each = {f"IoU/{_name(names, k)}": float(v) for k, v in enumerate(best)}
        return {"mIoU": float(best.mean()), **each}


class OccupancyIou(SceneMetric):
    """`mIoU` of the classes of voxels, and `sc_IoU`, that of occupied against free (scene completion).

    Math: over all known voxels of the set, IoU_c = hits / (predicted + true - hits); mIoU = mean over the
    classes but 0 (free) that occur or are predicted.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    reads: ClassVar[PredictionKind] = PredictionKind.VOXELS
    kind: ClassVar[SceneKind] = SceneKind.VOXELS

    def measure(self, values: Float[Tensor, "k z y x"], true: Int[Tensor, "_ _ _"]) -> dict[str, np.ndarray]:
        """Return the confusion (true, predicted)."""
        _check(tuple(values.shape[1:]), tuple(true.shape))
        classes, known = values.shape[0], true != IGNORE
        labels, chosen = true[known], values.argmax(dim=0)[known]
        if labels.numel() and int(labels.max()) >= classes:
            found = f"class {int(labels.max())}"
            raise ShapeError.at("metric", found, f"0..{classes - 1}", "Check the data's class names.")
        table = torch.bincount(labels * classes + chosen, minlength=classes**2)
        return {"confusion": table.reshape(classes, classes).numpy()}

    def sum_up(self, rows: Rows, names: tuple[str, ...]) -> dict[str, float]:
        """Return the two figures and each class's that occurs."""
        table = rows["confusion"].sum(axis=0).astype(float)
        hit, union = table.diagonal(), table.sum(axis=0) + table.sum(axis=1) - table.diagonal()
        each = {k: float(hit[k] / union[k]) for k in range(1, len(table)) if union[k]}
        free = table[0, 0]
        whole = table[1:, 1:].sum() / max(table.sum() - free, 1.0)
        mean = float(np.mean(list(each.values()))) if each else 0.0
        named = {f"IoU/{_name(names, k)}": v for k, v in each.items()}
        return {"mIoU": mean, "sc_IoU": float(whole), **named}


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _column(parts: list[np.ndarray], *, ragged: bool) -> np.ndarray:
    """Stack what has one form; lists become a column of arrays."""
    if not ragged:
        return np.stack(parts)
    column = np.empty(len(parts), dtype=object)
    column[:] = parts
    return column


def _check(found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != tuple(wanted):
        do = "Give the model and the data one grid."
        raise ShapeError.at("metric", f"predictions {tuple(found)}", f"{tuple(wanted)} as labelled", do)
