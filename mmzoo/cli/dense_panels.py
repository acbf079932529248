"""Predictions and labels of every pixel as colours, and side by side in one picture: the truth, then what is
found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from mmzoo.batch import IGNORE, DenseKind
from mmzoo.cli.thumbnails import INK, PAPER, font

NONE = (203, 213, 225)
"""Colour of pixels without a label."""
STOPS = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], dtype=float)
"""Colours of depth, near to far, and of probability, 0 to 1."""
GAP, HEAD, LEAST = 4, 20, 96
Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Panel:
    """One task on one image: `true` as the data have it (None: no label), `found` as the head gives it."""

    kind: DenseKind
    found: Float[Tensor, "c h w"]
    true: Shaped[Tensor, ...] | None


def side_by_side(
    images: Sequence[Pixels], panels: Sequence[Mapping[str, Panel]]
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Return one picture: a row for each image, with the truth and the prediction of each task."""
    height, width = images[0].shape[:2]
    zoom = max(1, -(-LEAST // height))
    names = list(dict.fromkeys(name for row in panels for name in row))
    titles = ["image", *(f"{name}: {what}" for name in names for what in ("true", "found"))]
    high, wide = height * zoom + GAP, width * zoom + GAP
    canvas = Image.new("RGB", (GAP + wide * len(titles), HEAD + GAP + high * len(images)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((GAP + column * wide, 4), title, fill=INK, font=font(11))
    for row, (image, tasks) in enumerate(zip(images, panels, strict=True)):
        cells = [image, *(cell for name in names for cell in _pair(tasks.get(name), (height, width)))]
        for column, cell in enumerate(cells):
            picture = Image.fromarray(cell).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            canvas.paste(picture, (GAP + column * wide, HEAD + GAP + row * high))
    return np.asarray(canvas)


def _pair(panel: Panel | None, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    nothing = np.full((*size, 3), NONE, dtype=np.uint8)
    if panel is None:
        return nothing, nothing
    near, far = depth_range(panel)
    true = nothing if panel.true is None else colour_label(panel.kind, panel.true, near, far)
    return true, colour_prediction(panel.kind, panel.found, near, far)


def depth_range(panel: Panel) -> tuple[float, float]:
    """Return the nearest and farthest depth to colour: the truth's, else the prediction's (metres)."""
    if panel.kind is not DenseKind.DEPTH:
        return 0.0, 1.0
    values = panel.found if panel.true is None or not (panel.true > 0).any() else panel.true[panel.true > 0]
    return float(values.min()), max(float(values.max()), float(values.min()) + 1e-3)


def colour_label(kind: DenseKind, true: Shaped[Tensor, ...], near: float = 0.0, far: float = 1.0) -> Pixels:
    """Colour a label; pixels without one are grey."""
    if kind in (DenseKind.CLASSES, DenseKind.SALIENCY):
        missing, pixels = true == IGNORE, _classes(true.clamp(0, 254), kind)
    elif kind is DenseKind.NORMALS:
        missing, pixels = (true == IGNORE).any(0), _normals(true)
    else:
        missing = true[0] == (0 if kind is DenseKind.DEPTH else IGNORE)
        pixels = _ramp((true[0] - near) / (far - near))
    pixels[missing.numpy()] = NONE
    return pixels


def colour_prediction(
    kind: DenseKind, found: Float[Tensor, "c h w"], near: float = 0.0, far: float = 1.0
) -> Pixels:
    """Colour what a head gives."""
    found = found.detach().float().cpu()
    if kind is DenseKind.CLASSES:
        return _classes(found.argmax(0), kind)
    if kind is DenseKind.NORMALS:
        return _normals(F.normalize(found, dim=0))
    if kind is DenseKind.SALIENCY:
        return _ramp(found.softmax(0)[1])
    return _ramp(found[0].sigmoid() if kind is DenseKind.EDGE else (found[0] - near) / (far - near))


def palette(count: int = 256) -> UInt8[np.ndarray, "n 3"]:
    """Return colours far from each other, the same for each number always: bits of the number, spread over
    red, green and blue from the highest down, as VOC colours its classes."""
    numbers, colours = np.arange(count), np.zeros((count, 3), dtype=np.int64)
    for bit in range(8):
        colours |= ((numbers[:, None] >> (np.arange(3) + 3 * bit)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def _classes(numbers: Shaped[Tensor, "h w"], kind: DenseKind) -> Pixels:
    return _ramp(numbers.float()) if kind is DenseKind.SALIENCY else palette()[numbers.numpy()]


def _normals(normals: Float[Tensor, "3 h w"]) -> Pixels:
    return (127.5 * (normals.clamp(-1, 1) + 1)).round().byte().permute(1, 2, 0).numpy().copy()


def _ramp(share: Float[Tensor, "h w"]) -> Pixels:
    at = share.clamp(0, 1).numpy() * (len(STOPS) - 1)
    low = np.minimum(at.astype(int), len(STOPS) - 2)
    between = (at - low)[..., None]
    return (STOPS[low] * (1 - between) + STOPS[low + 1] * between).round().astype(np.uint8)


def image_pixels(image: Float[Tensor, "3 h w"], scale: Tensor, shift: Tensor) -> Pixels:
    """Return the picture behind a normalised image (levels · scale + shift)."""
    return ((image - shift) / scale).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
