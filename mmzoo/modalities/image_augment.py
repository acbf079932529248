"""Random changes of a picture in training, all drawn from the generator passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mmzoo import schema
from mmzoo.errors import ConfigError

Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of a picture (pixels)."""

ERASE_SHARE = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)


class Policy(str, Enum):
    """A published recipe of random colour and shape changes, from torchvision."""

    NONE = "none"
    TRIVIAL_AUGMENT = "trivial_augment"
    RAND_AUGMENT = "rand_augment"


@dataclass(kw_only=True)
class ImageAugment(schema.Config):
    """What training does to a picture, in this order. Evaluation does none of it."""

    crop_scale: tuple[float, float] | None = None
    "Cut out a random part of this share of the area (smallest, largest) and resize it; null takes all."
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    "Width / height of that part (smallest, largest)."
    pad_crop: int = 0
    "Pixels of black put around the resized picture before a random crop to its size (4 for CIFAR)."
    flip_prob: float = 0.0
    "Probability of a left-right flip."
    policy: Policy = Policy.NONE
    "none, trivial_augment (TrivialAugmentWide) or rand_augment (RandAugment, 2 changes of strength 9)."
    colour_jitter: float = 0.0
    "Brightness, contrast and saturation are each scaled by a factor drawn from 1 ± this."
    erase_prob: float = 0.0
    "Probability of setting a random rectangle (2 to 33 % of the area) to the mean colour."

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("flip_prob", "erase_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError.at(
                    f"augment.{name}", f"{getattr(self, name)}", "0 … 1", "Give a probability."
                )
        for name in ("crop_scale", "crop_ratio"):
            pair: tuple[float, float] | None = getattr(self, name)
            if pair is not None and not 0 < pair[0] <= pair[1]:
                raise ConfigError.at(
                    f"augment.{name}", f"{pair}", "0 < smallest <= largest", "Swap or raise them."
                )
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            found = f"{self.crop_scale}"
            raise ConfigError.at(
                "augment.crop_scale", found, "shares of at most 1", "Lower the largest share."
            )
        if self.pad_crop < 0 or not 0 <= self.colour_jitter <= 1:
            found = f"pad_crop {self.pad_crop}, colour_jitter {self.colour_jitter}"
            raise ConfigError.at("augment", found, "pad_crop >= 0, colour_jitter 0 … 1", "Use 0 for off.")

    def moves(self) -> tuple[str, ...]:
        """Name the options in use that move, cut off or mirror what a picture shows."""
        used = {
            f"augment.crop_scale={self.crop_scale}": self.crop_scale is not None,
            f"augment.pad_crop={self.pad_crop}": self.pad_crop > 0,
            f"augment.flip_prob={self.flip_prob:g}": self.flip_prob > 0,
            f"augment.policy={self.policy.value}": self.policy is not Policy.NONE,
        }
        return tuple(name for name, is_on in used.items() if is_on)


def random_box(height: int, width: int, augment: ImageAugment, generator: torch.Generator) -> Box:
    """Draw the part of a picture that training sees.

    Math: area uniform over `crop_scale`, ln(width / height) uniform over `crop_ratio`; after ten draws that
    do not fit, the largest middle part whose shape is allowed.
    """
    scale, ratio = augment.crop_scale or (1.0, 1.0), augment.crop_ratio
    for _ in range(10):
        area = height * width * _uniform(*scale, generator)
        shape = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1]), generator))
        rows, cols = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < cols <= width:
            return _integer(height - rows, generator), _integer(width - cols, generator), rows, cols
    rows, cols = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    rows, cols = max(1, rows), max(1, cols)
    return (height - rows) // 2, (width - cols) // 2, rows, cols


def change_pixels(
    pixels: UInt8[Tensor, "3 h w"], augment: ImageAugment, generator: torch.Generator
) -> UInt8[Tensor, "3 h w"]:
    """Shift (pad and crop), flip, apply the policy and jitter colours, as the options ask."""
    if augment.pad_crop:
        pixels = _shift(pixels, augment.pad_crop, generator)
    if augment.flip_prob and _uniform(0.0, 1.0, generator) < augment.flip_prob:
        pixels = pixels.flip(2)
    if augment.policy is not Policy.NONE:
        pixels = _apply_policy(pixels, augment.policy, generator)
    if augment.colour_jitter:
        pixels = _jitter(pixels, augment.colour_jitter, generator)
    return pixels


def erase(
    image: Float[Tensor, "3 h w"], augment: ImageAugment, generator: torch.Generator
) -> Float[Tensor, "3 h w"]:
    """Set a random rectangle of a normalised image to zero, its mean colour, in place.

    Ref: Random Erasing (arXiv:1708.04896); zero filling as timm's default.
    """
    if not augment.erase_prob or _uniform(0.0, 1.0, generator) >= augment.erase_prob:
        return image
    part = ImageAugment(crop_scale=ERASE_SHARE, crop_ratio=ERASE_RATIO)
    top, left, rows, cols = random_box(image.shape[1], image.shape[2], part, generator)
    image[:, top : top + rows, left : left + cols] = 0
    return image


def _shift(pixels: Tensor, by: int, generator: torch.Generator) -> Tensor:
    height, width = pixels.shape[1:]
    top, left = _integer(2 * by, generator), _integer(2 * by, generator)
    return F.pad(pixels, (by, by, by, by))[:, top : top + height, left : left + width]


def _jitter(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scale brightness, contrast (about the mean grey) and saturation (pixel's grey), in random order."""
    image = pixels.float()
    for step in torch.randperm(3, generator=generator).tolist():
        factor = _uniform(1 - strength, 1 + strength, generator)
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        anchor = (0.0, grey.mean(), grey)[step]
        image = (factor * image + (1 - factor) * anchor).clamp(0, 255)
    return image.round().to(torch.uint8)


def _apply_policy(pixels: Tensor, policy: Policy, generator: torch.Generator) -> Tensor:
    """Run torchvision's policy, which draws from torch's global generator, on a state of its own."""
    from torchvision.transforms import v2

    makers: dict[Policy, Any] = {
        Policy.TRIVIAL_AUGMENT: v2.TrivialAugmentWide,
        Policy.RAND_AUGMENT: v2.RandAugment,
    }
    seed = _integer(2**31 - 1, generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return makers[policy]()(pixels)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(most: int, generator: torch.Generator) -> int:
    """Draw a whole number from 0 … most, both included."""
    return int(torch.randint(most + 1, (), generator=generator))
