"""Merges losses and metric states over batches and ranks, then computes; shared by validation and `mmzoo
eval`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmzoo.batch import Batch, DataInfo, Prediction
from mmzoo.errors import ConfigError
from mmzoo.learners import routing
from mmzoo.learners.prompts import class_vectors
from mmzoo.learners.routing import RoutingTracker
from mmzoo.learners.tasks import Task, heads_of, passes_of
from mmzoo.metrics.delta import delta_m
from mmzoo.models.base import TaskModel
from mmzoo.state import LossState, Sum

log = logging.getLogger(__name__)


class Tracker:
    """The states of all tasks over one pass through a split."""

    def __init__(
        self, tasks: Mapping[str, Task], info: DataInfo, baselines: Mapping[str, float] | None = None
    ) -> None:
        """Start empty; with single-task `baselines` of figures, delta_m is computed too."""
        self.tasks, self.info, self.baselines = tasks, info, dict(baselines or {})
        self.losses: dict[str, LossState] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.reference: dict[str, dict[str, Any]] = {}
        self.passes: dict[str, tuple[str, ...]] = {}
        self.routing = RoutingTracker()
        self.routing_rows: dict[str, tuple[str, ...]] = {}
        self._said_absent = False

    def reset(self) -> None:
        """Forget everything but the reference."""
        self.losses, self.states = {}, {}
        self.routing = RoutingTracker()

    @torch.no_grad()
    def update(self, model: TaskModel, batch: Batch) -> None:
        """Run the model on a batch and merge its losses and metric states.

        The loss of a task with a teacher is left out where nobody taught the batch, as in `mmzoo eval`.
        """
        output = model(batch, heads_of(self.tasks))
        self.routing.update(output.stats)
        for name, task in self.tasks.items():
            if task.is_scored(batch):
                loss = _on_host(task.loss(output, batch))
                self.losses[name] = self.losses[name].merge(loss) if name in self.losses else loss
            predictions = _predictions(output.predictions[task.head])
            task.update(self.states.setdefault(name, {}), predictions, batch)

    @property
    def needs_reference(self) -> bool:
        """Whether some metric compares with the training split."""
        return any(m.needs_reference for t in self.tasks.values() for m in t.metrics.values())

    def keep_as_reference(self) -> None:
        """Take the present states, of all ranks, as those of the training split, and start anew."""
        _, states = self._merged_over_ranks()
        self.reference = {
            name: {k: s for k, s in states.get(name, {}).items() if task.metrics[k].needs_reference}
            for name, task in self.tasks.items()
        }
        self.reset()

    @torch.no_grad()
    def compute(self, model: TaskModel) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return all figures (`loss`, `task/loss`, `task/loss/part`, `task/metric`) and matrices.

        `passes` then names, for each task, the passes that had samples, in the order of the matrices.
        """
        losses, states = self._merged_over_ranks()
        figures: dict[str, float] = {}
        matrices: dict[str, np.ndarray] = {}
        total = 0.0
        for name, state in losses.items():
            figures[f"{name}/loss"] = float(state.mean())
            figures |= {f"{name}/loss/{k}": float(p.mean()) for k, p in state.parts.items()}
            total += self.tasks[name].config.weight * figures[f"{name}/loss"]
        figures["loss"] = total
        extra = {"reference": self.reference, "class_vectors": class_vectors(model, self.tasks, self.info)}
        passes = passes_of(self.tasks, model.passes)
        for name, task in self.tasks.items():
            ordered = {k: _in_order(s, passes[name]) for k, s in states.get(name, {}).items()}
            self.passes[name] = tuple(p for p in passes[name] if any(p in s for s in ordered.values()))
            new, drawn = task.compute(ordered, self.info, extra)
            figures |= new
            matrices |= drawn
        if self.baselines:
            figures |= self._compared(figures)
        use = self.routing.merged() if routing.is_routed(model) else {}
        self.routing_rows = routing.row_names(use)
        return figures | routing.figures(use), matrices | routing.matrices(use)

    def _compared(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return delta_m; nothing where this split has no samples behind one of its figures."""
        absent = [name for name in self.baselines if name not in figures]
        if not absent:
            return {"delta_m": delta_m(figures, self.baselines)}
        if not self._said_absent:
            self._said_absent = True
            log.warning("delta_m is left out where there is no figure %s", ", ".join(absent))
        return {}

    def _merged_over_ranks(self) -> tuple[dict[str, LossState], dict[str, dict[str, Any]]]:
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self.losses, self.states
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self.losses, self.states))
        losses: dict[str, LossState] = {}
        states: dict[str, dict[str, Any]] = {}
        for other_losses, other_states in parts:
            for name, state in other_losses.items():
                losses[name] = losses[name].merge(state) if name in losses else state
            for name, entries in other_states.items():
                merged = states.setdefault(name, {})
                for key, state in entries.items():
                    merged[key] = (
                        self.tasks[name].metrics[key].merge(merged[key], state) if key in merged else state
                    )
        return losses, states


def _on_host(state: LossState) -> LossState:
    def move(part: Sum) -> Sum:
        return Sum(part.sum.detach().double().cpu(), part.count.detach().double().cpu())

    return LossState(move(state.total), {k: move(p) for k, p in state.parts.items()}, state.weights)


def _in_order(state: Any, passes: tuple[str, ...]) -> Any:
    """Return a state that is kept by pass in the model's order, not in that of the first batches."""
    if not isinstance(state, Mapping):
        return state
    return {**{p: state[p] for p in passes if p in state}, **state}


def _predictions(predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
    return {k: Prediction(p.values.detach().float().cpu(), p.index) for k, p in predictions.items()}


def check_split(split: str) -> str:
    """Return the split's name, or raise where there is none such."""
    if split not in ("train", "val", "test"):
        raise ConfigError.at("split", repr(split), "train, val or test", "Name one of them.")
    return split
