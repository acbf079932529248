"""Small pictures of one sample as each sense has it, drawn from what the model was given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmzoo.batch import Item
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_preprocess import ImagePreprocess

SIZE = 132
"""Side of a thumbnail in pixels."""
PAPER, INK = (250, 250, 249), (30, 41, 59)
PERSONS = ((48, 102, 190), (228, 87, 46), (46, 147, 60), (143, 91, 181))
FONT_SIZE = 12
MARGIN = 6
"""Pixels around a text."""


def thumbnail(item: Item, kind: str, preprocess: Preprocess) -> Image.Image:
    """Draw an Item; `kind` says which raw form it came from (image, audio, text, fmri, skeleton)."""
    draw = DRAWERS.get(kind)
    if draw is None:
        return words(kind)
    return draw(item, preprocess).convert("RGB")


def words(text: str) -> Image.Image:
    """Write text into a thumbnail, wrapped and cut to fit."""
    canvas = Image.new("RGB", (SIZE, SIZE), PAPER)
    lines = _wrapped(text, SIZE - 2 * MARGIN)
    room = (SIZE - 2 * MARGIN) // (FONT_SIZE + 3)
    shown = lines if len(lines) <= room else [*lines[: room - 1], f"{lines[room - 1][:-2]} …"]
    draw = ImageDraw.Draw(canvas)
    draw.multiline_text((MARGIN, MARGIN), "\n".join(shown), fill=INK, font=font(FONT_SIZE), spacing=3)
    return canvas


def _wrapped(text: str, width: int) -> list[str]:
    """Break text into lines of at most so many pixels; a word that is longer is cut."""
    fits = font(FONT_SIZE)
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and fits.getlength(joined) <= width:
            lines[-1] = joined
            continue
        while fits.getlength(word) > width:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or fits.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines


def font(size: int) -> Any:
    """Return Pillow's own font, which is there wherever Pillow is."""
    return ImageFont.load_default(size)


def _image(item: Item, preprocess: Preprocess) -> Image.Image:
    values = item.values.float()
    if isinstance(preprocess, ImagePreprocess):
        values = (values - preprocess.shift) / preprocess.scale
    else:
        values = 255 * (values - values.min()) / (values.max() - values.min()).clamp(min=1e-6)
    pixels = values.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0])
    return _fitted(picture, Image.Resampling.LANCZOS)


def _audio(item: Item, preprocess: Preprocess) -> Image.Image:
    """Draw a waveform's envelope, or a spectrogram with time to the right and low tones below."""
    del preprocess
    if item.values.ndim == 2:
        return _spectrogram(item.values.float().numpy())
    wave = item.values.float().flatten().numpy()
    columns = np.array_split(np.abs(wave), SIZE - 8) if len(wave) >= SIZE else [np.abs(wave)]
    peaks = np.array([float(c.max(initial=0.0)) for c in columns])
    peaks = peaks / max(float(peaks.max()), 1e-9)
    canvas = Image.new("RGB", (SIZE, SIZE), PAPER)
    draw, middle = ImageDraw.Draw(canvas), SIZE / 2
    for x, peak in enumerate(peaks, start=4):
        half = 1 + peak * (SIZE / 2 - 10)
        draw.line((x, middle - half, x, middle + half), fill=PERSONS[0])
    return canvas


def _spectrogram(values: np.ndarray) -> Image.Image:
    low, high = np.percentile(values, (5, 99.5))
    level = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1).T[::-1, :, None]
    night, day = np.array([[[18, 24, 48]]]), np.array([[[255, 214, 102]]])
    glow = np.array([[[196, 64, 110]]])
    pixels = np.where(level < 0.5, night + 2 * level * (glow - night), glow + (2 * level - 1) * (day - glow))
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    return picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _text(item: Item, preprocess: Preprocess) -> Image.Image:
    tokenizer = getattr(preprocess, "tokenizer", None)
    ids = [int(i) for i in item.values.flatten()]
    return words(tokenizer.decode(ids) if tokenizer is not None else " ".join(map(str, ids)))


def _fmri(item: Item, preprocess: Preprocess) -> Image.Image:
    """Lay the voxels out as a square, blue below the mean and red above."""
    del preprocess
    values = item.values.float().flatten().numpy()
    values = (values - values.mean()) / max(float(values.std()), 1e-9)
    side = math.ceil(math.sqrt(len(values)))
    square = np.zeros(side * side)
    square[: len(values)] = np.clip(values / 2.5, -1, 1)
    up, down = np.clip(square, 0, 1)[:, None], np.clip(-square, 0, 1)[:, None]
    white = np.array([[255.0, 255.0, 255.0]])
    pixels = white + up * (np.array([[200, 40, 40]]) - white) + down * (np.array([[40, 80, 180]]) - white)
    picture = Image.fromarray(pixels.reshape(side, side, 3).astype(np.uint8))
    return picture.resize((SIZE, SIZE), Image.Resampling.NEAREST)


def _skeleton(item: Item, preprocess: Preprocess) -> Image.Image:
    """Draw the bodies at four moments side by side, one colour a person, seen from the front."""
    layout: Any = getattr(preprocess.config, "joints", None)  # pyright: ignore[reportAttributeAccessIssue] skeletons have it
    dims = layout.dims if layout is not None else 2
    values = item.values.float().numpy()[:2]
    seen = item.valid.numpy() if item.valid is not None else np.ones(values.shape[1:], dtype=bool)
    moments = np.linspace(0, values.shape[1] - 1, 4).round().astype(int)
    points = values[:, moments][:, seen[moments]]
    if not points.size:
        return words("nobody")
    low, high = points.min(axis=1), points.max(axis=1)
    scale = min(
        (SIZE / 2 - 8) / max(float(high[0] - low[0]), 1e-6),
        (SIZE / 2 - 8) / max(float(high[1] - low[1]), 1e-6),
    )
    canvas = Image.new("RGB", (SIZE, SIZE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, frame in enumerate(moments):
        centre = np.array([SIZE * (0.25 + 0.5 * (number % 2)), SIZE * (0.25 + 0.5 * (number // 2))])
        for person in range(values.shape[3]):
            flip = np.array([1.0, -1.0 if dims == 3 else 1.0])
            places = centre + (values[:, frame, :, person].T - (low + high) / 2) * scale * flip
            _body(
                draw,
                places,
                seen[frame, :, person],
                layout.bones if layout else (),
                PERSONS[person % len(PERSONS)],
            )
    return canvas


def _body(draw: Any, places: np.ndarray, seen: np.ndarray, bones: Any, colour: tuple[int, int, int]) -> None:
    for child, parent in bones:
        if seen[child] and seen[parent]:
            draw.line((*places[child], *places[parent]), fill=colour, width=2)
    if not len(bones):
        for x, y in places[seen]:
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=colour)


def _fitted(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    scale = SIZE / max(picture.size)
    small = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)), how)
    canvas = Image.new("RGB", (SIZE, SIZE), PAPER)
    canvas.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
    return canvas


DRAWERS: dict[str, Callable[[Item, Preprocess], Image.Image]] = {
    "image": _image,
    "audio": _audio,
    "text": _text,
    "fmri": _fmri,
    "skeleton": _skeleton,
}
"""Kind of raw input -> how to draw it."""
