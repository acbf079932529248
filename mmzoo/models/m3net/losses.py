"""M3Net's losses as functions of what is predicted and what is true; `objectives` weights and sums them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE
from mmzoo.errors import ConfigError
from mmzoo.models.m3net.geometry import iou_3d
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.heads import encode_boxes


@dataclass(kw_only=True)
class MatchConfig(schema.Config):
    """What it costs that a query stands for a box."""

    cost_class: float = 0.15
    """weight of the focal cost of the class"""
    cost_centre: float = 0.25
    """weight of the L1 distance of the centres over the view's size"""
    cost_iou: float = 0.25
    """weight of minus the 3-D intersection over union"""

    def __post_init__(self) -> None:
        """Check that something decides."""
        costs = (self.cost_class, self.cost_centre, self.cost_iou)
        if min(costs) < 0 or not any(costs):
            found = ", ".join(f"{c:g}" for c in costs)
            raise ConfigError.at("match", found, "costs of 0 or more, one above 0", "Mend them.")


def map_focal(logits: Float[Tensor, "b k h w"], target: Float[Tensor, "b k h w"]) -> Float[Tensor, " b"]:
    """Return the focal cross-entropy (gamma 2) of each scene: mean over cells, sum over classes."""
    right = torch.where(target > 0.5, logits, -logits)
    return ((1 - right.sigmoid()) ** 2 * F.softplus(-right)).mean(dim=(2, 3)).sum(dim=1)


def gaussian_focal(logits: Float[Tensor, "b k h w"], target: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    """Return the penalty-reduced focal loss (alpha 2, gamma 4) over the number of peaks.

    Ref: Law & Deng 2018 (CornerNet).
    """
    peak = target == 1
    hit = F.logsigmoid(logits) * (1 - logits.sigmoid()) ** 2
    miss = F.logsigmoid(-logits) * logits.sigmoid() ** 2 * (1 - target) ** 4
    return -torch.where(peak, hit, miss).sum() / peak.sum().clamp(min=1)


def heatmap_target(
    truth: Sequence[Float[Tensor, "_ 10"]], like: Float[Tensor, "b k h w"], grid: GridConfig
) -> Float[Tensor, "b k h w"]:
    """Draw a Gaussian peak at each box's cell, as wide as keeps 0.1 overlap, at least two cells."""
    heat = torch.zeros_like(like)
    h, w = like.shape[2:]
    at_y, at_x = torch.arange(h, device=like.device)[:, None], torch.arange(w, device=like.device)[None]
    for scene, boxes in enumerate(truth):
        cells = ((boxes[:, :2] + grid.range_m) / grid.cell_m).floor()
        for box, (x, y) in zip(boxes.tolist(), cells.tolist(), strict=True):
            if not (0 <= x < w and 0 <= y < h):
                continue
            kind = int(box[9])
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


def box_loss(
    logits: Float[Tensor, "b q k"],
    codes: Float[Tensor, "b q 10"],
    matched: Sequence[tuple[Int[Tensor, " _"], Float[Tensor, "_ 10"], Int[Tensor, " _"]]],
) -> Float[Tensor, ""]:
    """Return focal class loss and L1 of the codes of matched queries, each over the number of boxes.

    `matched` holds for each scene the queries, the codes they should have and their classes; where a code is
    nan (a velocity that is not known) nothing is asked.
    """
    target = torch.zeros_like(logits)
    distance = codes.sum() * 0.0
    for scene, (rows, wanted, kinds) in enumerate(matched):
        target[scene, rows, kinds] = 1.0
        found = codes[scene, rows]
        distance = distance + (found - torch.where(wanted.isnan(), found.detach(), wanted)).abs().sum()
    number = max(1, sum(len(rows) for rows, _, _ in matched))
    return (focal(logits, target).sum() + distance) / number


def assign(
    logits: Float[Tensor, "b q k"],
    boxes: Float[Tensor, "b q 9"],
    truth: Sequence[Float[Tensor, "_ 10"]],
    grid: GridConfig,
    config: MatchConfig,
) -> list[tuple[Int[Tensor, " _"], Float[Tensor, "_ 10"], Int[Tensor, " _"]]]:
    """Return for each scene the matched queries, the codes they should have, and their classes."""
    found = []
    for scene, label in enumerate(truth):
        wanted, kinds = label[:, :9], label[:, 9].long()
        rows, columns = match(logits[scene], boxes[scene], wanted, kinds, grid, config)
        found.append((rows, encode_boxes(wanted[columns], grid), kinds[columns]))
    return found


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
    config: MatchConfig,
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Return which query stands for which box (Hungarian method on class, centre and overlap)."""
    from scipy.optimize import linear_sum_assignment  # heavy

    p = logits[:, kinds].sigmoid().clamp(1e-8, 1 - 1e-8)
    hit, miss = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    far = torch.cdist(boxes[:, :2], wanted[:, :2], p=1) / (2 * grid.range_m)
    overlap = iou_3d(boxes.double().cpu().numpy(), wanted.double().cpu().numpy())
    cost = (config.cost_class * (hit - miss) + config.cost_centre * far).double().cpu().numpy()
    cost = cost - config.cost_iou * overlap
    if not np.isfinite(cost).all():
        found, expected = "predictions that are not finite", "finite ones"
        raise ConfigError.at("boxes", found, expected, "Training diverged: lower learner.optim.lr.")
    rows, columns = linear_sum_assignment(cost)
    return torch.from_numpy(rows).to(logits.device), torch.from_numpy(columns).to(logits.device)


def occupancy_losses(
    logits: Float[Tensor, "b k z y x"], target: Int[Tensor, "b z y x"], frequencies: Float[Tensor, " k"]
) -> dict[str, Float[Tensor, ""]]:
    """Return weighted cross-entropy, semantic and geometric affinity and Lovasz loss, over known voxels.

    Math: a class weighs 1 / log(count); `frequencies` are those counts.
    """
    known = target != IGNORE
    flat, labels = logits.movedim(1, -1)[known], target[known]
    if not len(labels):
        return dict.fromkeys(("entropy", "semantic", "geometric", "lovasz"), logits.sum() * 0.0)
    weights = 1.0 / torch.log(frequencies.clamp(min=2.0) + 1e-3)
    p = flat.softmax(dim=-1)
    return {
        "entropy": F.cross_entropy(flat, labels, weight=weights.to(flat)),
        "semantic": semantic_affinity(p, labels),
        "geometric": geometric_affinity(p, labels),
        "lovasz": lovasz(p, labels),
    }


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
