"""Soft mixture of experts: every slot reads a mean of a sample's tokens, every token a mean of the slots.

Axis letters: t tokens, c segments of a run, n tokens of a segment, e experts, p slots of an expert, s = e p
slots of a segment, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.errors import ConfigError
from mmzoo.layers.rows import permute_rows
from mmzoo.trunk.base import Aux, FeedForward, MixerContext
from mmzoo.trunk.experts import Experts, ExpertsConfig
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.router import full_precision
from mmzoo.trunk.routing_stats import SUFFIX, RoutingRecord

NORM_EPS = 1e-6
"""Added to lengths before dividing by them."""


class SlotLogits(str, Enum):
    """How well a token and a slot fit."""

    NORMALISED = "normalised"
    """a learned scale times their cosine, in bounds at any width (the paper's)"""
    PLAIN = "plain"
    """their product"""


class SoftMoeFeedForward(FeedForward):
    """Y = C f(D^T X), for the tokens X (n d) of each segment by itself.

    Why: no token is dropped, no expert is left idle and nothing is sorted, since every expert has `slots`
    rows a sample; what they cost does not depend on the number of tokens. The tokens of a sample
    mix here, so none may be hidden from another: causal plans and masks are refused. There is no padding to
    count.
    Math: L = scale X/|X| Phi/|Phi| (normalised) or X Phi (plain), Phi (d s); D = softmax of L over the tokens
    of the segment, C = softmax of L over the slots, both in float32; f applies each expert to its own slots.
    Weights: `phi` (s, d), expert after expert; `scale` (); `experts.*` (see experts.py).
    Ref: Puigcerver et al. 2023 (Soft MoE), section 2.1; normalisation: section 2.3.
    """

    @dataclass(kw_only=True)
    class Config(ExpertsConfig):
        """Slots, and how tokens are matched with them."""

        slots: int = 1
        """rows of each expert for each sample; the paper has about as many slots as tokens in all"""
        logits: SlotLogits = SlotLogits.NORMALISED
        """normalised or plain"""

        def faults(self) -> list[tuple[bool, str, Any, str]]:
            """Return what may be wrong."""
            return [*super().faults(), (self.slots < 1, "slots", self.slots, "at least 1")]

    def __init__(self, config: Config, *, dim: int, modalities: tuple[str, ...]) -> None:
        """Make slots and experts."""
        super().__init__(config, dim=dim, modalities=modalities)
        self.num_slots = config.num_experts * config.slots
        self.phi = nn.Parameter(torch.randn(self.num_slots, dim) * dim**-0.5)
        normalised = config.logits is SlotLogits.NORMALISED
        self.scale = nn.Parameter(torch.ones(())) if normalised else None
        self.experts = Experts(config, dim, config.num_experts)

    @classmethod
    def at(cls, config: Any, layer: int) -> Any:
        """Return these options where the layer has experts, else those of the dense feed-forward."""
        return config.at(layer)

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Fill the slots of every segment, transform them, give each token its mean of them."""
        if seq.is_causal or seq.mask_mod is not None:
            found, do = "a causal plan or a mask", "Choose moe, whose tokens do not see each other."
            raise ConfigError.at("trunk.ffn (soft_moe)", found, "segments that see all of themselves", do)
        y, combine = self._mix(x, seq)  # pyright: ignore[reportCallIssue] disable() is untyped
        share = combine.detach().unflatten(1, (self.config.num_experts, self.config.slots)).sum(2)
        ctx.stats[f"{ctx.layer}/{SUFFIX}"] = RoutingRecord(share.argmax(1, keepdim=True), share, seq)
        return y.to(x.dtype), {}

    def logits(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t s"]:
        """Return how well each token fits each slot, in float32."""
        with full_precision(x):
            x, phi = x.float(), self.phi.float()
            if self.scale is None:
                return F.linear(x, phi)
            return self.scale.float() * F.linear(_unit(x), _unit(phi))

    @torch.compiler.disable
    def _mix(self, x: Tensor, seq: SeqInfo) -> tuple[Tensor, Tensor]:
        """Return the tokens and how much each takes of every slot; never traced: sizes differ with every
        batch.
        """
        rows = permute_rows(x, seq.order, seq.inverse)
        logits = self.logits(rows)
        combine = logits.softmax(1)
        sizes = [run.count * run.length for run in seq.runs]
        parts = zip(seq.runs, rows.split(sizes), logits.split(sizes), strict=True)
        slots = [
            score.view(run.count, run.length, -1).softmax(1).transpose(1, 2).to(x.dtype)
            @ part.view(run.count, run.length, -1)
            for run, part, score in parts
        ]
        made = self._experts(torch.cat(slots)).split([run.count for run in seq.runs])
        parts = zip(seq.runs, combine.split(sizes), made, strict=True)
        y = [(own.view(run.count, run.length, -1).to(z.dtype) @ z).flatten(0, 1) for run, own, z in parts]
        y = permute_rows(torch.cat(y), seq.inverse, seq.order)
        return y, permute_rows(combine, seq.inverse, seq.order)

    def _experts(self, slots: Float[Tensor, "c s d"]) -> Float[Tensor, "c s d"]:
        """Apply each expert to its slots of all segments at once."""
        count, _, dim = slots.shape
        experts, each = self.config.num_experts, count * self.config.slots
        rows = slots.unflatten(1, (experts, -1)).transpose(0, 1).reshape(-1, dim)
        ends = torch.arange(1, experts + 1, device=slots.device, dtype=torch.int32) * each
        z = self.experts.rows(rows, ends, self.config.kernel)
        return z.view(experts, count, -1, dim).transpose(0, 1).flatten(1, 2)

    def flops(self, tokens: int, segments: int = 1) -> int:
        """Count the experts' rows, and logits, dispatch and combination of each token and slot."""
        return self.experts.flops(segments * self.num_slots) + 6 * tokens * self.num_slots * self.dim


def _unit(x: Tensor) -> Tensor:
    """Divide rows by their length."""
    return x / (x.norm(dim=1, keepdim=True) + NORM_EPS)
