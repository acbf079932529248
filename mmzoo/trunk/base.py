"""What plugs into a block: token mixers and feed-forwards, their shared signature and capability flags.

Both work on the packed buffer: `x` is [t d], one row a real token, no padding. `SeqInfo` says where the
segments lie. A mixer includes its output projection; norm, residual, LayerScale and stochastic depth belong
to the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.trunk.plan import SeqInfo

Aux = dict[str, Tensor]
"""Named scalars that an objective may add to the loss (load balance, z-loss) or the log may show."""


class InitFromMha(str, Enum):
    """How well a mixer can start from plain attention's weights."""

    EXACT = "exact"
    APPROX = "approx"
    NONE = "none"


@dataclass
class MixerContext:
    """What a mixer or feed-forward may need beside the tokens. Token axes follow the packed buffer.

    The trunk hands each layer a copy with its `layer` and `depth`; `stats` is the same dict for all of
    them, keys by convention `<layer>/<name>`.
    """

    layer: int = 0
    depth: int = 1
    training: bool = False
    step: int = 0
    task: str | None = None
    generator: torch.Generator | None = None
    task_vectors: Mapping[str, Tensor] = field(default_factory=dict)
    """task -> its vector, made once a forward by a trunk whose routers read one"""
    stats: dict[str, Any] = field(default_factory=dict)


class TokenMixer(nn.Module, schema.Configurable):
    """Mixes tokens within each segment: `y, aux = mixer(x, seq=…, ctx=…)`, y like x [t d].

    Flags say what a mixer can do; one that cannot honour something asked of it raises, it never ignores.
    """

    needs_grid: ClassVar[bool] = False
    supports_mask: ClassVar[bool] = True
    supports_causal: ClassVar[bool] = False
    supports_cross: ClassVar[bool] = False
    supports_packed: ClassVar[bool] = True
    supports_bias: ClassVar[bool] = False
    static_length: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    init_from_mha: ClassVar[InitFromMha] = InitFromMha.NONE
    kernels: ClassVar[tuple[str, ...]] = ()
    takes_tasks: ClassVar[bool] = False
    """Whether the constructor takes `tasks`, the names of the model's tasks."""
    task_dependent: bool = False
    """Whether its work depends on the task: it then runs on one copy of the tokens for each task."""

    task_dim: int = 0
    """Width of the task vectors that it reads from the context; 0: it reads none."""

    def __init__(self, config: Any, *, dim: int, num_heads: int) -> None:
        """Keep the options and the sizes every mixer has."""
        super().__init__()
        self.config, self.dim, self.num_heads = config, dim, num_heads

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext, cache: Any = None
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Mix."""
        raise NotImplementedError

    def prepare(self, seq: SeqInfo, layer: int) -> None:
        """Derive what the layer needs from the plan, into `seq.cache`; called once a forward, before the
        blocks.

        Why: activation checkpointing runs a block twice, and both runs must do the same work.
        """

    def check(self, seq: SeqInfo) -> None:
        """Raise where the plan asks for what the flags rule out."""
        asked = {
            "an additive bias": (bool(seq.biases), self.supports_bias, "supports_bias"),
            "a causal mask": (seq.is_causal, self.supports_causal, "supports_causal"),
            "a mask": (seq.mask_mod is not None, self.supports_mask, "supports_mask"),
        }
        for found, (wanted, able, flag) in asked.items():
            if wanted and not able:
                where, do = f"trunk.mixer ({type(self).__name__})", "Choose another mixer or switch it off."
                raise ConfigError.at(where, found, f"a mixer with {flag}", do)

    def flops(self, lengths: Sequence[int]) -> int:
        """Return the FLOPs of one forward over segments of these lengths.

        Math: 2 a weight a token, and 4 dim length^2 a segment. Mixers that do not attend fully override it.
        """
        return 2 * num_weights(self) * sum(lengths) + 4 * self.dim * sum(n * n for n in lengths)

    @classmethod
    def from_mha(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the state dict of plain multi-head attention into this mixer's; raise where `init_from_mha`
        is none."""
        raise NotImplementedError


class FeedForward(nn.Module, schema.Configurable):
    """Transforms each token by itself: `y, aux = ffn(x, seq=…, ctx=…)`, y like x [t d].

    `modalities` are the names the trunk serves: a modality FFN keeps one set of weights for each and reads
    which rows belong to which from `seq.modality_slices`.
    """

    takes_tasks: ClassVar[bool] = False
    """Whether the constructor takes `tasks`, the names of the model's tasks."""
    task_dependent: bool = False
    """Whether its work depends on the task: it then runs on one copy of the tokens for each task."""
    task_dim: int = 0
    """Width of the task vectors that it reads from the context; 0: it reads none."""

    def __init__(self, config: Any, *, dim: int, modalities: tuple[str, ...]) -> None:
        """Keep the options and the names."""
        super().__init__()
        self.config, self.dim, self.modalities = config, dim, modalities

    def forward(
        self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext
    ) -> tuple[Float[Tensor, "t d"], Aux]:
        """Transform."""
        raise NotImplementedError

    @classmethod
    def at(cls, config: Any, layer: int) -> Any:
        """Return the options of the feed-forward at a layer; one that is not in every block returns those of
        another there.
        """
        del layer
        return config

    def flops(self, tokens: int, segments: int = 1) -> int:
        """Return the FLOPs of one forward over so many tokens in so many segments: 2 a weight a token,
        counting the weights a token meets.
        """
        del segments
        return 2 * num_weights(self) * tokens


def num_weights(module: nn.Module) -> int:
    """Count the entries of all matrices below `module` (biases, norms and gains multiply nothing worth
    counting).
    """
    return sum(p.numel() for p in module.parameters() if p.ndim >= 2)
