"""Fake token sequences, predictions and labels, by what a component says it gives or reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmzoo.batch import Batch, DataInfo, Prediction, PredictionKind, Target, TokenSequence

PASSES = ("image", "text", "image+text")
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
INFO = DataInfo(labels={"what": NAMES, "where": ("here", "there")}, modalities=("image", "text"))
TARGET = "what"


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


def values(kind: PredictionKind, generator: torch.Generator, rows: int) -> Tensor:
    """Return what a head of this kind would give."""
    width = 5 if kind is PredictionKind.VECTORS else len(NAMES)
    made = torch.randn(rows, width, generator=generator)
    return F.normalize(made, dim=1) if kind is PredictionKind.VECTORS else made


def labels(kind: PredictionKind, generator: torch.Generator, rows: int) -> Tensor:
    """Return what a data set would give for it."""
    if kind is PredictionKind.LABELS:
        return (torch.rand(rows, len(NAMES), generator=generator) < 0.4).float()
    return torch.randint(len(NAMES), (rows,), generator=generator)


def batch(kind: PredictionKind, generator: torch.Generator, ids: tuple[str, ...], *, every: int = 4) -> Batch:
    """Return a batch in which each `every`th sample has no label."""
    index = torch.tensor([i for i in range(len(ids)) if i % every != every - 1])
    return Batch(ids, targets={TARGET: Target(labels(kind, generator, len(index)), index)})


def predictions(
    kind: PredictionKind,
    generator: torch.Generator,
    size: int,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> dict[str, Prediction]:
    """Return predictions of three passes, each of which some samples lack."""
    rows = {p: torch.tensor([i for i in range(size) if i % 5 != n]) for n, p in enumerate(PASSES)}
    return {p: Prediction(values(kind, generator, len(r)), r, scale, offset) for p, r in rows.items()}


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
