"""Balancing by the sizes of the gradients: GradNorm, DB-MTL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.base import Combined, GradientBalancer, Moment, kept
from mmzoo.learners.balance.losses import TINY, LearnedConfig, logs


class GradNorm(GradientBalancer):
    """Learned weights under which tasks that learn slowly have the larger gradients.

    Math: w = k softmax(s); s minimises sum_i | w_i |g_i| - mean_j(w_j |g_j|) r_i^a |, the mean term held
    fixed, r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)), L_i / L_i(0) = 1 while a task had no loss yet; all
    parameters see sum_i w_i L_i.
    Ref: Chen et al. 2018; softmax in place of their renormalisation, as LibMTL.
    """

    first: Tensor

    @dataclass(kw_only=True)
    class Config(LearnedConfig):
        """How strongly rates are evened out."""

        alpha: float = 1.5
        """a: 0 evens out the gradients' norms alone"""

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Equal weights; first losses unknown (0)."""
        super().__init__(config, names)
        self.lr = config.lr
        self.log_weight = nn.Parameter(torch.zeros(len(names)))
        self.register_buffer("first", torch.zeros(len(names)))

    def forward(self, grads: Float[Tensor, "k p"], losses: Float[Tensor, " k"], now: Moment) -> Combined:
        """Return the weighted sum, and the loss of the weights."""
        rows = list(now.present)
        losses = losses.clamp(min=0.0)  # rounding may leave a solved task a trifle below zero
        self.first[rows] = torch.where(self.first[rows] > TINY, self.first[rows], losses)
        known = self.first[rows] > TINY
        weights = len(rows) * kept(self.log_weight, now).softmax(dim=0)
        sizes = weights * grads.norm(dim=1)
        rate = torch.where(known, losses / self.first[rows].clamp(min=TINY), 1.0)
        rate = rate / rate.mean().clamp(min=TINY)
        aim = (sizes.mean() * rate**self.config.alpha).detach()
        fixed = weights.detach()
        return Combined(fixed @ grads, fixed, fixed, (sizes - aim).abs().sum())


class DbMtl(GradientBalancer):
    """Dual-balancing: logarithms even out the losses, a common norm the gradients.

    Math: G_i <- b_t G_i + (1 - b_t) grad log L_i, b_t = beta / t^decay; the step is
    max_j |G_j| sum_i G_i / |G_i|. All other parameters see sum_i log L_i.
    Ref: Lin et al. 2023. The running mean holds k times the shared parameters, in the checkpoint too.
    """

    average: Tensor
    count: Tensor

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How the running mean forgets."""

        beta: float = 0.9
        """share of the past in the running mean, in [0, 1)"""
        decay: float = 0.5
        """power of the step number that beta is divided by"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not 0 <= self.beta < 1 or not self.decay >= 0:
                found = f"beta {self.beta:g}, decay {self.decay:g}"
                raise ConfigError.at("balance", found, "beta in [0, 1), decay of 0 or more", "Try beta=0.9.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Nothing averaged yet; the shared parameters are counted at the first step."""
        super().__init__(config, names)
        self.register_buffer("average", torch.zeros(len(names), 0))
        self.register_buffer("count", torch.zeros(len(names)))
        self.register_load_state_dict_pre_hook(_make_room)

    def forward(self, grads: Float[Tensor, "k p"], losses: Float[Tensor, " k"], now: Moment) -> Combined:
        """Return the sum of equally long running means."""
        if self.average.shape[1] != grads.shape[1]:  # at first, and where parameters were frozen or thawed
            self.average = grads.new_zeros(len(self.names), grads.shape[1])
            self.count.zero_()
        logs(losses, self.names, now)
        inverse = torch.where(losses > TINY, 1.0 / losses.clamp(min=TINY), 0.0)  # a solved task stands still
        rows = list(now.present)
        self.count[rows] += 1
        share = self.config.beta / self.count[rows] ** self.config.decay
        share = torch.where(self.count[rows] == 1, 0.0, share)[:, None]
        mean = share * self.average[rows] + (1 - share) * grads * inverse[:, None]
        self.average[rows] = mean
        norms = mean.norm(dim=1).clamp(min=TINY)
        factor = norms.max() / norms
        return Combined(factor @ mean, factor * inverse, inverse)


def _make_room(module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    """Give the running mean the size it was saved with."""
    del rest
    saved = state.get(f"{prefix}average")
    if saved is not None:
        module.average = torch.zeros_like(saved, device=module.get_buffer("average").device)
