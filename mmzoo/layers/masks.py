"""Mask recipes: which tokens of a modality are hidden from the student in denoising pretraining."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.layers.masking import (
    SLACK,
    Maskable,
    block_centres,
    counts_of,
    hide_units,
    tokens_of,
    unit_liking,
)


class Prefer(str, Enum):
    """What a joint pass hides first."""

    ANY = "any"
    """whatever is drawn"""
    SHOWN = "shown"
    """what the modality's own pass shows; the rest is drawn among what that pass hides"""


@dataclass(kw_only=True)
class MaskConfig(schema.Config):
    """What all mask recipes share."""

    share: float = 0.5
    """share that is hidden"""
    prefer: Prefer = Prefer.ANY
    """what a joint pass hides first (ONE-PEACE stage 1: shown)"""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.share < 1:
            raise ConfigError.at("share", f"{self.share:g}", "between 0 and 1", "Try 0.5.")


class Mask(schema.Configurable):
    """Draws, for the rows of one modality, which tokens are hidden.

    Everything happens on the host, from the generator alone, so that a resumed run draws the same.
    """

    Config = MaskConfig
    config: MaskConfig

    def __init__(self, config: MaskConfig) -> None:
        """Keep the options."""
        self.config = config

    def __call__(
        self, what: Maskable, generator: torch.Generator, other: Bool[Tensor, "k n"] | None = None
    ) -> Bool[Tensor, "k n"]:
        """Return True where a token is hidden; `other` is what the modality's own pass hides."""
        raise NotImplementedError

    def _hide(
        self,
        units: Int[Tensor, "k n"],
        counts: Int[Tensor, " k"],
        generator: torch.Generator,
        other: Bool[Tensor, "k n"] | None,
    ) -> Bool[Tensor, "k n"]:
        prefers = other is not None and self.config.prefer is Prefer.SHOWN
        liking = unit_liking(other, units) if prefers and other is not None else None
        return hide_units(units, counts, generator, liking)


class WordMask(Mask):
    """Hides whole words: all tokens of a word or none.

    Math: ceil(share * words) of each row. Ref: ONE-PEACE stage 1 (text, 15 %), stage 2 (joint text, 40 %).
    """

    @dataclass(kw_only=True)
    class Config(MaskConfig):
        """Share of words."""

    def __call__(
        self, what: Maskable, generator: torch.Generator, other: Bool[Tensor, "k n"] | None = None
    ) -> Bool[Tensor, "k n"]:
        """Draw."""
        words = counts_of(what.words)
        counts = torch.tensor([math.ceil(self.config.share * n - SLACK) for n in words.tolist()])
        return self._hide(what.words, counts, generator, other)


class RandomMask(Mask):
    """Hides tokens at random places.

    Math: int(share * tokens) of each row. Ref: ONE-PEACE stage 1 (image 75 %; with prefer=shown joint image
    68.75 % and joint text 40 % of tokens).
    """

    @dataclass(kw_only=True)
    class Config(MaskConfig):
        """Share of tokens."""

    def __call__(
        self, what: Maskable, generator: torch.Generator, other: Bool[Tensor, "k n"] | None = None
    ) -> Bool[Tensor, "k n"]:
        """Draw."""
        units = tokens_of(what.words)
        counts = (counts_of(units) * self.config.share + SLACK).long()
        return self._hide(units, counts, generator, other)


class BlockMask(Mask):
    """Hides blocks along the first axis of the grid: stretches of time, bands of an image.

    Why: neighbouring frames tell each other's content, so single hidden ones are too easy.
    Math: blocks of `length` steps around random centres (see `block_centres`), then steps at random are shown
    or hidden until exactly int(share * steps) are. All tokens of a step go together.
    Ref: ONE-PEACE stage 2 (audio 55 %, joint audio 45 %, length 5).
    """

    @dataclass(kw_only=True)
    class Config(MaskConfig):
        """Share of steps and length of a block."""

        length: int = 5
        """steps in a block"""

        def __post_init__(self) -> None:
            """Check the length."""
            super().__post_init__()
            if self.length < 1:
                raise ConfigError.at("length", f"{self.length}", "at least 1", "Use 5.")

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        super().__init__(config)
        self.length = config.length

    def __call__(
        self, what: Maskable, generator: torch.Generator, other: Bool[Tensor, "k n"] | None = None
    ) -> Bool[Tensor, "k n"]:
        """Draw."""
        steps, share = what.steps, self.config.share
        existing = counts_of(steps)
        if not int(existing.sum()):
            return torch.zeros_like(steps, dtype=torch.bool)
        liking = block_centres(existing, share, self.length, generator).float()
        if other is not None and self.config.prefer is Prefer.SHOWN:
            liking = liking + 2 * unit_liking(other, steps)
        return hide_units(steps, (existing * share + SLACK).long(), generator, liking)
