"""Who sent what to which expert: counts by layer, task and modality that merge over batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.trunk.plan import SeqInfo

SUFFIX = "routing"
"""A layer keeps its record in the context's stats under `<layer>/routing` or `<layer>/<part>/routing`."""


@dataclass(frozen=True)
class RoutingRecord:
    """The choices of one layer in one forward, and whose rows they are; summed up only when someone asks.

    weights: of the choices; None where all that are chosen count alike.
    """

    experts_tk: Int[Tensor, "t k"]
    probs_te: Float[Tensor, "t e"]
    seq: SeqInfo
    weights_tk: Float[Tensor, "t k"] | None = None

    def spans(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield (task, modality, start, end) of the buffer's rows; the task is empty where all share them."""
        tasks = self.seq.task_spans or (("", 0, self.seq.num_tokens),)
        for name, (first, last) in self.seq.modality_slices.items():
            for task, start, end in tasks:
                if max(first, start) < min(last, end):
                    yield task, name, max(first, start), min(last, end)

    def use(self) -> dict[tuple[str, str], ExpertUse]:
        """Return the sums by (task, modality)."""
        found: dict[tuple[str, str], ExpertUse] = {}
        for task, modality, start, end in self.spans():
            weights = None if self.weights_tk is None else self.weights_tk[start:end]
            part = ExpertUse.of(self.experts_tk[start:end], self.probs_te[start:end], weights)
            key = (task, modality)
            found[key] = found[key].merge(part) if key in found else part
        return found


@dataclass(frozen=True)
class ExpertUse:
    """Sums over tokens: how many chose each expert, its probabilities, the entropies, the tokens.

    Where every token takes every expert, `chosen` sums the weights: counts would say nothing.
    """

    chosen: Float[Tensor, " e"]
    probs: Float[Tensor, " e"]
    entropy: float
    tokens: int

    @staticmethod
    def of(
        experts_tk: Int[Tensor, "t k"],
        probs_te: Float[Tensor, "t e"],
        weights_tk: Float[Tensor, "t k"] | None = None,
    ) -> ExpertUse:
        """Sum over some tokens, on the host."""
        flat = experts_tk.reshape(-1)
        chosen = torch.zeros(probs_te.shape[1], device=flat.device)
        each = torch.ones_like(flat, dtype=chosen.dtype)
        if weights_tk is not None and experts_tk.shape[1] == probs_te.shape[1]:
            each = weights_tk.reshape(-1).to(chosen.dtype)
        chosen = chosen.scatter_add(0, flat, each)
        entropy = -torch.special.xlogy(probs_te, probs_te).sum()
        return ExpertUse(
            chosen.double().cpu(), probs_te.sum(0).double().cpu(), float(entropy), len(experts_tk)
        )

    def merge(self, other: ExpertUse) -> ExpertUse:
        """Add the sums of other tokens."""
        return ExpertUse(
            self.chosen + other.chosen,
            self.probs + other.probs,
            self.entropy + other.entropy,
            self.tokens + other.tokens,
        )

    @property
    def share(self) -> Float[Tensor, " e"]:
        """Return the share of all choices that fell on each expert."""
        return self.chosen / self.chosen.sum().clamp(min=1)

    def figures(self) -> dict[str, float]:
        """Return scalars, each 1 for perfectly even use.

        load_entropy: entropy of the shares / log E. entropy: mean entropy of a token's probabilities / log E.
        max_load: largest share x E. used: part of the experts that anyone chose.
        """
        count = len(self.chosen)
        scale = math.log(count) if count > 1 else 1.0
        share = self.share
        return {
            "load_entropy": float(-torch.special.xlogy(share, share).sum()) / scale,
            "entropy": self.entropy / max(self.tokens, 1) / scale,
            "max_load": float(share.max()) * count,
            "used": float((self.chosen > 0).double().mean()),
        }


@dataclass(frozen=True)
class RoutingRecords:
    """The records of one layer in several forwards, as of passes that ran apart."""

    parts: tuple[RoutingRecord, ...]

    def use(self) -> dict[tuple[str, str], ExpertUse]:
        """Return the sums by (task, modality) over all of them."""
        found: dict[tuple[str, str], ExpertUse] = {}
        for part in self.parts:
            for key, use in part.use().items():
                found[key] = found[key].merge(use) if key in found else use
        return found


RoutingUse = dict[str, dict[tuple[str, str], ExpertUse]]
"""Place (`3` the feed-forward of block 3, `3/heads` its attention) -> (task, modality) -> sums."""


def routing_use(stats: Mapping[str, Any]) -> RoutingUse:
    """Sum up the records that a forward left in the context's stats."""
    found: RoutingUse = {}
    for key, value in stats.items():
        place, _, name = key.rpartition("/")
        if name == SUFFIX and isinstance(value, RoutingRecord | RoutingRecords):
            found[place] = value.use()
    return found


def join_stats(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stats of two forwards of one step: records of the same layer count together, of anything
    else that both have the first one's stays.
    """
    joined = {**second, **first}
    for key in first.keys() & second.keys():
        both = first[key], second[key]
        if all(isinstance(value, RoutingRecord | RoutingRecords) for value in both):
            parts = [v.parts if isinstance(v, RoutingRecords) else (v,) for v in both]
            joined[key] = RoutingRecords((*parts[0], *parts[1]))
    return joined


def merge_use(first: RoutingUse, second: RoutingUse) -> RoutingUse:
    """Add the sums of two parts of the data."""
    merged = {place: dict(own) for place, own in first.items()}
    for place, own in second.items():
        known = merged.setdefault(place, {})
        for key, use in own.items():
            known[key] = known[key].merge(use) if key in known else use
    return merged


def whole(own: Mapping[tuple[str, str], ExpertUse]) -> ExpertUse:
    """Return the sums of a layer over all tasks and modalities."""
    parts = list(own.values())
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total
