"""The packed plan: where every token, modality and segment lies in the flat buffer; built on the host
once a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Consecutive segments of one composition, so that one batched kernel serves them without padding.

    Rows `start … start + count * length` of the attention order hold `count` segments of `length`
    tokens; `pieces` gives each segment's (group, modality, length) parts in order, for block-diagonal
    bias and grids. `segment` is the number of the first one.
    """

    start: int
    count: int
    length: int
    pieces: tuple[tuple[int, str, int], ...]
    segment: int = 0


class TaskSpan(NamedTuple):
    """Rows `start … end` of the buffer that belong to a task's copies."""

    task: str
    start: int
    end: int


@dataclass(frozen=True)
class SeqInfo:
    """The geometry of a packed buffer [t d], modality-major.

    modality_slices: modality -> (first row, end row) in the buffer. runs: the segments in attention
    order. order / inverse: permutation buffer -> attention order and back, None where the two agree:
    attention = buffer[order], buffer = attention[inverse]. cu_seqlens: int32 [s+1] in attention order,
    on the buffer's device; max_length: longest segment. segment_of_row: int64 [t], the segment (in
    attention order) of each buffer row. grids: per segment, per piece; prefixes: likewise how many tokens
    stand before the grid's; kept: likewise which tokens of the padded row are real, None where they are its
    first ones. mask_mod(segment, head, query,
    key) -> True where a query may look at a key; positions count within the segment, arguments are
    broadcastable integer tensors. biases: none, one tuple for all layers, or one a layer; each has an
    additive logit tensor (1 or count, h, length, length), or None, for every run. task_spans: whose copies
    the rows are, in order and without gaps; empty where all tasks share them. cache: what is derived
    from the plan once a forward and used by every layer (merged masks, block masks).
    """

    num_tokens: int
    modality_slices: dict[str, tuple[int, int]]
    runs: tuple[Run, ...]
    cu_seqlens: Int[Tensor, " s1"]
    max_length: int
    segment_of_row: Int[Tensor, " t"]
    order: Int[Tensor, " t"] | None = None
    inverse: Int[Tensor, " t"] | None = None
    grids: tuple[tuple[tuple[int, ...] | None, ...], ...] = ()
    prefixes: tuple[tuple[int, ...], ...] = ()
    kept: tuple[tuple[tuple[int, ...] | None, ...], ...] = ()
    padding_ratio: float = 1.0
    is_causal: bool = False
    mask_mod: Callable[..., Tensor] | None = None
    biases: tuple[tuple[Tensor | None, ...], ...] = ()
    task_spans: tuple[TaskSpan, ...] = ()
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_segments(self) -> int:
        """Return how many segments the buffer holds."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> list[int]:
        """Return the length of each segment, in attention order."""
        return [run.length for run in self.runs for _ in range(run.count)]

    def bias(self, layer: int) -> tuple[Tensor | None, ...]:
        """Return the additive logits of each run at a layer; empty where there are none at all."""
        if not self.biases:
            return ()
        return self.biases[layer if len(self.biases) > 1 else 0]
