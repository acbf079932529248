"""Heads that give numbers: plain regression, and the corners of a box in the picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from mmzoo.batch import DataInfo, Prediction, PredictionKind, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.heads.classifier import LinearHead, MlpHead

CORNERS = 4


class RegressionHead(LinearHead):
    """Pooled features -> layer norm (if asked for) -> dropout -> linear, one output a number of the label.

    `num_classes` counts the numbers.
    """

    @dataclass(kw_only=True)
    class Config(LinearHead.Config):
        """Sizes."""

    gives: ClassVar[PredictionKind] = PredictionKind.NUMBERS


class RegressionMlpHead(MlpHead):
    """The layers of `MlpHead`, one output a number of the label; `num_classes` counts the numbers."""

    @dataclass(kw_only=True)
    class Config(MlpHead.Config):
        """Sizes."""

    gives: ClassVar[PredictionKind] = PredictionKind.NUMBERS


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
