"""The contrastive head: one unit vector a row, comparable between passes, and the temperature to compare them
with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mmzoo import schema
from mmzoo.batch import Prediction, PredictionKind, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.heads.base import Head
from mmzoo.heads.pooling import Pooling, build_pool
from mmzoo.layers.init import init_weights


class ContrastiveHead(Head):
    """Pools, projects (each pass has its own projection) and normalises.

    Shape: tokens (k n d) -> values (k e), each of length 1.
    Math: z = W_pass pool(x) + b_pass; values = z / max(|z|, 1e-12) in float32; scale = exp(log_scale).
    Ref: Wang et al. 2023 (ONE-PEACE); Radford et al. 2021 (temperature); Zhai et al. 2023 (offset).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Sizes and start values."""

        pooling: Pooling = Pooling.CLS
        """how tokens become one vector: cls, mean or attention (each pass then has its own query)"""
        pool_heads: int = 4
        """heads of attention pooling"""
        embed_dim: int = 0
        """width of the output vectors; 0: the trunk's"""
        bias: bool = True
        """whether projections have a bias"""
        init_std: float | None = None
        """spread of the truncated normal that linear weights start from (ONE-PEACE: 0.02); null: as usual"""
        scale_init: float = 1 / 0.07
        """factor on cosines at the start (inverse temperature); SigLIP starts at 10"""
        scale_max: float = 100.0
        """the factor is kept between 1 and this"""
        offset_init: float | None = None
        """learned offset on logits, as SigLIP needs (start at -10); null: none"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not 1 <= self.scale_init <= self.scale_max:
                found = f"{self.scale_init:g} with scale_max {self.scale_max:g}"
                raise ConfigError.at(
                    "scale_init", found, "1 <= scale_init <= scale_max", "CLIP uses 14.3 and 100."
                )
            if self.embed_dim < 0:
                raise ConfigError.at(
                    "embed_dim", str(self.embed_dim), "0 or a positive width", "Use 0: the trunk's."
                )

    gives: ClassVar[PredictionKind] = PredictionKind.VECTORS
    is_embedding: ClassVar[bool] = True
    takes_several: ClassVar[bool] = True

    def __init__(self, config: Config, *, dim: int, passes: tuple[str, ...]) -> None:
        """Build a pool and a projection for each pass."""
        super().__init__(config, dim=dim, passes=passes)
        width = config.embed_dim or dim
        self.pools = nn.ModuleDict({p: build_pool(config.pooling, dim, config.pool_heads) for p in passes})
        self.projections = nn.ModuleDict({p: nn.Linear(dim, width, bias=config.bias) for p in passes})
        if config.init_std is not None:
            init_weights(self, std=config.init_std)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale_init)))
        self.offset: nn.Parameter | None = None
        if config.offset_init is not None:
            self.offset = nn.Parameter(torch.tensor(config.offset_init))

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Return the unit vectors of the rows of one pass."""
        if pass_name not in self.passes:
            do = "Name it in the task's passes."
            raise ConfigError.at("head", f"pass {pass_name!r}", f"one of {', '.join(self.passes)}", do)
        vectors = self.projections[pass_name](self.pools[pass_name](sequence))
        values = F.normalize(vectors.float(), dim=-1, eps=1e-12)
        highest = math.log(self.config.scale_max)
        if self.training:
            # compat(onepeace): in place, so that a scale past the bound still gets its gradient; on `.data`,
            # since the head runs once a pass and autograd must not see it change between passes
            self.log_scale.data.clamp_(0.0, highest)
        scale = self.log_scale.clamp(0.0, highest).exp()
        return Prediction(values, sequence.index, scale, self.offset)
