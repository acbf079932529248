"""Which columns of a manifest look like numbers, boxes, scores or answers to choose from, for
`mmzoo data inspect` to propose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmzoo.datamodules.choices import guess_choices
from mmzoo.datamodules.numbers import CORNERS, NumbersConfig, read_numbers
from mmzoo.datamodules.table import RESERVED, Row, cell_text, read_rows
from mmzoo.errors import DataError

BOXES = re.compile(r"(^|_)b?box(es)?$", re.IGNORECASE)
"""How columns of boxes are called."""
SCORE = re.compile(r"[^|:]+:(0|1|[01]?\.\d+)", re.ASCII)
"""A name with its score."""


def guess_labels(path: Path) -> dict[str, Any]:
    """Return the options `numbers`, `scored` and `choices` of a manifest as far as its cells tell; {} where
    it cannot be read, which its reader says better."""
    try:
        rows = read_rows(path)
    except DataError:
        return {}
    choices = guess_choices(rows)
    used = {*RESERVED, *([choices["column"], "answer", "question"] if choices else [])}
    names = [n for n in dict.fromkeys(name for row in rows for name in row) if n not in used]
    numbers: dict[str, dict[str, Any]] = {}
    if all(corner in names for corner in CORNERS):
        values = _values(rows, "box", NumbersConfig(columns=list(CORNERS)))
        if values:
            numbers["box"] = {"kind": "boxes", "columns": list(CORNERS), **_written(values)}
            names = [n for n in names if n not in CORNERS]
    for name in names:
        values = _values(rows, name, NumbersConfig())
        if BOXES.search(name) and values and all(len(v) == len(CORNERS) for v in values):
            numbers[name] = {"kind": "boxes", **_written(values)}
        elif values and any(len(v) > 1 or not float.is_integer(sum(v)) for v in values):
            numbers[name] = {"kind": "numbers"}
    scored = [n for n in names if n not in numbers and _has_scores(rows, n)]
    found = {"numbers": numbers, "scored": scored, "choices": choices}
    return {option: value for option, value in found.items() if value}


def _values(rows: Sequence[Row], name: str, config: NumbersConfig) -> list[tuple[float, ...]]:
    """Return the numbers of all rows that have some; none where any cell is something else."""
    try:
        found = [read_numbers(name, config, row, name) for row in rows]
    except DataError:
        return []
    return [label.values for label in found if label is not None]


def _written(boxes: Sequence[tuple[float, ...]]) -> Mapping[str, str]:
    """Tell form and units: sizes where a second number is not past the first, shares where none is above
    1."""
    sizes = any(x2 <= x1 or y2 <= y1 for x1, y1, x2, y2 in boxes)
    shares = all(0 <= v <= 1 for box in boxes for v in box)
    return {**({"form": "xywh"} if sizes else {}), **({"units": "relative"} if shares else {})}


def _has_scores(rows: Sequence[Row], name: str) -> bool:
    cells = [cell for row in rows if isinstance(row.get(name), str) and (cell := cell_text(row.get(name)))]
    pieces = [piece.strip() for cell in cells for piece in cell.split("|")]
    return bool(pieces) and all(SCORE.fullmatch(p) for p in pieces) and any("." in p for p in pieces)
