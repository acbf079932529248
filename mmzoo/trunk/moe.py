"""The routed feed-forward: a router chooses experts for each token; shared experts see every token.

Axis letters: t tokens, e experts, k chosen experts of a token, d width.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.trunk.balance import BalanceConfig, balance
from mmzoo.trunk.base import Aux, FeedForward, MixerContext, num_weights
from mmzoo.trunk.experts import Experts, ExpertsConfig
from mmzoo.trunk.feed_forward import Mlp
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.router import Router, Routing
from mmzoo.trunk.routing_stats import SUFFIX, RoutingRecord


class MoeFeedForward(FeedForward):
    """y = sum over chosen experts of weight x expert(x), plus what shared experts give.

    Dispatch: pairs (token, choice) are sorted by expert and each layer of all experts is one grouped matrix
    product, so no token is dropped unless `capacity_factor` is set.
    Weights: `router.*` (see routers.py), `experts.*` (see experts.py), `shared.*` one Mlp.
    Ref: Shazeer et al. 2017; shared experts: DeepSeekMoE (Dai et al. 2024), section 3.2.
    """

    takes_tasks: ClassVar[bool] = True

    @dataclass(kw_only=True)
    class Config(ExpertsConfig):
        """Who chooses experts, and what keeps them in use."""

        router: Any = schema.one("routers", "topk")
        """who chooses experts, and by what"""
        shared_experts: int = 0
        """experts that every token passes, in addition; together one network of so many times the width"""
        capacity_factor: float | None = None
        """most tokens of an expert, in shares of an even load, later ones lose it; null: no limit"""
        balance: BalanceConfig = field(default_factory=BalanceConfig)
        """losses that keep experts in use"""

        def faults(self) -> list[tuple[bool, str, Any, str]]:
            """Return what may be wrong."""
            factor = self.capacity_factor
            return [
                *super().faults(),
                (self.shared_experts < 0, "shared_experts", self.shared_experts, "0 or more"),
                (not (factor or 1.0) > 0, "capacity_factor", factor, "above 0"),
            ]

    def __init__(
        self, config: Config, *, dim: int, modalities: tuple[str, ...], tasks: tuple[str, ...] = ()
    ) -> None:
        """Make router and experts; `tasks` are the names of the model's tasks."""
        super().__init__(config, dim=dim, modalities=modalities)
        self.router: Router = config.router.build(
            dim=dim, num_experts=config.num_experts, modalities=modalities, tasks=tasks
        )
        self.experts = Experts(config, dim, config.num_experts)
        self.shared = None
        if config.shared_experts:
            hidden = config.shared_experts * (config.hidden_dim or 4 * dim)
            self.shared = Mlp(dataclasses.replace(config.network(), hidden_dim=hidden), dim)
        self.task_dependent, self.task_dim = self.router.task_dependent, self.router.task_dim

    @classmethod
    def at(cls, config: Any, layer: int) -> Any:
        """Return these options where the layer has experts, else those of the dense feed-forward."""
        return config.at(layer)

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Route, transform, weight; return the tokens and the weighted balance losses."""
        routing = self.router(x, seq=seq, ctx=ctx)
        ctx.stats[f"{ctx.layer}/{SUFFIX}"] = RoutingRecord(
            routing.experts_tk, routing.probs_te.detach(), seq, routing.weights_tk.detach()
        )
        y = self._experts(x, routing)  # pyright: ignore[reportCallIssue] disable() is untyped
        if self.shared is not None:
            y = y + self.shared(x)
        return y, balance(routing, seq, self.config.balance)

    @torch.compiler.disable
    def _experts(self, x: Tensor, routing: Routing) -> Tensor:
        """Run the experts; never traced, since the sizes differ with every batch."""
        y = self.experts(
            x,
            routing.experts_tk,
            routing.weights_tk,
            capacity=self._capacity(*routing.experts_tk.shape),
            kernel=self.config.kernel,
        )
        return y.to(x.dtype)

    def _capacity(self, tokens: int, top_k: int) -> int | None:
        factor = self.config.capacity_factor
        return None if factor is None else math.ceil(factor * tokens * top_k / self.config.num_experts)

    def flops(self, tokens: int, segments: int = 1) -> int:
        """Count the router, top_k experts and the shared ones for each token."""
        del segments
        top_k = getattr(self.config.router, "chosen", self.config.num_experts)
        router = 2 * tokens * self.config.num_experts * (self.dim + self.task_dim)
        shared = 0 if self.shared is None else 2 * tokens * num_weights(self.shared)
        return router + self.experts.flops(tokens * top_k) + shared
