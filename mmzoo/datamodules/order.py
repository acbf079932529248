"""Which sample comes when: pure functions of (seed, epoch, rank); a place in the data is two numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, distributed

MASK = 2**64 - 1


@dataclass(frozen=True)
class Rank:
    """This process among those that train together."""

    index: int = 0
    world: int = 1

    @staticmethod
    def current() -> Rank:
        """Ask torch.distributed; one process of one where it is not initialised."""
        if distributed.is_available() and distributed.is_initialized():
            return Rank(distributed.get_rank(), distributed.get_world_size())
        return Rank()


@dataclass(frozen=True)
class Draws:
    """Samples in the order they are drawn: their indices, and how often the epoch has drawn each before."""

    index: Int[Tensor, " n"]
    repeat: Int[Tensor, " n"]

    def __len__(self) -> int:
        """Return the number of draws."""
        return len(self.index)

    def take(self, positions: slice | Int[Tensor, " m"]) -> Draws:
        """Return some of them."""
        return Draws(self.index[positions], self.repeat[positions])

    def pairs(self) -> list[tuple[int, int]]:
        """Return (index, repeat) of each draw."""
        return list(zip(self.index.tolist(), self.repeat.tolist(), strict=True))


def generator_for(*key: int) -> torch.Generator:
    """Return a generator seeded by a tuple of whole numbers, well mixed (neighbouring keys are unrelated)."""
    state = 0
    for part in key:
        state = _mix(state ^ _mix(part & MASK))
    return torch.Generator().manual_seed(state >> 1)


def _mix(value: int) -> int:
    """Scatter 64 bits (Math: SplitMix64's step, Steele et al. 2014: add the golden ratio,
    xor-shift-multiply)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def repeats(order: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Count, for each position, the earlier positions that hold the same index."""
    by_index = torch.argsort(order, stable=True)
    ordered = order[by_index]
    position = torch.arange(len(order))
    starts = torch.ones(len(order), dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, position, 0).cummax(0).values
    return torch.empty_like(order).index_copy_(0, by_index, position - first)


def train_draws(order: Int[Tensor, " n"], batch_size: int, rank: Rank, *, drop_last: bool) -> Draws:
    """Return this rank's draws of an epoch's order; every rank has as many.

    The ranks' k-th batches together are the k-th batch of one process with `world` times the batch size.
    What does not divide among the ranks is dropped (fewer than `world` samples, others in another epoch), and
    so is the tail that fills no batch if `drop_last`, unless it is all there is.
    """
    whole = batch_size * rank.world
    keep = len(order) // rank.world * rank.world
    if drop_last and keep >= whole:
        keep = keep // whole * whole
    if keep == 0 and len(order):
        order, keep = order.repeat(rank.world), rank.world
    return Draws(order, repeats(order)).take(slice(rank.index, keep, rank.world))


def eval_draws(count: int, rank: Rank) -> Draws:
    """Return this rank's share of samples 0..count-1 in order; every rank has as many, and none is lost.

    The first few samples fill up the last ranks: whoever gathers results keeps one of each id.
    """
    padded = -(-count // rank.world) * rank.world
    index = torch.arange(rank.index, padded, rank.world) % max(count, 1)
    return Draws(index, torch.zeros_like(index))
