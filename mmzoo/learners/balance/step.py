"""One balanced step: losses in; out one scalar whose backward pass leaves the balanced gradient.

Why: Lightning's automatic optimisation stays as it is (accumulation, clipping, precision, DDP's averaging):
the gradients found task by task ride on the scalar.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.errors import MmzooError
from mmzoo.layers import distributed
from mmzoo.learners.balance.base import GradientBalancer, LossBalancer, Moment, cosines

Gradients = list[Tensor | None]
"""One a parameter; None where a loss does not depend on it."""


@dataclass(frozen=True)
class Parameters:
    """The parameters that learn, those that tasks share and the others."""

    shared: Sequence[nn.Parameter]
    private: Sequence[nn.Parameter]

    @staticmethod
    def of(model: nn.Module, prefixes: Sequence[str]) -> Parameters:
        """Divide a model's parameters: names that begin with one of the prefixes are shared."""
        starts = tuple(f"{p}." for p in prefixes)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        shared = [p for n, p in named if f"{n}.".startswith(starts)]
        return Parameters(shared, [p for n, p in named if not f"{n}.".startswith(starts)])


def global_values(losses: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the same gradients, with the values of the global batch: the ranks' mean."""
    if distributed.world_size() == 1:
        return losses
    values = losses.detach().clone()
    torch.distributed.all_reduce(values)
    return losses + (values / distributed.world_size() - losses.detach())


def loss_step(
    balancer: LossBalancer, losses: Float[Tensor, " k"], now: Moment
) -> tuple[Float[Tensor, ""], Float[Tensor, " k"]]:
    """Return what is minimised and the weight that each loss has in it."""
    total = balancer(losses, now)
    if not losses.requires_grad:
        return total, torch.zeros_like(losses)
    (weights,) = torch.autograd.grad(total, losses, retain_graph=True)
    return total, weights.detach()


def gradient_step(
    balancer: GradientBalancer,
    losses: Float[Tensor, " k"],
    aux: Float[Tensor, ""] | None,
    parameters: Parameters,
    now: Moment,
) -> tuple[Float[Tensor, ""], Float[Tensor, " k"], Float[Tensor, "k p"]]:
    """Return a scalar whose backward pass leaves the balanced gradients, the weights, the tasks' gradients.

    Auxiliary losses are added unbalanced. Costs a backward pass a task, and one more for those. Losses and
    gradients must be finite: no balancer has an answer to others.
    """
    asked = [*parameters.shared, *parameters.private]
    terms = [*losses.unbind(), *([] if aux is None else [aux])]
    found = [_grads(term, asked, keep=i + 1 < len(terms)) for i, term in enumerate(terms)]
    cut = len(parameters.shared)
    grads = stack([g[:cut] for g in found[: len(losses)]], parameters.shared)
    _check_finite(losses.detach(), grads, [balancer.names[i] for i in now.present], now.step)
    combined = balancer(grads, losses.detach(), now)
    factors = combined.private if combined.private is not None else grads.new_ones(len(losses))
    sums: Gradients = _split(combined.shared, parameters.shared, [g[:cut] for g in found])
    sums += [_sum([g[i] for g in found[: len(losses)]], factors) for i in range(cut, len(asked))]
    if aux is not None:
        sums = [_sum([a, b], grads.new_ones(2)) for a, b in zip(sums, found[-1], strict=True)]
    value = losses.detach().sum() + (0.0 if aux is None else aux.detach())
    kept = [(p, g) for p, g in zip(asked, sums, strict=True) if g is not None]
    total: Tensor = _Carry.apply(value, [g for _, g in kept], *[p for p, _ in kept])  # pyright: ignore[reportAssignmentType] untyped in torch
    return total if combined.extra is None else total + combined.extra, combined.weights, grads


def shared_gradients(losses: Float[Tensor, " k"], shared: Sequence[nn.Parameter]) -> Float[Tensor, "k p"]:
    """Return each loss's gradient of the shared parameters; the graph stays for the step itself."""
    return stack([_grads(loss, shared, keep=True) for loss in losses.unbind()], shared)


def cosine_figures(grads: Float[Tensor, "k p"], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the cosine of every pair of tasks, named `train/cosine/a|b`."""
    found = cosines(grads)
    pairs = itertools.combinations(range(len(names)), 2)
    return {f"train/cosine/{names[i]}|{names[j]}": found[i, j] for i, j in pairs}


def weight_figures(weights: Float[Tensor, " k"], names: Sequence[str]) -> Mapping[str, Tensor]:
    """Return each task's weight in the step, named `train/balance/a`."""
    return {f"train/balance/{name}": w for name, w in zip(names, weights, strict=True)}


def stack(grads: Sequence[Gradients], parameters: Sequence[nn.Parameter]) -> Float[Tensor, "k p"]:
    """Return the gradients as rows, of the global batch where there are several ranks."""
    rows = [
        torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(parameters, row, strict=True)
            ]
        )
        for row in grads
    ]
    stacked = torch.stack(rows)
    if distributed.world_size() > 1:
        torch.distributed.all_reduce(stacked)
        stacked /= distributed.world_size()
    return stacked


def _check_finite(
    losses: Float[Tensor, " k"], grads: Float[Tensor, "k p"], names: Sequence[str], number: int
) -> None:
    """Raise where a loss is infinite or no number, or a gradient is or is too long for its square to be told.

    All ranks hold the same values and raise together. Float16, whose loss scaling makes infinite gradients a
    matter of course, is refused beforehand (`Balancing.check`).
    """
    squares = torch.linalg.vecdot(grads, grads)
    rows = list(zip(names, *torch.stack([losses.to(squares), squares]).tolist(), strict=True))
    rows.sort(key=lambda row: math.isfinite(row[1]))  # a task without a loss is the cause of other gradients
    for name, loss, square in rows:
        if not math.isfinite(loss + square):
            found = f"loss {loss:g} with a gradient of norm {math.sqrt(square):g} at step {number + 1}"
            do = "Lower learner.optim.lr, or look at the batch: gradients cannot be balanced."
            raise MmzooError.at(f"tasks.{name}", found, "finite numbers", do)


def _grads(loss: Tensor, parameters: Sequence[nn.Parameter], *, keep: bool) -> Gradients:
    if not loss.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(loss, list(parameters), retain_graph=keep, allow_unused=True))


def _split(flat: Tensor, parameters: Sequence[nn.Parameter], found: Sequence[Gradients]) -> Gradients:
    """Cut a flat gradient into the parameters' shapes; None where no loss of any rank may depend on one."""
    pieces = flat.split([p.numel() for p in parameters])
    alone = distributed.world_size() == 1
    return [
        None if alone and all(g[i] is None for g in found) else piece.view_as(p)
        for i, (piece, p) in enumerate(zip(pieces, parameters, strict=True))
    ]


def _sum(grads: Sequence[Tensor | None], factors: Tensor) -> Tensor | None:
    terms = [g * factor for g, factor in zip(grads, factors, strict=True) if g is not None]
    return torch.stack(terms).sum(dim=0) if terms else None


class _Carry(torch.autograd.Function):
    """A value whose gradients are given: each parameter gets its own, times what the scalar is scaled by."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *parameters: Tensor) -> Tensor:
        del parameters
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (scale,) = outputs
        return (None, None, *[g * scale for g in ctx.grads])
