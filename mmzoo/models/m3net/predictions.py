"""M3Net's answers as predictions of a batch, with what the losses need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.batch import Prediction
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.heads import ATTRIBUTES
from mmzoo.models.m3net.options import BOXES, MAP, OCCUPANCY


@dataclass(frozen=True)
class BoxPrediction(Prediction):
    """Boxes: values (k q 11) as `PredictionKind.BOXES_3D` says; the codes they were decoded from, class
    logits, and the heat map that their queries were taken from."""

    codes: Float[Tensor, "k q 10"] = field(kw_only=True)
    logits: Float[Tensor, "k q classes"] = field(kw_only=True)
    heatmap: Float[Tensor, "k classes h w"] = field(kw_only=True)
    grid: GridConfig = field(kw_only=True)


@dataclass(frozen=True)
class MapPrediction(Prediction):
    """The map: values (k classes hm wm) logits, and those that its queries were taken from."""

    start: Float[Tensor, "k classes hm wm"] = field(kw_only=True)


def as_predictions(
    boxes: Mapping[str, Tensor],
    maps: Mapping[str, Tensor],
    occupancy: Tensor | None,
    index: Int[Tensor, " k"],
    grid: GridConfig,
) -> dict[str, Prediction]:
    """Return what was predicted, by task."""
    found: dict[str, Prediction] = {}
    if boxes:
        scored = torch.stack([boxes["scores"], boxes["classes"].to(boxes["scores"])], dim=-1)
        found[BOXES] = BoxPrediction(
            torch.cat([boxes["boxes"], scored], dim=-1),
            index,
            codes=torch.cat([boxes[name] for name in ATTRIBUTES], dim=-1),
            logits=boxes["heatmap"],
            heatmap=boxes["dense"],
            grid=grid,
        )
    if maps:
        found[MAP] = MapPrediction(maps["logits"], index, start=maps["start"])
    if occupancy is not None:
        found[OCCUPANCY] = Prediction(occupancy, index)
    return found
