"""Which passes are contrasted, and which rows of theirs belong to the same samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.batch import Prediction
from mmzoo.errors import ConfigError, ShapeError, close_matches
from mmzoo.layers import distributed
from mmzoo.layers.contrast_loss import PairLayout

Pair = tuple[str, str]
JOINT = "+"
"""A pass of several modalities is named by them, joined by this."""


@dataclass(frozen=True)
class PairRows:
    """The rows of all pairs, one pair after another, and how the ranks share them.

    Shape: row i of `a` and row i of `b` belong to one sample.
    """

    pairs: tuple[Pair, ...]
    layout: PairLayout
    a: Float[Tensor, "n e"]
    b: Float[Tensor, "n e"]


def all_pairs(passes: Iterable[str]) -> tuple[Pair, ...]:
    """Return every unordered pair of single modalities, in alphabetical order."""
    return tuple(itertools.combinations(sorted({p for p in passes if JOINT not in p}), 2))


def check_pairs(pairs: Sequence[Pair], where: str) -> None:
    """Raise ConfigError where a pass is paired with itself or a pair comes twice."""
    seen: set[frozenset[str]] = set()
    for left, right in pairs:
        if left == right:
            raise ConfigError.at(where, f"{left!r} with itself", "two different passes", "Name another pass.")
        if frozenset((left, right)) in seen:
            raise ConfigError.at(where, f"[{left}, {right}] twice", "each pair once", "Drop one of them.")
        seen.add(frozenset((left, right)))


def passes_of(pairs: Sequence[Pair], modalities: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the passes that the pairs need; one that names an unknown modality gets its close matches."""
    passes = tuple(dict.fromkeys(p for pair in pairs for p in pair))
    for name in passes:
        for modality in name.split(JOINT):
            if modality not in modalities:
                do = close_matches(modality, modalities)
                raise ConfigError.at(where, f"{name!r}", "modalities of the model, joined by +", do)
    return passes or tuple(modalities)


def gather_pairs(
    predictions: Mapping[str, Prediction], pairs: Sequence[Pair], *, share: bool
) -> PairRows | None:
    """Select the rows of each pair (empty: every pair of single passes), agreeing with the other ranks if
    `share`.

    A pair without rows on any rank is left out; None if that leaves nothing.
    """
    chosen = tuple(pairs) or all_pairs(predictions)
    held = {
        (left, right): _common(predictions[left].index, predictions[right].index)
        for left, right in chosen
        if left in predictions and right in predictions
    }
    mine = ({pair: len(rows) for pair, (rows, _) in held.items()}, *_kind(predictions))
    ranks = distributed.gather_objects(mine) if share else [mine]
    live = {pair for counts, *_ in ranks for pair, n in counts.items() if n}
    order = tuple(p for p in pairs if p in live) or tuple(sorted(live))
    if not order:
        return None
    layout = PairLayout(
        tuple(tuple(r[0].get(p, 0) for r in ranks) for p in order), distributed.rank() if share else 0
    )
    like = _like(predictions, ranks)
    sides = [
        [_rows(predictions[pair[side]], held[pair][side]) if pair in held else like for pair in order]
        for side in (0, 1)
    ]
    a, b = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in sides)
    return PairRows(order, layout, a.to(like.dtype), b.to(like.dtype))


def _common(a: Int[Tensor, " k"], b: Int[Tensor, " l"]) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"]]:
    """Return the rows of a and of b that belong to the same samples, in the same order; of a sample with
    several entries the first."""
    _, in_a, in_b = np.intersect1d(a.numpy(), b.numpy(), return_indices=True)
    return torch.from_numpy(in_a), torch.from_numpy(in_b)


def _rows(prediction: Prediction, rows: Int[Tensor, " r"]) -> Float[Tensor, "r e"]:
    """Return the chosen rows, without a copy where they are all rows in order."""
    values = prediction.values
    if len(rows) == len(values) and bool((rows[1:] > rows[:-1]).all()):
        return values
    return values.index_select(0, rows.to(values.device))


def _kind(predictions: Mapping[str, Prediction]) -> tuple[int, torch.dtype]:
    """Return width and dtype of this rank's vectors, (0, float32) where it has none."""
    widths = {p.values.shape[1] if p.values.ndim == 2 else -1 for p in predictions.values()}
    if len(widths) > 1 or -1 in widths:
        found = ", ".join(f"{name} {tuple(p.values.shape)}" for name, p in predictions.items())
        raise ShapeError.at(
            "contrast", found, "one vector a row, all of one width", "Use the contrastive head."
        )
    dtypes = [torch.promote_types(p.values.dtype, torch.float32) for p in predictions.values()]
    return next(iter(widths), 0), next(iter(dtypes), torch.float32)


def _like(
    predictions: Mapping[str, Prediction], ranks: Sequence[tuple[dict[Pair, int], int, torch.dtype]]
) -> Tensor:
    """Return no rows, of the width and dtype that the ranks agree on, on this rank's device."""
    width, dtype = max(r[1] for r in ranks), next(r[2] for r in ranks if r[1])
    place = next((p.values.device for p in predictions.values()), distributed.device())
    return torch.zeros(0, width, dtype=dtype, device=place)
