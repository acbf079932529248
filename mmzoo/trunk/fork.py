"""Where tasks part: one packed buffer for all of them up to the first block that depends on the task, then
one copy for each task, still in one buffer.

Why: running the trunk once for each task repeats every block before that one. After the fork the copies of
all tasks share each matrix product, and attention keeps them apart, since each copy is a segment of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError, close_matches
from mmzoo.trunk.packing import Groups, Packed, lay_out
from mmzoo.trunk.plan import SeqInfo, TaskSpan

TaskGroups = Mapping[str, Sequence[int]]
"""Task -> the groups (passes) that it reads, by their place in the trunk's input."""


@dataclass(frozen=True)
class Fork:
    """The geometry after tasks part.

    layer: first block that runs on the copies. packed: their geometry (its buffer is empty). groups: the
    passes of the first task, then of the second, …; tasks: which of them are whose. sources: for each part
    of the copies, the part of the shared buffer that it copies.
    """

    layer: int
    packed: Packed
    groups: list[Sequence[TokenSequence]]
    tasks: dict[str, range]
    sources: tuple[int, ...]
    sizes: tuple[int, ...]

    def copy(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t2 d"]:
        """Return the rows of every task's copies, in the forked buffer's order."""
        if self.sources == tuple(range(len(self.sizes))):
            return x
        pieces = x.split(list(self.sizes))
        return torch.cat([pieces[i] for i in self.sources])


def fork(groups: Groups, shared: Packed, tasks: TaskGroups, modalities: tuple[str, ...], layer: int) -> Fork:
    """Lay out one copy of its passes for each task, to part from the `shared` buffer before block `layer`."""
    places = [(task, g) for task, own in tasks.items() for g in own]
    copies: list[Sequence[TokenSequence]] = [groups[g] for _, g in places]
    seq, parts = lay_out(copies, modalities, is_causal=shared.seq.is_causal)
    if shared.seq.mask_mod is not None:
        table = _segment_table(shared.seq, seq, [g for _, g in places])
        mask = _translated(shared.seq.mask_mod, table.to(seq.cu_seqlens.device))
        seq = dataclasses.replace(seq, mask_mod=mask)
    spans = tuple(TaskSpan(places[p.group][0], p.start, p.end) for p in parts)
    seq = dataclasses.replace(seq, task_spans=spans)
    found = {(p.group, p.position): i for i, p in enumerate(shared.parts)}
    ends: dict[str, range] = {}
    for task, own in tasks.items():
        start = sum(len(r) for r in ends.values())
        ends[task] = range(start, start + len(own))
    return Fork(
        layer=layer,
        packed=Packed(shared.buffer.new_zeros(0, shared.buffer.shape[1]), seq, parts),
        groups=copies,
        tasks=ends,
        sources=tuple(found[places[p.group][1], p.position] for p in parts),
        sizes=tuple(p.end - p.start for p in shared.parts),
    )


def check_tasks(tasks: TaskGroups | None, known: tuple[str, ...], task: str | None, count: int) -> TaskGroups:
    """Return the tasks to run, those asked for or the one of the context; raise where there are none, or
    unknown ones. `count`: number of groups.
    """
    chosen = dict(tasks) if tasks else {task: range(count)} if task else {}
    where = "trunk (routed by task)"
    if not chosen:
        raise ConfigError.at(
            where, "no task", f"some of {', '.join(known) or 'the tasks'}", "Say which tasks to run."
        )
    for name in chosen:
        if name not in known:
            do = close_matches(name, known)
            raise ConfigError.at(where, f"no task {name!r}", "one the model was built with", do)
    return {name: own for name, own in chosen.items() if len(own)}


def _segment_table(shared: SeqInfo, copies: SeqInfo, origin: Sequence[int]) -> Tensor:
    """Return for each segment of the copies the segment of the shared plan it is a copy of."""

    def by_group(seq: SeqInfo) -> dict[int, list[int]]:
        numbers: dict[int, list[int]] = {}
        for run in seq.runs:
            numbers.setdefault(run.pieces[0][0], []).extend(range(run.segment, run.segment + run.count))
        return numbers

    table = torch.zeros(copies.num_segments, dtype=torch.int64)
    old = by_group(shared)
    for group, numbers in by_group(copies).items():
        table[torch.tensor(numbers)] = torch.tensor(old[origin[group]])
    return table


def _translated(mask_mod: Callable[..., Tensor], table: Tensor) -> Callable[..., Tensor]:
    def mask(segment: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_mod(table[segment], head, query, key)

    return mask
