"""Samples with several entries of one modality: a joint pass pairs each with whatever else the sample has.

Every input is embedded once however many entries it meets: its tokens are repeated, not its adapter's work.
The trunk cannot share them further, since from the first block on they have seen the entry beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmzoo.batch import Batch, TokenSequence, entry_of_row, has_several
from mmzoo.errors import ShapeError

JOINT = "+"


class Spread(NamedTuple):
    """The sequences of a pass, their rows numbered so that no number comes twice, and the sample of each
    number; None where samples number the rows as they are."""

    group: list[TokenSequence]
    owners: Int[Tensor, " e"] | None = None


def spread(group: Sequence[TokenSequence], name: str) -> Spread:
    """Repeat the rows of a joint pass for each entry that they meet; a pass without several entries stays as
    it is.

    Math: entry j of sample i is row number o_i + j, o_i the entries of all samples before; a modality of
    which the sample has one row gives that row to each.
    """
    many = [s.modality for s in group if has_several(s.index)]
    if len(group) < 2 or not many:
        return Spread(list(group))
    if len(many) > 1:
        found = f"several entries of {' and of '.join(many)} in one sample"
        raise ShapeError.at(f"pass {name}", found, "of one modality", "Write the combinations as entries.")
    samples = torch.cat([s.index for s in group]).unique()
    counts = torch.stack([_counts(s, samples) for s in group]).amax(dim=0)
    firsts = _starts(counts)
    place = {sample: i for i, sample in enumerate(samples.tolist())}
    return Spread([_spread_one(s, counts, firsts, place) for s in group], samples.repeat_interleave(counts))


def owned(sequence: TokenSequence, owners: Int[Tensor, " e"] | None) -> TokenSequence:
    """Return a sequence, and its parts, with samples in place of row numbers."""
    if owners is None:
        return sequence
    parts = tuple(owned(part, owners) for part in sequence.parts)
    return dataclasses.replace(sequence, index=owners[sequence.index], parts=parts)


def check_single(batch: Batch, passes: Sequence[str], where: str) -> None:
    """Raise ShapeError where some sample has several entries of what the passes read: not every head can tell
    them apart."""
    for name in dict.fromkeys(m for p in passes for m in p.split(JOINT)):
        if name in batch.inputs and has_several(batch.inputs[name].index):
            do = "Use a contrastive or a choice head, or data that give one (data.captions.evaluate=first)."
            raise ShapeError.at(where, f"samples with several entries of {name}", "one", do)


def _counts(s: TokenSequence, samples: Int[Tensor, " s"]) -> Int[Tensor, " s"]:
    """Return how many rows each sample has in a sequence."""
    return torch.searchsorted(s.index, samples, right=True) - torch.searchsorted(s.index, samples)


def _spread_one(
    s: TokenSequence, counts: Int[Tensor, " s"], firsts: Int[Tensor, " s"], place: dict[int, int]
) -> TokenSequence:
    """Repeat the rows of samples that have one, number those of samples that have several."""
    where = torch.tensor([place[i] for i in s.index.tolist()], dtype=torch.int64)
    if has_several(s.index):
        return dataclasses.replace(s, index=firsts[where] + entry_of_row(s.index))
    rows = torch.arange(len(s)).repeat_interleave(counts[where])
    within = torch.arange(len(rows)) - _starts(counts[where])[rows]
    return _taken(s, rows, firsts[where][rows] + within)


def _starts(counts: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    return counts.cumsum(0) - counts


def _taken(s: TokenSequence, rows: Int[Tensor, " r"], index: Int[Tensor, " r"]) -> TokenSequence:
    """Return some rows of a sequence, as often as they are named, under new numbers."""
    on_device = rows.to(s.tokens.device, non_blocking=True)
    return dataclasses.replace(
        s,
        tokens=s.tokens.index_select(0, on_device),
        valid=s.valid[rows],
        index=index,
        grids=None if s.grids is None else tuple(s.grids[i] for i in rows.tolist()),
        biases=tuple(b if b.shape[0] == 1 else b.index_select(0, on_device) for b in s.biases),
        levels=tuple(level.index_select(0, on_device) for level in s.levels),
        content=None if s.content is None else s.content.index_select(0, on_device),
    )
