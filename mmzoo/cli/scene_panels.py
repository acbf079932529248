"""Scenes around a vehicle from above: map and boxes, and voxels coloured by class and shaded by height.

x points right, y up, the vehicle is in the middle.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from mmzoo.batch import IGNORE
from mmzoo.cli.thumbnails import INK, PAPER, font

SIDE = 216
"""Pixels of a view."""
GAP, HEAD, LINE, INDENT = 6, 18, 15, 74
EMPTY = (226, 232, 240)
UNKNOWN = (190, 190, 190)
DARKEST = 0.7
"""Brightness of the lowest voxels."""
Pixels = UInt8[np.ndarray, "h w 3"]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class View:
    """What is true, or found, of one scene; what is not known is None.

    Shape: ground (k h w); boxes (n 6): x y, length, width (m), yaw (rad), class; voxels (z y x) classes.
    """

    ground: Bool[np.ndarray, "k h w"] | None = None
    boxes: Float[np.ndarray, "n 6"] | None = None
    voxels: Int[np.ndarray, "z y x"] | None = None


@dataclass(frozen=True)
class Frame:
    """How far a view reaches, and how far its map does, in metres; names of the classes of each label."""

    range_m: float
    map_range_m: float
    names: Mapping[str, Sequence[str]]


def sheet(scenes: Sequence[tuple[View, View]], frame: Frame) -> Image.Image:
    """Return one picture: a row for each scene with the truth beside what was found, and a legend."""
    first = scenes[0][0]
    has_plan = first.ground is not None or first.boxes is not None
    kinds = [("map and boxes", plan)] * has_plan + [("voxels", from_above)] * (first.voxels is not None)
    titles = [f"{name}: {what}" for name, _ in kinds for what in ("true", "found")]
    wide, high = SIDE + GAP, SIDE + GAP
    legend = legend_rows(first, frame, GAP + wide * len(titles))
    size = (GAP + wide * len(titles), HEAD + GAP + high * len(scenes) + LINE * len(legend) + GAP)
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((GAP + column * wide, 3), title, fill=INK, font=font(11))
    for row, (true, found) in enumerate(scenes):
        cells = [draw(view, frame) for _, draw in kinds for view in (true, found)]
        for column, cell in enumerate(cells):
            canvas.paste(cell, (GAP + column * wide, HEAD + row * high))
    for row, entries in enumerate(legend):
        top = HEAD + high * len(scenes) + GAP + row * LINE
        for left, name, colour in entries:
            title = colour == PAPER
            pen.rectangle((left, top + 3, left + 8, top + 11), fill=colour)
            pen.text((left + (0 if title else 12), top), name, fill=INK, font=font(10))
    return canvas


def legend_rows(view: View, frame: Frame, width: int) -> list[list[tuple[int, str, Colour]]]:
    """Return rows of (left, name, colour): the map's classes, then the boxes', then the voxels'."""
    shown = {"map": view.ground, "boxes": view.boxes, "occupancy": view.voxels}
    rows: list[list[tuple[int, str, Colour]]] = []
    for label in (name for name, values in shown.items() if values is not None):
        left, row = INDENT, [(GAP, f"{label}:", PAPER)]
        for number, name in enumerate(frame.names.get(label, ())):
            space = 24 + 6 * len(name)
            if len(row) > 1 and left + space > width:
                rows.append(row)
                left, row = INDENT, [(GAP, "", PAPER)]
            row.append((left, name, colour_of(label, number)))
            left += space
        rows.append(row)
    return [row for row in rows if len(row) > 1]


def colour_of(label: str, number: int) -> Colour:
    """Return the colour of a class: pale for the map, strong for boxes and voxels (0 is free)."""
    if label == "occupancy" and number == 0:
        return EMPTY
    number -= label == "occupancy"  # a voxel of a box's class has the box's colour where classes are alike
    pale = label == "map"
    hue = (0.58 + 0.61803 * number) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.32 if pale else 0.85, 0.88 if pale else 0.78)
    return round(255 * red), round(255 * green), round(255 * blue)


def plan(view: View, frame: Frame) -> Image.Image:
    """Draw the map's classes, the rarer over the commoner, and boxes with a line towards their front."""
    canvas = Image.new("RGB", (SIDE, SIDE), EMPTY)
    if view.ground is not None:
        side = round(SIDE * frame.map_range_m / frame.range_m)
        pixels = np.full((*view.ground.shape[1:], 3), EMPTY, dtype=np.uint8)
        for k in np.argsort(-view.ground.sum(axis=(1, 2)), kind="stable").tolist():
            pixels[view.ground[k]] = colour_of("map", k)
        inner = Image.fromarray(pixels[::-1].copy()).resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(inner, ((SIDE - side) // 2, (SIDE - side) // 2))
    pen = ImageDraw.Draw(canvas)
    for x, y, length, width, yaw, kind in view.boxes if view.boxes is not None else ():
        along, across = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        centre = np.array([x, y])
        ends = [centre + a * length / 2 * along + b * width / 2 * across for a, b in CORNERS]
        colour = colour_of("boxes", int(kind))
        pen.polygon([_pixel(p, frame) for p in ends], outline=colour, width=2)
        pen.line([_pixel(centre, frame), _pixel(centre + along * length / 2, frame)], fill=colour, width=2)
    middle = SIDE / 2
    pen.polygon([(middle + 5, middle), (middle - 4, middle - 4), (middle - 4, middle + 4)], fill=INK)
    return canvas


CORNERS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


def _pixel(point: Float[np.ndarray, " 2"], frame: Frame) -> tuple[float, float]:
    share = (point / frame.range_m + 1) / 2
    return float(share[0] * SIDE), float((1 - share[1]) * SIDE)


def from_above(view: View, frame: Frame) -> Image.Image:
    """Draw the highest voxel of every column that is not free: hue its class, brightness its height."""
    del frame
    voxels = view.voxels
    if voxels is None:
        return Image.new("RGB", (SIDE, SIDE), EMPTY)
    levels = len(voxels)
    taken = (voxels != 0) & (voxels != IGNORE)
    top = levels - 1 - taken[::-1].argmax(axis=0)
    kind = np.take_along_axis(voxels, top[None], axis=0)[0]
    table = np.array([colour_of("occupancy", k) for k in range(int(voxels[taken].max(initial=0)) + 1)])
    bright = DARKEST + (1 - DARKEST) * top / max(levels - 1, 1)
    pixels = table[np.where(taken.any(axis=0), kind, 0)] * bright[..., None]
    pixels[~taken.any(axis=0)] = EMPTY
    pixels[(voxels == IGNORE).all(axis=0)] = UNKNOWN
    picture = Image.fromarray(pixels[::-1].round().astype(np.uint8))
    return picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
