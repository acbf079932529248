"""The loss of a box in a picture: distance of the corners, and how the areas overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.layers.boxes import generalised_iou, has_extent
from mmzoo.objectives.numbers import Numeric


class BoxLoss(Numeric):
    """Absolute differences of the corners, and 1 - GIoU of the predicted boxes that have an extent.

    Math: w_1 / B Σ_i Σ_j |p_ij - y_ij| + w_2 / |V| Σ_{i in V} (1 - GIoU(p_i, y_i)), j over the four corners
    (shares of width and height), V the rows with p_x1 < p_x2 and p_y1 < p_y2, B and V of this process's
    batch. So the loss of two batches is not that of both joined.
    Where V is empty its term is 0, and so is its gradient.
    Ref: ONE-PEACE's grounding loss, where an empty V gives NaN; DETR weighs 5 and 2.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Weights of the two terms."""

        l1_weight: float = 1.0
        """w_1, of the corners' distance"""
        giou_weight: float = 1.0
        """w_2, of the overlap"""

        def __post_init__(self) -> None:
            """Check the weights."""
            weights = (self.l1_weight, self.giou_weight)
            if min(weights) < 0 or not max(weights) > 0:
                found = f"{self.l1_weight:g} and {self.giou_weight:g}"
                raise ConfigError.at("l1_weight, giou_weight", found, "0 or more, not both 0", "Try 1 and 1.")

    reads: ClassVar[PredictionKind] = PredictionKind.BOXES
    depends_on_batch: ClassVar[bool] = True

    def sum(self, values: Float[Tensor, "k 4"], labels: Float[Tensor, "k 4"]) -> Float[Tensor, ""]:
        """Return the loss times the number of rows."""
        corners = (values - labels).abs().sum()
        real = has_extent(values)
        away = torch.where(real, 1 - generalised_iou(_or(values, labels, real), labels), 0.0).sum()
        # compat(onepeace): the mean over none is 0 here, NaN there
        overlap = away * len(values) / real.sum().clamp(min=1)
        return self.config.l1_weight * corners + self.config.giou_weight * overlap


def _or(
    values: Float[Tensor, "k 4"], labels: Float[Tensor, "k 4"], real: Bool[Tensor, " k"]
) -> Float[Tensor, "k 4"]:
    """Return the labels instead of predictions without an extent, whose areas would divide by 0."""
    return torch.where(real[:, None], values, labels)
