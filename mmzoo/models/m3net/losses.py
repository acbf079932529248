"""M3Net's losses, each as the paper weights it; a missing label is a loss that is left out.

Math: 40 map + 2 boxes + 6 heat map + 20 map at the queries' start + occupancy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.models.m3net.geometry import iou_3d
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.heads import ATTRIBUTES, encode_boxes
from mmzoo.models.m3net.model import M3NetOutput

IGNORED = 255
"""A voxel whose class is not known."""


@dataclass(frozen=True)
class Truth:
    """What is true of each scene of a batch; None where it is not known.

    Shape: boxes, for each scene (n 9) as `decode_boxes` gives them, with classes (n); map (b k hm wm) 0 or 1;
    occupancy (b z y x) classes, 0 free, 255 not known.
    """

    boxes: Sequence[Float[Tensor, "_ 9"]] | None = None
    classes: Sequence[Int[Tensor, " _"]] | None = None
    map: Float[Tensor, "b k hm wm"] | None = None
    occupancy: Int[Tensor, "b z y x"] | None = None


@dataclass(kw_only=True)
class LossConfig(schema.Config):
    """Weights of the parts."""

    boxes: float = 2.0
    """classes and shapes of boxes"""
    heatmap: float = 6.0
    """centres of boxes"""
    map: float = 40.0
    """the decoder's map"""
    map_start: float = 20.0
    """the map at the queries' start"""
    occupancy: float = 1.0
    """the sum of the four occupancy losses"""
    cost_class: float = 0.15
    """matching: focal cost of the class"""
    cost_centre: float = 0.25
    """matching: L1 of the centre over the view's size"""
    cost_iou: float = 0.25
    """matching: minus the 3-D intersection over union"""


def losses(
    out: M3NetOutput, truth: Truth, grid: GridConfig, config: LossConfig, frequencies: Float[Tensor, " k"]
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted losses by task (`boxes`, `map`, `occupancy`), of those predicted and known.

    `frequencies` are the voxels' counts by class, for the weights of the cross-entropy.
    """
    found: dict[str, Tensor] = {}
    if out.boxes and truth.boxes is not None and truth.classes is not None:
        heat = heatmap_target(truth.boxes, truth.classes, out.boxes["dense"], grid)
        found["boxes"] = config.heatmap * gaussian_focal(out.boxes["dense"], heat)
        found["boxes"] = found["boxes"] + config.boxes * box_loss(out, truth, grid, config)
    if out.map and truth.map is not None:
        found["map"] = config.map * map_focal(out.map["logits"], truth.map)
        found["map"] = found["map"] + config.map_start * map_focal(out.map["start"], truth.map)
    if out.occupancy is not None and truth.occupancy is not None:
        found["occupancy"] = config.occupancy * occupancy_loss(out.occupancy, truth.occupancy, frequencies)
    return found


def map_focal(logits: Float[Tensor, "b k h w"], target: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Return the focal cross-entropy (gamma 2), mean over cells and scenes, sum over classes."""
    right = torch.where(target > 0.5, logits, -logits)
    return ((1 - right.sigmoid()) ** 2 * F.softplus(-right)).mean(dim=(0, 2, 3)).sum()


def gaussian_focal(logits: Float[Tensor, "b k h w"], target: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Return the penalty-reduced focal loss (alpha 2, gamma 4) over the number of peaks.

    Ref: Law & Deng 2018 (CornerNet).
    """
    peak = target == 1
    hit = F.logsigmoid(logits) * (1 - logits.sigmoid()) ** 2
    miss = F.logsigmoid(-logits) * logits.sigmoid() ** 2 * (1 - target) ** 4
    return -torch.where(peak, hit, miss).sum() / peak.sum().clamp(min=1)


def heatmap_target(
    boxes: Sequence[Float[Tensor, "_ 9"]],
    classes: Sequence[Int[Tensor, " _"]],
    like: Float[Tensor, "b k h w"],
    grid: GridConfig,
) -> Float[Tensor, "b k h w"]:
    """Draw a Gaussian peak at each box's cell, as wide as keeps 0.1 overlap, at least two cells."""
    heat = torch.zeros_like(like)
    h, w = like.shape[2:]
    at_y, at_x = torch.arange(h, device=like.device)[:, None], torch.arange(w, device=like.device)[None]
    for scene, (of_scene, kinds) in enumerate(zip(boxes, classes, strict=True)):
        cells = ((of_scene[:, :2] + grid.range_m) / grid.cell_m).floor()
        for box, (x, y), kind in zip(of_scene.tolist(), cells.tolist(), kinds.tolist(), strict=True):
            if not (0 <= x < w and 0 <= y < h):
                continue
            radius = max(2, int(gaussian_radius(box[3] / grid.cell_m, box[4] / grid.cell_m)))
            sigma = (2 * radius + 1) / 6
            dx, dy = at_x - x, at_y - y
            bump = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
            bump = bump * ((dx.abs() <= radius) & (dy.abs() <= radius))
            heat[scene, kind] = torch.maximum(heat[scene, kind], bump)
    return heat


def gaussian_radius(length: float, width: float, overlap: float = 0.1) -> float:
    """Return how far (cells) corners may move so that the boxes still overlap by that much.

    Math: the least of three cases: both corners inwards, both outwards, one each way. Ref: CornerNet, with
    the roots of the quadratics taken correctly.
    """
    total, product = length + width, length * width
    one = (total - np.sqrt(total**2 - 4 * product * (1 - overlap) / (1 + overlap))) / 2
    inwards = (total - np.sqrt(total**2 - 4 * (1 - overlap) * product)) / 4
    spread = overlap * total
    outwards = (-spread + np.sqrt(spread**2 + 4 * overlap * (1 - overlap) * product)) / (4 * overlap)
    return float(min(one, inwards, outwards))


def box_loss(out: M3NetOutput, truth: Truth, grid: GridConfig, config: LossConfig) -> Float[Tensor, ""]:
    """Return focal class loss and L1 of the matched codes, each over the number of boxes."""
    logits = out.boxes["heatmap"]
    codes = torch.cat([out.boxes[name] for name in ATTRIBUTES], dim=-1)
    classes, boxes = truth.classes or (), truth.boxes or ()
    target = torch.zeros_like(logits)
    distance = codes.sum() * 0.0
    for scene, (wanted, kinds) in enumerate(zip(boxes, classes, strict=True)):
        rows, columns = match(logits[scene], out.boxes["boxes"][scene], wanted, kinds, grid, config)
        target[scene, rows, kinds[columns]] = 1.0
        distance = distance + (codes[scene, rows] - encode_boxes(wanted[columns], grid)).abs().sum()
    number = max(1, sum(len(b) for b in boxes))
    return (focal(logits, target).sum() + distance) / number


def focal(logits: Float[Tensor, "*axes"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Return the focal cross-entropy (alpha 0.25, gamma 2) of each entry. Ref: Lin et al. 2017."""
    right = torch.where(target > 0.5, logits, -logits)
    alpha = torch.where(target > 0.5, 0.25, 0.75)
    return alpha * (1 - right.sigmoid()) ** 2 * F.softplus(-right)


@torch.no_grad()
def match(
    logits: Float[Tensor, "q k"],
    boxes: Float[Tensor, "q 9"],
    wanted: Float[Tensor, "n 9"],
    kinds: Int[Tensor, " n"],
    grid: GridConfig,
    config: LossConfig,
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Return which query stands for which box (Hungarian method on class, centre and overlap)."""
    from scipy.optimize import linear_sum_assignment  # heavy

    p = logits[:, kinds].sigmoid().clamp(1e-8, 1 - 1e-8)
    hit, miss = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    far = torch.cdist(boxes[:, :2], wanted[:, :2], p=1) / (2 * grid.range_m)
    overlap = iou_3d(boxes.double().cpu().numpy(), wanted.double().cpu().numpy())
    cost = (config.cost_class * (hit - miss) + config.cost_centre * far).double().cpu().numpy()
    rows, columns = linear_sum_assignment(cost - config.cost_iou * overlap)
    return torch.from_numpy(rows).to(logits.device), torch.from_numpy(columns).to(logits.device)


def occupancy_loss(
    logits: Float[Tensor, "b k z y x"], target: Int[Tensor, "b z y x"], frequencies: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """Return weighted cross-entropy + semantic and geometric affinity + Lovasz, over known voxels."""
    known = target != IGNORED
    flat, labels = logits.movedim(1, -1)[known], target[known]
    if not len(labels):
        return logits.sum() * 0.0
    weights = 1.0 / torch.log(frequencies.clamp(min=2.0) + 1e-3)
    entropy = F.cross_entropy(flat, labels, weight=weights.to(flat))
    p = flat.softmax(dim=-1)
    return entropy + semantic_affinity(p, labels) + geometric_affinity(p, labels) + lovasz(p, labels)


def semantic_affinity(p: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return -log of soft precision, recall and specificity, mean over the classes there are.

    Ref: Cao & de Charette 2022 (MonoScene), scene-class affinity.
    """
    found = [_affinity(p[:, k], (labels == k).to(p)) for k in range(p.shape[1]) if bool((labels == k).any())]
    return torch.stack(found).mean()


def geometric_affinity(p: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the same for occupied against free."""
    return _affinity(1 - p[:, 0], (labels != 0).to(p))


def _affinity(p: Tensor, y: Tensor) -> Tensor:
    hit = (p * y).sum()
    terms: list[Tensor] = []
    if bool(p.sum() > 0):
        terms.append(hit / p.sum())
    if bool(y.sum() > 0):
        terms.append(hit / y.sum())
    if bool((1 - y).sum() > 0):
        terms.append(((1 - p) * (1 - y)).sum() / (1 - y).sum())
    return torch.stack([-term.clamp(1e-6, 1.0).log() for term in terms]).sum()


def lovasz(p: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the Lovasz extension of the Jaccard loss, mean over the classes there are.

    Ref: Berman et al. 2018, softmax form.
    """
    found: list[Tensor] = []
    for k in labels.unique().tolist():
        y = (labels == k).to(p)
        errors, order = (y - p[:, k]).abs().sort(descending=True)
        y = y[order]
        inter, union = y.sum() - y.cumsum(0), y.sum() + (1 - y).cumsum(0)
        jaccard = 1 - inter / union
        steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        found.append(errors @ steps)
    return torch.stack(found).mean()
