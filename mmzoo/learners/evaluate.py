"""Runs a learner's tasks over a split and returns every figure; what `mmzoo eval` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from mmzoo.batch import Batch
from mmzoo.learners.multitask import MultitaskLearner
from mmzoo.learners.tracker import check_split


@dataclass(frozen=True)
class Evaluation:
    """Figures named `task/metric`, matrices worth drawing, and what their axes are called."""

    split: str
    metrics: Mapping[str, float]
    figures: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@runtime_checkable
class HasLoaders(Protocol):
    """Whatever hands out batches by split: every datamodule does."""

    def loader(self, split: str) -> Iterable[Batch]:
        """Return the batches of a split."""
        ...


@torch.no_grad()
def evaluate(
    learner: MultitaskLearner,
    datamodule: HasLoaders,
    split: str,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate on one device; kNN and probes first see the training split. `progress` hears the samples
    done.

    The training split is evaluated in order, whole and without augmentation.
    """
    check_split(split)
    model, tracker = learner.model, learner.tracker
    training = model.training
    model.eval()
    try:
        if tracker.needs_reference:
            tracker.reset()
            for batch in datamodule.loader("reference"):
                tracker.update(model, batch.to(model.device))
            tracker.keep_as_reference()
        tracker.reset()
        done = 0
        for batch in datamodule.loader("reference" if split == "train" else split):
            tracker.update(model, batch.to(model.device))
            done += len(batch)
            if progress:
                progress(done)
        figures, matrices = tracker.compute(model)
    finally:
        model.train(training)
    return Evaluation(split, figures, matrices, {name: _axis(learner, name) for name in matrices})


def _axis(learner: MultitaskLearner, name: str) -> tuple[str, ...]:
    """Name the rows and columns of a matrix: passes for retrieval, else the classes of its label."""
    if name in learner.tracker.routing_rows:
        return learner.tracker.routing_rows[name]
    task, *label, kind = name.split("/")
    if kind == "retrieval":
        return learner.tracker.passes[task]
    labels, place = learner.info.labels, "/".join([*label, ""])
    own = next((t for t in labels if place.startswith(f"{t}/")), learner.tasks[task].config.target)
    return tuple(labels.get(own, ()))
