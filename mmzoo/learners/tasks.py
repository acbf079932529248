"""A task: what is predicted from which passes, how it is scored in training and in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import (
    Batch,
    DataInfo,
    DenseKind,
    ModelOutput,
    NumericKind,
    Prediction,
    PredictionKind,
    SceneKind,
)
from mmzoo.errors import ConfigError, close_matches
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.models.base import JOINT, HeadSpec, ModelConfig, Need
from mmzoo.objectives.base import Objective
from mmzoo.registry import name_of
from mmzoo.state import LossState

NUMERIC = tuple(kind.value for kind in NumericKind)
"""Kinds of predictions that stand beside labels of numbers."""


@dataclass(kw_only=True)
class TaskConfig(schema.Config):
    """One task of a recipe."""

    objective: Any = schema.one("objectives")
    """what is minimised"""
    head: Any = schema.maybe("heads")
    """the head that predicts; null takes the model's head of the same name"""
    metrics: list[Any] = schema.several("metrics")
    """what is reported"""
    passes: list[str] = field(default_factory=list)
    """passes the head reads; empty: those the objective needs, else every modality by itself"""
    target: str = ""
    """label in the data; empty: none (contrast needs none)"""
    weight: float = 1.0
    """factor on the task's mean loss; 0 leaves it to the metrics alone"""
    teacher: str = ""
    """whose vectors or logits a distillation learns from: one of the recipe's teachers"""
    head_of: str = ""
    """another task, whose head's predictions this one is about; empty: it has a head of its own"""

    def __post_init__(self) -> None:
        """Check the range, and that there is one head."""
        if not self.weight >= 0:
            raise ConfigError.at("weight", str(self.weight), "0 or more", "Use 0 to only report the task.")
        if self.head_of and (self.head is not None or self.passes):
            found, do = "head_of beside a head or passes", "Keep one of them."
            raise ConfigError.at("head_of", found, "another task's head, or one of its own", do)

    def resolve_passes(self, modalities: tuple[str, ...]) -> list[str]:
        """Return the passes this task reads in a model of these modalities."""
        return list(self.passes or self.objective.build().passes(modalities) or modalities)


class Task:
    """A task at work: its objective, and its metrics with what they have seen so far."""

    def __init__(self, name: str, config: TaskConfig, info: DataInfo | None = None) -> None:
        """Build the parts; `info` tells the objective of the label's classes.

        Figures are named `task/figure`; those of a metric with a label of its own `task/label/figure`, those
        of probes `task/probe/figure`, and those of a second metric of the same name `…/accuracy2/figure`.
        """
        self.name, self.config = name, config
        self.head = config.head_of or name
        self.objective: Objective = config.objective.build()
        if info is not None:
            self.objective.learn_classes(info, config.target)
        self.metrics: dict[str, Metric] = {}
        self.prefixes: dict[str, str] = {}
        for options in config.metrics:
            metric: Metric = options.build()
            kind = name_of("metrics", type(metric))
            number = 1 + sum(type(other) is type(metric) for other in self.metrics.values())
            key = kind if number == 1 else f"{kind}{number}"
            words = (name, getattr(options, "target", ""), key if metric.needs_reference else "")
            prefix = "/".join(word for word in words if word)
            taken = any(
                self.prefixes[k] == prefix and type(m) is type(metric) for k, m in self.metrics.items()
            )
            self.metrics[key], self.prefixes[key] = metric, f"{prefix}/{key}" if taken else prefix

    def loss(self, output: ModelOutput, batch: Batch) -> LossState:
        """Return the loss state of a batch; what a teacher gives stands in it as labels."""
        return self.objective(output.predictions[self.head], batch, self.config.teacher or self.config.target)

    def is_scored(self, batch: Batch) -> bool:
        """Say whether the loss can be computed: a teacher, where there is one, has seen the batch."""
        start = f"{self.config.teacher}/"
        return not self.config.teacher or any(target.startswith(start) for target in batch.targets)

    def update(self, states: dict[str, Any], predictions: Mapping[str, Prediction], batch: Batch) -> None:
        """Merge a batch into the metric states, in place."""
        for name, metric in self.metrics.items():
            new = metric.update(predictions, batch, self.config.target)
            states[name] = metric.merge(states[name], new) if name in states else new

    def compute(
        self, states: Mapping[str, Any], info: DataInfo, extra: Mapping[str, Any]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return the figures and the matrices, both named `task/…`.

        A metric that compares with the training split is left out where `extra` has no reference.
        """
        figures: dict[str, float] = {}
        matrices: dict[str, np.ndarray] = {}
        for name, state in states.items():
            metric = self.metrics[name]
            reference = extra.get("reference", {}).get(self.name, {}).get(name)
            if metric.needs_reference and reference is None:
                continue
            vectors: Mapping[str, Tensor] = extra.get("class_vectors", {}).get(self.name, {})
            if metric.needs_class_vectors and not vectors:
                continue
            context = MetricContext(info, self.config.target, vectors, reference)
            prefix = self.prefixes[name]
            figures |= {f"{prefix}/{k}": v for k, v in metric.compute(state, context).items()}
            matrices |= {f"{prefix}/{k}": v for k, v in metric.figures(state, context).items()}
        return figures, matrices


def with_heads(config: ModelConfig, tasks: Mapping[str, TaskConfig]) -> Any:
    """Return the model's options with exactly the heads that the tasks need."""
    needs = {
        name: Need(task.head, tuple(task.resolve_passes(config.default_passes)), task.target)
        for name, task in with_own_heads(tasks).items()
    }
    return config.for_tasks(needs)


def as_trained(tasks: Mapping[str, TaskConfig], heads: Mapping[str, HeadSpec]) -> dict[str, TaskConfig]:
    """Return the tasks with what the data decided about their heads when a model with `heads` was trained."""
    found = dict(tasks)
    for name, task in tasks.items():
        before = heads[name].head if name in heads else None
        if task.head is not None and type(before) is type(task.head):
            head = type(task.head).owner.as_trained(task.head, before)
            found[name] = dataclasses.replace(task, head=head)
    return found


def with_own_heads(tasks: Mapping[str, TaskConfig]) -> dict[str, TaskConfig]:
    """Return the tasks but those that are about another's head."""
    return {name: task for name, task in tasks.items() if not task.head_of}


def heads_of(tasks: Mapping[str, Task]) -> list[str]:
    """Name the heads that tasks read, each once."""
    return list(dict.fromkeys(task.head for task in tasks.values()))


def passes_of(tasks: Mapping[str, Task], passes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the passes that each task sees, given those of the heads."""
    return {name: passes[task.head] for name, task in tasks.items() if task.head in passes}


def modalities_of(
    tasks: Mapping[str, TaskConfig], modalities: tuple[str, ...], inputs: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return those of the model's inputs (modalities and views of them) that a task reads, in its order."""
    own = with_own_heads(tasks).values()
    used = {m for t in own for p in t.resolve_passes(modalities) for m in p.split(JOINT)}
    return tuple(m for m in inputs or modalities if m in used)


def faults_of(name: str, task: TaskConfig, spec: HeadSpec | None, info: DataInfo) -> list[str]:
    """Return a line for everything that does not fit between a task's head, objective, metrics and labels."""
    where = f"tasks.{name}"
    if spec is None and task.head_of:
        found, do = f"no task {task.head_of!r} with a head", "Name a task that has one."
        return [str(ConfigError.at(f"{where}.head_of", found, "another task's head", do))]
    if spec is None:
        do = f"Set {where}.head or model.heads.{name}."
        return [str(ConfigError.at(where, "no head", "a head", do))]
    faults: list[str] = []
    gives = getattr(type(spec.head).owner, "gives", None)
    readers = [("objective", task.objective), *((f"metrics.{i}", m) for i, m in enumerate(task.metrics))]
    for part, options in readers:
        reads = getattr(type(options).owner, "reads", None)
        if gives is not None and reads is not None and gives is not reads:
            found, do = f"reads {reads.value}", "Choose another, or another head."
            expected = f"{gives.value}, which the head gives"
            faults.append(str(ConfigError.at(f"{where}.{part}", found, expected, do)))
        faults += _dense_faults(f"{where}.{part}", options, task.target, info)
        faults += _numeric_faults(f"{where}.{part}", reads, task.target, info)
    parts = {"head": spec.head, **dict(readers)}
    faults += _several_faults(where, parts, {m for p in spec.passes for m in p.split(JOINT)}, info)
    try:
        objective: Objective = task.objective.build()
        objective.check(tuple(spec.passes))
        objective.learn_classes(info, task.target)
    except ConfigError as error:
        faults.append(f"{where}.objective.{error}")
    targets = {f"{where}.target": task.target}
    targets |= {f"{where}.metrics.{i}.target": getattr(m, "target", "") for i, m in enumerate(task.metrics)}
    for place, target in targets.items():
        if target and target not in info.labels:
            do = close_matches(target, info.labels)
            faults.append(
                str(ConfigError.at(place, f"no label {target!r} in the data", "one of its labels", do))
            )
    return faults


def _several_faults(where: str, parts: Mapping[str, Any], read: set[str], info: DataInfo) -> list[str]:
    """Return a line for each part that takes one entry a sample where the data give several, or that chooses
    among several where they give one."""
    several = {m: n for m, n in info.several.items() if m in read}
    if not several:
        if getattr(type(parts["head"]).owner, "gives", None) is not PredictionKind.CHOICES:
            return []
        do = "Set data.choices.column."
        found, expected = "answers to choose from", "data with several entries of a modality that it reads"
        return [str(ConfigError.at(f"{where}.head", found, expected, do))]
    name, count = next(iter(several.items()))
    do = "Choose another, or give samples one entry (data.captions.evaluate=first)."
    return [
        str(ConfigError.at(f"{where}.{part}", "takes one entry a sample", f"{count} of {name}", do))
        for part, options in parts.items()
        if not getattr(type(options).owner, "takes_several", False)
    ]


def _numeric_faults(where: str, reads: PredictionKind | None, target: str, info: DataInfo) -> list[str]:
    """Return a line where a component that reads numbers is given another label, or the other way round."""
    given = info.numeric.get(target)
    wanted = reads.value if reads and reads.value in NUMERIC else None
    if reads is None or target not in info.labels or (given and given.value) == wanted:
        return []
    expected = f"{given.value if given else 'no label of numbers'}, which {target} is"
    do = "Choose another, or declare the label in data.numbers."
    return [str(ConfigError.at(where, f"reads {reads.value}", expected, do))]


def _dense_faults(where: str, options: Any, target: str, info: DataInfo) -> list[str]:
    """Return a line where a component that reads dense labels, or those of a scene, of one kind is given
    another."""
    kind = getattr(type(options).owner, "kind", None)
    given = info.scene.get(target) or info.dense.get(target)
    if not isinstance(kind, DenseKind | SceneKind) or target not in info.labels or kind is given:
        return []
    found = f"reads {kind.value}"
    expected = f"{given.value if given else 'no dense label'}, which {target} is"
    return [str(ConfigError.at(where, found, expected, "Choose another, or another target."))]
