"""Fake token sequences, predictions and labels, by what a component says it gives or reads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmzoo.batch import (
    IGNORE,
    Batch,
    DataInfo,
    DenseKind,
    Prediction,
    PredictionKind,
    Target,
    TokenSequence,
    lesson_name,
)

PASSES = ("image", "text", "image+text")
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
INFO = DataInfo(labels={"what": NAMES, "where": ("here", "there")}, modalities=("image", "text"))
TARGET = "what"
HEIGHT, WIDTH = 10, 14
"""Pixels of a dense prediction and its label."""
CHANNELS = {
    DenseKind.CLASSES: len(NAMES),
    DenseKind.SALIENCY: 2,
    DenseKind.NORMALS: 3,
    DenseKind.EDGE: 1,
    DenseKind.DEPTH: 1,
}
SCENE = frozenset((PredictionKind.BOXES_3D, PredictionKind.GROUND_MAP, PredictionKind.VOXELS))
"""What is read of scenes around a vehicle: test_scenes has its rows."""
Form = PredictionKind | DenseKind
"""What a component reads; where that is dense, which kind of label it wants beside it."""


def form(component: Any) -> Form:
    """Return what an objective or a metric reads."""
    return component.kind if component.reads is PredictionKind.DENSE else component.reads


def sequence(
    generator: torch.Generator, index: list[int], dim: int = 8, length: int = 6, prefix: int = 1
) -> TokenSequence:
    """Return ragged rows, one with a hole; where they are masked the tokens are garbage."""
    tokens = torch.randn(len(index), length, dim, generator=generator)
    sizes = torch.randint(prefix + 2, length + 1, (len(index),), generator=generator)
    valid = torch.arange(length)[None] < sizes[:, None]
    valid[-1, prefix] = False
    tokens = tokens.masked_fill(~valid[..., None], 1e4)
    return TokenSequence(tokens, valid, torch.tensor(index), "image", num_prefix=prefix)


def values(kind: Form, generator: torch.Generator, rows: int) -> Tensor:
    """Return what a head of this kind would give."""
    if isinstance(kind, DenseKind):
        made = torch.randn(rows, CHANNELS[kind], HEIGHT, WIDTH, generator=generator)
        return made + 3.0 if kind is DenseKind.DEPTH else made
    if kind is PredictionKind.CHOICES:
        return torch.randn(rows, 1, generator=generator)
    if kind is PredictionKind.BOXES:
        return boxes(generator, rows)
    width = 5 if kind is PredictionKind.VECTORS else len(NAMES)
    made = torch.randn(rows, width, generator=generator)
    return F.normalize(made, dim=1) if kind is PredictionKind.VECTORS else made


def boxes(generator: torch.Generator, rows: int) -> Tensor:
    """Return boxes with an extent."""
    middle = 0.3 + 0.4 * torch.rand(rows, 2, generator=generator)
    half = 0.05 + 0.2 * torch.rand(rows, 2, generator=generator)
    return torch.cat([middle - half, middle + half], dim=1)


def dense_labels(kind: DenseKind, generator: torch.Generator, rows: int) -> Tensor:
    """Return what a data set would give for every pixel; a margin, and the whole of the last row, have none.

    The first row has both salient and other pixels, edges and none, near and far.
    """
    shape = (rows, HEIGHT, WIDTH)
    if kind in (DenseKind.CLASSES, DenseKind.SALIENCY):
        made = torch.randint(CHANNELS[kind], shape, generator=generator)
    elif kind is DenseKind.NORMALS:
        made = F.normalize(torch.randn(rows, 3, HEIGHT, WIDTH, generator=generator), dim=1)
    elif kind is DenseKind.EDGE:
        made = (torch.rand(shape, generator=generator) < 0.15).float()[:, None]
    else:
        made = 0.5 + 5 * torch.rand(shape, generator=generator)[:, None]
    none = 0 if kind is DenseKind.DEPTH else IGNORE
    made[..., :2, :] = none
    made[-1:] = none
    return made


def labels(kind: Form, generator: torch.Generator, rows: int) -> Tensor:
    """Return what a data set would give for it."""
    if isinstance(kind, DenseKind):
        return dense_labels(kind, generator, rows)
    if kind is PredictionKind.CHOICES:
        return torch.randint(2, (rows,), generator=generator)
    if kind in (PredictionKind.BOXES, PredictionKind.NUMBERS):
        return values(kind, generator, rows)
    if kind is PredictionKind.LABELS:
        return (torch.rand(rows, len(NAMES), generator=generator) < 0.4).float()
    return torch.randint(len(NAMES), (rows,), generator=generator)


def batch(kind: Form, generator: torch.Generator, ids: tuple[str, ...], *, every: int = 4) -> Batch:
    """Return a batch in which each `every`th sample has no label."""
    index = torch.tensor([i for i in range(len(ids)) if i % every != every - 1])
    return Batch(ids, targets={TARGET: Target(labels(kind, generator, len(index)), index)})


def predictions(
    kind: Form,
    generator: torch.Generator,
    size: int,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> dict[str, Prediction]:
    """Return predictions of three passes, each of which some samples lack."""
    times = 2 if kind is PredictionKind.CHOICES else 1
    rows = {
        p: torch.tensor([i for i in range(size) if i % 5 != n for _ in range(times + i % times)])
        for n, p in enumerate(PASSES)
    }
    return {p: Prediction(values(kind, generator, len(r)), r, scale, offset) for p, r in rows.items()}


def lessons(objective: Any, generator: torch.Generator, found: dict[str, Prediction]) -> dict[str, Target]:
    """Return what a teacher of that name as the label would give for most rows, where one is wanted."""
    if objective.lesson is None:
        return {}
    rows = {p: x.index[x.index % 4 != 3] for p, x in found.items()}
    return {
        lesson_name(TARGET, objective.lesson, p): Target(values(objective.lesson, generator, len(r)), r)
        for p, r in rows.items()
    }


def part(found: dict[str, Prediction], whole: Batch, samples: range) -> tuple[dict[str, Prediction], Batch]:
    """Return the predictions and labels of some samples as a batch of their own."""

    def cut(index: Tensor) -> Tensor:
        return (index >= samples.start) & (index < samples.stop)

    kept = {
        p: Prediction(x.values[cut(x.index)], x.index[cut(x.index)] - samples.start, x.scale, x.offset)
        for p, x in found.items()
    }
    targets = {
        k: Target(t.values[cut(t.index)], t.index[cut(t.index)] - samples.start)
        for k, t in whole.targets.items()
    }
    return kept, Batch(whole.ids[samples.start : samples.stop], targets=targets)


class Scale(nn.Module):
    """Temperature and offset of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(7.0)), nn.Parameter(torch.tensor(-2.0))
