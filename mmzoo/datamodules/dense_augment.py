"""What training does to an image and the labels of its pixels together, so that they still agree.

A picture scaled by s is what a camera of s times the focal length sees in a world of 1/s the size: depth is
divided by s, normals stay. Mirrored, the normals' x changes its sign. Labels take the nearest pixel, the
image is interpolated; both by pixel middles, so that they stay aligned.

Ref: InvPT's protocol for NYUD-v2 and PASCAL-Context; its nearest neighbour is OpenCV's, which takes the pixel
up to half a pixel further left and up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, DenseKind
from mmzoo.errors import ConfigError

REDRAWS = 10
"""Crops tried for one in which no class has too large a share."""
BRIGHTNESS, CONTRAST, HUE_DEGREES = 32.0, 0.5, 36.0
"""Largest shift of brightness (of 255); contrast and saturation 1 ± this; largest turn of the hue."""


@dataclass(kw_only=True)
class DenseAugment(schema.Config):
    """Random changes in training, in this order. Evaluation does none of them."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Factor by which image and labels are resized, uniform between these."""
    cat_max_ratio: float = 0.75
    """A crop in which a class covers more than this share of the labelled pixels is drawn again, ten times at
    most; 1 = any crop will do."""
    flip_prob: float = 0.5
    """Probability of a left-right flip."""
    photometric_prob: float = 0.5
    """Probability of each change of brightness, contrast, saturation and hue; 0 = none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError.at("scale", f"{self.scale}", "0 < smallest <= largest", "Use [1, 1] for none.")
        for name in ("cat_max_ratio", "flip_prob", "photometric_prob"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError.at(name, f"{value:g}", "0 … 1", "Give a share.")


@dataclass(frozen=True)
class Labelled:
    """An image and the labels of its pixels.

    Shape: image (3 h w) 8-bit; labels as `DenseKind` has them, all of the image's height and width.
    """

    image: UInt8[Tensor, "3 h w"]
    labels: Mapping[str, Shaped[Tensor, "*c h w"]]
    kinds: Mapping[str, DenseKind]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.image.shape[1], self.image.shape[2]


def augment(
    whole: Labelled, size: tuple[int, int], options: DenseAugment, generator: torch.Generator
) -> Labelled:
    """Scale, crop to at most `size`, flip and distort, all at random."""
    scale = _uniform(*options.scale, generator)
    if scale != 1:
        whole = rescale(whole, scale)
    whole = crop(whole, *_draw_crop(whole, size, options.cat_max_ratio, generator), size)
    if _uniform(0.0, 1.0, generator) < options.flip_prob:
        whole = flip(whole)
    if options.photometric_prob:
        whole = replace(whole, image=distort(whole.image, options.photometric_prob, generator))
    return whole


def rescale(whole: Labelled, scale: float) -> Labelled:
    """Resize by a factor; depth is divided by it."""
    size = (max(1, int(whole.size[0] * scale)), max(1, int(whole.size[1] * scale)))
    resized = resize(whole, size)
    depths = {t: v / scale for t, v in resized.labels.items() if whole.kinds[t] is DenseKind.DEPTH}
    return replace(resized, labels={**resized.labels, **depths})


def resize(whole: Labelled, size: tuple[int, int]) -> Labelled:
    """Bring to a size: the image bilinearly, each label by the nearest pixel, all values kept."""
    image = F.interpolate(whole.image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    rows, cols = (_nearest(old, new) for old, new in zip(whole.size, size, strict=True))
    labels = {t: v[..., rows[:, None], cols] for t, v in whole.labels.items()}
    return replace(whole, image=image.round().clamp(0, 255).byte(), labels=labels)


def crop(whole: Labelled, top: int, left: int, size: tuple[int, int]) -> Labelled:
    """Cut out a part of at most `size` (pixels)."""
    rows, cols = slice(top, top + size[0]), slice(left, left + size[1])
    labels = {t: v[..., rows, cols] for t, v in whole.labels.items()}
    return replace(whole, image=whole.image[:, rows, cols], labels=labels)


def flip(whole: Labelled) -> Labelled:
    """Mirror left and right; normals point the other way along x, ignored pixels stay ignored."""
    labels = {t: v.flip(-1) for t, v in whole.labels.items()}
    for target, values in labels.items():
        if whole.kinds[target] is DenseKind.NORMALS:
            sign = values.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
            labels[target] = torch.where(values == IGNORE, values, values * sign)
    return replace(whole, image=whole.image.flip(-1), labels=labels)


def pad_labels(whole: Labelled, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the labels with ignored pixels around them, the middle in the middle."""
    edges = margins(whole.size, size)
    return {
        t: F.pad(v, edges, value=0 if whole.kinds[t] is DenseKind.DEPTH else IGNORE)
        for t, v in whole.labels.items()
    }


def margins(inner: tuple[int, int], outer: tuple[int, int]) -> list[int]:
    """Return the pixels left, right, above and below that bring a size to another."""
    high, wide = outer[0] - inner[0], outer[1] - inner[1]
    return [wide // 2, wide - wide // 2, high // 2, high - high // 2]


def distort(image: UInt8[Tensor, "3 h w"], prob: float, generator: torch.Generator) -> UInt8[Tensor, "3 h w"]:
    """Change brightness, contrast, saturation and hue, each with a probability, rounding after each.

    Contrast comes before the colours or after them, by a coin.
    """

    def happens() -> bool:
        return _uniform(0.0, 1.0, generator) < prob

    pixels = image.float()
    if happens():
        pixels = _level(pixels + _uniform(-BRIGHTNESS, BRIGHTNESS, generator))
    contrast_first = _uniform(0.0, 1.0, generator) < 0.5
    if contrast_first and happens():
        pixels = _level(pixels * _uniform(1 - CONTRAST, 1 + CONTRAST, generator))
    saturation = _uniform(1 - CONTRAST, 1 + CONTRAST, generator) if happens() else 1.0
    turn = _uniform(-HUE_DEGREES, HUE_DEGREES, generator) if happens() else 0.0
    if saturation != 1 or turn:
        pixels = _level(_recolour(pixels, saturation, turn))
    if not contrast_first and happens():
        pixels = _level(pixels * _uniform(1 - CONTRAST, 1 + CONTRAST, generator))
    return pixels.byte()


def _recolour(pixels: Float[Tensor, "3 h w"], saturation: float, degrees: float) -> Float[Tensor, "3 h w"]:
    """Scale saturation and turn the hue, in HSV."""
    value, least = pixels.amax(0), pixels.amin(0)
    spread = value - least
    r, g, b = pixels
    safe = spread.clamp(min=1e-6)
    hue = torch.where(
        value == r, ((g - b) / safe) % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    hue = (hue + degrees / 60) % 6
    chroma = torch.minimum(spread * saturation, value)  # saturation = chroma / value is at most 1
    # A channel at offset k of the hue circle falls from the value to value - chroma and back.
    offsets = torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (offsets + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _draw_crop(
    whole: Labelled, size: tuple[int, int], most: float, generator: torch.Generator
) -> tuple[int, int]:
    """Draw top and left; again while one class of the first class label covers too much."""
    room = [max(0, have - want) for have, want in zip(whole.size, size, strict=True)]
    classes = next((whole.labels[t] for t, k in whole.kinds.items() if k is DenseKind.CLASSES), None)
    top = left = 0
    for _ in range(REDRAWS):
        top, left = (int(torch.randint(n + 1, (), generator=generator)) for n in room)
        if classes is None or most == 1 or not any(room):
            break
        counts = torch.bincount(classes[top : top + size[0], left : left + size[1]].flatten())[:IGNORE]
        if (counts > 0).sum() > 1 and int(counts.max()) < most * int(counts.sum()):
            break
    return top, left


def _nearest(old: int, new: int) -> Tensor:
    return ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)


def _level(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).round()


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
