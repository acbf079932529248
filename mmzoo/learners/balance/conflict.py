"""Balancing that removes conflicts between gradients pair by pair: PCGrad, GradVac."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.base import GradientBalancer, Gram, Moment, Weights

SMALL = 1e-30
"""A squared norm below it has no direction."""


class PcGrad(GradientBalancer):
    """Projecting conflicting gradients: each gradient loses what points against another.

    Math: for each i, in random order of j: if g_i'.g_j < 0 then g_i' -= (g_i'.g_j / |g_j|^2) g_j; the sum of
    all g_i'. All stay combinations of the g, so that their inner products are enough.
    Ref: Yu et al. 2020.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Return the coefficients of the sum."""
        found = np.eye(len(products))
        for i, row in enumerate(found):
            for j in torch.randperm(len(products), generator=now.generator).tolist():
                inner = float(row @ products[:, j])
                if j != i and inner < 0 and products[j, j] > SMALL:
                    row[j] -= inner / products[j, j]
        return found.sum(axis=0)


class GradVac(GradientBalancer):
    """Gradient vaccine: raises each pair's cosine to its running mean.

    Math: with c = cos(g_i', g_j) below the target r: g_i' += |g_i'| (r sqrt(1-c^2) - c sqrt(1-r^2)) / (|g_j|
    sqrt(1-r^2)) g_j, after which the cosine is r; then r <- (1-beta) r + beta c.
    Ref: Wang et al. 2021.
    """

    target: Tensor

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How fast the targets follow."""

        beta: float = 0.5
        """share of a new cosine in its running mean, 0 to 1"""

        def __post_init__(self) -> None:
            """Check the range."""
            if not 0 <= self.beta <= 1:
                raise ConfigError.at("balance.beta", str(self.beta), "a share in 0..1", "Try 0.5.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Targets start at 0."""
        super().__init__(config, names)
        self.register_buffer("target", torch.zeros(len(names), len(names), dtype=torch.float64))

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Return the coefficients of the sum; move the targets."""
        found = np.eye(len(products))
        target = self.target.cpu().numpy().copy()
        for i, row in enumerate(found):
            for j in torch.randperm(len(products), generator=now.generator).tolist():
                if j != i:
                    place = now.present[i], now.present[j]
                    cosine = _raise(row, products, j, float(target[place]))
                    target[place] += self.config.beta * (cosine - target[place])
        self.target.copy_(torch.from_numpy(target))
        return found.sum(axis=0)


def _raise(row: Weights, products: Gram, j: int, target: float) -> float:
    """Raise a gradient's cosine with gradient j to the target, in place; return what it was."""
    own, other = np.sqrt(max(float(row @ products @ row), 0.0)), np.sqrt(products[j, j])
    if own * other <= SMALL:
        return 0.0
    cosine = float(np.clip(row @ products[:, j] / (own * other), -1.0, 1.0))
    if cosine < target:
        sine = np.sqrt(max(1 - target**2, 1e-12))
        row[j] += own * (target * np.sqrt(1 - cosine**2) - cosine * sine) / (other * sine)
    return cosine
