"""What every modality is: an adapter from a batch's rows to tokens, and the Preprocess that belongs to its
weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import DataInfo, Item, ModalityInput, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.layers.masking import Maskable, dense


class Preprocess(schema.Configurable):
    """From a file's content to an `Item`; what it does is part of a checkpoint, since weights expect it.

    `decode` reads bytes into the raw form that `__call__` takes; synthetic data sets hand the raw form over
    directly. Raw forms: image PIL.Image or uint8 array (h w c); audio (float array (t) or (t channels),
    sample rate in Hz); text str; fmri float array (voxels) or (repeats voxels) with a subject; skeleton
    float array (c t v p), NaN or a mask (t v p) where a joint was not seen.
    """

    reads_paths: ClassVar[bool] = True
    """Whether a plain string names a file (text itself is a string, so its Preprocess says no)."""

    @property
    def core(self) -> Preprocess:
        """What it is apart from what teachers want beside it: itself."""
        return self

    def decode(self, data: bytes, name: str) -> Any:
        """Read a file's bytes; `name` (its file name) tells the format. Raise DataError where it is
        unreadable."""
        raise NotImplementedError

    def open(self, source: Any) -> Any:
        """Return the raw form of `source`: a file path is read and decoded, anything else is taken as raw
        already."""
        if isinstance(source, Path) or (
            isinstance(source, str) and self.reads_paths and Path(source).is_file()
        ):
            return self.decode(Path(source).read_bytes(), Path(source).name)
        return source

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Turn raw input into an Item; a generator means training (augmentation on), None means
        evaluation."""
        raise NotImplementedError

    def check_boxes(self) -> None:
        """Raise ConfigError unless a box drawn in the raw picture still shows the same in every Item made of
        it."""
        found = f"boxes in what {type(self).__qualname__} reads"
        raise ConfigError.at("data.numbers", found, "boxes in pictures", "Set `of` to an image.")

    def place_boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
        """Return where boxes of a raw picture of `size` (height, width) lie in the Item made of it.

        Shape: x1, y1, x2, y2 as shares of the width and height, before and after.
        """
        raise NotImplementedError


class ModalityAdapter(nn.Module, schema.Configurable):
    """From the rows of one modality to a TokenSequence of the trunk's width.

    Subclasses nest `Config(ModalityAdapter.Config)` with a field `preprocess: <its Preprocess>.Config`, set
    `kind` (which raw form they read) and give `fake_input`. They emit padded tokens with a host mask; padding
    must never change a real token.
    """

    kind: ClassVar[str]

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What every adapter's options have."""

        ffn: str = "new"
        """where a trunk with a feed-forward for each modality gets this one's when training starts: new, or
        copy(MODALITY) for another's, as trained by `init_from`"""

    def __init__(self, config: Any, *, name: str, dim: int, num_heads: int) -> None:
        """Keep what every adapter needs: its options, its name in the model, the trunk's width and heads
        (for biases)."""
        super().__init__()
        self.config, self.name, self.dim, self.num_heads = config, name, dim, num_heads

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the rows."""
        raise NotImplementedError

    @property
    def extent(self) -> tuple[int, ...]:
        """Return how many positions its tokens have: (sequence,), CLS counted, or the sides of a grid.

        A denoising decoder makes position tables of that size; longer sequences stretch them.
        """
        return (1024,)

    def maskable(self, x: ModalityInput, sequence: TokenSequence) -> Maskable:
        """Say (on the host) which tokens of `sequence`, made from `x`, may be hidden, and which together."""
        del x
        eligible = sequence.valid.clone()
        eligible[:, : sequence.num_prefix] = False
        words = torch.where(eligible, eligible.cumsum(1) - 1, -1)
        if sequence.grids is None:
            return Maskable(words, words)
        inner = torch.tensor([math.prod(grid[1:]) for grid in sequence.grids])[:, None]
        place = torch.arange(eligible.shape[1]) - sequence.num_prefix
        return Maskable(words, dense(torch.where(eligible, place // inner.clamp(min=1), -1)))

    def hide(self, sequence: TokenSequence, hidden: Bool[Tensor, "k n"]) -> TokenSequence:
        """Return the sequence as if its hidden tokens had never been there; they leave `valid`.

        Positions and relative biases keep their places. Override it where a token's positional term depends
        on its neighbours, or hidden content would leak.
        """
        return dataclasses.replace(sequence, valid=sequence.valid & ~hidden)

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make a random input that this adapter takes (ragged where the modality can be), for tests and dry
        runs."""
        raise NotImplementedError

    @classmethod
    def resolve(cls, config: Any, info: DataInfo) -> Any:
        """Fill options left open from what the data set says (subjects and voxel counts); return the
        options."""
        del info
        return config
