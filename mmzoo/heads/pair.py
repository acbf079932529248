"""The classifier of two passes: both are pooled alike, the two vectors side by side go through one MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mmzoo.batch import Prediction, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.heads.base import PairHead
from mmzoo.heads.classifier import MlpHead


class PairMlpHead(PairHead, MlpHead):
    """One answer about two passes of a sample, such as a sentence with each of two pictures.

    Math: layers([f(x_1), f(x_2)]), f the pooled features of one pass.
    Shape: tokens (k n d) and (l m d) -> values (r, classes), r the samples that have both.
    Ref: ONE-PEACE's NLVR2 classifier.
    """

    @dataclass(kw_only=True)
    class Config(MlpHead.Config):
        """Sizes."""

    views: ClassVar[int] = 2

    def forward(self, sequence: TokenSequence, pass_name: str) -> Prediction:
        """Refuse: one pass is half of the question."""
        del sequence
        do = "Call pair() with both passes."
        raise ConfigError.at("head", f"the pass {pass_name!r} alone", " and ".join(self.passes), do)

    def pair(self, sequences: Mapping[str, TokenSequence]) -> dict[str, Prediction]:
        """Return the logits of the samples that have both passes; {} where one is absent."""
        if any(name not in sequences for name in self.passes):
            return {}
        (first, i), (second, j) = (self.features(sequences[name]) for name in self.passes)
        both, left, right = np.intersect1d(i.numpy(), j.numpy(), assume_unique=True, return_indices=True)
        rows = [torch.from_numpy(x).to(first.device) for x in (left, right)]
        pooled = torch.cat([first.index_select(0, rows[0]), second.index_select(0, rows[1])], dim=1)
        values = self.layers(pooled).float()
        return {"~".join(self.passes): Prediction(values, torch.from_numpy(both))}
