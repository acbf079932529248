"""Experts: many feed-forward networks of one shape, their weights stacked, run on rows sorted by expert.

Axis letters: e experts, p rows sorted by expert, t tokens, k choices a token, d width, h hidden width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.layers.gated import geglu
from mmzoo.layers.grouped_linear import GroupedKernel, gather, grouped_linear, sort_by_group, spread
from mmzoo.layers.init import trunc_normal_
from mmzoo.trunk.feed_forward import Activation, MlpConfig, ModalityFeedForward


@dataclass(kw_only=True)
class ExpertsConfig(MlpConfig):
    """Options of a feed-forward with experts, which are networks like the others here, and of where it is."""

    num_experts: int = 8
    """routed experts"""
    every: int = 1
    """blocks from one with experts to the next; 2: the blocks 1, 3, 5, … (counted from 0) have them"""
    dense: Any = schema.maybe("feed_forwards")
    """the feed-forward of the other blocks; null: one a modality, with the options above"""
    kernel: GroupedKernel = GroupedKernel.AUTO
    """how the experts' matrix products are computed"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        lines = [
            str(ConfigError.at(f"trunk.ffn.{name}", str(found), expected, "Change it."))
            for wrong, name, found, expected in self.faults()
            if wrong
        ]
        if lines:
            raise ConfigError("\n".join(lines))

    def faults(self) -> list[tuple[bool, str, Any, str]]:
        """Return what may be wrong: whether it is, the field, its value, what is expected."""
        return [
            (self.num_experts < 1, "num_experts", self.num_experts, "at least 1"),
            (self.every < 1, "every", self.every, "at least 1"),
        ]

    def network(self) -> MlpConfig:
        """Return the options of one network alone."""
        return MlpConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(MlpConfig)})

    def at(self, layer: int) -> Any:
        """Return these options where the layer has experts, else those of the dense feed-forward."""
        if (layer + 1) % self.every == 0:
            return self
        if self.dense is not None:
            return type(self.dense).owner.at(self.dense, layer)
        return ModalityFeedForward.Config(**dataclasses.asdict(self.network()))


class Experts(nn.Module):
    """E networks like `Mlp`, each with its own weights: y_e(x) = W_out LN(act(W_in x + b_in)) + b_out.

    Weights: `w_in` (e, 2h or h, d), `b_in` (e, h) for gelu, `norm_weight`, `norm_bias` (e, h) Sub-LN,
    `w_out` (e, d, h), `b_out` (e, d): an `Mlp`'s, stacked.
    """

    def __init__(self, config: MlpConfig, dim: int, num_experts: int) -> None:
        """Make the stacked weights."""
        super().__init__()
        hidden = config.hidden_dim or 4 * dim
        self.dim, self.hidden, self.num_experts, self.norm_eps = dim, hidden, num_experts, config.norm_eps
        self.gated = config.activation is Activation.GEGLU
        width = 2 * hidden if self.gated else hidden
        self.w_in = nn.Parameter(trunc_normal_(torch.empty(num_experts, width, dim)))
        self.b_in = None if self.gated else nn.Parameter(torch.zeros(num_experts, hidden))
        self.norm_weight = nn.Parameter(torch.ones(num_experts, hidden)) if config.sub_norm else None
        self.norm_bias = nn.Parameter(torch.zeros(num_experts, hidden)) if config.sub_norm else None
        self.w_out = nn.Parameter(trunc_normal_(torch.empty(num_experts, dim, hidden)))
        self.b_out = nn.Parameter(torch.zeros(num_experts, dim))

    def forward(
        self,
        x: Float[Tensor, "t d"],
        experts_tk: Int[Tensor, "t k"],
        weights_tk: Float[Tensor, "t k"],
        *,
        capacity: int | None = None,
        kernel: GroupedKernel = GroupedKernel.AUTO,
    ) -> Float[Tensor, "t d"]:
        """Return sum_k w_tk y_{e_tk}(x_t). `capacity`: most rows of an expert; later ones count nothing."""
        order, _ = sort_by_group(experts_tk, self.num_experts, capacity=capacity)
        z = self.rows(spread(x, order), order.ends, kernel)
        return gather(z, weights_tk, order)

    def rows(
        self, x: Float[Tensor, "p d"], ends: Int[Tensor, " e"], kernel: GroupedKernel = GroupedKernel.AUTO
    ) -> Float[Tensor, "p d"]:
        """Transform rows that are sorted by expert; `ends`: the row after the last of each.

        Math: the gain and bias of a Sub-LN go into the projection after it, W (g * n + b) = (W g) n + W b,
        so that no row needs its own copy of them.
        """
        h = grouped_linear(x, self.w_in, ends, self.b_in, kernel)
        h = geglu(h) if self.gated else F.gelu(h)
        w_out, b_out = self.w_out, self.b_out
        if self.norm_weight is not None and self.norm_bias is not None:
            h = F.layer_norm(h, (self.hidden,), eps=self.norm_eps)
            b_out = b_out + torch.bmm(w_out, self.norm_bias[:, :, None])[:, :, 0]
            w_out = w_out * self.norm_weight[:, None, :]
        return grouped_linear(h, w_out, ends, b_out, kernel)

    def flops(self, rows: int) -> int:
        """Return the FLOPs of so many rows: 2 a weight of one expert."""
        return 2 * rows * (self.w_in[0].numel() + self.w_out[0].numel())
