"""The projection head: from the student's pass vector to the space of a teacher's, in training only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mmzoo import schema
from mmzoo.batch import Prediction, PredictionKind, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.heads.base import Head
from mmzoo.heads.pooling import Pooling, build_pool


class ProjectionHead(Head):
    """Pools and applies one linear map a pass; it is left out of exports.

    Shape: tokens (k n d) -> values (k e), of any length, in float32.
    Ref: Romero et al. 2015 (FitNets), whose regressor this is.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Sizes."""

        pooling: Pooling = Pooling.MEAN
        """how tokens become one vector: cls, mean or attention (each pass then has its own query)"""
        pool_heads: int = 4
        """heads of attention pooling"""
        embed_dim: int = 0
        """width of the output vectors; 0: that of the task's teacher (without one, the trunk's)"""

        def __post_init__(self) -> None:
            """Check the width."""
            if self.embed_dim < 0:
                do = "Use 0: the teacher's."
                raise ConfigError.at("embed_dim", str(self.embed_dim), "0 or a positive width", do)

    gives: ClassVar[PredictionKind] = PredictionKind.FEATURES
    training_only: ClassVar[bool] = True

    def __init__(self, config: Config, *, dim: int, passes: tuple[str, ...]) -> None:
        """Build a pool and a projection for each pass."""
        super().__init__(config, dim=dim, passes=passes)
        self.pools = nn.ModuleDict({p: build_pool(config.pooling, dim, config.pool_heads) for p in passes})
        self.projections = nn.ModuleDict({p: nn.Linear(dim, config.embed_dim or dim) for p in passes})

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Return the vectors of the rows of one pass."""
        vectors = self.projections[pass_name](self.pools[pass_name](sequence))
        return Prediction(vectors.float(), sequence.index)
