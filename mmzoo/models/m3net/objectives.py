"""M3Net's losses as objectives of a recipe's tasks, weighted as the paper weights them.

Math: 2 boxes + 6 heat map; 40 map + 20 map at the queries' start; occupancy. The weights are options here, so
that a task's own weight stays 1 and balancing sees the paper's losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, Batch, DataInfo, Prediction, PredictionKind, SceneKind
from mmzoo.errors import ConfigError, ShapeError, close_matches
from mmzoo.models.m3net import losses
from mmzoo.models.m3net.losses import MatchConfig
from mmzoo.models.m3net.predictions import BoxPrediction, MapPrediction
from mmzoo.objectives.base import Objective
from mmzoo.state import LossState, Sum

Truth = tuple[Tensor, ...]


class SceneObjective(Objective):
    """Scores the scenes that have the label. Subclasses give `losses`: by part, the mean over those scenes.

    What a process counts is its scenes, so a batch's loss is the mean over processes by their scenes; inside,
    boxes and voxels are averaged over the process's own batch, as in the release.
    """

    depends_on_batch: ClassVar[bool] = True
    kind: ClassVar[SceneKind]

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def __call__(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> LossState:
        """Return this rank's share of the loss."""
        if not target:
            raise ConfigError.at("objective", "no target", "the name of a label", "Set the task's target.")
        found = [self._one(p, batch, target) for p in predictions.values()]
        if not found:
            nothing = torch.zeros((), requires_grad=torch.is_grad_enabled())
            return LossState(Sum(nothing, torch.zeros(())))
        state = found[0]
        for other in found[1:]:
            state = state.merge(other)
        return state

    def _one(self, prediction: Prediction, batch: Batch, target: str) -> LossState:
        label, count = batch.targets.get(target), prediction.values.new_zeros(())
        if label is None:
            return LossState(Sum(prediction.values.sum() * 0.0, count))
        _, rows, own = np.intersect1d(
            prediction.index.numpy(), label.index.numpy(), assume_unique=True, return_indices=True
        )
        if not len(rows):
            return LossState(Sum(prediction.values.sum() * 0.0, count))
        every = label.rows()
        truth = tuple(every[i].to(prediction.values.device) for i in own.tolist())
        chosen = torch.from_numpy(rows).to(prediction.values.device)
        parts = self.losses(prediction, chosen, truth)
        scenes = count + float(len(rows))
        sums = {name: Sum(value * scenes, scenes) for name, value in parts.items()}
        return LossState(Sum(torch.stack([s.sum for s in sums.values()]).sum(), scenes), sums)

    def losses(
        self, prediction: Prediction, rows: Int[Tensor, " r"], truth: Truth
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted parts for some rows of the predictions, given what is true of each."""
        raise NotImplementedError


class BoxObjective(SceneObjective):
    """Hungarian matching, then focal class loss and L1 of the codes; Gaussian focal loss of the heat map.

    Math: 2 (class + code) / boxes + 6 heat map / peaks.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Weights of the parts."""

        boxes_weight: float = 2.0
        """of classes and shapes"""
        heatmap_weight: float = 6.0
        """of the map of centres"""
        match: MatchConfig = field(default_factory=MatchConfig)
        """which query stands for which box"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            _check_weights(boxes_weight=self.boxes_weight, heatmap_weight=self.heatmap_weight)

    reads: ClassVar[PredictionKind] = PredictionKind.BOXES_3D
    kind: ClassVar[SceneKind] = SceneKind.BOXES_3D

    def losses(
        self, prediction: Prediction, rows: Int[Tensor, " r"], truth: Truth
    ) -> dict[str, Float[Tensor, ""]]:
        """Return `boxes` and `heatmap`."""
        if not isinstance(prediction, BoxPrediction):
            raise ConfigError.at("objective", type(prediction).__name__, "boxes of M3Net", "Use its model.")
        logits, codes, heatmap = (x[rows] for x in (prediction.logits, prediction.codes, prediction.heatmap))
        _check_classes(truth, [t[:, 9] for t in truth], logits.shape[-1])
        grid = prediction.grid
        matched = losses.assign(
            logits.detach(), prediction.values[rows][..., :9].detach(), truth, grid, self.config.match
        )
        heat = losses.heatmap_target(truth, heatmap, grid)
        return {
            "boxes": self.config.boxes_weight * losses.box_loss(logits, codes, matched),
            "heatmap": self.config.heatmap_weight * losses.gaussian_focal(heatmap, heat),
        }


class MapObjective(SceneObjective):
    """Focal cross-entropy of the map, and of the map that the queries are taken from.

    Math: each is a mean over cells and scenes and a sum over classes; 40 of the first, 20 of the second.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Weights of the parts."""

        map_weight: float = 40.0
        """of the decoder's map"""
        start_weight: float = 20.0
        """of the map at the queries' start"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            _check_weights(map_weight=self.map_weight, start_weight=self.start_weight)

    depends_on_batch: ClassVar[bool] = False
    reads: ClassVar[PredictionKind] = PredictionKind.GROUND_MAP
    kind: ClassVar[SceneKind] = SceneKind.GROUND_MAP

    def losses(
        self, prediction: Prediction, rows: Int[Tensor, " r"], truth: Truth
    ) -> dict[str, Float[Tensor, ""]]:
        """Return `map`, and `start` where the prediction has that map."""
        target = torch.stack(truth)
        logits = prediction.values[rows]
        _check_shape(tuple(logits.shape), tuple(target.shape))
        found = {"map": self.config.map_weight * losses.map_focal(logits, target).mean()}
        if isinstance(prediction, MapPrediction):
            start = losses.map_focal(prediction.start[rows], target).mean()
            found["start"] = self.config.start_weight * start
        return found


class OccupancyObjective(SceneObjective):
    """Weighted cross-entropy, scene-class affinities (MonoScene) and Lovasz loss of known voxels."""

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Weights of parts and classes."""

        entropy_weight: float = 1.0
        """of the cross-entropy"""
        semantic_weight: float = 1.0
        """of precision, recall and specificity of each class"""
        geometric_weight: float = 1.0
        """of the same of occupied against free"""
        lovasz_weight: float = 1.0
        """of the Lovasz extension of the Jaccard loss"""
        counts: dict[str, float] = field(default_factory=dict[str, float])
        """class name -> its voxels in the training set; a class weighs 1 / log(count) in the cross-entropy.
        Empty: what the data say (driving does), else the counts of each batch"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            weights = {k: v for k, v in vars(self).items() if k.endswith("_weight")}
            _check_weights(**weights)
            for name, count in self.counts.items():
                if not count >= 0:
                    raise ConfigError.at(f"counts.{name}", f"{count:g}", "0 or more", "Count again.")

    reads: ClassVar[PredictionKind] = PredictionKind.VOXELS
    kind: ClassVar[SceneKind] = SceneKind.VOXELS

    def __init__(self, config: Any) -> None:
        """Keep the options; whose counts they are is known with the data."""
        super().__init__(config)
        self.counts: tuple[float, ...] = ()

    def learn_classes(self, info: DataInfo, target: str) -> None:
        """Put the counts in the order of the data's classes."""
        names = info.labels.get(target, ())
        counts = self.config.counts or info.class_counts.get(target, {})
        if not counts or not names:
            return
        unknown, missing = [n for n in counts if n not in names], [n for n in names if n not in counts]
        if unknown or missing:
            faults = [("no class", unknown), ("no count of", missing)]
            found = "; ".join(f"{words} {', '.join(which)}" for words, which in faults if which)
            do = close_matches(unknown[0], names) if unknown else "Add them, or leave counts out."
            raise ConfigError.at("counts", found, f"one for each class of {target}", do)
        self.counts = tuple(counts[name] for name in names)

    def losses(
        self, prediction: Prediction, rows: Int[Tensor, " r"], truth: Truth
    ) -> dict[str, Float[Tensor, ""]]:
        """Return `entropy`, `semantic`, `geometric` and `lovasz`."""
        target, logits = torch.stack(truth), prediction.values[rows]
        classes = logits.shape[1]
        _check_shape((len(target), classes, *logits.shape[2:]), (len(target), classes, *target.shape[1:]))
        _check_classes(truth, [t[t != IGNORE] for t in truth], classes)
        if (self.counts or self.config.counts) and len(self.counts) != classes:
            found, do = f"{len(self.counts)} counts", "Give learn_classes() the data, or leave counts out."
            raise ConfigError.at("objective.counts", found, f"one for each of {classes} classes", do)
        known = target[target != IGNORE]
        counted = torch.bincount(known, minlength=classes).float()
        counts = logits.new_tensor(self.counts) if self.counts else counted
        found = losses.occupancy_losses(logits, target, counts)
        return {name: getattr(self.config, f"{name}_weight") * value for name, value in found.items()}


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not value >= 0:
            raise ConfigError.at(name, f"{value:g}", "0 or more", f"Set {name}=0 to leave it out.")


def _check_shape(found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != tuple(wanted):
        do = "Give the model and the data one grid."
        raise ShapeError.at("objective", f"predictions {tuple(found)}", f"{tuple(wanted)} as labelled", do)


def _check_classes(truth: Truth, numbers: list[Tensor], classes: int) -> None:
    if not truth or truth[0].device.type != "cpu":
        return
    every = torch.cat([n.flatten() for n in numbers])
    if every.numel() and not 0 <= int(every.min()) <= int(every.max()) < classes:
        found = f"class {int(every.max() if every.min() >= 0 else every.min())}"
        raise ShapeError.at("objective", found, f"0..{classes - 1}", "Check the data's class names.")
