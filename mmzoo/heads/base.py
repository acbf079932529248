"""What every head is: from the trunk's tokens of one pass to a Prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from mmzoo import schema
from mmzoo.batch import DataInfo, Prediction, PredictionKind, TokenSequence
from mmzoo.errors import ConfigError


class Head(nn.Module, schema.Configurable):
    """Reads the TokenSequence of each pass its task asks for; `passes` are their names (`image`,
    `image+text`).

    For a joint pass the sequence is already joined by sample: its first real token is the CLS of the first
    modality that the sample has. `gives` says what its predictions are.
    """

    gives: ClassVar[PredictionKind]
    takes_several: ClassVar[bool] = False
    """Whether a sample may have several rows: its prediction is then one for each of its entries."""

    training_only: ClassVar[bool] = False
    """Whether it serves an objective alone and is left out of exports."""

    def __init__(self, config: Any, *, dim: int, passes: tuple[str, ...]) -> None:
        """Keep the options, the trunk's width and the passes."""
        super().__init__()
        self.config, self.dim, self.passes = config, dim, passes

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Predict for the rows of one pass."""
        raise NotImplementedError

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Fill options left open (the number of classes) from the data set; return the options."""
        del info, target
        return config

    @classmethod
    def as_trained(cls, config: Any, before: Any) -> Any:
        """Fill options left open with what the data decided when a model was trained, `before`; those that
        any data of the same labels decide alike stay open."""
        del before
        return config


class PairHead(Head):
    """Reads two passes at once, such as `text+image` and `text+image2`; gives one prediction for both.

    A sample counts where it has both.
    """

    def __init__(self, config: Any, *, dim: int, passes: tuple[str, ...]) -> None:
        """Check that there are two passes."""
        if len(passes) != 2:
            do = "Name two: passes: [text+image, text+image2]."
            raise ConfigError.at("head.passes", ", ".join(passes) or "none", "two passes", do)
        super().__init__(config, dim=dim, passes=passes)

    def pair(self, sequences: Mapping[str, TokenSequence]) -> dict[str, Prediction]:
        """Predict for the samples that have both passes, under `first~second`; {} where one is absent."""
        raise NotImplementedError
