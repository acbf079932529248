"""Drawing which tokens are hidden: exact shares of words, tokens or steps, on the host, all rows at once.

Axis letters: k rows, n tokens, u units (words, tokens or steps). A unit is hidden whole or not at all; -1
stands for tokens that are never hidden (CLS, end marks, padding).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

SLACK = 1e-6
"""Keeps a share of a count such as 0.55 * 20, a little less than 11 in floating point, from losing one."""


class Maskable(NamedTuple):
    """What a mask recipe may hide.

    Shape: words (k n) and steps (k n): numbers from 0 without gaps in each row, or -1. Tokens of one word
    (for anything but text a token is a word) and tokens of one step (place along the first axis of the grid:
    time, rows of an image) share a number.
    """

    words: Int[Tensor, "k n"]
    steps: Int[Tensor, "k n"]


def tokens_of(words: Int[Tensor, "k n"]) -> Int[Tensor, "k n"]:
    """Number the tokens of each row that may be hidden."""
    eligible = words >= 0
    return torch.where(eligible, eligible.cumsum(1) - 1, -1)


def dense(numbers: Int[Tensor, "k n"]) -> Int[Tensor, "k n"]:
    """Number again without gaps: equal neighbours stay equal, -1 stays -1; numbers must not decrease."""
    eligible = numbers >= 0
    before = torch.where(eligible, numbers, -1).cummax(1).values
    before = F.pad(before[:, :-1], (1, 0), value=-1)
    starts = eligible & (numbers != before)
    return torch.where(eligible, starts.cumsum(1) - 1, -1)


def counts_of(units: Int[Tensor, "k n"]) -> Int[Tensor, " k"]:
    """Return how many units each row has."""
    return units.amax(1) + 1 if units.shape[1] else units.new_zeros(len(units))


def hide_units(
    units: Int[Tensor, "k n"],
    counts: Int[Tensor, " k"],
    generator: torch.Generator,
    liking: Float[Tensor, "k u"] | None = None,
) -> Bool[Tensor, "k n"]:
    """Hide `counts` random units of each row; those with more `liking` come first.

    Math: a unit's score is liking + a uniform draw in [0, 1); the highest scores are hidden. Whole numbers of
    liking therefore rank strictly.
    """
    existing = counts_of(units)
    most = int(existing.max()) if len(units) else 0
    if not most:
        return torch.zeros_like(units, dtype=torch.bool)
    score = torch.rand(len(units), most, generator=generator)
    if liking is not None:
        score = score + liking
    score = score.masked_fill(torch.arange(most) >= existing[:, None], -torch.inf)
    rank = torch.argsort(torch.argsort(score, dim=1, descending=True, stable=True), dim=1)
    chosen = rank < torch.minimum(counts, existing)[:, None]
    return chosen.gather(1, units.clamp(min=0)) & (units >= 0)


def block_centres(
    counts: Int[Tensor, " k"], share: float, length: int, generator: torch.Generator
) -> Bool[Tensor, "k u"]:
    """Draw centres of blocks among each row's steps and return the steps that the blocks cover.

    Math: int(n * (share + 0.1) / length) different centres of n steps, each with (length - 1) // 2 steps
    before and length // 2 after it. Ref: ONE-PEACE's audio masks.
    """
    most = max(int(counts.max()), 1)
    number = (counts * ((share + 0.1) / length) + SLACK).long()
    steps = torch.arange(most).expand(len(counts), -1)
    centres = hide_units(torch.where(steps < counts[:, None], steps, -1), number, generator)
    padded = F.pad(centres[:, None].float(), (length // 2, (length - 1) // 2))
    return F.max_pool1d(padded, length, stride=1)[:, 0] > 0


def unit_liking(hidden: Bool[Tensor, "k n"], units: Int[Tensor, "k n"]) -> Float[Tensor, "k u"]:
    """Return 1 for units that are not hidden, 0 for those that are."""
    most = max(int(counts_of(units).max()), 1)
    free = torch.zeros(len(units), most + 1)
    place = torch.where(units >= 0, units, most)
    return free.scatter_(1, place, (~hidden).float())[:, :most]
