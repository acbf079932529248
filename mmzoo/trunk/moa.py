"""Mixture of attention heads: each token chooses the experts that make its queries and read its heads.

Axis letters: t tokens, e experts, k chosen experts (attention heads) of a token, w width of a head, d width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.layers.attention import Backend, prepare
from mmzoo.layers.grouped_linear import Order, choices, gather, grouped_linear, sort_by_group, spread
from mmzoo.layers.init import trunc_normal_
from mmzoo.trunk.attention import attend_rows, segments_of
from mmzoo.trunk.balance import BalanceConfig, balance
from mmzoo.trunk.base import Aux, MixerContext, TokenMixer, num_weights
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.router import Router, Routing, TopKConfig
from mmzoo.trunk.routing_stats import SUFFIX, RoutingRecord


class MixtureOfAttention(TokenMixer):
    """y = sum_k g_k Wo_{e_k} softmax(Wq_{e_k} x K^T / sqrt(w)) V; all experts share one head of K and V.

    Why: a token picks router.top_k experts, each one head; by default as many as a plain layer has heads, so
    cost is that of plain attention while experts can specialise, by task with router task_topk.
    Weights: `w_q` (e, w, d), `w_out` (e, d, w), `kv.*` (2w, d), `router.*`.
    Ref: Zhang et al. 2022 (MoA), section 3; Chen et al. 2023 (Mod-Squad), section 3.
    """

    supports_causal: ClassVar[bool] = True
    supports_bias: ClassVar[bool] = True
    takes_tasks: ClassVar[bool] = True
    kernels: ClassVar[tuple[str, ...]] = ("segments", "bmm", "varlen", "flex", "dense")

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Sizes, and who chooses."""

        num_experts: int = 8
        """experts to choose from"""
        head_dim: int | None = None
        """width of a head; null: dim / heads"""
        router: Any = schema.one("routers", "topk")
        """who chooses; its top_k is the number of a token's heads, null: as many as the trunk has"""
        balance: BalanceConfig = field(default_factory=BalanceConfig)
        """losses that keep experts in use"""
        backend: Backend = Backend.AUTO
        """attention kernel; auto chooses by device, dtype and need of a bias"""

    def __init__(self, config: Config, *, dim: int, num_heads: int, tasks: tuple[str, ...] = ()) -> None:
        """Make router and projections; `tasks` are the names of the model's tasks."""
        super().__init__(config, dim=dim, num_heads=num_heads)
        if config.head_dim is None and dim % num_heads:
            found = f"{num_heads} heads"
            raise ConfigError.at("trunk.num_heads", found, f"a divisor of dim {dim}", "Set head_dim.")
        if not isinstance(config.router, TopKConfig):
            found = type(config.router).__qualname__
            raise ConfigError.at("trunk.mixer.router", found, "a router with top_k", "Choose topk.")
        self.head_dim = config.head_dim or dim // num_heads
        self.top_k = num_heads if config.router.top_k is None else config.router.chosen
        options = dataclasses.replace(config.router, top_k=self.top_k)
        count = config.num_experts
        self.router: Router = options.build(dim=dim, num_experts=count, modalities=(), tasks=tasks)
        self.task_dependent, self.task_dim = self.router.task_dependent, self.router.task_dim
        self.w_q = nn.Parameter(trunc_normal_(torch.empty(count, self.head_dim, dim)))
        self.w_out = nn.Parameter(trunc_normal_(torch.empty(count, dim, self.head_dim)))
        self.kv = nn.Linear(dim, 2 * self.head_dim)

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext, cache: Any = None
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Route, attend with one head an expert within the segments, read the heads."""
        if cache is not None:
            raise ConfigError.at("trunk.mixer (moa)", "a key-value cache", "none", "Pass whole sequences.")
        routing = self.router(x, seq=seq, ctx=ctx)
        ctx.stats[f"{ctx.layer}/queries/{SUFFIX}"] = RoutingRecord(
            routing.experts_tk, routing.probs_te.detach(), seq, routing.weights_tk.detach()
        )
        y = self._attend(x, routing, seq, ctx.layer)  # pyright: ignore[reportCallIssue] disable() is untyped
        aux = balance(routing, seq, self.config.balance)
        return y.to(x.dtype), {f"query_{name}": value for name, value in aux.items()}

    @torch.compiler.disable
    def _attend(self, x: Tensor, routing: Routing, seq: SeqInfo, layer: int) -> Tensor:
        """Never traced, since sizes differ with every batch."""
        order, _ = sort_by_group(routing.experts_tk, self.config.num_experts)
        q = self.map(x, order)
        keys, values = (h[:, None].expand_as(q) for h in self.kv(x).chunk(2, dim=1))
        qkv = torch.stack([q, keys.to(q.dtype), values.to(q.dtype)], dim=1)
        heads = attend_rows(qkv, seq, layer, self.config.backend)  # pyright: ignore[reportCallIssue] disable()
        return self.reduce(heads, routing, order)

    def map(self, x: Float[Tensor, "t d"], order: Order) -> Float[Tensor, "t k w"]:
        """Return each token's queries, one a chosen expert, in the order of its choices."""
        return choices(grouped_linear(spread(x, order), self.w_q, order.ends), order)

    def reduce(self, heads: Float[Tensor, "t k w"], routing: Routing, order: Order) -> Float[Tensor, "t d"]:
        """Return the weighted sum of what the chosen experts make of their heads."""
        rows = torch.empty_like(order.token)
        flat = order.place.reshape(-1)
        rows[flat] = torch.arange(len(flat), device=flat.device)
        z = grouped_linear(heads.flatten(0, 1).index_select(0, rows), self.w_out, order.ends)
        return gather(z, routing.weights_tk, order)

    def check(self, seq: SeqInfo) -> None:
        """Raise too where a bias is meant for other heads."""
        super().check(seq)
        for bias in seq.biases[0] if seq.biases else ():
            if bias is not None and bias.shape[1] not in (1, self.top_k):
                found, do = f"a bias for {bias.shape[1]} heads", "Leave router.top_k null."
                raise ConfigError.at("trunk.mixer (moa)", found, f"one for {self.top_k}", do)

    def prepare(self, seq: SeqInfo, layer: int) -> None:
        """Merge bias and masks of the layer."""
        prepare(segments_of(seq, layer), self.top_k, seq.cu_seqlens.device, self.config.backend)

    def flops(self, lengths: Any) -> int:
        """Count the chosen experts, keys and values, the router, and attention of the active heads."""
        tokens, width = sum(lengths), self.top_k * self.head_dim
        weights = 2 * self.dim * width + num_weights(self.kv) + self.config.num_experts * self.dim
        return 2 * weights * tokens + 4 * width * sum(n * n for n in lengths)
