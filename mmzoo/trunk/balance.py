"""Losses that keep experts in use, each by its formula, over any set of tokens (there is no padding here).

Axis letters: t tokens, e experts, k chosen experts of a token, s conditions (tasks or modalities).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.trunk.base import Aux
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.router import Routing

CV_EPS = 1e-10


class BalanceScope(str, Enum):
    """Over which tokens use of the experts is to be even."""

    ALL = "all"
    """all tokens of the buffer together: tasks and modalities may share the experts out among them"""
    TASK = "task"
    """each task's by themselves, then the mean over tasks"""
    MODALITY = "modality"
    """each modality's by themselves, then the mean over modalities"""


class Condition(str, Enum):
    """What experts are to specialise in."""

    TASK = "task"
    MODALITY = "modality"


class Compat(str, Enum):
    """Whose released code to follow where it departs from its paper."""

    NONE = "none"
    M3VIT = "m3vit"
    MODSQUAD = "modsquad"


@dataclass(kw_only=True)
class BalanceConfig(schema.Config):
    """Weights of the balance losses of a layer; a loss is the mean over the layers that have it."""

    load_balance_weight: float = 0.01
    """of experts x sum_e (share of choices x mean probability), 1 where use is even (Switch)"""
    z_weight: float = 0.0
    """of the mean squared logsumexp of the logits (ST-MoE; usual: 1e-3)"""
    cv2_weight: float = 0.0
    """of the squared coefficients of variation of importance and load (Shazeer et al. 2017; M3ViT)"""
    mutual_information_weight: float = 0.0
    """of minus the mutual information of experts and `condition` (Mod-Squad: 0.005)"""
    condition: Condition = Condition.TASK
    """what mutual information ties experts to"""
    scope: BalanceScope = BalanceScope.ALL
    """over which tokens load_balance and cv2 count"""
    compat: Compat = Compat.NONE
    """m3vit: cv2's load compares logits with probabilities; modsquad: cv2 counts importance alone, and
    mutual information adds 1e-4 to marginals and ratio; as those codes do"""

    def __post_init__(self) -> None:
        """Check the signs."""
        for name in ("load_balance_weight", "z_weight", "cv2_weight", "mutual_information_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError.at(f"balance.{name}", str(getattr(self, name)), "0 or more", "Raise it.")

    @property
    def by_task(self) -> str:
        """Return the option by which a loss in use tells tasks apart, as `scope: task`; empty for none."""
        if self.mutual_information_weight and self.condition is Condition.TASK:
            return "condition: task (of mutual_information_weight)"
        if self.scope is BalanceScope.TASK and (self.load_balance_weight or self.cv2_weight):
            return "scope: task"
        return ""


def balance(routing: Routing, seq: SeqInfo, config: BalanceConfig) -> Aux:
    """Return every loss whose weight is not 0, times that weight."""
    aux: Aux = {}
    if not routing.experts_tk.shape[0]:
        return aux
    groups = [routing.rows(rows) for rows in _scope(routing, seq, config.scope)]
    if config.load_balance_weight:
        values = [load_balance(g, config.compat) for g in groups]
        aux["load_balance"] = config.load_balance_weight * _mean(values)
    if config.z_weight:
        aux["router_z"] = config.z_weight * z_loss(routing.logits_te)
    if config.cv2_weight:
        aux["cv2"] = config.cv2_weight * _mean([cv2(g, config.compat) for g in groups])
    if config.mutual_information_weight:
        rows = [rows for _, rows in spans(seq, config.condition)]
        information = mutual_information(joint_probs(routing, rows, config.compat), config.compat)
        aux["mutual_information"] = -config.mutual_information_weight * information
    return aux


def load_balance(routing: Routing, compat: Compat = Compat.NONE) -> Float[Tensor, ""]:
    """Return E sum_e f_e P_e, f the share of all (token, choice) pairs, P the mean probability. Where every
    token takes every expert, f is the share of the weights.

    Why: 1 where both are even, E / k at worst; counts of all experts would make it 1 and its gradient 0.
    Ref: Fedus et al. 2021, equation 4, with f over top_k choices.
    # compat(m3vit, modsquad): f is always a share of choices.
    """
    num_experts = routing.probs_te.shape[1]
    if routing.experts_tk.shape[1] == num_experts and compat is Compat.NONE:
        share = importance(routing)
    else:
        share = counts(routing)
    share = share / share.sum()
    mean = routing.probs_te.mean(0)
    return num_experts * (share * mean / mean.sum()).sum()  # probabilities with an offset sum to more than 1


def z_loss(logits_te: Float[Tensor, "t e"]) -> Float[Tensor, ""]:
    """Return mean_t logsumexp(logits_t)^2. Ref: Zoph et al. 2022 (ST-MoE), equation 5."""
    return torch.logsumexp(logits_te, dim=1).square().mean()


def cv2(routing: Routing, compat: Compat = Compat.NONE) -> Float[Tensor, ""]:
    """Return CV(importance)^2 + CV(load)^2, CV^2 = unbiased variance / squared mean.

    importance: sum of the weights given to an expert; load: expected number of tokens that choose it under
    the noise (see `expected_load`), the number itself without noise, which has no gradient.
    Ref: Shazeer et al. 2017, section 4 and appendix A.
    """
    if compat is Compat.MODSQUAD:  # compat(modsquad): no term for the load
        return _cv2(importance(routing))
    load = counts(routing) if routing.noise_std_te is None else expected_load(routing, compat)
    return _cv2(importance(routing)) + _cv2(load)


def expected_load(routing: Routing, compat: Compat = Compat.NONE) -> Float[Tensor, " e"]:
    """Return sum_t P(expert among the chosen if its own noise were drawn again).

    Math: Phi((clean_e - threshold) / std), the threshold being the largest noisy logit that would still
    suffice: the (k+1)-th where e is chosen, the k-th where it is not. Where a router forbids experts, what is
    certain (a gap without end) is counted as such and has no gradient.
    # compat(m3vit): thresholds are taken from the softmax, while clean and noisy values are logits.
    """
    top_k = routing.experts_tk.shape[1]
    if routing.noise_std_te is None or top_k == routing.probs_te.shape[1]:
        return counts(routing)
    ranked = routing.probs_te if compat is Compat.M3VIT else routing.logits_te
    top = ranked.topk(top_k + 1, dim=1).values
    chosen = routing.logits_te > top[:, top_k:]
    threshold = torch.where(chosen, top[:, top_k:], top[:, top_k - 1 : top_k])
    gap = routing.clean_te - threshold
    certain = gap.isinf()
    z = gap.masked_fill(certain, 0.0) / routing.noise_std_te
    share = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return torch.where(certain, (gap > 0).to(share.dtype), share).sum(0)


def joint_probs(
    routing: Routing, conditions: Sequence[Sequence[slice]], compat: Compat = Compat.NONE
) -> Float[Tensor, "s e"]:
    """Return P(condition, expert): the sum of an expert's probabilities over each condition's tokens, all
    divided by their total.
    # compat(modsquad): divided by the number of tokens, so that offsets make the sum more than 1.
    """
    sums = [torch.stack([routing.probs_te[rows].sum(0) for rows in own]).sum(0) for own in conditions]
    joint = torch.stack(sums)
    return joint / (len(routing.probs_te) if compat is Compat.MODSQUAD else joint.sum())


def mutual_information(joint_se: Float[Tensor, "s e"], compat: Compat = Compat.NONE) -> Float[Tensor, ""]:
    """Return sum P(s, e) log(P(s, e) / (P(s) P(e))), cells of probability 0 counting 0.

    Why: high where each condition has experts of its own and all experts are used. Ref: Mod-Squad, section 3.
    # compat(modsquad): 1e-4 is added to both marginals and to the ratio.
    """
    if compat is Compat.MODSQUAD:
        marginals = (joint_se.sum(1, keepdim=True) + 1e-4) * (joint_se.sum(0, keepdim=True) + 1e-4)
        return (joint_se * (joint_se / marginals + 1e-4).log()).sum()
    expected = joint_se.sum(1, keepdim=True) * joint_se.sum(0, keepdim=True)
    tiny = torch.finfo(joint_se.dtype).tiny
    return (joint_se * (joint_se.clamp(min=tiny) / expected.clamp(min=tiny)).log()).sum()


def importance(routing: Routing) -> Float[Tensor, " e"]:
    """Return the sum of the weights given to each expert."""
    zeros = routing.probs_te.new_zeros(routing.probs_te.shape[1])
    return zeros.index_add(0, routing.experts_tk.reshape(-1), routing.weights_tk.reshape(-1))


def counts(routing: Routing) -> Float[Tensor, " e"]:
    """Return how many tokens chose each expert."""
    chosen = routing.experts_tk.reshape(-1)
    zeros = routing.probs_te.new_zeros(routing.probs_te.shape[1])
    return zeros.scatter_add(0, chosen, torch.ones_like(chosen, dtype=zeros.dtype))


def spans(seq: SeqInfo, condition: Condition | BalanceScope) -> list[tuple[str, list[slice]]]:
    """Return the rows of each task (one nameless where tasks share the buffer) or modality."""
    if condition.value == "modality":
        return [(name, [slice(start, end)]) for name, (start, end) in seq.modality_slices.items()]
    found: dict[str, list[slice]] = {}
    for task, start, end in seq.task_spans:
        found.setdefault(task, []).append(slice(start, end))
    return list(found.items()) or [("", [slice(0, seq.num_tokens)])]


def _scope(routing: Routing, seq: SeqInfo, scope: BalanceScope) -> list[slice | Tensor]:
    if scope is BalanceScope.ALL:
        return [slice(None)]
    rows = torch.arange(routing.experts_tk.shape[0], device=routing.experts_tk.device)
    return [own[0] if len(own) == 1 else torch.cat([rows[s] for s in own]) for _, own in spans(seq, scope)]


def _cv2(values: Float[Tensor, " e"]) -> Float[Tensor, ""]:
    if values.shape[0] == 1:
        return values.new_zeros(())
    return values.var() / (values.mean().square() + CV_EPS)


def _mean(values: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack(values).mean()
