"""What a head is that hides tokens from the trunk and compares with what it sees of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from mmzoo.batch import Prediction, TokenSequence
from mmzoo.heads.base import Head
from mmzoo.layers.masking import Maskable

Hidden = Mapping[str, Mapping[str, Bool[Tensor, "_ _"]]]
"""For each pass and modality, on the host, which tokens (k n) are hidden."""


class InputFacts(NamedTuple):
    """What such a head knows of a modality: what its adapter reads, and how many positions it has."""

    kind: str
    extent: tuple[int, ...]


class MaskedHead(Head):
    """A head that reads its passes twice: whole, as a teacher sees them, and with some tokens hidden.

    The model asks which tokens to hide, runs the visible ones of every pass beside the whole passes, and
    hands over both. `inputs` tells of every modality; sequences come as the trunk gives them, one for each
    modality of a pass, those of hidden passes with hidden tokens left out of `valid`.
    """

    def __init__(
        self, config: Any, *, dim: int, passes: tuple[str, ...], inputs: Mapping[str, InputFacts]
    ) -> None:
        """Keep the options, the trunk's width, the passes and what is known of their modalities."""
        super().__init__(config, dim=dim, passes=passes)
        self.inputs = dict(inputs)

    def teachers(self) -> tuple[str, ...]:
        """Name the passes it wants whole; they run without gradient unless another task reads them."""
        raise NotImplementedError

    def draw(self, what: Mapping[str, Maskable], generator: torch.Generator) -> Hidden:
        """Decide what is hidden, given what may be of each modality present."""
        raise NotImplementedError

    def compare(
        self,
        students: Mapping[str, Sequence[TokenSequence]],
        teachers: Mapping[str, Sequence[TokenSequence]],
        hidden: Hidden,
    ) -> dict[str, Prediction]:
        """Predict for every modality of every pass."""
        raise NotImplementedError
