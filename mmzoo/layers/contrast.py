"""Contrast of rows with columns by blocks: exact, and without ever holding the whole matrix of logits.

Why: at 8,192 pairs the logits, their softmax and its gradient take over a gigabyte; by blocks of rows they
take tens of megabytes, and since the matrix stays in cache it is also faster. Logits are computed twice: for
the normalisers, then for the gradient.
Math: logits S = scale · a bᵀ; `first` is the column that row 0 belongs to (row i's own is first + i).
Axis letters: n this rank's rows, m all columns (n = m and first = 0 for one process), e width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Keys(str, Enum):
    """Whether the side that a query is compared with learns too."""

    LEARNED = "learned"
    FIXED = "fixed"


@dataclass(frozen=True)
class ContrastGradient:
    """Gradient of a sum of losses; with respect to the columns it is this rank's rows' part."""

    rows: Float[Tensor, "n e"]
    columns: Float[Tensor, "m e"]
    scale: Float[Tensor, ""]
    offset: Float[Tensor, ""]


def log_normalisers(
    a: Float[Tensor, "n e"], b: Float[Tensor, "m e"], scale: Float[Tensor, ""], chunk: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
    """Return log-sum-exp of the logits along each row, and along each column over these rows (-inf without
    rows).

    Math: row_i = log Σ_j exp S_ij; column_j = log Σ_i exp S_ij, kept as a running maximum and a running sum.
    """
    rows = a.new_empty(a.shape[0])
    highest, total = a.new_full((b.shape[0],), -torch.inf), a.new_zeros(b.shape[0])
    for start, logits, spare in _blocks(a, b, scale, chunk):
        peak = logits.amax(dim=1)
        torch.sub(logits, peak[:, None], out=spare).exp_()
        rows[start : start + len(logits)] = peak + spare.sum(dim=1).log_()
        higher = torch.maximum(highest, logits.amax(dim=0))
        total.mul_(torch.exp(highest - higher)).add_(logits.sub_(higher).exp_().sum(dim=0))
        highest = higher
    return rows, highest + total.log()


def infonce_gradient(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "m e"],
    scale: Float[Tensor, ""],
    normalisers: tuple[Float[Tensor, " n"], Float[Tensor, " m"]],
    smoothing: float,
    first: int,
    chunk: int,
    keys: Keys = Keys.LEARNED,
) -> ContrastGradient:
    """Return the gradient of symmetric InfoNCE with label smoothing ε, given the normalisers over the whole
    matrix.

    Math: loss = ½ Σ_i row_i + ½ Σ_j column_j - (1 - ε) Σ_i S_i,first+i - ε/m Σ_ij S_ij;
    G = ½ exp(S - row) + ½ exp(S - column) - (1 - ε) 1[match] - ε/m;
    d rows = scale · G b, d columns = scale · Gᵀ a, d scale = Σ G ∘ (a bᵀ) = Σ (G b) ∘ a.
    With fixed keys only the queries of each direction learn, and each has half of match and smoothing:
    d rows from ½ [exp(S - row) - (1 - ε) 1[match] - ε/m], d columns from the like with column.
    """
    if keys is Keys.FIXED:
        return _fixed_keys_gradient(a, b, scale, normalisers, smoothing, first, chunk)
    row, column = normalisers
    rows, columns = torch.empty_like(a), torch.zeros_like(b)
    for start, logits, spare in _blocks(a, b, scale, chunk):
        end = start + len(logits)
        torch.sub(logits, row[start:end, None], out=spare).exp_()
        weight = logits.sub_(column).exp_().add_(spare).mul_(0.5)
        weight.diagonal(first + start)[: end - start].sub_(1 - smoothing)
        if smoothing:
            weight.sub_(smoothing / b.shape[0])
        torch.mm(weight, b, out=rows[start:end])
        columns.addmm_(weight.T, a[start:end])
    by_scale = (rows * a).sum()
    return ContrastGradient(rows.mul_(scale), columns.mul_(scale), by_scale, torch.zeros_like(scale))


def _fixed_keys_gradient(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    normalisers: tuple[Tensor, Tensor],
    smoothing: float,
    first: int,
    chunk: int,
) -> ContrastGradient:
    row, column = normalisers
    rows, columns = torch.empty_like(a), torch.zeros_like(b)
    for start, logits, spare in _blocks(a, b, scale, chunk):
        end = start + len(logits)
        torch.sub(logits, row[start:end, None], out=spare).exp_()
        logits.sub_(column).exp_()
        for weight in (spare, logits):
            weight.diagonal(first + start)[: end - start].sub_(1 - smoothing)
            weight.sub_(smoothing / b.shape[0]).mul_(0.5)
        torch.mm(spare, b, out=rows[start:end])
        columns.addmm_(logits.T, a[start:end])
    by_scale = (rows * a).sum() + (columns * b).sum()
    return ContrastGradient(rows.mul_(scale), columns.mul_(scale), by_scale, torch.zeros_like(scale))


def sigmoid_contrast(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "m e"],
    scale: Float[Tensor, ""],
    offset: Float[Tensor, ""],
    first: int,
    chunk: int,
) -> Float[Tensor, ""]:
    """Return the sum over all row-column pairs of -log sigmoid(z x), z = 1 for matching ones and -1
    otherwise.

    Math: x = S + offset; -log σ(-x) = softplus(x); -log σ(x) = softplus(x) - x.
    """
    total = torch.zeros_like(scale)
    for start, logits, _ in _blocks(a, b, scale, chunk):
        logits.add_(offset)
        total -= logits.diagonal(first + start)[: len(logits)].sum()
        total += F.softplus(logits).sum()
    return total


def sigmoid_contrast_gradient(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "m e"],
    scale: Float[Tensor, ""],
    offset: Float[Tensor, ""],
    first: int,
    chunk: int,
) -> tuple[Float[Tensor, ""], ContrastGradient]:
    """Return what `sigmoid_contrast` returns and its gradient, the logits being computed once.

    Math: G = σ(x) - 1[match]; d offset = Σ G; the rest as in `infonce_gradient`.
    """
    rows, columns = torch.empty_like(a), torch.zeros_like(b)
    total, by_offset = torch.zeros_like(scale), torch.zeros_like(scale)
    for start, logits, spare in _blocks(a, b, scale, chunk):
        end = start + len(logits)
        logits.add_(offset)
        match = logits.diagonal(first + start)[: end - start]
        total -= match.sum()
        torch.sigmoid(logits, out=spare)
        total += F.softplus(logits).sum()
        spare.diagonal(first + start)[: end - start].sub_(1.0)
        by_offset += spare.sum()
        torch.mm(spare, b, out=rows[start:end])
        columns.addmm_(spare.T, a[start:end])
    by_scale = (rows * a).sum()
    return total, ContrastGradient(rows.mul_(scale), columns.mul_(scale), by_scale, by_offset)


def _blocks(a: Tensor, b: Tensor, scale: Tensor, chunk: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first row, its block of logits, a spare buffer of that shape); both buffers are used again each
    time."""
    size = min(chunk, a.shape[0])
    buffer, spare = a.new_empty(size, b.shape[0]), a.new_empty(size, b.shape[0])
    for start in range(0, a.shape[0], max(1, size)):
        block = a[start : start + size]
        logits = torch.mm(block * scale, b.T, out=buffer[: len(block)])
        yield start, logits, spare[: len(block)]
