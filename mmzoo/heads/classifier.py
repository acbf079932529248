"""Heads that give logits: linear, with one hidden layer, and multi-label. All passes of a task share one
classifier."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import DataInfo, Prediction, PredictionKind, TokenSequence
from mmzoo.errors import ConfigError, close_matches
from mmzoo.heads.base import Head
from mmzoo.heads.pooling import Pooling, build_pool, check_part, part_of
from mmzoo.layers.init import init_weights


@dataclass(kw_only=True)
class ClassifierConfig(schema.Config):
    """What all classifiers share."""

    num_classes: int = 0
    """number of classes or labels; 0: as many as the data set names for the task's target"""
    pooling: Pooling = Pooling.MEAN
    """how tokens become one vector: cls, mean or attention"""
    pool_heads: int = 4
    """heads of attention pooling"""
    part: str = ""
    """modality whose tokens are pooled in a joint pass; empty: those of all"""
    init_std: float | None = None
    """spread of the truncated normal that linear weights start from (ONE-PEACE: 0.02); null: as usual"""
    dropout_prob: float = 0.0
    """probability of zeroing a feature before the last layer, in training"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_classes < 0:
            raise ConfigError.at(
                "num_classes", str(self.num_classes), "0 or more", "Use 0: as many as the data has."
            )
        if not 0 <= self.dropout_prob < 1:
            raise ConfigError.at(
                "dropout_prob", str(self.dropout_prob), "a probability in [0, 1)", "Try 0.1."
            )


class Classifier(Head):
    """Pools and applies `self.layers`; subclasses make those.

    Shape: tokens (k n d) -> values (k, classes), logits in float32.
    """

    Config = ClassifierConfig
    gives: ClassVar[PredictionKind] = PredictionKind.CLASSES

    def __init__(self, config: Any, *, dim: int, passes: tuple[str, ...]) -> None:
        """Build the pool and the layers; the number of classes must be known by now."""
        super().__init__(config, dim=dim, passes=passes)
        if config.num_classes < 1:
            do = "Set it, or give the task a target that the data set has labels for."
            raise ConfigError.at("head.num_classes", "0", "a number of classes", do)
        check_part(config.part, passes)
        self.pool = build_pool(config.pooling, dim, config.pool_heads)
        self.layers = self.build_layers()
        if config.init_std is not None:
            init_weights(self, std=config.init_std)

    def build_layers(self) -> nn.Module:
        """Return the module from pooled features to logits."""
        raise NotImplementedError

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Return the logits of the rows of one pass."""
        del pass_name
        pooled, index = self.features(sequence)
        return Prediction(self.layers(pooled).float(), index)

    def features(self, sequence: TokenSequence) -> tuple[Float[Tensor, "k d"], Int[Tensor, " k"]]:
        """Return what the layers read, and the sample of each row."""
        chosen = part_of(sequence, self.config.part)
        return self.pool(chosen), chosen.index

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Fill an open `num_classes` from the labels of `target`; raise where a given one contradicts
        them."""
        labels = info.labels.get(target)
        if labels is None:
            if config.num_classes:
                return config
            do = (
                close_matches(target, info.labels)
                if target
                else f"Set the task's target, e.g. {_first(info)}."
            )
            raise ConfigError.at("head", f"no labels of target {target!r}", "a label of the data set", do)
        if config.num_classes not in (0, len(labels)):
            found = f"{config.num_classes}, but target {target!r} has {len(labels)}"
            raise ConfigError.at(
                "head.num_classes", found, "the same number", "Set it to 0 to follow the data."
            )
        return dataclasses.replace(config, num_classes=len(labels))


class LinearHead(Classifier):
    """Pooled features -> layer norm (if asked for) -> dropout -> linear.

    Ref: with `norm` and mean pooling, the classifier of ONE-PEACE's vision branch.
    """

    @dataclass(kw_only=True)
    class Config(ClassifierConfig):
        """Sizes."""

        norm: bool = False
        """layer norm on the pooled features"""

    def build_layers(self) -> nn.Module:
        """Return the linear layer."""
        self.norm = nn.LayerNorm(self.dim) if self.config.norm else None
        last = nn.Linear(self.dim, self.config.num_classes)
        nn.init.trunc_normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Dropout(self.config.dropout_prob), last)

    def features(self, sequence: TokenSequence) -> tuple[Float[Tensor, "k d"], Int[Tensor, " k"]]:
        """Return the pooled features, normalised if asked for."""
        pooled, index = super().features(sequence)
        return pooled if self.norm is None else self.norm(pooled), index


class MlpHead(Classifier):
    """Pooled features -> linear and tanh (`pooler`) -> linear to ratio · d -> LayerNorm -> GELU -> dropout ->
    linear.

    Ref: ONE-PEACE's classification head (attention pooling and ratio 2 in its released checkpoints, a pooler
    for VQA), here with any pooling.
    """

    views: ClassVar[int] = 1
    """How many pooled vectors the layers read side by side."""

    @dataclass(kw_only=True)
    class Config(ClassifierConfig):
        """Sizes."""

        ratio: float = 2.0
        """width of the hidden layer over the trunk's"""
        pooler: bool = False
        """linear layer and tanh between the pool and the layers"""

        def __post_init__(self) -> None:
            """Check the ratio too."""
            super().__post_init__()
            if not self.ratio > 0:
                raise ConfigError.at("ratio", str(self.ratio), "a positive number", "ONE-PEACE uses 2.")

    def build_layers(self) -> nn.Module:
        """Return the two layers."""
        hidden = max(1, round(self.config.ratio * self.dim))
        self.pooler = nn.Linear(self.dim, self.dim) if self.config.pooler else None
        return nn.Sequential(
            nn.Linear(self.views * self.dim, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Dropout(self.config.dropout_prob),
            nn.Linear(hidden, self.config.num_classes),
        )

    def features(self, sequence: TokenSequence) -> tuple[Float[Tensor, "k d"], Int[Tensor, " k"]]:
        """Return the pooled features, through the pooler if asked for."""
        pooled, index = super().features(sequence)
        return pooled if self.pooler is None else self.pooler(pooled).tanh(), index


class MultiLabelMlpHead(MlpHead):
    """The same layers; each logit is a yes-no question of its own. Ref: ONE-PEACE's VQA and FSD50K heads."""

    @dataclass(kw_only=True)
    class Config(MlpHead.Config):
        """Sizes."""

    gives: ClassVar[PredictionKind] = PredictionKind.LABELS


class MultiLabelHead(Classifier):
    """Pooled features -> dropout -> linear; each logit is a yes-no question of its own.

    Math: the bias starts at ln(p / (1 - p)), p = prior_prob, so that rare labels do not flood the first
    steps.
    """

    @dataclass(kw_only=True)
    class Config(ClassifierConfig):
        """Sizes and start value."""

        prior_prob: float = 0.5
        """probability that every label starts from; near the share of positives for rare labels"""

        def __post_init__(self) -> None:
            """Check the prior too."""
            super().__post_init__()
            if not 0 < self.prior_prob < 1:
                raise ConfigError.at(
                    "prior_prob", str(self.prior_prob), "a probability in (0, 1)", "Try 0.01."
                )

    gives: ClassVar[PredictionKind] = PredictionKind.LABELS

    def __init__(self, config: Config, *, dim: int, passes: tuple[str, ...]) -> None:
        """Build the layers and let every label start from its prior."""
        super().__init__(config, dim=dim, passes=passes)
        prior = math.log(config.prior_prob / (1 - config.prior_prob))
        nn.init.constant_(self.layers.get_parameter("1.bias"), prior)

    def build_layers(self) -> nn.Module:
        """Return the linear layer."""
        last = nn.Linear(self.dim, self.config.num_classes)
        nn.init.trunc_normal_(last.weight, std=0.02)
        return nn.Sequential(nn.Dropout(self.config.dropout_prob), last)


def _first(info: DataInfo) -> str:
    return next(iter(info.labels), "one it has")
