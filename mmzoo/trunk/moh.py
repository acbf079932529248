"""Mixture of heads: plain attention in which each token weights its heads and leaves some of them out.

Axis letters: t tokens, h heads (the first s shared, the other r routed), k active routed heads, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.errors import ConfigError
from mmzoo.layers.attention import prepare
from mmzoo.layers.low_rank import linear
from mmzoo.trunk.attention import MultiHeadAttention, QkvBias, attend_rows, segments_of
from mmzoo.trunk.base import Aux, InitFromMha, MixerContext, TokenMixer, num_weights
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.router import Routing, full_precision
from mmzoo.trunk.routing_stats import SUFFIX, RoutingRecord

TIE_NOISE_STD = 1e-4
"""Initial router weights: near zero, so that weights start at 1, yet no two heads tie."""

SPREAD_FLOOR = 1e-6
"""Least standard deviation of the lengths of a token's queries that is divided by."""


class HeadRouter(str, Enum):
    """Who chooses heads."""

    LEARNED = "learned"
    """a linear map of the token (MoH-ViT, MoH-DiT)"""
    QUERY_NORM = "query_norm"
    """the length of each head's query: no weights of its own (MoH-LLaMA3)"""


class MixtureOfHeads(TokenMixer):
    """y = Wo [g_1 h_1; …; g_H h_H], h_i the heads of plain attention, g their weights for this token.

    Math, learned: p = softmax(Wg x) over the routed heads, T its k largest; routed g_i = w_1 k p_i / sum_T p
    for i in T, else 0; shared g = w_0 s softmax(Wg1 x); w = 2 softmax(Wg0 x). With Wg, Wg0, Wg1 zero every
    shared and every chosen head has weight 1: plain attention less the heads left out.
    Math, query_norm: p = softmax of |q_i| / std of |q| over the routed heads; g_i = 1 for i in T, else 0,
    with the gradient of p (straight-through); shared g = 1.
    Weights: those of plain attention, and `wg` (r, d), `wg_0` (2, d), `wg_1` (s, d) where there is a choice.
    Ref: Jin et al. 2024 (MoH), section 3; factors k, s and 2 as in its code, the paper's text lacks them.
    """

    supports_causal: ClassVar[bool] = True
    supports_bias: ClassVar[bool] = True
    init_from_mha: ClassVar[InitFromMha] = InitFromMha.APPROX
    kernels: ClassVar[tuple[str, ...]] = MultiHeadAttention.kernels

    @dataclass(kw_only=True)
    class Config(MultiHeadAttention.Config):
        """Plain attention's options, and how heads are chosen."""

        router: HeadRouter = HeadRouter.LEARNED
        """learned or query_norm"""
        shared_heads: int | None = None
        """heads that are always on, the first ones; null: a quarter of them"""
        top_k: int | None = None
        """routed heads a token; null: half of the routed ones, rounded up"""
        head_dim: int | None = None
        """width of a head; null: dim / heads"""
        kv_heads: int | None = None
        """heads of keys and values, each serving equally many queries; null: as many as heads"""
        qk_norm: bool = False
        """layer norm on each head's queries and keys"""
        load_balance_weight: float = 0.01
        """of r^2 mean_i(mean p_i x share of tokens that chose i), k where use is even; learned router only"""

    def __init__(self, config: Config, *, dim: int, num_heads: int) -> None:
        """Make projections and routers."""
        super().__init__(config, dim=dim, num_heads=num_heads)
        self.head_dim = config.head_dim or dim // num_heads
        self.kv_heads = config.kv_heads or num_heads
        self.shared = num_heads // 4 if config.shared_heads is None else config.shared_heads
        self.routed = num_heads - self.shared
        self.top_k = (self.routed + 1) // 2 if config.top_k is None else config.top_k
        self._check(config)
        width, keys = num_heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv = nn.Linear(dim, width + 2 * keys, bias=config.qkv_bias is QkvBias.ALL)
        split = config.qkv_bias is QkvBias.NO_KEY
        self.q_bias = nn.Parameter(torch.zeros(width)) if split else None
        self.v_bias = nn.Parameter(torch.zeros(keys)) if split else None
        self.head_gain = nn.Parameter(torch.ones(num_heads)) if config.head_gain else None
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.sub_norm else None
        self.out = nn.Linear(width, dim)
        self.cosine = config.cosine(num_heads, self.head_dim)
        learned = config.router is HeadRouter.LEARNED
        routes = learned and self.top_k > 0
        self.wg = nn.Parameter(torch.randn(self.routed, dim) * TIE_NOISE_STD) if routes else None
        self.wg_0 = nn.Parameter(torch.zeros(2, dim)) if routes and self.shared else None
        self.wg_1 = nn.Parameter(torch.zeros(self.shared, dim)) if learned and self.shared > 1 else None

    def _check(self, config: Config) -> None:
        where, heads = "trunk.mixer (moh)", self.num_heads
        faults = [
            (config.head_dim is None and self.dim % heads, f"{heads} heads", f"a divisor of dim {self.dim}"),
            (heads % self.kv_heads, f"kv_heads {self.kv_heads}", f"a divisor of {heads} heads"),
            (not 0 <= self.shared <= heads, f"shared_heads {self.shared}", f"0 to {heads}"),
            (not 0 <= self.top_k <= self.routed, f"top_k {self.top_k}", f"0 to {self.routed} routed heads"),
            (self.shared + self.top_k == 0, "no head at all", "shared or routed heads"),
        ]
        lines = [
            str(ConfigError.at(where, found, expected, "Change either."))
            for bad, found, expected in faults
            if bad
        ]
        if lines:
            raise ConfigError("\n".join(lines))

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext, cache: Any = None
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Project, attend within the segments, weight the heads, project back."""
        if cache is not None:
            raise ConfigError.at("trunk.mixer (moh)", "a key-value cache", "none", "Pass whole sequences.")
        y, aux = self.weighted(x, seq, ctx)
        return self.out(y if self.norm is None else self.norm(y)), aux

    def weighted(
        self, x: Float[Tensor, "t d"], seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t w"], Aux]:
        """Return the weighted heads side by side, before the output projection."""
        sizes = [self.num_heads * self.head_dim, *[self.kv_heads * self.head_dim] * 2]
        q, k, v = (part.unflatten(1, (-1, self.head_dim)) for part in self._project(x).split(sizes, dim=1))
        gates, routing = self.gates(x, q)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.kv_heads < self.num_heads:
            k, v = (part.repeat_interleave(self.num_heads // self.kv_heads, dim=1) for part in (k, v))
        qkv = torch.stack([q, k, v], dim=1)
        heads = attend_rows(qkv, seq, ctx.layer, self.config.backend, self.cosine)  # pyright: ignore[reportCallIssue] disable() is untyped
        if self.head_gain is not None:
            heads = heads * self.head_gain[:, None]
        y = (heads * gates.to(heads.dtype)[:, :, None]).flatten(1)
        if routing is None:
            return y, {}
        ctx.stats[f"{ctx.layer}/heads/{SUFFIX}"] = RoutingRecord(
            routing.experts_tk, routing.probs_te.detach(), seq
        )
        weight = self.config.load_balance_weight
        learns = self.wg is not None and weight > 0 and x.shape[0] > 0
        return y, {"head_balance": weight * head_balance(routing)} if learns else {}

    def gates(
        self, x: Float[Tensor, "t d"], q: Float[Tensor, "t h e"]
    ) -> tuple[Float[Tensor, "t h"], Routing | None]:
        """Return the weight of each head for each token (float32, also under autocast), and the choice among
        the routed ones.
        """
        with full_precision(x):
            return self._by_query(q) if self.config.router is HeadRouter.QUERY_NORM else self._by_token(x)

    def _by_token(self, x: Float[Tensor, "t d"]) -> tuple[Float[Tensor, "t h"], Routing | None]:
        x = x.float()
        shared = x.new_ones(x.shape[0], self.shared)
        if self.wg_1 is not None:
            shared = self.shared * torch.softmax(F.linear(x, self.wg_1.float()), dim=1)
        if self.wg is None:
            return F.pad(shared, (0, self.routed)), None
        logits = F.linear(x, self.wg.float())
        probs = torch.softmax(logits, dim=1)
        kept, chosen = probs.topk(self.top_k, dim=1)
        kept = self.top_k * kept / kept.sum(1, keepdim=True).clamp(min=torch.finfo(kept.dtype).eps)
        routed = torch.zeros_like(probs).scatter(1, chosen, kept)
        if self.wg_0 is not None:
            stage = 2 * torch.softmax(F.linear(x, self.wg_0.float()), dim=1)
            shared, routed = shared * stage[:, :1], routed * stage[:, 1:]
        return torch.cat([shared, routed], dim=1), Routing(chosen, kept, probs, logits, logits)

    def _by_query(self, q: Float[Tensor, "t h e"]) -> tuple[Float[Tensor, "t h"], Routing | None]:
        ones = q.new_ones(q.shape[0], self.shared, dtype=torch.float32)
        if self.top_k == 0:
            return F.pad(ones, (0, self.routed)), None
        lengths = q[:, self.shared :].float().norm(dim=2)
        logits = lengths
        if self.routed > 1:  # where all are equally long they are equally likely
            spread = lengths.std(dim=1, keepdim=True).clamp(min=SPREAD_FLOOR)
            logits = (lengths - lengths.mean(dim=1, keepdim=True)) / spread
        probs = torch.softmax(logits, dim=1)
        chosen = probs.topk(self.top_k, dim=1).indices
        hard = torch.zeros_like(probs).scatter(1, chosen, 1.0)
        gates = torch.cat([ones, hard + (probs - probs.detach())], dim=1)
        return gates, Routing(chosen, hard.gather(1, chosen), probs, logits, logits)

    def prepare(self, seq: SeqInfo, layer: int) -> None:
        """Merge bias and masks of the layer."""
        segments = segments_of(seq, layer, self.cosine)
        prepare(segments, self.num_heads, seq.cu_seqlens.device, self.config.backend)

    def flops(self, lengths: Sequence[int]) -> int:
        """Count all heads: those left out are computed too; not the network of a cosine bias."""
        weights = num_weights(self) - (0 if self.cosine is None else num_weights(self.cosine))
        width = self.num_heads * self.head_dim
        return 2 * weights * sum(lengths) + 4 * width * sum(n * n for n in lengths)

    @classmethod
    def from_mha(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state: it is plain attention's; routers keep their near-zero start."""
        return dict(state)

    def _project(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t w"]:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return linear(self.qkv, x, bias)


def head_balance(routing: Routing) -> Float[Tensor, ""]:
    """Return E^2 mean_e(P_e F_e), P the mean probability, F the share of tokens that chose: k if even.

    Ref: MoH section 3.3 and code, which counts padding too; here there is none.
    """
    num_experts = routing.probs_te.shape[1]
    chosen = torch.zeros_like(routing.probs_te).scatter(1, routing.experts_tk, 1.0).mean(0)
    return num_experts * (routing.probs_te.mean(0) * chosen).sum()
