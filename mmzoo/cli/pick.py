"""Which samples of a split a report draws."""

from __future__ import annotations

from mmzoo.batch import Sample
from mmzoo.errors import DataError, ShapeError
from mmzoo.recipe import Built


def evenly(built: Built, split: str, most: int) -> list[Sample]:
    """Read samples evenly spread over a split; unreadable ones were named when it was evaluated."""
    source = built.datamodule.source(split)
    count = min(most, len(source))
    samples: list[Sample] = []
    for number in range(count):
        try:
            samples.append(source.get(number * len(source) // count, None))
        except (DataError, ShapeError):  # noqa: PERF203 a handful
            continue
    return samples
