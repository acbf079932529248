"""Learning from teachers: the student's vectors or logits against those of a frozen model for the same rows.

What a teacher gives stands in the batch as a label `lesson_name(teacher, kind, pass)`; samples that lack it
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind, lesson_name
from mmzoo.errors import ConfigError, ShapeError, close_matches
from mmzoo.layers import distributed
from mmzoo.layers.relation import Relations, divergence
from mmzoo.objectives.base import Objective
from mmzoo.objectives.labelled import Labelled
from mmzoo.objectives.pairs import all_pairs, check_pairs, gather_pairs, passes_of
from mmzoo.state import LossState, Sum


@dataclass(kw_only=True)
class DistillConfig(schema.Config):
    """What every distillation has."""

    taught_by: dict[str, str] = field(default_factory=dict[str, str])
    """student's pass -> the pass of the teacher that it learns from (audio: image); not named: the same"""


@dataclass(frozen=True)
class Rows:
    """The rows of a pass that a teacher gave something for: what each made of them, and their samples."""

    student: Float[Tensor, "k s"]
    teacher: Float[Tensor, "k t"]
    index: Int[Tensor, " k"]


class Distillation(Objective):
    """What distillations share; `lesson` is what they ask of a teacher."""

    Config = DistillConfig

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def lessons(self, passes: tuple[str, ...]) -> dict[str, str]:
        """Return, for each pass of the student, the teacher's pass that it learns from."""
        for name in self.config.taught_by:
            if name not in passes:
                do = close_matches(name, passes)
                raise ConfigError.at("taught_by", repr(name), "a pass of the task", do)
        return {p: self.config.taught_by.get(p, p) for p in passes}

    def check(self, passes: tuple[str, ...]) -> None:
        """Raise ConfigError where `taught_by` names a pass that the task does not read."""
        self.lessons(passes)

    def taught(self, name: str, prediction: Prediction, batch: Batch, teacher: str) -> Rows:
        """Return the rows of a pass that its teacher gave something for, in float32."""
        student = prediction.values.float()
        if student.ndim != 2:
            found = f"predictions {tuple(student.shape)}"
            raise ShapeError.at(f"objective/{name}", found, "(rows, width)", "Choose another head.")
        kind = self.lesson or PredictionKind.FEATURES
        found = batch.targets.get(lesson_name(teacher, kind, self.config.taught_by.get(name, name)))
        if found is None:
            return Rows(student[:0], student.detach()[:0], prediction.index[:0])
        values = found.values.to(student.device).float()
        if torch.equal(prediction.index, found.index):
            return Rows(student, values, prediction.index)
        index, mine, theirs = np.intersect1d(
            prediction.index.numpy(), found.index.numpy(), assume_unique=True, return_indices=True
        )
        rows = [torch.from_numpy(x).to(student.device) for x in (mine, theirs)]
        return Rows(
            student.index_select(0, rows[0]), values.index_select(0, rows[1]), torch.from_numpy(index)
        )


class RowDistillation(Distillation, Labelled):
    """Sums a distance over the rows of every pass; parts are named by the pass."""

    def part(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Sum:
        """Return the summed distance of one pass from its teacher, and the number of rows."""
        rows = self.taught(name, prediction, batch, target)
        count = rows.student.new_tensor(float(len(rows.index)))
        if not len(rows.index):
            return Sum(prediction.values.sum().float() * 0.0, count)
        if rows.student.shape != rows.teacher.shape:
            found = f"{rows.student.shape[1]} of the student, {rows.teacher.shape[1]} of teacher {target!r}"
            do = "Set head.embed_dim=0, or take a teacher of the same classes."
            raise ShapeError.at(f"objective/{name}", found, "vectors of one width", do)
        return Sum(self.distance(rows.student, rows.teacher), count)

    def distance(self, student: Float[Tensor, "k e"], teacher: Float[Tensor, "k e"]) -> Float[Tensor, ""]:
        """Return the summed distance of rows."""
        raise NotImplementedError


class Distance(str, Enum):
    """How far two vectors are apart."""

    COSINE = "cosine"
    """1 - cos(z, t)"""
    MSE = "mse"
    """the mean over entries of (z - t)²"""


class FeatureDistillation(RowDistillation):
    """The student's projected vector z against the teacher's vector t.

    Math: mean over rows of 1 - z·t / (|z| |t|), or of Σ_j (z_j - t_j)² / e.
    Ref: Romero et al. 2015 (FitNets); Yang et al. 2024 (CLIP-KD, feature distillation) with the MSE.
    """

    @dataclass(kw_only=True)
    class Config(DistillConfig):
        """The distance."""

        distance: Distance = Distance.COSINE
        """cosine, blind to lengths, or mse"""

    reads: ClassVar[PredictionKind] = PredictionKind.FEATURES
    lesson: ClassVar[PredictionKind | None] = PredictionKind.FEATURES

    def distance(self, student: Float[Tensor, "k e"], teacher: Float[Tensor, "k e"]) -> Float[Tensor, ""]:
        """Return the summed distance of rows."""
        if self.config.distance is Distance.MSE:
            return (student - teacher).square().mean(1).sum()
        return (1 - F.cosine_similarity(student, teacher, dim=1)).sum()


class ClassDistillation(RowDistillation):
    """The student's class probabilities against the teacher's, both softened.

    Math: mean over rows of T² KL(softmax(t / T) ‖ softmax(s / T)); T² keeps the gradient's size whatever T.
    Ref: Hinton et al. 2015.
    """

    @dataclass(kw_only=True)
    class Config(DistillConfig):
        """The temperature."""

        temperature: float = 4.0
        """T, which logits of both are divided by"""

        def __post_init__(self) -> None:
            """Check it."""
            _check_temperature("temperature", self.temperature)

    reads: ClassVar[PredictionKind] = PredictionKind.CLASSES
    lesson: ClassVar[PredictionKind | None] = PredictionKind.CLASSES

    def distance(self, student: Float[Tensor, "k e"], teacher: Float[Tensor, "k e"]) -> Float[Tensor, ""]:
        """Return the summed divergence of rows."""
        t = self.config.temperature
        return t * t * divergence(student / t, teacher / t)


class RelationDistillation(Distillation):
    """How alike the samples of a batch are to the student, against how alike they are to the teacher.

    Math: for a pair of passes (a, b), rows i and j of the whole batch, S_ij = s a_i·b_j of the student's unit
    vectors and U_ij = u_i·v_j / τ of the teacher's, mean over i of
    ½ [KL(softmax_j U_ij ‖ softmax_j S_ij) + KL(softmax_j U_ji ‖ softmax_j S_ji)].
    A pass may be paired with itself: then the diagonal, always 1, is left out. Needs no common width.
    Ref: Yang et al. 2024 (CLIP-KD, contrastive relational distillation); Wu et al. 2023 (TinyCLIP, affinity
    mimicking) takes the cross-entropy, which has the same gradient; Fang et al. 2021 (SEED), of one pass.
    """

    @dataclass(kw_only=True)
    class Config(DistillConfig):
        """Pairs and temperatures."""

        pairs: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
        """pairs of passes to compare, [image, image] too; empty: every two modalities"""
        temperature: float | None = None
        """1 / s of the student; null: what its head learns"""
        teacher_temperature: float = 0.07
        """τ of the teacher; CLIP's own ends at 0.01"""

        def __post_init__(self) -> None:
            """Check the pairs and the temperatures."""
            check_pairs([p for p in self.pairs if p[0] != p[1]], "pairs")
            _check_temperature("teacher_temperature", self.teacher_temperature)
            if self.temperature is not None:
                _check_temperature("temperature", self.temperature)

    reads: ClassVar[PredictionKind] = PredictionKind.VECTORS
    lesson: ClassVar[PredictionKind | None] = PredictionKind.FEATURES
    depends_on_batch: ClassVar[bool] = True

    def passes(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return the passes of the configured pairs, else every modality."""
        return passes_of(self.config.pairs, modalities, "pairs")

    def parts(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the pairs."""
        return tuple(f"{a}~{b}" for a, b in (self.config.pairs or all_pairs(passes)))

    def check(self, passes: tuple[str, ...]) -> None:
        """Raise ConfigError where there is no pair, or one of passes that the head does not read."""
        super().check(passes)
        if not self.parts(passes):
            found, do = f"none among {', '.join(passes)}", f"Set pairs=[[{passes[0]},{passes[0]}]]."
            raise ConfigError.at("pairs", found, "two modalities, or pairs", do)
        for name in dict.fromkeys(p for pair in self.config.pairs for p in pair):
            if name not in passes:
                raise ConfigError.at("pairs", repr(name), "a pass of the head", close_matches(name, passes))

    def __call__(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> LossState:
        """Return this rank's share."""
        share = distributed.world_size() > 1 and torch.is_grad_enabled()
        rows = {name: self.taught(name, p, batch, target) for name, p in predictions.items()}
        students = {n: Prediction(r.student, r.index) for n, r in rows.items()}
        teachers = {n: Prediction(F.normalize(r.teacher, dim=1), r.index) for n, r in rows.items()}
        mine = gather_pairs(students, self.config.pairs, share=share)
        theirs = gather_pairs(teachers, self.config.pairs, share=share)
        anchor = _anchor(predictions)
        if mine is None or theirs is None:
            return LossState(Sum(anchor, torch.zeros_like(anchor)))
        with torch.autocast(anchor.device.type, enabled=False):
            scale = self._scale(predictions, mine.a)
            relations = Relations(
                mine.layout, tuple(a == b for a, b in mine.pairs), 1 / self.config.teacher_temperature
            )
            sums = relations.sums((mine.a, mine.b), (theirs.a, theirs.b), scale)
        counts = [torch.tensor(float(n), device=anchor.device) for n in mine.layout.local]
        parts = {f"{a}~{b}": Sum(sums[i], counts[i]) for i, (a, b) in enumerate(mine.pairs)}
        return LossState(Sum(sums.sum() + anchor, torch.stack(counts).sum()), parts)

    def _scale(self, predictions: Mapping[str, Prediction], like: Tensor) -> Float[Tensor, ""]:
        """Return the student's inverse temperature; any number where this rank has no predictions."""
        if self.config.temperature is not None or not predictions:
            return like.new_tensor(1 / (self.config.temperature or 1.0))
        scale = next(iter(predictions.values())).scale
        if scale is None:
            found, do = "predictions without scale", "Set objective.temperature."
            raise ConfigError.at("objective.temperature", found, "a head that learns one", do)
        return scale.to(like.dtype)


def _anchor(predictions: Mapping[str, Prediction]) -> Float[Tensor, ""]:
    """Return zero, tied to all predictions, so that every rank can run its backward pass."""
    terms = [
        x.sum().float() * 0.0 for p in predictions.values() for x in (p.values, p.scale) if x is not None
    ]
    if terms:
        return torch.stack(terms).sum()
    return torch.zeros((), device=distributed.device(), requires_grad=torch.is_grad_enabled())


def _check_temperature(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError.at(name, f"{value:g}", "more than 0", "Use 4 for classes, 0.07 for relations.")
