"""Feed-forwards: one set of weights for each modality (ONE-PEACE), or one for all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.layers.gated import geglu
from mmzoo.layers.norms import DEFAULT_EPS
from mmzoo.trunk.base import Aux, FeedForward, MixerContext, num_weights
from mmzoo.trunk.plan import SeqInfo


class Activation(str, Enum):
    """What stands between the two projections."""

    GEGLU = "geglu"
    GELU = "gelu"


@dataclass(kw_only=True)
class MlpConfig(schema.Config):
    """Options of the network itself; the defaults are ONE-PEACE's, `activation: gelu, sub_norm: false` a
    plain ViT's.
    """

    activation: Activation = Activation.GEGLU
    """gelu: W2 gelu(W1 x + b1) + b2; geglu: W2 (gelu(Wg x) * Wu x) + b2"""
    hidden_dim: int | None = None
    """width between the projections (of each half for geglu); null: 4 x dim"""
    sub_norm: bool = True
    """layer norm before the second projection"""
    norm_eps: float = DEFAULT_EPS
    """epsilon of that layer norm"""

    def __post_init__(self) -> None:
        """Check the width."""
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise ConfigError.at(
                "trunk.ffn.hidden_dim", str(self.hidden_dim), "a positive width", "Leave it null."
            )


class Mlp(nn.Module):
    """Two projections with a GELU or a gated GELU between them.

    Weights: `w_in.weight` (2 hidden, dim) holds Wg above Wu for geglu, no bias; (hidden, dim) with bias
    for gelu; `norm.*` Sub-LN; `w_out.*`. GELU is the exact one. Ref: ONE-PEACE section 3.1; GLU
    variants: Shazeer 2020.
    """

    def __init__(self, config: MlpConfig, dim: int) -> None:
        """Make the projections."""
        super().__init__()
        hidden = config.hidden_dim or 4 * dim
        self.gated = config.activation is Activation.GEGLU
        self.w_in = nn.Linear(dim, 2 * hidden if self.gated else hidden, bias=not self.gated)
        self.norm = nn.LayerNorm(hidden, eps=config.norm_eps) if config.sub_norm else None
        self.w_out = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """Transform each token."""
        h = self.w_in(x)
        h = geglu(h) if self.gated else F.gelu(h)
        return self.w_out(h if self.norm is None else self.norm(h))


class ModalityFeedForward(FeedForward):
    """One network a modality, each on its own rows of the modality-major buffer; absent modalities cost
    nothing.

    Weights: `networks.<modality>.*`. Ref: ONE-PEACE section 3.1 (modality FFN).
    """

    @dataclass(kw_only=True)
    class Config(MlpConfig):
        """Options of each modality's network."""

    def __init__(self, config: Config, *, dim: int, modalities: tuple[str, ...]) -> None:
        """Make a network for each name."""
        super().__init__(config, dim=dim, modalities=modalities)
        self.networks = nn.ModuleDict({name: Mlp(config, dim) for name in modalities})

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Transform each modality's rows with its own weights."""
        del ctx
        slices = seq.modality_slices
        if len(slices) == 1:
            return self.networks[next(iter(slices))](x), {}
        parts = x.split([end - start for start, end in slices.values()])
        return torch.cat([self.networks[name](part) for name, part in zip(slices, parts, strict=True)]), {}

    def flops(self, tokens: int, segments: int = 1) -> int:
        """Count one network: a token meets only its own."""
        del segments
        return 2 * num_weights(self.networks[self.modalities[0]]) * tokens


class SharedFeedForward(FeedForward):
    """One network for all tokens. Weights: `network.*`."""

    @dataclass(kw_only=True)
    class Config(MlpConfig):
        """Options of the one network."""

    def __init__(self, config: Config, *, dim: int, modalities: tuple[str, ...]) -> None:
        """Make the network."""
        super().__init__(config, dim=dim, modalities=modalities)
        self.network = Mlp(config, dim)

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Transform every row."""
        del seq, ctx
        return self.network(x), {}
