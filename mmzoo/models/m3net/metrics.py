"""M3Net's figures over a whole set: map mIoU, occupancy mIoU, and a nuScenes-style AP and NDS.

The AP and NDS follow the published definition of the nuScenes detection task but are computed here, on
whatever scenes are given: figures of the official set come from its own devkit, and are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.models.m3net.losses import IGNORED

MAP_THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
TRUE_POSITIVE_M = 2.0
MIN_RECALL, MIN_PRECISION = 0.1, 0.1
Array = np.ndarray


@dataclass
class MapScore:
    """Intersections and unions of each class at each threshold, over all scenes.

    Math: IoU of a class = max over thresholds 0.35 … 0.65; mIoU = mean over classes, in per cent.
    """

    inter: Tensor | None = None
    union: Tensor | None = None

    def update(self, probs: Float[Tensor, "b k h w"], target: Float[Tensor, "b k h w"]) -> None:
        """Add scenes."""
        at = probs.new_tensor(MAP_THRESHOLDS)[:, None, None, None, None]
        found, true = probs[None] >= at, target[None] > 0.5
        inter, union = ((x).sum(dim=(1, 3, 4)).cpu() for x in (found & true, found | true))
        self.inter = inter if self.inter is None else self.inter + inter
        self.union = union if self.union is None else self.union + union

    def compute(self) -> dict[str, float]:
        """Return `miou` and `iou/<class number>`, in per cent; a class never seen nor predicted counts 0."""
        if self.inter is None or self.union is None:
            return {}
        best = (100.0 * self.inter / self.union.clamp(min=1)).amax(dim=0)
        return {"miou": float(best.mean()), **{f"iou/{k}": float(v) for k, v in enumerate(best)}}


@dataclass
class OccupancyScore:
    """Confusion of voxel classes over all scenes; voxels not known are left out.

    Math: mIoU = mean over the classes 1 … that occur or are predicted, SC IoU that of occupied against free,
    both in per cent.
    """

    classes: int
    confusion: Tensor | None = None

    def update(self, predicted: Int[Tensor, "b z y x"], target: Int[Tensor, "b z y x"]) -> None:
        """Add scenes."""
        known = target != IGNORED
        both = target[known] * self.classes + predicted[known]
        table = torch.bincount(both, minlength=self.classes**2).reshape(self.classes, self.classes).cpu()
        self.confusion = table if self.confusion is None else self.confusion + table

    def compute(self) -> dict[str, float]:
        """Return `miou` and `sc_iou`."""
        if self.confusion is None:
            return {}
        table = self.confusion.double()
        hit, union = table.diagonal(), table.sum(dim=0) + table.sum(dim=1) - table.diagonal()
        seen = union[1:] > 0
        each = hit[1:][seen] / union[1:][seen]
        taken, free = table[1:, 1:].sum(), table[0, 0]
        whole = (table.sum() - free).clamp(min=1)
        miou = float(each.mean()) if bool(seen.any()) else 0.0
        return {"miou": 100 * miou, "sc_iou": 100 * float(taken / whole)}


@dataclass
class BoxScore:
    """Detections and truths of all scenes; AP by centre distance, errors of true positives, NDS.

    Math: a detection is right if its centre lies within d of a truth of its class not yet taken, best score
    first; AP_d = area of the precision-recall curve above 0.1 of both, rescaled; mAP over classes and d in
    0.5, 1, 2, 4 m. At 2 m: ATE (m), ASE = 1 - IoU of aligned boxes, AOE (rad), AVE (m/s), each averaged over
    recalls above 0.1. NDS = (5 mAP + sum over errors of (1 - min(1, error))) / (5 + number of errors).
    Ref: Caesar et al. 2020. The attribute error has no counterpart here: NDS is over four errors, not five.
    """

    classes: int
    found: list[tuple[int, Array, Array, Array]] = field(default_factory=list)
    true: list[tuple[int, Array, Array]] = field(default_factory=list)

    def update(
        self,
        boxes: Float[Tensor, "q 9"],
        scores: Float[Tensor, " q"],
        kinds: Int[Tensor, " q"],
        truth: tuple[Float[Tensor, "n 9"], Int[Tensor, " n"]],
    ) -> None:
        """Add a scene."""
        number = len(self.true)
        self.found.append((number, _array(boxes), _array(scores), _array(kinds).astype(int)))
        self.true.append((number, _array(truth[0]), _array(truth[1]).astype(int)))

    def compute(self) -> dict[str, float]:
        """Return `map`, `nds` (per cent) and the errors; classes without any truth are left out."""
        kinds = [k for k in range(self.classes) if any((t == k).any() for _, _, t in self.true)]
        if not kinds:
            return {}
        precision = np.array([[self._match(k, d)[0] for d in DISTANCES_M] for k in kinds])
        errors = np.stack([self._match(k, TRUE_POSITIVE_M)[1] for k in kinds]).mean(axis=0)
        mean = float(precision.mean())
        nds = (5 * mean + float((1 - np.minimum(errors, 1)).sum())) / (5 + len(errors))
        names = ("ate_m", "ase", "aoe_rad", "ave_m_s")
        return {
            "map": 100 * mean,
            "nds": 100 * nds,
            **dict(zip(names, map(float, errors), strict=True)),
        }

    def _match(self, kind: int, within_m: float) -> tuple[float, Array]:
        """Return the AP of a class and the errors of its true positives."""
        true = {n: boxes[kinds == kind] for n, boxes, kinds in self.true}
        total = sum(map(len, true.values()))
        rows = [
            (score, n, box)
            for n, boxes, scores, kinds in self.found
            for box, score, k in zip(boxes, scores, kinds, strict=True)
            if k == kind
        ]
        rows.sort(key=lambda row: -row[0])
        taken: set[tuple[int, int]] = set()
        hits: list[bool] = []
        errors: list[Array] = []
        for _, n, box in rows:
            gaps = np.linalg.norm(true[n][:, :2] - box[:2], axis=1)
            gaps = np.array([np.inf if (n, i) in taken else gap for i, gap in enumerate(gaps)])
            at = int(gaps.argmin()) if len(gaps) else -1
            hit = at >= 0 and float(gaps[at]) < within_m
            hits.append(hit)
            if hit:
                taken.add((n, at))
                errors.append(_errors(box, true[n][at]))
        return average_precision(np.array(hits, dtype=bool), total), _mean_errors(errors, total)


def average_precision(hits: Array, total: int) -> float:
    """Return the area of the interpolated precision above the least of both, rescaled to 0..1."""
    right = np.cumsum(hits)
    if not len(right) or not right[-1]:
        return 0.0
    recall, precision = right / total, right / np.arange(1, len(right) + 1)
    at = np.interp(np.linspace(0, 1, 101), recall, precision, right=0.0)
    above = np.clip(at[round(100 * MIN_RECALL) + 1 :] - MIN_PRECISION, 0, None)
    return float(above.mean()) / (1 - MIN_PRECISION)


def _errors(box: Array, true: Array) -> Array:
    """Return distance, 1 - IoU of the sizes, angle between the yaws, difference of velocities."""
    common = np.prod(np.minimum(box[3:6], true[3:6]))
    scale = 1 - common / (np.prod(box[3:6]) + np.prod(true[3:6]) - common)
    turn = abs((box[6] - true[6] + np.pi) % (2 * np.pi) - np.pi)
    return np.array([np.linalg.norm(box[:2] - true[:2]), scale, turn, np.linalg.norm(box[7:9] - true[7:9])])


def _mean_errors(errors: Sequence[Array], total: int) -> Array:
    """Return the running means of the errors, averaged over recalls above the least; else 1."""
    reached = len(errors) / max(total, 1)
    if not errors or reached <= MIN_RECALL:
        return np.ones(4)
    running = np.cumsum(np.stack(errors), axis=0) / np.arange(1, len(errors) + 1)[:, None]
    recall = np.arange(1, len(errors) + 1) / total
    levels = np.linspace(0, 1, 101)
    levels = levels[(levels > MIN_RECALL) & (levels <= reached)]
    if not len(levels):
        return running[-1]
    return np.stack([np.interp(levels, recall, running[:, i]).mean() for i in range(4)])


def _array(values: Tensor) -> Array:
    return values.detach().double().cpu().numpy()
