"""Losses against labels of every pixel: classes, saliency, normals, edges and depth.

Each is a sum over the labelled pixels of the whole batch over their number, so an image with few labelled
pixels weighs little. The weights that InvPT, TaskPrompter and MLoRE give to the tasks: classes 1, human parts
2, saliency 5, normals 10, edges 50, depth 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, Batch, DenseKind, Prediction, PredictionKind
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.labelled import Labelled, shared_rows
from mmzoo.state import Sum


class Dense(Labelled):
    """Sums a loss over the labelled pixels of every pass; parts are named by the pass.

    `kind` says which labels it reads. Images without the label are left out.
    """

    reads: ClassVar[PredictionKind] = PredictionKind.DENSE
    kind: ClassVar[DenseKind]

    def part(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Sum:
        """Return the summed loss of the labelled rows of a pass."""
        values = prediction.values.float()
        labels = batch.targets.get(target)
        if labels is None:
            return Sum(values.sum() * 0.0, values.new_zeros(()))
        rows, own = shared_rows(prediction, labels)
        chosen, wanted = _rows(values, rows), _rows(labels.values, own).to(values.device)
        _check(f"objective/{name}", chosen, wanted, self.kind)
        if not len(chosen):
            return Sum(values.sum() * 0.0, values.new_zeros(()))
        return self.sum(chosen, wanted)

    def sum(self, values: Float[Tensor, "k c h w"], labels: Shaped[Tensor, "k ..."]) -> Sum:
        """Return the summed loss of labelled images and the number of their labelled pixels."""
        raise NotImplementedError


class DenseCrossEntropy(Dense):
    """Softmax cross-entropy of every pixel's class.

    Math: Σ_i -log p_i(y_i) / n over the n labelled pixels.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    kind: ClassVar[DenseKind] = DenseKind.CLASSES

    def sum(self, values: Float[Tensor, "k c h w"], labels: Int[Tensor, "k h w"]) -> Sum:
        """Return the summed cross-entropy and the number of labelled pixels."""
        _check_classes(labels, values.shape[1])
        loss = F.cross_entropy(values, labels, ignore_index=IGNORE, reduction="sum")
        return Sum(loss, (labels != IGNORE).sum().to(values.dtype))


class BalancedSaliency(Dense):
    """Cross-entropy of salient against other pixels, the rarer side weighted up.

    Math: w = n_background / n of this process's batch; salient pixels weigh w, the others 1 - w; over the n
    labelled pixels. With the batch's own w, the loss of two batches is not that of both joined.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    kind: ClassVar[DenseKind] = DenseKind.SALIENCY
    depends_on_batch: ClassVar[bool] = True

    def sum(self, values: Float[Tensor, "k c h w"], labels: Int[Tensor, "k h w"]) -> Sum:
        """Return the weighted sum and the number of labelled pixels."""
        _check_classes(labels, values.shape[1])
        count = (labels != IGNORE).sum().to(values.dtype)
        positive = (labels == 0).sum().to(values.dtype) / count.clamp(min=1.0)
        weight = torch.stack([1.0 - positive, positive])
        return Sum(F.cross_entropy(values, labels, weight, ignore_index=IGNORE, reduction="sum"), count)


class NormalsL1(Dense):
    """Absolute difference of unit normals.

    Math: Σ_i Σ_c |p_ic / ‖p_i‖ - n_ic| over the number of labelled pixels: a sum, not a mean, over the three
    axes.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    kind: ClassVar[DenseKind] = DenseKind.NORMALS

    def sum(self, values: Float[Tensor, "k 3 h w"], labels: Float[Tensor, "k 3 h w"]) -> Sum:
        """Return the summed difference and the number of labelled pixels."""
        valid = (labels != IGNORE).all(dim=1)
        error = (F.normalize(values, dim=1) - labels).abs().sum(dim=1)
        return _masked(error, valid)


class BalancedEdge(Dense):
    """Binary cross-entropy of boundary pixels, which weigh a fixed share of the whole.

    Math: Σ_i -[w y_i log σ(x_i) + (1 - w)(1 - y_i) log σ(-x_i)] over the number of labelled pixels.
    Ref: InvPT writes it as pos_weight w·f and a division by f = 1 / (1 - w).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How much boundaries weigh."""

        pos_weight: float = 0.95
        """w, the weight of boundary pixels; others weigh 1 - w. 0.95 in InvPT and TaskPrompter; MLoRE takes
        0.925 (ViT-L on PASCAL) and 0.88 (NYUD)."""

        def __post_init__(self) -> None:
            """Check the range."""
            if not 0 < self.pos_weight < 1:
                found = f"{self.pos_weight:g}"
                raise ConfigError.at("pos_weight", found, "a share between 0 and 1", "Try 0.95.")

    kind: ClassVar[DenseKind] = DenseKind.EDGE

    def sum(self, values: Float[Tensor, "k 1 h w"], labels: Float[Tensor, "k 1 h w"]) -> Sum:
        """Return the summed cross-entropy and the number of labelled pixels."""
        w, valid = self.config.pos_weight, labels != IGNORE
        loss = -w * labels * F.logsigmoid(values) - (1 - w) * (1 - labels) * F.logsigmoid(-values)
        return _masked(loss, valid)


class DepthL1(Dense):
    """Absolute error of depth.

    Math: Σ_i |p_i - d_i| over the number of measured pixels (metres): those whose label is above 0 and
    finite.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    kind: ClassVar[DenseKind] = DenseKind.DEPTH

    def sum(self, values: Float[Tensor, "k 1 h w"], labels: Float[Tensor, "k 1 h w"]) -> Sum:
        """Return the summed error and the number of measured pixels."""
        valid = (labels > 0) & labels.isfinite()
        known = torch.where(valid, labels, 0.0)  # a masked NaN would still be one in the gradient
        return _masked((values - known).abs(), valid)


def _masked(loss: Float[Tensor, ...], valid: Bool[Tensor, ...]) -> Sum:
    return Sum(torch.where(valid, loss, 0.0).sum(), valid.sum().to(loss.dtype))


def _rows(values: Shaped[Tensor, "k ..."], rows: Int[Tensor, " r"]) -> Shaped[Tensor, "r ..."]:
    """Return the rows asked for, without a copy where they are all."""
    if len(rows) == values.shape[0]:
        return values
    return values.index_select(0, rows.to(values.device))


CHANNELS = {DenseKind.SALIENCY: 2, DenseKind.NORMALS: 3, DenseKind.EDGE: 1, DenseKind.DEPTH: 1}
"""How many a prediction has, where the data leave no choice."""


def _check(where: str, values: Tensor, labels: Tensor, kind: DenseKind) -> None:
    classes = kind in (DenseKind.CLASSES, DenseKind.SALIENCY)
    if values.ndim != 4 or values.shape[1] != CHANNELS.get(kind, values.shape[1]):
        found = f"predictions {tuple(values.shape)}"
        expected = f"(images, {CHANNELS.get(kind, 'classes')}, height, width)"
        raise ShapeError.at(where, found, expected, "Use a dense head.")
    size = (*values.shape[:1], *(() if classes else values.shape[1:2]), *values.shape[2:])
    if tuple(labels.shape) != size or labels.is_floating_point() is classes:
        found = f"labels {tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        expected = f"{tuple(size)} {'int64' if classes else 'float'}, the size of the prediction"
        raise ShapeError.at(where, found, expected, "Give head and data the same image size.")


def _check_classes(labels: Int[Tensor, "k h w"], classes: int) -> None:
    if labels.device.type != "cpu" or not labels.numel():
        return
    real = labels[labels != IGNORE]
    if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < classes:
        found = f"class {int(real.max() if real.min() >= 0 else real.min())}"
        expected = f"0..{classes - 1}, or {IGNORE} for none"
        raise ShapeError.at("objective", found, expected, "Check the label names and the head's channels.")
