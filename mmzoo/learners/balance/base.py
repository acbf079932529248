"""What a balancer is: the losses of the tasks in a batch, or their gradients, made into one step.

Axis letters: k tasks that the batch has samples of, p entries of the shared parameters together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema

Gram = np.ndarray[Any, np.dtype[np.float64]]
"""(k, k) inner products of the tasks' gradients."""
Weights = np.ndarray[Any, np.dtype[np.float64]]
"""(k) one number a task."""


@dataclass(frozen=True)
class Moment:
    """When a balancer is asked, and about which of the tasks.

    `present` numbers the tasks of the rows given, ascending: a batch may lack the labels of some. The
    generator is seeded by the batch's number, alike on all ranks.
    """

    present: tuple[int, ...]
    generator: torch.Generator
    step: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Combined:
    """What a gradient balancer decides.

    Shape: shared (p) the gradient of the shared parameters; weights (k) what each task counts in it, for the
    log; private (k) factors on each task's loss for all other parameters (None: 1); extra: a loss of the
    balancer's own parameters.
    """

    shared: Float[Tensor, " p"]
    weights: Float[Tensor, " k"]
    private: Float[Tensor, " k"] | None = None
    extra: Float[Tensor, ""] | None = None


class Balancer(nn.Module, schema.Configurable):
    """Turns the losses of several tasks into one step.

    Parameters of its own are trained by the learner's optimiser, at the rate `lr` and without weight decay;
    what else it remembers are buffers, so that both survive a resumed run. Losses come multiplied by the
    tasks' `weight`.
    """

    looks_back: ClassVar[bool] = False
    """whether it wants the batch's losses once more after the step (`after_step`)"""
    lr: float = 0.0

    def __init__(self, config: Any, names: tuple[str, ...]) -> None:
        """Keep the options and the names of all tasks, which batches may lack."""
        super().__init__()
        self.config, self.names = config, names

    def after_step(self, losses: Float[Tensor, " k"], now: Moment) -> None:
        """Learn from the losses of the same batch after the optimiser has stepped."""
        del losses, now


class LossBalancer(Balancer):
    """Combines loss values; costs no more than a plain sum."""

    def forward(self, losses: Float[Tensor, " k"], now: Moment) -> Float[Tensor, ""]:
        """Return what is minimised; its derivatives are the tasks' weights.

        Shape: losses of the tasks in `now.present`, values of the global batch on every rank.
        """
        raise NotImplementedError


class GradientBalancer(Balancer):
    """Combines the tasks' gradients of the shared parameters; costs a backward pass a task.

    Subclasses give `weigh`, or the whole `forward`. One task alone is left as it is.
    """

    def forward(self, grads: Float[Tensor, "k p"], losses: Float[Tensor, " k"], now: Moment) -> Combined:
        """Return the combined gradient.

        Shape: grads (k p) of the shared parameters and losses (k), both of the global batch, without graph.
        """
        weights = np.ones(1) if len(grads) == 1 else self.weigh(gram(grads), now)
        found = torch.from_numpy(np.ascontiguousarray(weights)).to(grads)
        return Combined(found @ grads, found)

    def weigh(self, products: Gram, now: Moment) -> Weights:
        """Return the weights of the gradients, from their inner products alone."""
        raise NotImplementedError


def gram(grads: Float[Tensor, "k p"]) -> Gram:
    """Return the inner products in float64 on the host."""
    return (grads @ grads.T).double().cpu().numpy()


def cosines(grads: Float[Tensor, "k p"]) -> Float[Tensor, "k k"]:
    """Return the cosines between all pairs of gradients, zero where one is zero."""
    products = grads @ grads.T
    norms = products.diagonal().clamp(min=1e-30).sqrt()
    return products / (norms[:, None] * norms[None])


def kept(buffer: Float[Tensor, "all ..."], now: Moment) -> Float[Tensor, "k ..."]:
    """Return the rows of the tasks present."""
    return buffer[list(now.present)]
