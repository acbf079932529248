"""From a picture to the normalised tensor (3 h w) that a set of weights expects; augmentation in training.

Pixels stay 8-bit until the last step: PyTorch resizes uint8 in memory order h w c about four times as fast as
Pillow, with the same antialiased filter (levels differ by one at most).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.errors import ConfigError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_augment import ImageAugment, change_pixels, erase, random_box
from mmzoo.modalities.pixels import decode_image, to_pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images, per RGB channel, of values 0 … 1 (ONE-PEACE uses it too)."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""


class Resize(str, Enum):
    """How a picture gets its size when nothing random does it."""

    SQUASH = "squash"
    CROP = "crop"
    PAD = "pad"
    ASPECT = "aspect"


class Interpolation(str, Enum):
    """Filter of resizing, antialiased."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"


class ImagePreprocess(Preprocess):
    """From an image file or picture to the normalised tensor (3 h w).

    Shape: every result has `size`, except with resize `aspect`: there the picture keeps its shape, its area
    is that of `size` and its sides are multiples of `side_multiple`.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; they belong to the weights. The defaults are ONE-PEACE's evaluation."""

        size: tuple[int, int] = (256, 256)
        "Height and width given to the model (pixels)."
        resize: Resize = Resize.SQUASH
        "squash to size; crop: cover it and keep the middle; pad: fit inside; aspect: keep the shape."
        crop_share: float = 1.0
        "For crop: side of the middle cut out, relative to the covering picture (timm's crop_pct)."
        side_multiple: int = 16
        "For aspect: both sides become multiples of this (the patch size; pixels)."
        interpolation: Interpolation = Interpolation.BICUBIC
        "Filter of resizing."
        mean: tuple[float, float, float] = CLIP_MEAN
        "Mean per RGB channel, of values 0 … 1."
        std: tuple[float, float, float] = CLIP_STD
        "Standard deviation per RGB channel."
        augment: ImageAugment = field(default_factory=ImageAugment)
        "What training does to a picture."

        def __post_init__(self) -> None:
            """Check sizes."""
            if min(self.size) < 1 or self.side_multiple < 1:
                found = f"size {self.size}, side_multiple {self.side_multiple}"
                raise ConfigError.at("size", found, "positive pixels", "Give (height, width).")
            if min(self.std) <= 0 or not 0 < self.crop_share <= 1:
                found = f"std {self.std}, crop_share {self.crop_share}"
                raise ConfigError.at("std, crop_share", found, "std > 0, crop_share in 0 … 1", "Raise them.")

    def __init__(self, config: Any) -> None:
        """Keep the options; fold mean and deviation into one scale and one shift of 8-bit values."""
        self.config = config
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        self.scale, self.shift = (1 / (255 * std))[:, None, None], (-mean / std)[:, None, None]
        self.mean_level = (255 * mean).round().to(torch.uint8)[:, None, None]

    def decode(self, data: bytes, name: str) -> Any:
        """Read an image file; give pixels (h w 3)."""
        return decode_image(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Turn a picture into an Item (3 h w)."""
        pixels = to_pixels(raw)
        if generator is None:
            return Item(self.normalise(self.resize(pixels)))
        augment: ImageAugment = self.config.augment
        if augment.crop_scale is not None:
            box = random_box(pixels.shape[1], pixels.shape[2], augment, generator)
            pixels = self.scaled(_cut(pixels, *box), self.target(pixels))
        else:
            pixels = self.resize(pixels)
        image = self.normalise(change_pixels(pixels, augment, generator))
        return Item(erase(image, augment, generator))

    def check_boxes(self) -> None:
        """Raise ConfigError where a part of the picture may be cut off, or its content moved or mirrored."""
        moves = self.config.augment.moves()
        if self.config.resize is Resize.CROP:
            moves = ("resize=crop", *moves)
        if moves:
            do = "Set resize to squash, pad or aspect, and these to their defaults."
            expected = "whole pictures, unmirrored, where labels are boxes"
            raise ConfigError.at("preprocess", ", ".join(moves), expected, do)

    def place_boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
        """Return where boxes lie in the picture as `resize` leaves it: shares stay as they are, but that pad
        adds margins."""
        if self.config.resize is not Resize.PAD:
            return boxes
        high, wide = self._fit(*size)
        rows, cols = self.config.size
        top, left = _margins((high, wide), (rows, cols))
        scale, shift = (wide / cols, high / rows) * 2, (left / cols, top / rows) * 2
        return boxes * boxes.new_tensor(scale) + boxes.new_tensor(shift)

    def target(self, pixels: UInt8[Tensor, "3 h w"]) -> tuple[int, int]:
        """Return the height and width that a picture gets."""
        options: ImagePreprocess.Config = self.config
        if options.resize is not Resize.ASPECT:
            return options.size
        height, width = pixels.shape[1:]
        area, step = options.size[0] * options.size[1], options.side_multiple
        zoom = math.sqrt(area / (height * width))
        rows, cols = max(1, round(height * zoom / step)), max(1, round(width * zoom / step))
        return rows * step, cols * step

    def resize(self, pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h2 w2"]:
        """Bring a picture to its size without chance."""
        (height, width), (rows, cols), how = pixels.shape[1:], self.target(pixels), self.config.resize
        if how is Resize.CROP:
            pixels = self.scaled(pixels, self._cover(height, width))
            return _cut(pixels, *_middle(pixels, rows, cols))
        if how is Resize.PAD:
            inner = self.scaled(pixels, self._fit(height, width))
            canvas = self.mean_level.expand(3, rows, cols).clone()
            _cut(canvas, *_middle(canvas, inner.shape[1], inner.shape[2])).copy_(inner)
            return canvas
        return self.scaled(pixels, (rows, cols))

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that `pad` scales a picture to: the largest of its shape that fits inside."""
        zoom = min(self.config.size[0] / height, self.config.size[1] / width)
        return max(1, round(height * zoom)), max(1, round(width * zoom))

    def _cover(self, height: int, width: int) -> tuple[int, int]:
        """Return what `crop` scales a picture to first: the tight side is size / crop_share, rounded down."""
        (rows, cols), share = self.config.size, self.config.crop_share
        if rows * width >= cols * height:
            tight = math.floor(rows / share)
            return tight, max(cols, math.floor(tight * width / height))
        tight = math.floor(cols / share)
        return max(rows, math.floor(tight * height / width)), tight

    def scaled(self, pixels: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 h2 w2"]:
        """Resize with the antialiased filter; a picture that already has the size is passed on as it is."""
        if tuple(pixels.shape[1:]) == tuple(size):
            return pixels
        mode = self.config.interpolation.value
        return F.interpolate(pixels[None], size=size, mode=mode, antialias=True, align_corners=False)[0]

    def normalise(self, pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """Return (pixels / 255 - mean) / std."""
        return pixels.float().contiguous().mul_(self.scale).add_(self.shift)


def _cut(pixels: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return pixels[:, top : top + height, left : left + width]


def _middle(pixels: Tensor, rows: int, cols: int) -> tuple[int, int, int, int]:
    return *_margins((rows, cols), (pixels.shape[1], pixels.shape[2])), rows, cols


def _margins(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """Return the pixels above and left of a middle part."""
    return round((outer[0] - inner[0]) / 2), round((outer[1] - inner[1]) / 2)
