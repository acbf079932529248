"""Balancing by one direction that suits all tasks: MGDA, CAGrad, IMTL, Nash-MTL, Aligned-MTL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.base import Combined, GradientBalancer, Gram, Moment, Weights, gram
from mmzoo.learners.balance.losses import TINY, LearnedConfig
from mmzoo.learners.balance.simplex import min_norm, minimise

RIDGE = 1e-9
"""Share of the mean squared norm added to a Gram matrix that must be inverted."""


class Normalise(str, Enum):
    """What gradients are divided by before MGDA compares them."""

    NONE = "none"
    L2 = "l2"
    LOSS = "loss"
    LOSS_L2 = "loss_l2"


class Mgda(GradientBalancer):
    """Multiple-gradient descent: the shortest vector in the convex hull of the gradients.

    Math: w = argmin over the simplex of |sum_i w_i g_i / n_i|^2, n by `normalise`; the step is sum_i w_i g_i.
    Ref: Désidéri 2012; Sener & Koltun 2018, whose normalisations serve the search alone.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How gradients are compared."""

        normalise: Normalise = Normalise.NONE
        """what each gradient is divided by in the search: none, l2 its norm, loss its loss, loss_l2 both"""

    def forward(self, grads: Float[Tensor, "k p"], losses: Float[Tensor, " k"], now: Moment) -> Combined:
        """Return the weighted sum."""
        if len(grads) == 1:
            return Combined(grads[0], grads.new_ones(1))
        products, how = gram(grads), self.config.normalise
        unit = np.ones(len(grads))
        if how in (Normalise.L2, Normalise.LOSS_L2):
            unit = unit * np.sqrt(np.diag(products))
        if how in (Normalise.LOSS, Normalise.LOSS_L2):
            unit = unit * losses.double().cpu().numpy()
        unit = np.maximum(unit, 1e-30)
        weights = torch.from_numpy(min_norm(products / np.outer(unit, unit))).to(grads)
        return Combined(weights @ grads, weights)


class CaGrad(GradientBalancer):
    """Conflict-averse gradient descent: near the mean gradient, the direction best for the worst-off task.

    Math: g0 = mean_i g_i; w = argmin over the simplex of g_w.g0 + c |g0| |g_w|, g_w = sum_i w_i g_i; the step
    is (g0 + c |g0| / |g_w| g_w) / (1 + c^2).
    Ref: Liu et al. 2021.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How far from the mean."""

        c: float = 0.5
        """radius around the mean gradient, as a share of its norm, 0 to 1"""

        def __post_init__(self) -> None:
            """Check the range."""
            if not 0 <= self.c < 1:
                raise ConfigError.at("balance.c", str(self.c), "a share in [0, 1)", "Try 0.5.")

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Return 1/k plus what the search adds, rescaled."""
        del now
        size, c = len(products), self.config.c
        scaled = products / max(float(np.trace(products)), 1e-300)
        mean = np.full(size, 1.0 / size)
        radius = c * np.sqrt(max(float(mean @ scaled @ mean), 0.0))

        def problem(w: Weights) -> tuple[float, Weights]:
            moved = scaled @ w
            norm = np.sqrt(max(float(w @ moved), 1e-24))
            return float(moved @ mean + radius * norm), scaled @ mean + radius * moved / norm

        w = minimise(problem, size)
        norm = np.sqrt(max(float(w @ scaled @ w), 1e-24))
        return (mean + radius / norm * w) / (1 + c**2)


class Scale(str, Enum):
    """Whether IMTL also learns the losses' scales."""

    GRADIENT = "gradient"
    HYBRID = "hybrid"


class Imtl(GradientBalancer):
    """Impartial learning: the combined gradient has equal projections onto all tasks' directions.

    Math: sum_i w_i = 1 and d.u_1 = d.u_j for all j, d = sum_i w_i g_i, u_i = g_i / |g_i| (IMTL-G); with
    `losses=hybrid` each loss is first scaled by e^{s_i}, s learned through e^{s_i} L_i - s_i (IMTL-L).
    Ref: Liu et al. 2021 (ICLR).
    """

    @dataclass(kw_only=True)
    class Config(LearnedConfig):
        """Gradients alone, or losses too."""

        losses: Scale = Scale.GRADIENT
        """gradient: IMTL-G; hybrid: IMTL-L on top, with learned scales"""

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """Scales start at 1."""
        super().__init__(config, names)
        self.log_scale = None
        if config.losses is Scale.HYBRID:
            self.log_scale = nn.Parameter(torch.zeros(len(names)))
            self.lr = config.lr

    def forward(self, grads: Float[Tensor, "k p"], losses: Float[Tensor, " k"], now: Moment) -> Combined:
        """Return the impartial combination."""
        if self.log_scale is None:
            return super().forward(grads, losses, now)
        s = self.log_scale[list(now.present)]
        factor = s.detach().exp()
        found = super().forward(grads * factor[:, None], losses, now)
        return Combined(found.shared, found.weights * factor, factor, (s.exp() * losses - s).sum())

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Solve for equal projections."""
        del now
        norms = np.sqrt(np.maximum(np.diag(products), 1e-30))
        along = products / norms  # [i, j] = g_i . u_j
        spread = along[:, :1] - along[:, 1:]  # g_i . (u_1 - u_j)
        # sum_i w_i g_i . (u_1 - u_j) = 0 for all j, with w_1 = 1 - sum of the others
        others = np.linalg.lstsq((spread[:1] - spread[1:]).T, spread[0], rcond=1e-10)[0]
        return np.concatenate([[1 - others.sum()], others])


class NashMtl(GradientBalancer):
    """The Nash bargaining solution: weights at which no task can gain relatively more than another loses.

    Math: a > 0 with M a = 1 / a, M the Gram matrix over its Frobenius norm; it minimises the convex
    a^T M a / 2 - sum_i log a_i, which damped Newton steps do. All other parameters see sum_i a_i L_i; the
    shared ones' gradient is shortened to `max_norm`.
    Ref: Navon et al. 2022 and LibMTL, who solve a sequence of convex programs.
    """

    solution: Tensor
    asked: Tensor

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How often to solve, and how long a step may be."""

        every: int = 1
        """batches between solutions; in between the last weights hold"""
        max_norm: float = 1.0
        """longest gradient of the shared parameters; longer ones are shortened. 0: no limit"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if self.every < 1:
                raise ConfigError.at("balance.every", str(self.every), "at least 1", "Set 1.")
            if not self.max_norm >= 0:
                raise ConfigError.at("balance.max_norm", f"{self.max_norm:g}", "0 or more", "Set 1.")

    def __init__(self, config: Config, names: tuple[str, ...]) -> None:
        """No solution yet (0)."""
        super().__init__(config, names)
        self.register_buffer("solution", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))

    def forward(self, grads: Float[Tensor, "k p"], losses: Float[Tensor, " k"], now: Moment) -> Combined:
        """Return the weighted sum, no longer than allowed; the weights hold for all other parameters."""
        found = super().forward(grads, losses, now)
        if len(grads) == 1 or self.config.max_norm == 0:
            return Combined(found.shared, found.weights, found.weights)
        factor = (self.config.max_norm / found.shared.norm().clamp(min=TINY)).clamp(max=1.0)
        return Combined(factor * found.shared, factor * found.weights, found.weights)

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Solve, or repeat the last solution."""
        rows = list(now.present)
        due = int(self.asked) % self.config.every == 0
        self.asked += 1
        if due or not bool((self.solution[rows] > 0).all()):
            self.solution[rows] = torch.from_numpy(bargain(products)).to(self.solution)
        return self.solution[rows].cpu().numpy()


def bargain(products: Gram) -> Weights:
    """Return a > 0 with M a = 1 / a, M the inner products over their Frobenius norm (plus a tiny ridge).

    Ref: damped Newton steps for self-concordant functions, Boyd & Vandenberghe 2004, section 9.6.
    """
    matrix = products / max(float(np.linalg.norm(products)), 1e-300)
    matrix = matrix + RIDGE * np.eye(len(matrix)) * max(float(np.diag(matrix).mean()), 1e-30)
    a = 1.0 / np.sqrt(np.diag(matrix))
    for _ in range(100):
        slope = matrix @ a - 1.0 / a
        newton = -np.linalg.solve(matrix + np.diag(a**-2), slope)
        decrement = np.sqrt(max(float(-slope @ newton), 0.0))
        a = a + newton / (1.0 + decrement if decrement > 0.25 else 1.0)
        if decrement < 1e-12:
            break
    return a


class Level(str, Enum):
    """The singular value that Aligned-MTL gives to all directions."""

    MIN = "min"
    MEDIAN = "median"
    RMSE = "rmse"


class AlignedMtl(GradientBalancer):
    """Aligned gradients: principal directions of the gradient matrix get equal singular values.

    Math: M = G G^T = V diag(l) V^T; w = sqrt(l*) V diag(l^{-1/2}) V^T 1 over the directions with l above
    rounding; l* the smallest, the median or the mean of l.
    Ref: Senushkin et al. 2023.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Which scale to give all directions."""

        scale: Level = Level.MIN
        """min (which cannot overshoot), median or rmse"""

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Return the column sums of the aligning matrix."""
        del now
        return alignment(products, self.config.scale).sum(axis=0)


def alignment(products: Gram, scale: Level) -> Gram:
    """Return B with G^T B aligned: all its singular values are equal."""
    values, vectors = np.linalg.eigh(products)
    real = values > values[-1] * len(values) * float(np.finfo(np.float32).eps)
    if not real.any() or values[-1] <= 0:
        return np.eye(len(products))
    values, vectors = values[real], vectors[:, real]
    wanted = {Level.MIN: values.min(), Level.MEDIAN: np.median(values), Level.RMSE: values.mean()}[scale]
    return np.sqrt(wanted) * (vectors / np.sqrt(values)) @ vectors.T
