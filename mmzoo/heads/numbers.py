"""Heads that give numbers: plain regression, and the corners of a box in the picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from mmzoo.batch import DataInfo, NumericKind, Prediction, PredictionKind, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.heads.classifier import Classifier, ClassifierConfig, LinearHead, MlpHead

CORNERS = 4


class Units(str, Enum):
    """What the layers of a regression head give, and what its loss is counted in."""

    STANDARD = "standard"
    """standard deviations from the mean of the training split; the prediction is in the data's own units"""
    DATA = "data"
    """the data's own units"""


@dataclass(kw_only=True)
class RegressionConfig(ClassifierConfig):
    """What all regression heads share; `num_classes` counts the numbers."""

    units: Units = Units.STANDARD
    """what the layers learn in: standard, or data (as the numbers are)"""
    mean: list[float] = field(default_factory=list[float])
    """of standard units: mean of each number (unit of the label); empty: that of the training split"""
    std: list[float] = field(default_factory=list[float])
    """standard deviation of each number (unit of the label); empty: that of the training split, 1 where all
    are equal"""

    def __post_init__(self) -> None:
        """Check the numbers against each other."""
        super().__post_init__()
        found = f"{len(self.mean)} means and {len(self.std)} deviations"
        if self.units is Units.DATA and (self.mean or self.std):
            raise ConfigError.at("units", f"data, but {found}", "none of them", "Set units: standard.")
        wanted = self.num_classes or len(self.mean)
        if {len(self.mean), len(self.std)} not in ({0}, {wanted}):
            do = "Leave both out to follow the data."
            raise ConfigError.at("mean, std", found, f"{wanted} each, or neither", do)
        if not all(s > 0 for s in self.std):
            raise ConfigError.at("std", str(self.std), "numbers above 0", "Use 1 where all are equal.")


class Regression(Classifier):
    """A classifier whose outputs are numbers in the units of the label, whatever the layers learn in.

    Why: layers start near 0 with steps near 1, and objectives weigh errors by their size; ages of 40 ± 20 or
    prices of 10^6 would be learned slowly or drown other tasks. So the layers learn in standard units, and
    losses count differences in them, while predictions, metrics and exports stay in the data's.
    Math: p = σ ⊙ layers(pooled) + μ, `spread` σ; μ and σ are options, stored with the model, and taken from
    the training split when a recipe is built and they are empty. units=data: p = layers(pooled).
    Shape: tokens (k n d) -> values (k, numbers), float32.
    """

    Config = RegressionConfig
    gives: ClassVar[PredictionKind] = PredictionKind.NUMBERS

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Return the numbers of the rows of one pass."""
        found = super().forward(sequence, pass_name)
        if not self.config.mean:
            return found
        mean, std = (found.values.new_tensor(numbers) for numbers in (self.config.mean, self.config.std))
        return dataclasses.replace(found, values=found.values * std + mean, spread=std)

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Fill open options: how many numbers, and their mean and spread."""
        filled = super().resolve(config, info, target)
        if config.mean or config.units is Units.DATA or info.numeric.get(target) is not NumericKind.NUMBERS:
            return filled
        if target not in info.moments:
            do = "Set head.mean and head.std, or head.units=data."
            expected = "their mean and spread over the training split"
            raise ConfigError.at("head", f"numbers {target!r} that the data do not sum up", expected, do)
        moments = info.moments[target]
        return dataclasses.replace(filled, mean=list(moments.mean), std=[s or 1.0 for s in moments.std])

    @classmethod
    def as_trained(cls, config: Any, before: Any) -> Any:
        """Keep the units that a model was trained in; one of before there were any, the data's."""
        if config.mean or config.units is Units.DATA:
            return config
        if not before.mean:
            return dataclasses.replace(config, units=Units.DATA)
        return dataclasses.replace(config, mean=list(before.mean), std=list(before.std))


class RegressionHead(Regression, LinearHead):
    """Pooled features -> layer norm (if asked for) -> dropout -> linear, one output a number of the label.

    See `Regression` for the units.
    """

    @dataclass(kw_only=True)
    class Config(LinearHead.Config, RegressionConfig):
        """Sizes and units."""


class RegressionMlpHead(Regression, MlpHead):
    """The layers of `MlpHead`, one output a number of the label. See `Regression` for the units."""

    @dataclass(kw_only=True)
    class Config(MlpHead.Config, RegressionConfig):
        """Sizes and units."""


class BoxHead(MlpHead):
    """Where in the picture is what the text speaks of: the layers of `MlpHead`, then a sigmoid.

    Math: σ(layers(pooled)) = x1, y1, x2, y2 as shares of the width and height, from the upper left.
    Shape: tokens (k n d) -> values (k, 4); nothing makes x1 < x2 but the loss.
    Ref: ONE-PEACE's grounding head. `part` says whose tokens of the joint pass are pooled: the released
    weights for RefCOCO and RefCOCO+ take the image's, those for RefCOCOg the text's.
    """

    @dataclass(kw_only=True)
    class Config(MlpHead.Config):
        """Sizes."""

        def __post_init__(self) -> None:
            """Check the number of outputs too."""
            super().__post_init__()
            if self.num_classes not in (0, CORNERS):
                do = "Leave num_classes out."
                raise ConfigError.at("num_classes", str(self.num_classes), "4, the corners of a box", do)

    gives: ClassVar[PredictionKind] = PredictionKind.BOXES

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Return the box of each row of a pass."""
        found = super().forward(sequence, pass_name)
        return dataclasses.replace(found, values=found.values.sigmoid())

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Fill in the four outputs."""
        del info, target
        return dataclasses.replace(config, num_classes=CORNERS)
