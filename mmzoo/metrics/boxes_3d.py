"""Boxes around a vehicle, scored by the definition of the nuScenes detection task over a whole set.

Ref: Caesar et al. 2020. What differs from the official score, which its own devkit computes on its own set:
there are no attributes, so the attribute error is left out and NDS is over four errors instead of five
(`NDS4`); no box is left out for its distance or for a lack of points. Never compare it with the official NDS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import PredictionKind, SceneKind
from mmzoo.errors import ShapeError
from mmzoo.metrics.rows import Rows
from mmzoo.metrics.scene import SceneMetric

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
TRUE_POSITIVE_M = 2.0
"""Within which a detection is right, where errors are measured."""
MIN_RECALL, MIN_PRECISION = 0.1, 0.1
ERRORS = ("ATE_m", "ASE", "AOE_rad", "AVE_m_s")
UNDEFINED = {"traffic_cone": ("AOE_rad", "AVE_m_s"), "barrier": ("AVE_m_s",)}
"""Errors that mean nothing for a class, by its name."""
HALF_TURN = ("barrier",)
"""Classes that look alike from both ends."""
SCORE, CLASS = 9, 10
"""Columns of a prediction behind the box; a label has its class in column 9."""
Array = np.ndarray


class NuScenesBoxes(SceneMetric):
    """`mAP`, `NDS4` and the four errors of true positives.

    Math: a detection is right if its centre lies within d of a label of its class not yet taken, best score
    first; AP_d = area of the precision-recall curve above 0.1 of both, rescaled; mAP over classes and d in
    0.5, 1, 2, 4 m. At 2 m: ATE_m, ASE = 1 - IoU of the boxes laid over each other, AOE_rad, AVE_m_s, running
    means averaged over recalls above 0.1 and then over classes, 1 where a class does not reach that.
    NDS4 = (5 mAP + sum over errors of (1 - min(1, error))) / 9. Classes without a label are left out.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    reads: ClassVar[PredictionKind] = PredictionKind.BOXES_3D
    kind: ClassVar[SceneKind] = SceneKind.BOXES_3D
    lists: ClassVar[tuple[str, ...]] = ("found", "true")

    def measure(self, values: Float[Tensor, "q 11"], true: Float[Tensor, "n 10"]) -> dict[str, Array]:
        """Return the boxes found and the labels."""
        if values.shape[-1] != CLASS + 1 or true.shape[-1] != SCORE + 1:
            found = f"boxes of {values.shape[-1]} numbers for labels of {true.shape[-1]}"
            raise ShapeError.at("metric", found, "11 for 10", "Use a head that gives boxes.")
        return {"found": values.double().numpy(), "true": true.double().numpy()}

    def sum_up(self, rows: Rows, names: tuple[str, ...]) -> dict[str, float]:
        """Return the figures of all scenes; none where there is no label."""
        found, true = list(rows["found"]), list(rows["true"])
        kinds = sorted({int(k) for boxes in true for k in boxes[:, 9]})
        if not kinds:
            return {}
        precisions, errors = [], []
        for kind in kinds:
            name = names[kind] if kind < len(names) else str(kind)
            mine = [boxes[boxes[:, CLASS] == kind] for boxes in found]
            right = [boxes[boxes[:, 9] == kind] for boxes in true]
            precisions.append([precision_at(mine, right, d) for d in DISTANCES_M])
            errors.append(errors_at(mine, right, name))
        mean, of_class = float(np.mean(precisions)), np.array(errors)
        means = {  # an error that means nothing for any of the classes is left out
            name: float(column[~np.isnan(column)].mean())
            for name, column in zip(ERRORS, of_class.T, strict=True)
            if not np.isnan(column).all()
        }
        nds = (5 * mean + sum(1 - min(1.0, error) for error in means.values())) / (5 + len(means))
        return {"mAP": mean, "NDS4": nds, **means}


def precision_at(found: Sequence[Array], true: Sequence[Array], within_m: float) -> float:
    """Return the average precision of one class's boxes, scene by scene."""
    hits, _ = assign(found, true, within_m)
    return average_precision(hits, sum(map(len, true)))


def errors_at(found: Sequence[Array], true: Sequence[Array], name: str) -> Float[Array, " e"]:
    """Return the mean errors of one class's true positives; nan where one means nothing for the class."""
    _, pairs = assign(found, true, TRUE_POSITIVE_M)
    turn = np.pi if name in HALF_TURN else 2 * np.pi
    mean = mean_errors([errors_of(a, b, turn) for a, b in pairs], sum(map(len, true)))
    return np.where([e in UNDEFINED.get(name, ()) for e in ERRORS], np.nan, mean)


def assign(
    found: Sequence[Array], true: Sequence[Array], within_m: float
) -> tuple[Bool[Array, " n"], list[tuple[Array, Array]]]:
    """Return, best score first, whether each box is right, and the pairs of boxes and labels."""
    rows = [(box, scene) for scene, boxes in enumerate(found) for box in boxes]
    rows.sort(key=lambda row: -row[0][SCORE])
    free = [np.ones(len(boxes), dtype=bool) for boxes in true]
    hits, pairs = np.zeros(len(rows), dtype=bool), []
    for number, (box, scene) in enumerate(rows):
        if not free[scene].any():
            continue
        gaps = np.where(free[scene], np.hypot(*(true[scene][:, :2] - box[:2]).T), np.inf)
        nearest = int(gaps.argmin())
        if gaps[nearest] < within_m:
            hits[number], free[scene][nearest] = True, False
            pairs.append((box, true[scene][nearest]))
    return hits, pairs


def average_precision(hits: Bool[Array, " n"], total: int) -> float:
    """Return the area of the interpolated precision above the least of both, rescaled to 0..1."""
    right = np.cumsum(hits)
    if not len(right) or not right[-1]:
        return 0.0
    recall, precision = right / total, right / np.arange(1, len(right) + 1)
    at = np.interp(np.linspace(0, 1, 101), recall, precision, right=0.0)
    above = np.clip(at[round(100 * MIN_RECALL) + 1 :] - MIN_PRECISION, 0, None)
    return float(above.mean()) / (1 - MIN_PRECISION)


def errors_of(box: Array, true: Array, turn: float) -> Float[Array, " e"]:
    """Return distance, 1 - IoU of the sizes, angle between the yaws, difference of velocities (nan where the
    label has none)."""
    common = np.prod(np.minimum(box[3:6], true[3:6]))
    scale = 1 - common / (np.prod(box[3:6]) + np.prod(true[3:6]) - common)
    angle = abs((box[6] - true[6] + turn / 2) % turn - turn / 2)
    distance = np.linalg.norm(box[:2] - true[:2])
    return np.array([distance, scale, angle, np.linalg.norm(box[7:9] - true[7:9])])


def mean_errors(errors: Sequence[Array], total: int) -> Float[Array, " e"]:
    """Return the running means of the errors, averaged over recalls above the least; 1 below it, and where
    no label knows better."""
    reached = len(errors) / max(total, 1)
    if not errors or reached <= MIN_RECALL:
        return np.ones(len(ERRORS))
    stacked = np.stack(errors)
    known = np.cumsum(~np.isnan(stacked), axis=0)
    running = np.nancumsum(stacked, axis=0) / np.maximum(known, 1)
    running[:, known[-1] == 0] = 1.0
    recall = np.arange(1, len(errors) + 1) / total
    levels = np.linspace(0, 1, 101)
    levels = levels[(levels > MIN_RECALL) & (levels <= reached)]
    if not len(levels):
        return running[-1]
    return np.array([np.interp(levels, recall, column).mean() for column in running.T])
