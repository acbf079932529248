"""The first row of the mixer table: multi-head softmax attention over the segments of the packed buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.layers.attention import Backend, attend, prepare
from mmzoo.layers.low_rank import linear
from mmzoo.layers.norms import DEFAULT_EPS
from mmzoo.layers.rows import permute_rows
from mmzoo.layers.segments import Segments, Span
from mmzoo.trunk.base import Aux, InitFromMha, MixerContext, TokenMixer, num_weights
from mmzoo.trunk.cosine import CosineLogits, visible_keys
from mmzoo.trunk.plan import SeqInfo


class QkvBias(str, Enum):
    """Which projections have a bias."""

    NONE = "none"
    ALL = "all"
    NO_KEY = "no_key"


class Similarity(str, Enum):
    """What makes an attention logit of a query and a key."""

    DOT = "dot"
    """their product / sqrt(head width)"""
    COSINE = "cosine"
    """their cosine, scaled by a learned temperature and ln(keys), plus a network's bias (TransNeXt)"""


class MultiHeadAttention(TokenMixer):
    """y = Wo LN(concat_h g_h softmax(q_h k_h^T / sqrt(d) + bias) v_h) + bo, within each segment.

    Why: one GEMM over all tokens makes q, k and v; a bias on the keys would cancel in the softmax, so
    ONE-PEACE has none there. Sub-LN (the norm before Wo) keeps deep pre-norm trunks stable.
    Weights: `qkv.weight` (3 dim, dim) holds Wq, Wk, Wv one above the other, heads in order, as timm's
    ViT; biases are `q_bias` and `v_bias` (no_key) or `qkv.bias` (all); `norm.*` Sub-LN; `head_gain` (h);
    `out.*`; `cosine.*` (see cosine.py) with similarity cosine.
    Shape: [t d] -> [t d]. Ref: ONE-PEACE section 3.1; Sub-LN: Wang et al. 2022 (Magneto), section 3.
    """

    supports_causal: ClassVar[bool] = True
    supports_bias: ClassVar[bool] = True
    init_from_mha: ClassVar[InitFromMha] = InitFromMha.EXACT
    kernels: ClassVar[tuple[str, ...]] = ("segments", "bmm", "varlen", "flex", "dense")

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; the defaults are ONE-PEACE's, `qkv_bias: all, sub_norm: false` is a plain ViT."""

        qkv_bias: QkvBias = QkvBias.NO_KEY
        """which projections have a bias"""
        sub_norm: bool = True
        """layer norm over the concatenated heads before the output projection"""
        head_gain: bool = False
        """a learned factor for each head's output"""
        norm_eps: float = DEFAULT_EPS
        """epsilon of that layer norm"""
        similarity: Similarity = Similarity.DOT
        """dot or cosine (TransNeXt)"""
        position_dim: int = 512
        """hidden width of the network that makes the bias of relative positions; cosine only"""
        backend: Backend = Backend.AUTO
        """attention kernel; auto chooses by device, dtype and need of a bias"""

        def __post_init__(self) -> None:
            """Check the width."""
            if self.position_dim < 1:
                where = "trunk.mixer.position_dim"
                raise ConfigError.at(where, str(self.position_dim), "at least 1", "Raise it.")

        def cosine(self, num_heads: int, head_dim: int) -> CosineLogits | None:
            """Make the weights of cosine similarity, None with dot."""
            if self.similarity is Similarity.DOT:
                return None
            return CosineLogits(num_heads, head_dim, self.position_dim)

    def __init__(self, config: Config, *, dim: int, num_heads: int) -> None:
        """Make the projections; `dim` is split evenly over the heads."""
        super().__init__(config, dim=dim, num_heads=num_heads)
        if dim % num_heads:
            raise ConfigError.at(
                "trunk.num_heads", f"{num_heads} heads", f"a divisor of dim {dim}", "Change either."
            )
        self.backend = config.backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias is QkvBias.ALL)
        split = config.qkv_bias is QkvBias.NO_KEY
        self.q_bias = nn.Parameter(torch.zeros(dim)) if split else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if split else None
        self.head_gain = nn.Parameter(torch.ones(num_heads)) if config.head_gain else None
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.sub_norm else None
        self.out = nn.Linear(dim, dim)
        self.cosine = config.cosine(num_heads, dim // num_heads)

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext, cache: Any = None
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Project, attend within the segments, project back."""
        if cache is not None:
            raise ConfigError.at(
                "trunk.mixer (attention)", "a key-value cache", "none", "Pass whole sequences."
            )
        heads = self._project(x).view(x.shape[0], 3, self.num_heads, self.dim // self.num_heads)
        y = attend_rows(heads, seq, ctx.layer, self.backend, self.cosine)  # pyright: ignore[reportCallIssue] disable() is untyped
        if self.head_gain is not None:
            y = y * self.head_gain[:, None]
        y = y.reshape(x.shape)
        return self.out(y if self.norm is None else self.norm(y)), {}

    def prepare(self, seq: SeqInfo, layer: int) -> None:
        """Merge bias and masks of the layer."""
        segments = segments_of(seq, layer, self.cosine)
        prepare(segments, self.num_heads, seq.cu_seqlens.device, self.backend)

    def flops(self, lengths: Sequence[int]) -> int:
        """Count what the tokens pass; the network of a cosine bias runs once a batch, for its offsets."""
        offsets = 0 if self.cosine is None else num_weights(self.cosine)
        return super().flops(lengths) - 2 * offsets * sum(lengths)

    @classmethod
    def from_mha(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state: it is plain multi-head attention's."""
        return dict(state)

    def _project(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d3"]:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return linear(self.qkv, x, bias)


def segments_of(seq: SeqInfo, layer: int, cosine: CosineLogits | None = None) -> Segments:
    """Return what the attention kernels need of the plan at a layer, and of the layer's own bias if it has
    one; made once a forward.
    """
    key = ("segments", layer if len(seq.biases) > 1 else 0)
    if key not in seq.cache:
        spans = tuple(Span(run.start, run.count, run.length, run.segment) for run in seq.runs)
        seq.cache[key] = Segments(
            spans, seq.cu_seqlens, seq.max_length, seq.bias(layer), seq.is_causal, seq.mask_mod
        )
    if cosine is None:
        return seq.cache[key]
    own = ("cosine segments", layer)
    if own not in seq.cache:
        seq.cache[own] = cosine.added(seq.cache[key], seq)
    return seq.cache[own]


@torch.compiler.disable
def attend_rows(
    qkv: Tensor, seq: SeqInfo, layer: int, backend: Backend, cosine: CosineLogits | None = None
) -> Tensor:
    """Bring the rows into attention order, attend, bring them back; never traced, since it differs with
    every batch.
    """
    segments = segments_of(seq, layer, cosine)
    rows = permute_rows(qkv, seq.order, seq.inverse)
    if cosine is None:
        y = attend(rows, segments, backend=backend)
    else:
        y = attend(
            cosine(rows, visible_keys(segments, seq, qkv.shape[2])), segments, backend=backend, scale=1.0
        )
    return permute_rows(y, seq.inverse, seq.order)
