"""Figures of dense tasks, over all labelled pixels of the whole set.

A state keeps sums and counts of each image, a few hundred numbers whatever its size, so that images seen
twice count once; no map is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, Batch, DenseKind, Prediction, PredictionKind
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, by_pass, each_labelled, merge

BETA_SQUARED = 0.3
"""Weight of precision in the F-measure of saliency."""
THRESHOLDS = np.arange(1, 20) / 20
"""Of saliency: 0.05, 0.10 … 0.95."""


class DenseMetric(Metric):
    """Sums up each labelled image by itself (`measure`), then all images (`sum_up`)."""

    reads: ClassVar[PredictionKind] = PredictionKind.DENSE
    kind: ClassVar[DenseKind]

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return what `measure` says of each labelled image, by pass."""
        state: RowsByPass = {}
        for name, ids, values, every in each_labelled(predictions, batch, target):
            _check(f"metric/{name}", tuple(values.shape), (len(every), *every[0].shape), self.kind)
            measured = [self.measure(one, true) for one, true in zip(values, every, strict=True)]
            columns = {k: np.stack([m[k] for m in measured]) for k in measured[0]}
            state[name] = (Rows(ids, columns),)
        return state

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of each pass and their means."""
        del context
        return averaged({p: self.sum_up(rows) for p, rows in by_pass(state).items()})

    def measure(self, values: Float[Tensor, "c h w"], true: Shaped[Tensor, ...]) -> dict[str, np.ndarray]:
        """Return the sums and counts of one image."""
        raise NotImplementedError

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the figures of all images."""
        raise NotImplementedError


class MeanIou(DenseMetric):
    """`mIoU` and `pixel_acc` of classes.

    Math: IoU_c = TP / max(TP + FP + FN, 1e-8) over all labelled pixels of the set, mean over all classes: one
    that never occurs counts 0.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    kind: ClassVar[DenseKind] = DenseKind.CLASSES

    def measure(self, values: Float[Tensor, "c h w"], true: Shaped[Tensor, "h w"]) -> dict[str, np.ndarray]:
        """Return true positives, predicted and true pixels of each class."""
        classes = values.shape[0]
        real = true != IGNORE
        labels, chosen = true[real], values.argmax(0)[real]
        if labels.numel() and int(labels.max()) >= classes:
            found = f"class {int(labels.max())}"
            raise ShapeError.at("metric", found, f"0..{classes - 1}", "Check the label names and the head.")
        right = labels[labels == chosen]
        counts = [torch.bincount(x, minlength=classes).numpy() for x in (right, chosen, labels)]
        return dict(zip(("right", "predicted", "true"), counts, strict=True))

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("mIoU", "pixel_acc")

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the mean over classes."""
        right, predicted, true = (rows[k].sum(axis=0) for k in ("right", "predicted", "true"))
        iou = right / np.maximum(predicted + true - right, 1e-8)
        return {"mIoU": float(iou.mean()), "pixel_acc": float(right.sum() / max(true.sum(), 1))}


class DepthError(DenseMetric):
    """`rmse_m`, `log_rmse`, `abs_rel` and `sq_rel_m` over measured pixels.

    Math: the prediction p is raised to at least 0, for logarithms to 1 mm; over all valid pixels of the set
    sqrt(mean (p - d)²), sqrt(mean (ln p - ln d)²), mean |p - d| / d, mean (p - d)² / d.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Which pixels count."""

        max_depth_m: float = 80.0
        """Pixels at this depth or beyond count as not measured (metres)."""

        def __post_init__(self) -> None:
            """Check the range."""
            if not self.max_depth_m > 0:
                raise ConfigError.at("max_depth_m", f"{self.max_depth_m:g}", "more than 0 m", "Use 80.")

    kind: ClassVar[DenseKind] = DenseKind.DEPTH

    def measure(self, values: Float[Tensor, "1 h w"], true: Float[Tensor, "1 h w"]) -> dict[str, np.ndarray]:
        """Return the count and the sums of the four errors."""
        valid = (true > 0) & (true < self.config.max_depth_m)
        d, p = true[valid].double(), values[valid].double().clamp(min=0)
        off = p - d
        ratio = p.clamp(min=1e-3).log() - d.log()
        sums = torch.stack([(off**2).sum(), (ratio**2).sum(), (off.abs() / d).sum(), (off**2 / d).sum()])
        return {"count": np.array(len(d)), "sums": sums.numpy()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("rmse_m", "log_rmse", "abs_rel", "sq_rel_m")

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the four figures; none where nothing was measured."""
        if not rows["count"].sum():
            return {}
        square, log, absolute, relative = rows["sums"].sum(axis=0) / rows["count"].sum()
        return {
            "rmse_m": float(np.sqrt(square)),
            "log_rmse": float(np.sqrt(log)),
            "abs_rel": float(absolute),
            "sq_rel_m": float(relative),
        }


class NormalsError(DenseMetric):
    """`mErr_deg`, `rmse_deg` and the shares of pixels `within_11`, `within_22` and `within_30` degrees.

    Math: the angle between unit normals, 2 atan2(‖p - n‖, ‖p + n‖), over all labelled pixels of the set
    (degrees); the shares are of angles under 11.25, 22.5 and 30.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    kind: ClassVar[DenseKind] = DenseKind.NORMALS

    def measure(self, values: Float[Tensor, "3 h w"], true: Float[Tensor, "3 h w"]) -> dict[str, np.ndarray]:
        """Return the count, the sums of angles and their squares, and how many are small."""
        valid = (true != IGNORE).all(dim=0)
        p, n = (F.normalize(x[:, valid].double(), dim=0) for x in (values, true))
        angle = torch.rad2deg(2 * torch.atan2((p - n).norm(dim=0), (p + n).norm(dim=0)))
        small = [(angle < limit).sum().double() for limit in (11.25, 22.5, 30.0)]
        sums = torch.stack([angle.sum(), (angle**2).sum(), *small])
        return {"count": np.array(int(valid.sum())), "sums": sums.numpy()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("mErr_deg", "rmse_deg", "within_11", "within_22", "within_30")

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the figures; none where nothing was labelled."""
        if not rows["count"].sum():
            return {}
        mean, square, *small = (rows["sums"].sum(axis=0) / rows["count"].sum()).tolist()
        shares = dict(zip(("within_11", "within_22", "within_30"), small, strict=True))
        return {"mErr_deg": mean, "rmse_deg": float(np.sqrt(square)), **shares}


class SaliencyProtocol(str, Enum):
    """The three ways in which saliency is scored in print; figures of different ones must not be compared."""

    INVPT = "invpt"
    MAXF = "maxf"
    MIOU = "miou"


class Saliency(DenseMetric):
    """`F_invpt`, `F_maxf` and `IoU_miou`: the figure's protocol is in its name.

    Math: p is the softmax probability of salient, thresholds t = 0.05 … 0.95. maxf: F = 1.3 P R / (0.3 P + R)
    of p >= t over all pixels of the set, best over t. invpt: the same of sigmoid(p) >= t, hence with five
    distinct operating points (everything, and p >= 0.2007, 0.4055, 0.6190, 0.8473). miou: IoU of each image,
    mean over images, best over t; 1 where neither has a salient pixel.
    Ref: invpt: InvPT, TaskPrompter, MLoRE; maxf: MTDP_Lib, PRISM; miou: MTDP_Lib, after ASTMT, whose own code
    tries t = 0.2 … 0.9 only: the best is the same unless predictions are badly calibrated.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What to report."""

        protocols: list[SaliencyProtocol] = field(default_factory=lambda: list(SaliencyProtocol))
        """invpt, maxf, miou."""

        def __post_init__(self) -> None:
            """Check that there is one."""
            if not self.protocols:
                raise ConfigError.at("protocols", "none", "invpt, maxf or miou", "Name at least one.")

    kind: ClassVar[DenseKind] = DenseKind.SALIENCY

    def measure(self, values: Float[Tensor, "2 h w"], true: Shaped[Tensor, "h w"]) -> dict[str, np.ndarray]:
        """Return, for each threshold, true positives and positives, without and with the sigmoid."""
        real = true != IGNORE
        prob = values.double().softmax(0)[1][real]
        wanted = (true[real] == 1).numpy()
        columns: dict[str, np.ndarray] = {"wanted": np.array(wanted.sum())}
        for name, score in (("maxf", prob), ("invpt", prob.sigmoid())):
            level = np.searchsorted(THRESHOLDS, score.numpy(), side="right")  # thresholds that it reaches
            found = np.bincount(level, minlength=20)[::-1].cumsum()[::-1][1:]
            right = np.bincount(level[wanted], minlength=20)[::-1].cumsum()[::-1][1:]
            columns |= {f"{name}_found": found, f"{name}_right": right}
        return columns

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return tuple(
            "IoU_miou" if p is SaliencyProtocol.MIOU else f"F_{p.value}" for p in self.config.protocols
        )

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return the best over thresholds of each protocol."""
        found: dict[str, float] = {}
        for protocol in self.config.protocols:
            if protocol is SaliencyProtocol.MIOU:
                found["IoU_miou"] = self._iou(rows)
            else:
                found[f"F_{protocol.value}"] = self._f_measure(rows, protocol.value)
        return found

    def _f_measure(self, rows: Rows, name: str) -> float:
        right = rows[f"{name}_right"].sum(axis=0)
        precision = right / np.maximum(rows[f"{name}_found"].sum(axis=0), 1e-8)
        recall = right / max(rows["wanted"].sum(), 1e-8)
        both = np.maximum(BETA_SQUARED * precision + recall, 1e-8)
        return float(((1 + BETA_SQUARED) * precision * recall / both).max())

    def _iou(self, rows: Rows) -> float:
        right = rows["maxf_right"]
        union = rows["maxf_found"] + rows["wanted"][:, None] - right
        return float(np.where(union > 0, right / np.maximum(union, 1), 1.0).mean(axis=0).max())


def _check(where: str, given: tuple[int, ...], wanted: tuple[int, ...], kind: DenseKind) -> None:
    least = {DenseKind.SALIENCY: 2, DenseKind.NORMALS: 3, DenseKind.EDGE: 1, DenseKind.DEPTH: 1}
    fits = len(given) == 4 and given[1] == least.get(kind, given[1])
    if not fits or wanted[-2:] != given[-2:]:
        found = f"predictions {given} for labels {wanted}"
        expected = f"(images, {least.get(kind, 'classes')}, height, width) of the labels' size"
        raise ShapeError.at(where, found, expected, "Use a dense head at the image's size.")
