"""What a router decides, and how a choice is made from logits: top-k of softmax, with or without noise.

Axis letters: t tokens (rows of the packed buffer), e experts, k chosen experts of a token, d width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.plan import SeqInfo

DEFAULT_TOP_K = 2
NOISE_FLOOR = 1e-2
"""Least standard deviation of learned noise (Shazeer et al. 2017)."""


class GateWeights(str, Enum):
    """How the chosen experts are weighted."""

    RENORMALISED = "renormalised"
    """their probabilities divided by their sum, which is the softmax over the chosen logits"""
    FULL = "full"
    """their probabilities among all experts"""
    STRAIGHT_THROUGH = "straight_through"
    """the values of renormalised, the gradient of full over their sum: trains the router with top_k 1 too"""


class Noise(str, Enum):
    """What is added to the logits in training."""

    NONE = "none"
    CONSTANT = "constant"
    """a normal of standard deviation noise_std / experts (V-MoE)"""
    LEARNED = "learned"
    """a normal whose standard deviation, softplus(W_noise x) + 0.01, depends on the token"""


@dataclass(kw_only=True)
class TopKConfig(schema.Config):
    """How experts are chosen from logits."""

    top_k: int | None = None
    """experts a token; null: 2, in attention as many as the trunk has heads"""
    weights: GateWeights = GateWeights.RENORMALISED
    """how the chosen experts are weighted"""
    noise: Noise = Noise.NONE
    """noise on the logits, in training only"""
    noise_std: float = 1.0
    """standard deviation of constant noise, times the number of experts"""
    prob_offset: float = 0.0
    """added to every probability (Mod-Squad: 1e-4)"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.chosen < 1:
            raise ConfigError.at("router.top_k", str(self.top_k), "at least 1", "Raise it.")
        if self.noise_std < 0 or self.prob_offset < 0:
            found = f"{self.noise_std}, {self.prob_offset}"
            raise ConfigError.at("router.noise_std, prob_offset", found, "0 or more", "Raise them.")

    @property
    def chosen(self) -> int:
        """Return how many experts a token has."""
        return DEFAULT_TOP_K if self.top_k is None else self.top_k


@dataclass(frozen=True)
class Routing:
    """What a router decided for each token.

    experts: chosen experts, best first; weights: theirs; probs: softmax of the logits; logits: noisy ones in
    training; clean: without noise; noise_std: of each logit, None without noise.
    """

    experts_tk: Int[Tensor, "t k"]
    weights_tk: Float[Tensor, "t k"]
    probs_te: Float[Tensor, "t e"]
    logits_te: Float[Tensor, "t e"]
    clean_te: Float[Tensor, "t e"]
    noise_std_te: Float[Tensor, "t e"] | None = None

    def rows(self, rows: Any) -> Routing:
        """Return the part of it that some tokens (a slice or an index) have."""
        std = self.noise_std_te
        return Routing(
            self.experts_tk[rows],
            self.weights_tk[rows],
            self.probs_te[rows],
            self.logits_te[rows],
            self.clean_te[rows],
            None if std is None else std[rows],
        )


def route(
    clean_te: Float[Tensor, "t e"],
    config: TopKConfig,
    noise_std_te: Float[Tensor, "t e"] | None = None,
    noise_te: Float[Tensor, "t e"] | None = None,
) -> Routing:
    """Choose the top_k experts of each token. noise: standard normal, times `noise_std` it is added.

    Math: p = softmax(clean + noise_std * noise) + prob_offset, in float32 whatever the precision of the
    tokens; T the top_k largest logits, since probabilities may underflow to ties with forbidden experts;
    weights p_T (full) or p_T / sum p_T (renormalised), the sum a constant for the gradient under
    straight_through.
    """
    clean = clean_te.float()
    logits = clean if noise_std_te is None or noise_te is None else clean + noise_te * noise_std_te
    probs = torch.softmax(logits, dim=1)
    if config.prob_offset:
        probs = probs + config.prob_offset
    experts = logits.topk(config.chosen, dim=1).indices
    weights = probs.gather(1, experts)
    if config.weights is not GateWeights.FULL:
        total = weights.sum(1, keepdim=True)
        weights = weights / (total if config.weights is GateWeights.RENORMALISED else total.detach())
    return Routing(experts, weights, probs, logits, clean, noise_std_te)


class Router(nn.Module, schema.Configurable):
    """Chooses experts: `routing = router(x, seq=…, ctx=…)`, x the normed tokens [t d] the experts see too.

    `task_dependent`: its choice depends on the task, so the trunk gives each task its own copy of the tokens.
    `task_dim`: width of the task vectors it reads from the context, 0 where it reads none.
    """

    task_dependent: bool = False
    task_dim: int = 0

    def __init__(
        self, config: Any, *, dim: int, num_experts: int, modalities: tuple[str, ...], tasks: tuple[str, ...]
    ) -> None:
        """Keep the options and the sizes; `tasks` are the names of the model's tasks."""
        super().__init__()
        self.config, self.dim, self.num_experts = config, dim, num_experts
        self.modalities, self.tasks = modalities, tasks
        self.make()
        self._check_weights()

    def make(self) -> None:
        """Make the weights, if there are any, from what the constructor kept."""

    @property
    def num_choices(self) -> int:
        """Return the largest number of experts that a token chooses among."""
        return self.num_experts

    def _check_weights(self) -> None:
        """Refuse a choice that no task loss could train: of one expert, whose weight p / p is always 1."""
        options = self.config
        if not isinstance(options, TopKConfig) or self.num_choices == 1:
            return
        if options.chosen == 1 and options.weights is GateWeights.RENORMALISED:
            found = "renormalised with top_k 1, a weight of 1 whatever the router says"
            expected = "full or straight_through, which train the router"
            raise ConfigError.at("router.weights", found, expected, "Set router.weights=full.")

    def forward(self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext) -> Routing:
        """Decide."""
        raise NotImplementedError


class Gate(nn.Module):
    """The linear map from a token to one logit an expert, and to their noise: `weight`, `noise` (e, d).

    Why: small initial weights let every expert be chosen at the start; learned noise starts at softplus(0).
    """

    def __init__(self, dim: int, num_experts: int, config: TopKConfig) -> None:
        """Make the weights; a model of fewer experts than top_k is refused."""
        super().__init__()
        if config.chosen > num_experts:
            found = f"{config.chosen} of {num_experts} experts"
            raise ConfigError.at("router.top_k", found, "at most as many as there are", "Lower it.")
        self.config, self.num_experts = config, num_experts
        self.weight = nn.Parameter(torch.randn(num_experts, dim) * dim**-0.5 * 0.1)
        learned = config.noise is Noise.LEARNED
        self.noise = nn.Parameter(torch.zeros(num_experts, dim)) if learned else None

    def logits(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t e"]:
        """Return the clean logits, in float32."""
        with full_precision(x):
            return F.linear(x.float(), self.weight.float())

    def noise_std(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t e"] | None:
        """Return the standard deviation of each logit's noise; None without noise."""
        if self.noise is not None:
            with full_precision(x):
                return F.softplus(F.linear(x.float(), self.noise.float())) + NOISE_FLOOR
        if self.config.noise is Noise.CONSTANT and self.config.noise_std > 0:
            std = self.config.noise_std / self.num_experts
            return x.new_full((x.shape[0], self.num_experts), std, dtype=torch.float32)
        return None

    def forward(self, x: Float[Tensor, "t d"], ctx: MixerContext) -> Routing:
        """Choose experts for tokens that this gate alone decides on."""
        return decide(self.logits(x), self.noise_std(x) if ctx.training else None, self.config, ctx)


def decide(
    clean_te: Float[Tensor, "t e"],
    noise_std_te: Float[Tensor, "t e"] | None,
    config: TopKConfig,
    ctx: MixerContext,
) -> Routing:
    """Draw the noise from the context's generator and choose."""
    if noise_std_te is None:
        return route(clean_te, config)
    shape, device = clean_te.shape, clean_te.device
    noise = torch.randn(shape, device=device, generator=ctx.generator, dtype=torch.float32)
    return route(clean_te, config, noise_std_te, noise)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Leave autocast: routing decides in float32. Tensors on the meta device have no autocast to leave."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
