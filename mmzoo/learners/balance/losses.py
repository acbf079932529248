"""Balancing by a formula of the loss values alone: equal, static, uncertainty, automatic, GLS, STCH."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.base import LossBalancer, Moment, kept

TINY = 1e-6
"""A loss below it is solved: it has no logarithm worth having, and no gradient through it."""
ROUNDING = -1e-4
"""A loss of zero may come out this far below it."""


class Static(LossBalancer):
    """Sum of the losses, each times its task's `weight` (the default).

    Math: sum_i w_i L_i.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options: the weights are those of the tasks."""

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the sum; the weights are in the losses already."""
        del now
        return losses.sum()


class Equal(LossBalancer):
    """Sum of the losses with the tasks' `weight` taken out again.

    Math: sum_i L_i.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def __init__(self, config: Config, names: tuple[str, ...], weights: tuple[float, ...] = ()) -> None:
        """Keep the weights to take out (none: all are 1)."""
        super().__init__(config, names)
        self.weights = weights or (1.0,) * len(names)

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the plain sum."""
        return (losses / losses.new_tensor([self.weights[i] for i in now.present])).sum()


@dataclass(kw_only=True)
class LearnedConfig(schema.Config):
    """What methods with a learned number a task share."""

    lr: float = 1e-2
    """peak learning rate of the learned numbers, on the learner's schedule"""

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.lr > 0:
            raise ConfigError.at("balance.lr", str(self.lr), "a positive number", "Try 0.01.")


class Uncertainty(LossBalancer):
    """Homoscedastic uncertainty: each task learns its log-variance s.

    Math: sum_i L_i / (2 e^{s_i}) + s_i / 2; for fixed losses best at e^{s_i} = L_i.
    Ref: Kendall et al. 2018, in the form of LibMTL (s starts at -0.5).
    """

    @dataclass(kw_only=True)
    class Config(LearnedConfig):
        """Rate and start."""

        start: float = -0.5
        """s at first"""

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """One s a task."""
        super().__init__(config, names)
        self.lr = config.lr
        self.log_var = nn.Parameter(torch.full((len(names),), config.start))

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the likelihood's loss."""
        s = kept(self.log_var, now)
        return (losses * torch.exp(-s) / 2 + s / 2).sum()


class Automatic(LossBalancer):
    """Learned weights with a logarithmic price.

    Math: sum_i L_i / (2 s_i^2) + log(1 + s_i^2); for fixed losses best at L_i = 2 s_i^4 / (1 + s_i^2).
    Ref: Liebel & Koerner 2018, as Mod-Squad uses it.
    """

    @dataclass(kw_only=True)
    class Config(LearnedConfig):
        """Rate and start."""

        start: float = 1.0
        """s at first, above 0"""

        def __post_init__(self) -> None:
            """Check the range."""
            super().__post_init__()
            if not self.start > 0:
                raise ConfigError.at("balance.start", str(self.start), "a positive number", "Try 1.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """One s a task."""
        super().__init__(config, names)
        self.lr = config.lr
        self.scale = nn.Parameter(torch.full((len(names),), config.start))

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the weighted sum with its price."""
        squared = kept(self.scale, now).square()
        return (losses / (2 * squared) + torch.log1p(squared)).sum()


class Gls(LossBalancer):
    """Geometric loss strategy: the losses' geometric mean, blind to their units.

    Math: (prod_i L_i)^{1/k}; the weight of task i is the mean over k L_i.
    Ref: Chennupati et al. 2019.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the geometric mean."""
        return logs(losses, self.names, now).mean().exp()


class Stch(LossBalancer):
    """Smooth Tchebycheff scalarisation: a soft maximum of the losses, relative to what they were.

    Math: k mu log sum_i exp(log(L_i / N_i) / mu) with N the mean losses of the warm-up, during which
    sum_i log L_i is minimised.
    Ref: Lin et al. 2024.
    """

    total: Tensor
    count: Tensor

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Smoothness and warm-up."""

        mu: float = 1.0
        """smoothness: towards 0 only the worst task counts"""
        warmup_steps: int = 100
        """batches over which N is measured"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not self.mu > 0 or self.warmup_steps < 1:
                found = f"mu {self.mu:g}, warmup_steps {self.warmup_steps}"
                raise ConfigError.at("balance", found, "numbers above 0", "Try mu=1 warmup_steps=100.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Nothing measured yet."""
        super().__init__(config, names)
        self.register_buffer("total", torch.zeros(len(names)))
        self.register_buffer("count", torch.zeros(len(names)))

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return the sum of logarithms at first, the soft maximum afterwards."""
        rows = list(now.present)
        warming = now.step < self.config.warmup_steps
        fresh = warming | (self.count[rows] == 0)  # a task first seen later is measured then
        self.total[rows] += torch.where(fresh, losses.detach(), 0.0)
        self.count[rows] += fresh.to(self.count)
        log = logs(losses, self.names, now)
        if warming:
            return log.sum()
        reference = (self.total[rows] / self.count[rows]).clamp(min=TINY).log()
        return len(rows) * self.config.mu * torch.logsumexp((log - reference) / self.config.mu, dim=0)


def logs(losses: Float[Tensor, " k"], names: tuple[str, ...], now: Moment) -> Float[Tensor, " k"]:
    """Return the losses' logarithms, those of solved ones held; a negative loss is an error that names it."""
    if bool((losses < ROUNDING).any()):
        worst = int(losses.argmin())
        found = f"loss {float(losses[worst]):.3g} of {names[now.present[worst]]}"
        do = "Choose a balancer that takes no logarithm, such as uncertainty."
        raise ConfigError.at("learner.balance", found, "losses of 0 or more", do)
    return losses.clamp(min=TINY).log()
