"""The pre-norm block: norm - mixer - residual, norm - feed-forward - residual."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmzoo import schema
from mmzoo.layers.drop_path import drop_path_scale
from mmzoo.layers.norms import DEFAULT_EPS
from mmzoo.trunk.base import Aux, FeedForward, MixerContext, TokenMixer
from mmzoo.trunk.plan import SeqInfo


class Checkpointing(str, Enum):
    """What a block recomputes in the backward pass instead of keeping it."""

    NONE = "none"
    BLOCK = "block"
    FFN = "ffn"


@dataclass(kw_only=True)
class BlockConfig(schema.Config):
    """What every block consists of; the defaults are ONE-PEACE's."""

    mixer: Any = schema.one("mixers", "attention")
    """how tokens of a segment mix"""
    ffn: Any = schema.one("feed_forwards", "modality")
    """what happens to each token by itself"""
    norm_eps: float = DEFAULT_EPS
    """epsilon of the two norms of each block and of the final norm"""
    layer_scale_init: float | None = 1e-2
    """start of the learned factor of each channel of a branch (LayerScale); null: no such factor"""


class Block(nn.Module):
    """x = x + drop(gamma_1 mixer(LN1 x)); x = x + drop(gamma_2 ffn(LN2 x)), norms and gammas shared by
    all modalities.

    Weights: `norm1.*`, `mixer.*`, `gamma_1` (d), `norm2.*`, `ffn.*`, `gamma_2` (d).
    Ref: ONE-PEACE section 3.1; LayerScale: Touvron et al. 2021 (CaiT), section 2.
    """

    def __init__(
        self,
        config: BlockConfig,
        *,
        dim: int,
        num_heads: int,
        modalities: tuple[str, ...],
        drop_path_prob: float = 0.0,
        layer: int = 0,
        tasks: tuple[str, ...] = (),
    ) -> None:
        """Build the two branches; `layer` counts from 0, `tasks` are the names of the model's tasks."""
        super().__init__()
        self.drop_path_prob = drop_path_prob
        self.checkpointing = Checkpointing.NONE
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mixer: TokenMixer = _build(config.mixer, tasks, dim=dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        ffn = type(config.ffn).owner.at(config.ffn, layer)
        self.ffn: FeedForward = _build(ffn, tasks, dim=dim, modalities=modalities)
        scale = config.layer_scale_init
        self.gamma_1 = None if scale is None else nn.Parameter(torch.full((dim,), scale))
        self.gamma_2 = None if scale is None else nn.Parameter(torch.full((dim,), scale))

    @property
    def task_dependent(self) -> bool:
        """Whether one of the branches works differently for each task."""
        return self.mixer.task_dependent or self.ffn.task_dependent

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Run both branches; return the tokens and the named scalars of mixer and feed-forward."""
        if self.checkpointing is Checkpointing.BLOCK and torch.is_grad_enabled():
            return cast("tuple[Tensor, Aux]", checkpoint(self._forward, x, seq, ctx, use_reentrant=False))
        return self._forward(x, seq, ctx)

    def _forward(self, x: Tensor, seq: SeqInfo, ctx: MixerContext) -> tuple[Tensor, Aux]:
        y, mixer_aux = self.mixer(self.norm1(x), seq=seq, ctx=ctx)
        x = self._add(x, y, self.gamma_1, seq)
        if self.checkpointing is Checkpointing.FFN and torch.is_grad_enabled():
            again = checkpoint(self._feed_forward, x, seq, ctx, use_reentrant=False)
            y, ffn_aux = cast("tuple[Tensor, Aux]", again)
        else:
            y, ffn_aux = self._feed_forward(x, seq, ctx)
        return self._add(x, y, self.gamma_2, seq), {**mixer_aux, **ffn_aux}

    def _feed_forward(self, x: Tensor, seq: SeqInfo, ctx: MixerContext) -> tuple[Tensor, Aux]:
        return self.ffn(self.norm2(x), seq=seq, ctx=ctx)

    def _add(self, x: Tensor, y: Tensor, gamma: Tensor | None, seq: SeqInfo) -> Tensor:
        """Add a branch to the residual stream, scaled by channel and dropped by segment."""
        if self.training and self.drop_path_prob > 0.0:
            y = y * drop_path_scale(seq.segment_of_row, seq.num_segments, self.drop_path_prob, dtype=y.dtype)
        if gamma is None:
            return x + y
        return torch.addcmul(x, y.to(x.dtype), gamma.to(x.dtype))


def _build(config: Any, tasks: tuple[str, ...], **context: Any) -> Any:
    if getattr(type(config).owner, "takes_tasks", False):
        context["tasks"] = tasks
    return config.build(**context)
