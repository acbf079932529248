"""Padded sequences into one flat buffer and back: `pack`, `unpack`, `join`.

Only real tokens enter. The buffer is modality-major, so a modality's feed-forward is a slice; attention
reads it by segment, and only where some segment spans modalities does its order differ from the
buffer's. Everything is decided on the host from host tensors: nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.batch import TokenSequence
from mmzoo.errors import ShapeError, close_matches
from mmzoo.layers.rows import scatter_rows, take_rows
from mmzoo.trunk.plan import Run, SeqInfo
from mmzoo.trunk.run_bias import is_prefix, run_biases

Groups = Sequence[Sequence[TokenSequence]]


@dataclass(frozen=True)
class Part:
    """Where the sequence at (`group`, `position`) lies in the buffer: rows `start … end`.

    rows / lengths: its rows in buffer order and how many tokens of each; segments / offsets: the segment
    that each row is in and how many tokens of other pieces come first there. source: flat place of every
    token among the padded ones [k n], None where buffer and padded order agree and nothing is padded.
    """

    group: int
    position: int
    start: int
    end: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    segments: tuple[int, ...]
    offsets: tuple[int, ...]
    source: Int[Tensor, " p"] | None = None


class Packed(NamedTuple):
    """The buffer, its geometry, and what `unpack` needs."""

    buffer: Float[Tensor, "t d"]
    seq: SeqInfo
    parts: tuple[Part, ...]


class _Segment(NamedTuple):
    """One segment before it has a place: its group, its row in each sequence of the group (or -1), its
    lengths.
    """

    group: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...]


def pack(
    groups: Groups,
    modalities: tuple[str, ...],
    *,
    is_causal: bool = False,
    mask_mod: Callable[..., Tensor] | None = None,
) -> Packed:
    """Lay all passes into one buffer.

    groups: each is one pass; several sequences in one group are joint: the tokens of a sample attend to
    each other across them, in the order given. modalities: the trunk's names, which set the order in the
    buffer.
    """
    seq, parts = lay_out(groups, modalities, is_causal=is_causal, mask_mod=mask_mod)
    return Packed(_fill(groups, parts), seq, parts)


def lay_out(
    groups: Groups,
    modalities: tuple[str, ...],
    *,
    is_causal: bool = False,
    mask_mod: Callable[..., Tensor] | None = None,
) -> tuple[SeqInfo, tuple[Part, ...]]:
    """Return the geometry that `pack` gives these passes, without filling a buffer."""
    first = _check(groups, modalities)
    segments = _segments(groups, modalities)
    parts = _parts(groups, modalities, segments)
    runs = _runs(groups, segments)
    ends = torch.tensor([sum(s.lengths) for s in segments], dtype=torch.int64).cumsum(0)
    device = first.tokens.device
    joint = any(len(s.rows) > 1 for s in segments)
    row_segments, inverse, order = _token_maps(parts, ends, joint=joint)
    sources = [_source(part, groups[part.group][part.position]) for part in parts]
    row_segments, inverse, order, *sources = _move([row_segments, inverse, order, *sources], device)
    parts = [replace(part, source=source) for part, source in zip(parts, sources, strict=True)]
    total = parts[-1].end if parts else 0
    seq = SeqInfo(
        num_tokens=total,
        modality_slices=_slices(groups, parts),
        runs=runs,
        cu_seqlens=F.pad(ends, (1, 0)).to(torch.int32).to(device, non_blocking=True),
        max_length=max((run.length for run in runs), default=0),
        segment_of_row=first.valid.new_zeros(0, dtype=torch.int64) if row_segments is None else row_segments,
        order=order,
        inverse=inverse,
        grids=_by_piece(groups, segments, lambda s: s.grids),
        prefixes=_by_piece(groups, segments, lambda s: (s.num_prefix,) * len(s)),
        kept=_by_piece(groups, segments, _kept),
        padding_ratio=sum(s.valid.numel() for group in groups for s in group) / max(total, 1),
        is_causal=is_causal,
        mask_mod=mask_mod,
        biases=run_biases(groups, runs, [s.rows for s in segments]),
    )
    return seq, tuple(parts)


def unpack(buffer: Float[Tensor, "t d"], packed: Packed, groups: Groups) -> list[list[TokenSequence]]:
    """Return the sequences with the buffer's rows as tokens, padded again with zeros; biases are dropped."""
    parts = {(p.group, p.position): p for p in packed.parts}
    whole = buffer.split([p.end - p.start for p in packed.parts])
    rows = {(p.group, p.position): piece for p, piece in zip(packed.parts, whole, strict=True)}
    return [
        [_padded(s, parts.get((g, i)), rows.get((g, i)), buffer) for i, s in enumerate(group)]
        for g, group in enumerate(groups)
    ]


def join(sequences: Sequence[TokenSequence]) -> TokenSequence:
    """Concatenate, for each sample that any sequence has, its real tokens in the order of the sequences.

    Rows are aligned by sample index and right-padded, so the first token of a row is the first of the
    first modality that the sample has. `num_prefix` stays where all sequences agree on it; grids and
    biases have no meaning here. `parts` keeps the sequences.
    """
    samples = sorted({int(i) for s in sequences for i in s.index})
    place = {sample: row for row, sample in enumerate(samples)}
    totals = torch.zeros(len(samples), dtype=torch.int64)
    targets: list[tuple[Tensor, Tensor, Tensor]] = []
    for s in sequences:
        row, column = s.valid.nonzero(as_tuple=True)
        owner = torch.tensor([place[int(i)] for i in s.index], dtype=torch.int64)
        counts = s.valid.sum(1)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        targets.append((owner[row], totals[owner[row]] + within, row * s.valid.shape[1] + column))
        totals.index_add_(0, owner, counts)
    width = int(totals.max()) if len(samples) else 0
    device = sequences[0].tokens.device
    flat = torch.cat([take_rows(_flat(s), t[2].to(device)) for s, t in zip(sequences, targets, strict=True)])
    target = torch.cat([owner * width + column for owner, column, _ in targets])
    tokens = scatter_rows(flat, target.to(device), len(samples) * width)
    prefixes = {s.num_prefix for s in sequences}
    return TokenSequence(
        tokens=tokens.view(len(samples), width, flat.shape[1]),
        valid=torch.arange(width) < totals[:, None],
        index=torch.tensor(samples, dtype=torch.int64),
        modality="+".join(s.modality for s in sequences),
        num_prefix=prefixes.pop() if len(prefixes) == 1 else 0,
        parts=tuple(sequences),
    )


def _check(groups: Groups, modalities: tuple[str, ...]) -> TokenSequence:
    sequences = [s for group in groups for s in group]
    if not sequences:
        raise ShapeError.at("trunk", "no sequence", "at least one", "Give it the tokens of some modality.")
    for group in groups:
        names = [s.modality for s in group]
        if len(set(names)) < len(names):
            found = f"a joint pass of {'+'.join(names)}"
            raise ShapeError.at(
                "trunk", found, "each modality once", "Split the pass, or give them different names."
            )
    for s in sequences:
        if s.modality not in modalities:
            found, known = f"tokens of modality {s.modality!r}", f"one of {', '.join(modalities)}"
            raise ShapeError.at("trunk", found, known, close_matches(s.modality, modalities))
        if s.tokens.shape[2] != sequences[0].tokens.shape[2] or s.valid.shape != s.tokens.shape[:2]:
            found = f"{s.modality} tokens {tuple(s.tokens.shape)}, valid {tuple(s.valid.shape)}"
            expected = f"(k, n, {sequences[0].tokens.shape[2]}) and (k, n)"
            raise ShapeError.at("trunk", found, expected, "Mend the adapter.")
    return sequences[0]


def _segments(groups: Groups, modalities: tuple[str, ...]) -> list[_Segment]:
    """List the segments in attention order: single passes as the buffer has them, then joint ones."""
    rank = {name: i for i, name in enumerate(modalities)}
    singles = sorted(
        (g for g, group in enumerate(groups) if len(group) == 1), key=lambda g: rank[groups[g][0].modality]
    )
    joints = [g for g, group in enumerate(groups) if len(group) > 1]
    found: list[_Segment] = []
    for g in singles:
        lengths: list[int] = groups[g][0].valid.sum(1).tolist()
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        found += [_Segment(g, (row,), (lengths[row],)) for row in order if lengths[row]]
    for g in joints:
        found += sorted(_joint_segments(g, groups[g]), key=lambda s: s.lengths)
    return found


def _joint_segments(g: int, group: Sequence[TokenSequence]) -> list[_Segment]:
    rows: dict[int, list[int]] = {}
    lengths: dict[int, list[int]] = {}
    for position, s in enumerate(group):
        samples: list[int] = s.index.tolist()
        for row, (sample, length) in enumerate(zip(samples, s.valid.sum(1).tolist(), strict=True)):
            if length:
                rows.setdefault(sample, [-1] * len(group))[position] = row
                lengths.setdefault(sample, [0] * len(group))[position] = length
    return [_Segment(g, tuple(rows[sample]), tuple(lengths[sample])) for sample in sorted(rows)]


def _parts(groups: Groups, modalities: tuple[str, ...], segments: list[_Segment]) -> list[Part]:
    """Place every sequence that has tokens, modality after modality, its rows in the order of their
    segments.
    """
    members: dict[tuple[int, int], list[tuple[int, _Segment]]] = {}
    for number, segment in enumerate(segments):
        for position, row in enumerate(segment.rows):
            if row >= 0:
                members.setdefault((segment.group, position), []).append((number, segment))
    rank = {name: i for i, name in enumerate(modalities)}
    keys = sorted(members, key=lambda k: (rank[groups[k[0]][k[1]].modality], len(groups[k[0]]) > 1, k))
    parts: list[Part] = []
    start = 0
    for g, position in keys:
        own = members[g, position]
        lengths = tuple(s.lengths[position] for _, s in own)
        parts.append(
            Part(
                group=g,
                position=position,
                start=start,
                end=start + sum(lengths),
                rows=tuple(s.rows[position] for _, s in own),
                lengths=lengths,
                segments=tuple(number for number, _ in own),
                offsets=tuple(sum(s.lengths[:position]) for _, s in own),
            )
        )
        start = parts[-1].end
    return parts


def _runs(groups: Groups, segments: list[_Segment]) -> tuple[Run, ...]:
    runs: list[Run] = []
    start = number = 0
    for (g, lengths), same in groupby(segments, key=lambda s: (s.group, s.lengths)):
        count, length = len(list(same)), sum(lengths)
        pieces = tuple((g, s.modality, n) for s, n in zip(groups[g], lengths, strict=True) if n)
        runs.append(Run(start, count, length, pieces, number))
        start, number = start + count * length, number + count
    return tuple(runs)


def _fill(groups: Groups, parts: Sequence[Part]) -> Float[Tensor, "t d"]:
    """Gather the real tokens of every part."""
    pieces = [take_rows(_flat(groups[p.group][p.position]), p.source) for p in parts]
    if len(pieces) > 1:
        return torch.cat(pieces)
    if pieces:
        return pieces[0]
    first = next(s for group in groups for s in group)
    return first.tokens.new_zeros(0, first.tokens.shape[2])


def _token_maps(
    parts: list[Part], ends: Int[Tensor, " s"], *, joint: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the segment of each buffer row, its place in attention order, and the inverse of those places.

    ends: of the segments, in attention order. None where buffer and attention order are the same.
    """
    lengths = torch.tensor([n for p in parts for n in p.lengths], dtype=torch.int64)
    segments = torch.tensor([s for p in parts for s in p.segments], dtype=torch.int64)
    row_segments = segments.repeat_interleave(lengths)
    if not joint:
        return row_segments, None, None
    starts = F.pad(ends, (1, 0))
    offsets = torch.tensor([o for p in parts for o in p.offsets], dtype=torch.int64)
    shift = starts[segments] + offsets - (lengths.cumsum(0) - lengths)
    inverse = torch.arange(len(row_segments)) + shift.repeat_interleave(lengths)
    if bool((inverse[1:] > inverse[:-1]).all()):
        return row_segments, None, None
    return row_segments, inverse, inverse.argsort()


def _source(part: Part, s: TokenSequence) -> Int[Tensor, " p"] | None:
    ordered = part.rows == tuple(range(len(s)))
    if ordered and bool(s.valid.all()):
        return None
    rows = torch.tensor(part.rows, dtype=torch.int64)
    row, column = s.valid[rows].nonzero(as_tuple=True)
    return rows[row] * s.valid.shape[1] + column


def _move(indices: list[Tensor | None], device: torch.device) -> list[Tensor | None]:
    """Send all index tensors to the device in one copy."""
    if device.type == "cpu":
        return indices
    present = [i for i in indices if i is not None]
    joined = torch.cat(present)
    if device.type == "cuda":
        joined = joined.pin_memory()
    moved = iter(joined.to(device, non_blocking=True).split([len(i) for i in present]))
    return [None if i is None else next(moved) for i in indices]


def _slices(groups: Groups, parts: list[Part]) -> dict[str, tuple[int, int]]:
    slices: dict[str, tuple[int, int]] = {}
    for p in parts:
        name = groups[p.group][p.position].modality
        slices[name] = (slices.get(name, (p.start, p.start))[0], p.end)
    return slices


def _by_piece(
    groups: Groups, segments: list[_Segment], of: Callable[[TokenSequence], Sequence[Any] | None]
) -> tuple[tuple[Any, ...], ...]:
    """Return for each piece of each segment what `of` says of its row; None where it says nothing."""
    values = [[of(s) for s in group] for group in groups]
    return tuple(
        tuple(
            None if (own := values[s.group][i]) is None else own[row]
            for i, row in enumerate(s.rows)
            if row >= 0
        )
        for s in segments
    )


def _kept(s: TokenSequence) -> list[tuple[int, ...] | None] | None:
    """Return the places of the real tokens in each row with holes."""
    if is_prefix(s):
        return None
    return [tuple(row.nonzero()[:, 0].tolist()) for row in s.valid]


def _flat(s: TokenSequence) -> Float[Tensor, "p d"]:
    return s.tokens.reshape(-1, s.tokens.shape[2])


def _padded(s: TokenSequence, part: Part | None, rows: Tensor | None, buffer: Tensor) -> TokenSequence:
    k, n = s.valid.shape
    if part is None or rows is None:
        tokens = buffer.new_zeros(k, n, buffer.shape[1])
    else:
        tokens = scatter_rows(rows, part.source, k * n).view(k, n, buffer.shape[1])
    return TokenSequence(tokens, s.valid, s.index, s.modality, s.grids, s.num_prefix)
