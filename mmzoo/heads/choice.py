"""The head of multiple choice: one score for each answer, that is for each row of a sample."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from mmzoo.batch import DataInfo, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.heads.classifier import MlpHead


class ChoiceMlpHead(MlpHead):
    """Scores a sample together with each of the answers to choose from, one joint pass for every answer.

    Shape: tokens (k n d) -> values (k 1), a row for each answer of each sample.
    Ref: ONE-PEACE's audio question answering (AVQA): the classification head with one logit.
    """

    @dataclass(kw_only=True)
    class Config(MlpHead.Config):
        """Sizes."""

        num_classes: int = 1
        """logits a row; always one"""

        def __post_init__(self) -> None:
            """Check that there is one logit."""
            super().__post_init__()
            if self.num_classes != 1:
                do = "Leave it out: answers are rows, not classes."
                raise ConfigError.at("num_classes", str(self.num_classes), "1", do)

    gives: ClassVar[PredictionKind] = PredictionKind.CHOICES
    takes_several: ClassVar[bool] = True

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Return the options as they are: how many answers there are concerns the data alone."""
        del info, target
        return dataclasses.replace(config)
