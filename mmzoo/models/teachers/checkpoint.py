"""A model that mmzoo trained or loads as teacher: its vectors, or its logits of the same classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from mmzoo.batch import Batch, ModalityInput, Prediction, PredictionKind
from mmzoo.errors import ConfigError, close_matches
from mmzoo.heads.pooling import MeanPool
from mmzoo.models.base import JOINT
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.teachers.base import Teacher, TeacherConfig


class CheckpointTeacher(Teacher):
    """features: the output of its embedding head, else the mean of the trunk's last tokens. classes: the
    logits of a classifier, put into the student's order of the class names.

    Its inputs are those of the saved model; joint passes are made of them.
    """

    @dataclass(kw_only=True)
    class Config(TeacherConfig):
        """Which model, and what of it teaches."""

        model: str
        """run folder, export, .ckpt file, checkpoint of the zoo (arch.tag), hf://org/repo"""
        task: str = ""
        """its head that teaches; empty: an embedding head (features) or the first classifier (classes)"""

    gives: ClassVar[tuple[PredictionKind, ...]] = (PredictionKind.FEATURES, PredictionKind.CLASSES)
    order: torch.Tensor | None
    """the student's classes, by their numbers here"""

    def build_module(self) -> nn.Module:
        """Load the model."""
        module, self.saved = self.pupil.load(self.config.model)
        if not isinstance(module, MultimodalModel):
            found, expected = type(module).__name__, "a model of adapters, trunk and heads"
            raise ConfigError.at(f"{self.where}.model", found, expected, "Name another model.")
        if self.config.task and self.config.task not in module.heads:
            do = close_matches(self.config.task, module.heads)
            expected = f"a head of {self.config.model}"
            raise ConfigError.at(f"{self.where}.task", repr(self.config.task), expected, do)
        self.model, self.order = module, None
        return module

    @functools.cached_property
    def sources(self) -> Mapping[str, Any]:
        """Options of its adapters."""
        return self.model.config.inputs

    @property
    def source(self) -> str:
        """Say which weights."""
        return str(self.config.model)

    def features(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Return the vectors of an embedding head, else mean tokens."""
        task = self.config.task or self._first(PredictionKind.VECTORS)
        batch, own = self._batch(inputs, ids), {p: self._own(p) for p in passes}
        if task and getattr(self.model.heads[task], "gives", None) is PredictionKind.VECTORS:
            self._check_passes(task, own)
            found = self.model(batch, [task]).predictions[task]
            return {p: found[name] for p, name in own.items() if name in found}
        pool = MeanPool()
        sequences = self.model.tokens(batch, tuple(dict.fromkeys(own.values())))
        return {
            p: Prediction(pool(sequences[n]), sequences[n].index) for p, n in own.items() if n in sequences
        }

    def classes(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Return its logits in the student's order of classes."""
        task, own = self._classifier(), {p: self._own(p) for p in passes}
        self._check_passes(task, own)
        found = self.model(self._batch(inputs, ids), [task]).predictions[task]
        given = {p: found[name] for p, name in own.items() if name in found}
        return {p: Prediction(self._ordered(x.values), x.index) for p, x in given.items()}

    def learn_classes(self, names: tuple[str, ...]) -> None:
        """Find the student's classes among its own."""
        task = self._classifier()
        self._check_passes(task, {p: self._own(p) for p in self.pupil.wanted[PredictionKind.CLASSES]})
        target = self.model.config.heads[task].target
        own = list(self.saved.get("labels", {}).get(target, ()))
        if sorted(own) != sorted(names):
            lacking = [n for n in names if n not in own] or [n for n in own if n not in names]
            found = f"{len(own)} classes of {target!r}, the student has {len(names)} ({lacking[0]!r} differs)"
            do = "Take a teacher of the same classes, or distil features."
            raise ConfigError.at(self.where, found, "the same class names", do)
        self.order = torch.tensor([own.index(n) for n in names])

    def _ordered(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.order is None else logits.index_select(1, self.order.to(logits.device))

    def _classifier(self) -> str:
        task = self.config.task or self._first(PredictionKind.CLASSES)
        if not task or getattr(self.model.heads[task], "gives", None) is not PredictionKind.CLASSES:
            found = f"no classifier in {self.config.model}" if not task else f"head {task!r} gives no classes"
            do = "Set task to a classifier, or distil features."
            raise ConfigError.at(self.where, found, "a head that gives classes", do)
        return task

    def _first(self, kind: PredictionKind) -> str:
        return next((t for t, h in self.model.heads.items() if getattr(h, "gives", None) is kind), "")

    def _own(self, name: str) -> str:
        """Return the pass of its own that is the student's pass `name`."""
        return JOINT.join(self.inputs[m] for m in name.split(JOINT))

    def _check_passes(self, task: str, own: Mapping[str, str]) -> None:
        for name in own.values():
            if name not in self.model.passes[task]:
                expected = f"a pass of its head {task!r} ({', '.join(self.model.passes[task])})"
                raise ConfigError.at(self.where, f"no pass {name!r}", expected, "Change the task's passes.")

    def _batch(self, inputs: Mapping[str, ModalityInput], ids: tuple[str, ...]) -> Batch:
        return Batch(ids, {self.inputs[m]: x for m, x in inputs.items()})
