"""Balancing by what the losses have done so far, or by chance: DWA, FAMO, RLW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.base import LossBalancer, Moment
from mmzoo.learners.balance.losses import TINY, logs


class Rlw(LossBalancer):
    """Random loss weighting: new weights every step, which tasks must do well under all of.

    Math: sum_i w_i L_i, w = softmax(n), n ~ N(0, 1).
    Ref: Lin et al. 2022.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the randomly weighted sum."""
        drawn = torch.randn(len(losses), generator=now.generator)
        return (losses * drawn.softmax(dim=0).to(losses)).sum()


class Dwa(LossBalancer):
    """Dynamic weight average: tasks whose loss falls slowly count more.

    Math: w = k softmax(r / T), r_i = mean loss of the last period over that of the one before; 1 in the first
    two periods.
    Ref: Liu et al. 2019 (MTAN), where a period is an epoch.
    """

    total: Tensor
    count: Tensor
    last: Tensor
    before: Tensor
    period: Tensor

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Temperature and period."""

        temperature: float = 2.0
        """T: the larger, the more alike the weights"""
        period_steps: int = 0
        """optimiser steps over which losses are averaged; 0: an epoch"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not self.temperature > 0 or self.period_steps < 0:
                found = f"temperature {self.temperature:g}, period_steps {self.period_steps}"
                expected = "a temperature above 0 and a period of 0 or more"
                raise ConfigError.at("balance", found, expected, "Try temperature=2 period_steps=0.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Nothing seen yet."""
        super().__init__(config, names)
        for name in ("total", "count", "last", "before"):
            self.register_buffer(name, torch.zeros(len(names)))
        self.register_buffer("period", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the weighted sum."""
        steps = self.config.period_steps
        self._turn(now.step // steps if steps else now.epoch)
        rows = list(now.present)
        self.total[rows] += losses.detach()
        self.count[rows] += 1
        known = (self.before[rows] > 0) & (self.last[rows] > 0)
        ratio = torch.where(known, self.last[rows] / self.before[rows].clamp(min=TINY), 1.0)
        weights = len(rows) * (ratio / self.config.temperature).softmax(dim=0)
        return (losses * weights.to(losses)).sum()

    def _turn(self, period: int) -> None:
        if period == int(self.period):
            return
        seen = self.count > 0
        self.before.copy_(torch.where(seen, self.last, self.before))
        self.last.copy_(torch.where(seen, self.total / self.count.clamp(min=1), self.last))
        self.total.zero_()
        self.count.zero_()
        self.period.fill_(period)


class Famo(LossBalancer):
    """Fast adaptive multitask optimisation: equal relative decrease of all tasks, at one gradient a step.

    Math: minimises sum_i c w_i log(L_i) with w = softmax(z), c = 1 / sum_i (w_i / L_i); afterwards z takes an
    Adam step (with its decay added to the gradient) along (dw/dz)^T d, d_i = log L_i before - log L_i after.
    Why: `after_step` needs the batch's losses under the new parameters, one more forward pass. The task that
    fell least gains weight.
    Ref: Liu et al. 2023.
    """

    looks_back: ClassVar[bool] = True
    z: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How the weights move."""

        lr: float = 0.025
        """learning rate of z"""
        decay: float = 1e-3
        """pull of z towards equal weights"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not self.lr > 0 or not self.decay >= 0:
                found = f"lr {self.lr:g}, decay {self.decay:g}"
                raise ConfigError.at("balance", found, "a positive lr, a decay of 0 or more", "Try lr=0.025.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Equal weights; z has Adam moments of its own."""
        super().__init__(config, names)
        for name in ("z", "first", "second"):
            self.register_buffer(name, torch.zeros(len(names)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._before: Tensor | None = None

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the weighted sum of logarithms."""
        log = logs(losses, self.names, now)
        self._before = log.detach()
        w = self.z[list(now.present)].softmax(dim=0)
        scale = 1.0 / (w / losses.detach().clamp(min=TINY)).sum()
        return (scale * w * log).sum()

    def after_step(self, losses: Float[Tensor, " k"], now: Moment) -> None:
        """Move z by what the step did to the same batch's losses."""
        if self._before is None or len(self._before) != len(losses):
            return
        decrease = self._before - logs(losses.detach(), self.names, now)
        w = self.z[list(now.present)].softmax(dim=0)
        grad = torch.zeros_like(self.z)
        grad[list(now.present)] = w * (decrease - (w * decrease).sum())  # dw/dz, a symmetric matrix
        self._adam(grad + self.config.decay * self.z)
        self._before = None

    def _adam(self, grad: Float[Tensor, " all"]) -> None:
        self.steps += 1
        count = int(self.steps)
        self.first.lerp_(grad, 1 - 0.9)
        self.second.lerp_(grad.square(), 1 - 0.999)
        mean, square = self.first / (1 - 0.9**count), self.second / (1 - 0.999**count)
        self.z -= self.config.lr * mean / (square.sqrt() + 1e-8)
