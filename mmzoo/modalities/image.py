"""Images as patches: a stem, learned absolute positions resized to each grid, a CLS token, 2-D relative
biases.

Axis letters: k rows, n tokens (CLS, then patches row-major), d width, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.batch import ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.init import trunc_normal_
from mmzoo.layers.patches import ConvStem, HmlpStem
from mmzoo.layers.positions import GridPositions, RelativeBias2d
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.mixed_sizes import Embedded, embed_by_size, fake_images

CHANNELS = 3
"""Preprocess gives RGB."""


class Stem(str, Enum):
    """How a patch becomes a vector: three small convolutions (ONE-PEACE), or one (ViT)."""

    HMLP = "hmlp"
    CONV = "conv"


class ImageAdapter(ModalityAdapter):
    """Images of any height and width that the patch divides, several sizes in one batch.

    Shape: values (k 3 height width) -> tokens (k 1+n d), right-padded where sizes differ; biases (1 h 1+n
    1+n), or one a row where sizes differ.
    Ref: ONE-PEACE section 3.1 (image adapter), which takes squares of one size only.
    """

    kind = "image"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options; the defaults are those of the released 4B model."""

        preprocess: ImagePreprocess.Config = field(default_factory=ImagePreprocess.Config)
        "From an image file to the tensor."
        stem: Stem = Stem.HMLP
        "hmlp (strides patch_size / 4, 2, 2) or conv (one convolution)."
        patch_size: int = 16
        "Side of a patch (pixels); a multiple of 4 for hmlp."
        conv_bias: bool = True
        "Whether the convolution of stem conv has a bias."
        position_grid: int | None = None
        "Side of the absolute position table (patches); null = the longer side of preprocess.size."
        position_cols: int | None = None
        "Columns of that table where it is not square (patches); null = as many as rows."
        cls_token: bool = True
        "Whether a CLS token stands before the patches; without it the table keeps CLS's row, unused."
        bias_grid: int | None = None
        "Grid side (patches) whose offsets the relative bias tells apart; null = as position_grid's null."
        num_bias_tables: int = 1
        "Relative bias tables: 0 = off, 1 = shared by all layers, otherwise one for each layer of the trunk."
        type_embedding: bool = False
        "Add one learned vector to every token, CLS included."

        def __post_init__(self) -> None:
            """Check sizes and fill what follows from preprocess.size."""
            if self.patch_size < 1 or any(side % self.patch_size for side in self.preprocess.size):
                found = f"size {self.preprocess.size} for patch_size {self.patch_size}"
                raise ConfigError.at(
                    "preprocess.size", found, "multiples of patch_size", "Change one of them."
                )
            if self.stem is Stem.HMLP and self.patch_size % 4:
                found = f"{self.patch_size} with stem hmlp"
                raise ConfigError.at("patch_size", found, "a multiple of 4", "Change it or set stem=conv.")
            grids = (self.position_grid, self.position_cols, self.bias_grid)
            if min(side or 1 for side in grids) < 1 or self.num_bias_tables < 0:
                found = f"{', '.join(str(side) for side in grids)}, {self.num_bias_tables}"
                expected = "positive grids and at least 0 tables"
                where = "position_grid, position_cols, bias_grid, num_bias_tables"
                raise ConfigError.at(where, found, expected, "Raise them.")
            if not self.cls_token and self.num_bias_tables:
                found = f"cls_token=false with {self.num_bias_tables} relative tables"
                raise ConfigError.at("num_bias_tables", found, "0", "These biases count on a CLS token.")

        def side(self, chosen: int | None) -> int:
            """Return a table's side: the one chosen, or what preprocess.size needs (patches)."""
            return chosen or max(self.preprocess.size) // self.patch_size

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Build the stem, the positions, the CLS token and the biases."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        self.stem = (
            HmlpStem(CHANNELS, dim, config.patch_size)
            if config.stem is Stem.HMLP
            else ConvStem(CHANNELS, dim, config.patch_size, bias=config.conv_bias)
        )
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim))) if config.cls_token else None
        self.positions = GridPositions(config.side(config.position_grid), dim, config.position_cols)
        self.type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if config.type_embedding else None
        bias_side = config.side(config.bias_grid)
        self.biases = nn.ModuleList(
            RelativeBias2d(bias_side, num_heads) for _ in range(config.num_bias_tables)
        )

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the images, one matrix product for each size that occurs."""
        self._check(x)
        return embed_by_size(x, self._embed, self.name, num_prefix=int(self.config.cls_token))

    def _embed(self, images: Float[Tensor, "k c height width"]) -> Embedded:
        patches = self.stem(images)
        rows, cols = (side // self.config.patch_size for side in images.shape[2:])
        biases = tuple(bias(rows, cols) for bias in self.biases)
        if self.cls_token is None:
            tokens = patches + self.positions(rows, cols)[1:]
        else:
            cls = self.cls_token.to(patches.dtype).expand(len(patches), -1, -1)
            tokens = torch.cat([cls, patches], dim=1) + self.positions(rows, cols)
        if self.type_embedding is not None:
            tokens = tokens + self.type_embedding
        return Embedded(tokens, (rows, cols), biases)

    def _check(self, x: ModalityInput) -> None:
        side = self.config.patch_size
        for channels, height, width in set(map(tuple, x.sizes.tolist())):
            if channels != CHANNELS or height % side or width % side or not height * width:
                found = f"an image of {channels} x {height} x {width}"
                expected = f"3 channels and sides that patch_size {side} divides"
                raise ShapeError.at(
                    self.name, found, expected, "Resize it in preprocess, or change patch_size."
                )

    @property
    def extent(self) -> tuple[int, ...]:
        """Return the sides of the position table."""
        return (self.positions.size, self.positions.cols)

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise: the first row of preprocess.size, the others of random sizes up to it."""
        side, full = config.patch_size, config.preprocess.size
        largest = torch.tensor(full) // side
        grids = 1 + (torch.rand(rows, 2, generator=generator) * largest).long().clamp(max=largest - 1)
        grids[:1] = largest
        return fake_images(CHANNELS, (grids * side).tolist(), generator)
