"""Which samples of a split a report draws, and what the model makes of them."""

from __future__ import annotations

import torch

from mmzoo.batch import Batch, Prediction, Sample
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


@torch.no_grad()
def predict(built: Built, batch: Batch, tasks: list[str]) -> dict[str, Prediction | None]:
    """Return the first pass's prediction of each task, on the host."""
    training = built.model.training
    built.model.eval()
    try:
        with built.trainer.precision_plugin.forward_context():
            output = built.model(batch.to(built.model.device), tasks)
    finally:
        built.model.train(training)
    first = {task: next(iter(output.predictions[task].values()), None) for task in tasks}
    return {task: p and Prediction(p.values.float().cpu(), p.index) for task, p in first.items()}
