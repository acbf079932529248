"""Labels that are numbers: read from cells, checked, and boxes placed in the picture as the model sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Moments, NumericKind
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess

CORNERS = ("x1", "y1", "x2", "y2")
"""What the four numbers of a box are called."""
SLACK_PX = 1.0
"""How far a box may reach beyond its picture, as rounding makes it; it is then cut off there."""


class BoxForm(str, Enum):
    """What the four numbers of a written box are, from the upper left of the upright picture."""

    CORNERS = "xyxy"
    SIZE = "xywh"


class BoxUnits(str, Enum):
    """What a written box is measured in: pixels of the file, or shares of its width and height."""

    PIXELS = "pixels"
    RELATIVE = "relative"


@dataclass(kw_only=True)
class NumbersConfig(schema.Config):
    """How a label of numbers is written."""

    kind: NumericKind = NumericKind.NUMBERS
    """numbers, or boxes: one box a row"""
    columns: list[str] = field(default_factory=list[str])
    """a column for each number; empty: the column named as the label, which holds a number or a JSON list"""
    form: BoxForm = BoxForm.CORNERS
    """of boxes: xyxy (two corners) or xywh (corner, width and height)"""
    units: BoxUnits = BoxUnits.PIXELS
    """of boxes: pixels of the picture as it lies on disk, or relative (0 … 1)"""
    of: str = "image"
    """of boxes: the modality whose picture they lie in"""

    def __post_init__(self) -> None:
        """Refuse options of boxes on other numbers, and too few columns."""
        boxes = self.kind is NumericKind.BOXES
        if not boxes and (self.form, self.units, self.of) != (BoxForm.CORNERS, BoxUnits.PIXELS, "image"):
            found = f"form {self.form.value}, units {self.units.value}, of {self.of}"
            raise ConfigError.at("numbers", found, "these for boxes only", "Set kind: boxes, or drop them.")
        if boxes and len(self.columns) not in (0, 1, 4):
            do = "Name them in the order of form."
            raise ConfigError.at("columns", ", ".join(self.columns), "one column of lists, or four", do)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The label of one row: numbers as given; of a box the corners x1, y1, x2, y2 in its units."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class NumericLabel:
    """What a label of numbers is: how it was written, and what its numbers are called."""

    config: NumbersConfig
    names: tuple[str, ...]

    def read_by(self, preprocesses: Mapping[str, Preprocess]) -> bool:
        """Say whether a model that reads these modalities can use it; raise ConfigError where what is done to
        its picture would tear the box from what it shows."""
        if self.config.kind is not NumericKind.BOXES or not preprocesses:
            return True
        if self.config.of in preprocesses:
            preprocesses[self.config.of].check_boxes()
        return self.config.of in preprocesses

    def tensor(self, label: Numbers, where: str) -> Float[Tensor, " n"]:
        """Return the numbers as they are; raise DataError where there are more or fewer than named."""
        if len(label.values) != len(self.names):
            expected = f"{len(self.names)} ({', '.join(self.names)})"
            raise DataError.at(where, f"{len(label.values)} numbers", expected, "Mend the label.")
        return torch.tensor(label.values, dtype=torch.float32)

    def box(
        self, label: Numbers, size: tuple[int, int], preprocess: Preprocess, where: str
    ) -> Float[Tensor, " corners"]:
        """Return a box as it lies in the picture that `preprocess` makes of one of `size` (height, width).

        Math: shares of the width and height from the upper left, cut off at the picture's edges.
        """
        extent = (size[1], size[0], size[1], size[0])
        relative = self.config.units is BoxUnits.RELATIVE
        pixels = [v * e if relative else v for v, e in zip(label.values, extent, strict=True)]
        if any(not -SLACK_PX <= v <= e + SLACK_PX for v, e in zip(pixels, extent, strict=True)):
            found = f"box {show(pixels)} in a picture of {size[1]} x {size[0]}"
            do = "Mend it, or set its form and units."
            raise DataError.at(where, found, "a box inside the picture (pixels)", do)
        cut = [min(max(v, 0.0), float(e)) for v, e in zip(pixels, extent, strict=True)]
        check_corners(cut, where)
        shares = torch.tensor([v / e for v, e in zip(cut, extent, strict=True)], dtype=torch.float32)
        return preprocess.place_boxes(shares[None], size)[0]


def read_numbers(target: str, config: NumbersConfig, row: Mapping[str, Any], where: str) -> Numbers | None:
    """Return the numbers that a row gives for a label; None where its cells are empty."""
    columns = config.columns or [target]
    cells = [row.get(column) for column in columns]
    empty = [column for column, cell in zip(columns, cells, strict=True) if cell in (None, "", [])]
    if len(empty) == len(columns):
        return None
    if empty:
        raise DataError.at(where, f"no {empty[0]}", f"{', '.join(columns)}, or none", "Fill the cell.")
    values = _list(cells[0], where) if len(cells) == 1 else [_number(cell, where) for cell in cells]
    return Numbers(_corners(values, config, where) if config.kind is NumericKind.BOXES else tuple(values))


def describe(
    target: str, config: NumbersConfig, labels: Iterable[tuple[str, Numbers]], where: str
) -> NumericLabel:
    """Name the numbers of a label, given where each row's stand; raise DataError where rows have different
    ones, or none has any."""
    first: tuple[str, int] | None = None
    for place, label in labels:
        first = first or (place, len(label.values))
        if len(label.values) != first[1]:
            found, expected = f"{len(label.values)} numbers", f"{first[1]} as in {first[0]}"
            raise DataError.at(f"{place} {target}", found, expected, "Give all rows as many.")
    if first is None:
        raise DataError.at(where, f"no {target} in any row", "numbers", "Fill the column, or drop it.")
    if config.kind is NumericKind.BOXES:
        return NumericLabel(config, CORNERS)
    if len(config.columns) == first[1]:
        return NumericLabel(config, tuple(config.columns))
    return NumericLabel(
        config, tuple(f"{target}[{i}]" for i in range(first[1])) if first[1] > 1 else (target,)
    )


def moments_of(labels: Iterable[Numbers]) -> Moments | None:
    """Return mean and standard deviation of each number; None where there is no label."""
    values = np.array([label.values for label in labels], dtype=np.float64)
    if not len(values):
        return None
    return Moments(len(values), tuple(values.mean(axis=0).tolist()), tuple(values.std(axis=0).tolist()))


def check_corners(corners: Iterable[float], where: str) -> None:
    """Raise DataError unless a box has an extent."""
    x1, y1, x2, y2 = corners
    if not (x1 < x2 and y1 < y2):
        do = "Mend it, or set form: xywh."
        raise DataError.at(where, f"box {show((x1, y1, x2, y2))}", "x1 < x2 and y1 < y2", do)


def show(values: Iterable[float]) -> str:
    """Return numbers in brackets, as short as they read."""
    return f"[{', '.join(f'{v:g}' for v in values)}]"


def _corners(values: list[float], config: NumbersConfig, where: str) -> tuple[float, ...]:
    if len(values) != len(CORNERS):
        raise DataError.at(where, f"{len(values)} numbers", "four for a box", "Mend the cell.")
    x, y, right, lower = values
    found = (x, y, x + right, y + lower) if config.form is BoxForm.SIZE else (x, y, right, lower)
    check_corners(found, where)
    return found


def _list(cell: Any, where: str) -> list[float]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError as error:
            do = "Write 3.5 or [1, 2, 3, 4]."
            raise DataError.at(where, repr(cell), "a number or a JSON list of numbers", do) from error
    return [_number(v, where) for v in (cell if isinstance(cell, list) else [cell])]


def _number(cell: Any, where: str) -> float:
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError.at(where, repr(cell), "a finite number", "Mend the cell, or leave it empty.")
    return value
