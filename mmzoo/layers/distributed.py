"""Collectives for rows that are ragged over ranks; all work unchanged where torch.distributed is not
initialised.
 Order of gathered rows: rank 0's, rank 1's, … . `sizes` is the number of rows of each rank, known to all of
them. Every rank must call each function the same number of times, one without rows too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch import distributed as dist

from mmzoo.errors import ShapeError


def world_size() -> int:
    """Return the number of processes, 1 where they are not tied together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def device() -> torch.device:
    """Return the device that the process group's collectives want tensors on."""
    if world_size() > 1 and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's (small, picklable) value, in rank order."""
    found: list[Any] = [value] * world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def gather_rows(x: Shaped[Tensor, "k ..."], sizes: Sequence[int]) -> Shaped[Tensor, "all ..."]:
    """Return the rows of all ranks; no gradient flows.

    Shape: x [sizes[rank], …] -> [sum(sizes), …]. Travels padded to the longest rank.
    """
    check_sizes(x, sizes)
    if len(sizes) == 1:
        return x.detach()
    most = max(sizes)
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: x.shape[0]] = x.detach()
    gathered = x.new_empty(len(sizes) * most, *x.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    return torch.cat([gathered[r * most : r * most + n] for r, n in enumerate(sizes)])


def reduce_rows(x: Shaped[Tensor, "all ..."], sizes: Sequence[int]) -> Shaped[Tensor, "k ..."]:
    """Return this rank's rows of the sum over ranks: the transpose of `gather_rows`.

    Shape: x [sum(sizes), …] on every rank -> [sizes[rank], …].
    """
    if x.shape[0] != sum(sizes):
        raise ShapeError.at(
            "reduce_rows", f"{x.shape[0]} rows", f"sum of {list(sizes)}", "Pass every rank's rows."
        )
    if len(sizes) == 1:
        return x
    most = max(sizes)
    padded = x.new_zeros(len(sizes) * most, *x.shape[1:])
    for r, rows in enumerate(x.split(list(sizes))):
        padded[r * most : r * most + sizes[r]] = rows
    mine = x.new_empty(most, *x.shape[1:])
    dist.reduce_scatter_tensor(mine, padded)
    return mine[: sizes[rank()]]


def gather_rows_with_gradient(x: Shaped[Tensor, "k ..."], sizes: Sequence[int]) -> Shaped[Tensor, "all ..."]:
    """Return the rows of all ranks; each row's gradient is the sum over ranks of what they ask of it.

    The backward pass communicates too: every rank must run it, and in the same order if there are several.
    """
    check_sizes(x, sizes)
    return _Gather.apply(x, tuple(sizes))  # pyright: ignore[reportReturnType] torch types apply() as Any | None


def check_sizes(x: Tensor, sizes: Sequence[int]) -> None:
    """Raise ShapeError where the sizes do not fit the world or this rank's rows."""
    if len(sizes) != world_size() or x.shape[0] != sizes[rank()]:
        found = f"{x.shape[0]} rows on rank {rank()} of {world_size()}, sizes {list(sizes)}"
        raise ShapeError.at(
            "gather_rows", found, "one size a rank, this rank's own right", "Exchange sizes first."
        )


class _Gather(torch.autograd.Function):
    """All-gather forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Gather."""
        ctx.sizes = sizes
        return gather_rows(x, sizes).clone() if len(sizes) == 1 else gather_rows(x, sizes)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Sum what the ranks ask of this rank's rows."""
        return reduce_rows(grad_outputs[0].contiguous(), ctx.sizes), None
