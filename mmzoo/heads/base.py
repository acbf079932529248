"""What every head is: from the trunk's tokens of one pass to a Prediction."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from mmzoo import schema
from mmzoo.batch import DataInfo, Prediction, PredictionKind, TokenSequence


class Head(nn.Module, schema.Configurable):
    """Reads the TokenSequence of each pass its task asks for; `passes` are their names (`image`,
    `image+text`).

    For a joint pass the sequence is already joined by sample: its first real token is the CLS of the first
    modality that the sample has. `gives` says what its predictions are.
    """

    gives: ClassVar[PredictionKind]

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
