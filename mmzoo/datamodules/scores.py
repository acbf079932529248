"""Labels of which several hold, each to some degree: `red:1|orange:0.3` in a cell, or a JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmzoo.errors import DataError


def read_scores(value: Any, separator: str, where: str) -> dict[str, float] | None:
    """Return name -> score of a cell; None where it is empty, {} where it says that nothing holds.

    In text the score stands behind the last colon of each name; a name without a colon has 1. So a name that
    holds a colon itself must come with its score (`12:30:1`), or in a JSON object.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _object(value, where)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    scores: dict[str, float] = {}
    for name, score in _pairs(value, separator):
        if name in scores:
            raise DataError.at(where, f"{name!r} twice", "each name once", "Drop one of them.")
        scores[name] = _score(score, name, where)
    return scores


def _pairs(value: Any, separator: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name).strip(), 1 if score is None else score) for name, score in value.items())
        return
    for piece in value if isinstance(value, list) else str(value).split(separator):
        name, colon, score = str(piece).rpartition(":")
        if text := (name if colon else score).strip():
            yield text, score if colon else 1


def _score(value: Any, name: str, where: str) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        found, do = f"score {value!r} of {name!r}", f"Write {name}:0.6, or {name} alone for 1."
        raise DataError.at(where, found, "a number from 0 to 1", do)
    return score


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        do = 'Write {"red": 1, "orange": 0.3}.'
        raise DataError.at(where, repr(text), "a JSON object of scores", do) from error
