"""Balancing at work in a learner: which losses are balanced, what is shared, what the log says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.errors import ConfigError, close_matches
from mmzoo.layers import distributed
from mmzoo.learners.balance import step
from mmzoo.learners.balance.base import Balancer, GradientBalancer, LossBalancer, Moment
from mmzoo.learners.balance.losses import Equal, Static
from mmzoo.learners.tasks import Task
from mmzoo.state import LossState, Sum

Mean = Callable[[Sum], Tensor]
RANK_SLOT = 4095
"""Takes the place of a rank's number in the seed of what all ranks draw alike."""


class Over(str, Enum):
    """What is balanced: whole tasks, or the parts that an objective names (pairs of a contrast, passes)."""

    TASKS = "tasks"
    PARTS = "parts"


@dataclass(frozen=True)
class Place:
    """Where training is: optimiser steps taken, epoch, and a seed of this batch alike on all ranks."""

    step: int
    epoch: int
    seed: int

    def generator(self) -> torch.Generator:
        """Return what a balancer draws from."""
        return torch.Generator().manual_seed(self.seed)


class Balancing:
    """Makes the losses of a batch one scalar, as the chosen balancer says.

    A task's weight multiplies its loss first; where parts are balanced it is shared out equally among them.
    Tasks that a batch has no samples of are left out of the step.
    """

    def __init__(self, options: Any, tasks: Mapping[str, Task], passes: Mapping[str, Sequence[str]]) -> None:
        """Name what is balanced; `options` are those of the learner, `passes` those of the model's heads."""
        self.options = options
        self.task_weights = {name: task.config.weight for name, task in tasks.items()}
        self.weights: dict[str, float] = {}
        for name, task in tasks.items():
            parts = task.objective.parts(tuple(passes.get(name, ())))
            split = options.balance_over is Over.PARTS and len(parts) > 1
            names = [f"{name}/{part}" for part in parts] if split else [name]
            self.weights |= dict.fromkeys(names, task.config.weight / len(names))
        names = tuple(self.weights)
        extra = {"weights": tuple(self.weights.values())} if type(options.balance).owner is Equal else {}
        self.balancer: Balancer = options.balance.build(names, **extra)
        self.figures: dict[str, Tensor] = {}

    def total(
        self, states: Mapping[str, LossState], aux: Sequence[Tensor], mean: Mean, model: nn.Module, at: Place
    ) -> tuple[Float[Tensor, ""], Moment]:
        """Return what is minimised; figures of this step for the log are kept in `figures`.

        `mean` makes this rank's mean loss of a sum.
        """
        self.figures = {}
        if isinstance(self.balancer, Static):
            return self._sum(states, aux, mean, model, at)
        losses = self._split(states)
        now = Moment(present(list(losses.values())), at.generator(), at.step, at.epoch)
        scaled = [self.weights[name] * mean(part) for name, part in losses.items()]
        if not now.present:
            return torch.stack([*scaled, *aux]).sum(), now
        chosen = step.global_values(torch.stack([scaled[i] for i in now.present]))
        names = [list(losses)[i] for i in now.present]
        extra = torch.stack(list(aux)).sum() if aux else None
        if isinstance(self.balancer, GradientBalancer):
            parameters = self._parameters(model)
            total, weights, grads = step.gradient_step(self.balancer, chosen, extra, parameters, now)
            if self._watches(now):
                self.figures |= step.cosine_figures(grads, names)
        else:
            if self._watches(now):
                self._compare(chosen, names, model)
            total, weights = step.loss_step(self._by_loss(), chosen, now)
            total = total if extra is None else total + extra
        self.figures |= step.weight_figures(weights, names)
        return total, now

    def values(self, states: Mapping[str, LossState], mean: Mean, now: Moment) -> Float[Tensor, " k"]:
        """Return the global values of the losses of the tasks present, weighted, without gradient."""
        scaled = [self.weights[name] * mean(part).detach() for name, part in self._split(states).items()]
        return step.global_values(torch.stack([scaled[i] for i in now.present]))

    def _sum(
        self, states: Mapping[str, LossState], aux: Sequence[Tensor], mean: Mean, model: nn.Module, at: Place
    ) -> tuple[Float[Tensor, ""], Moment]:
        """Return the sum by the tasks' weights, without asking which tasks have samples."""
        now = Moment(tuple(range(len(self.weights))), at.generator(), at.step, at.epoch)
        if self._watches(now):
            losses = self._split(states)
            rows = present(list(losses.values()))
            names = [list(losses)[i] for i in rows]
            scaled = [self.weights[name] * mean(losses[name]) for name in names]
            if rows:
                self._compare(torch.stack(scaled), names, model)
        scaled = [self.task_weights[name] * mean(state.total) for name, state in states.items()]
        total = torch.zeros((), device=scaled[0].device)
        for loss in (*scaled, *aux):
            total = total + loss
        return total, now

    def _split(self, states: Mapping[str, LossState]) -> dict[str, Sum]:
        """Return the losses that are balanced, by name; a part that is not there counts nothing.

        It stays tied to the task's total: a rank without any part must run its backward pass all the same.
        """
        found: dict[str, Sum] = {}
        for name, state in states.items():
            nothing = Sum(state.total.sum * 0.0, torch.zeros_like(state.total.count))
            parts = {f"{name}/{part}": loss for part, loss in state.parts.items()}
            whole = {name: state.total} if name in self.weights else parts
            mine = [known for known in self.weights if known == name or known.startswith(f"{name}/")]
            found |= {known: whole.get(known, nothing) for known in mine}
        return found

    @property
    def compares(self) -> bool:
        """Whether any step compares the tasks' gradients, at a backward pass a task."""
        return isinstance(self.balancer, GradientBalancer) or self.options.cosine_every > 0

    def check(self, strategy: Any, precision: str) -> None:
        """Raise where gradients are compared and cannot be: a rank holds pieces of the parameters, or float16
        lets unscaled gradients vanish."""
        if self.compares and "fsdp" in type(strategy).__name__.lower():
            found, expected = "fsdp shards the parameters whose gradients are compared", "ddp or one process"
            raise ConfigError.at("trainer.strategy", found, expected, "Set trainer.strategy=ddp.")
        if self.compares and precision == "16-mixed":
            found = "16-mixed scales the loss only after gradients are compared"
            do = "Set trainer.precision=bf16-mixed."
            raise ConfigError.at("trainer.precision", found, "32-true or bf16-mixed", do)

    def _by_loss(self) -> LossBalancer:
        if not isinstance(self.balancer, LossBalancer):
            found, expected = type(self.balancer).__name__, "a LossBalancer or a GradientBalancer"
            raise ConfigError.at("learner.balance", found, expected, "Subclass one of them.")
        return self.balancer

    def _watches(self, now: Moment) -> bool:
        return self.compares_at(now.step)

    def compares_at(self, step: int) -> bool:
        """Say whether the gradients of step `step` (0-based) are compared: the first one's, and every few."""
        every = self.options.cosine_every
        return every > 0 and (step == 0 or (step + 1) % every == 0)

    def _compare(self, losses: Float[Tensor, " k"], names: Sequence[str], model: nn.Module) -> None:
        """Compare the tasks' gradients; costs a backward pass a task."""
        grads = step.shared_gradients(losses, self._parameters(model).shared)
        self.figures |= step.cosine_figures(grads, names)

    def _parameters(self, model: nn.Module) -> step.Parameters:
        found = step.Parameters.of(model, self.options.shared)
        if not found.shared:
            names = {n.rsplit(".", 1)[0] for n, p in model.named_parameters() if p.requires_grad}
            do = close_matches(self.options.shared[0] if self.options.shared else "", names)
            shared = ", ".join(self.options.shared) or "nothing"
            raise ConfigError.at("learner.shared", f"no trainable parameter under {shared}", "some", do)
        return found


def present(losses: Sequence[Sum]) -> tuple[int, ...]:
    """Return the numbers of the losses that some rank has samples of."""
    counts = torch.stack([part.count.detach() for part in losses])
    if distributed.world_size() > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return tuple(i for i, count in enumerate(counts.tolist()) if count > 0)
