"""Samples -> Batch: rows only for the modalities a sample has, padded at the end of each axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from mmzoo.batch import Batch, ModalityInput, Sample, Target
from mmzoo.errors import ShapeError


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples into a Batch.

    Shape: inputs[m].values (k, *largest extent of each axis), zero beyond a row's `sizes`; `index` names the
    sample of each row. A modality or label that no sample has is no key. `valid` is False in the padding.
    """
    inputs = {m: _join_items(m, samples) for m in _keys(s.inputs for s in samples)}
    targets = {t: _join_targets(t, samples) for t in _keys(s.targets for s in samples)}
    source = tuple(s.source for s in samples)
    return Batch(tuple(s.id for s in samples), inputs, targets, source if any(source) else ())


def _keys(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the keys of all mappings in order of first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _join_items(name: str, samples: Sequence[Sample]) -> ModalityInput:
    rows = [i for i, s in enumerate(samples) if name in s.inputs]
    items = [samples[i].inputs[name] for i in rows]
    first = items[0].values
    for row, item in zip(rows, items, strict=True):
        if item.values.ndim != first.ndim or item.values.dtype != first.dtype:
            found = f"{item.values.ndim} axes of {item.values.dtype}"
            expected = f"{first.ndim} of {first.dtype} as in {samples[rows[0]].id}"
            raise ShapeError.at(f"sample {samples[row].id}/{name}", found, expected, "Mend the Preprocess.")
    return ModalityInput.stack(items, torch.tensor(rows, dtype=torch.int64))


def _join_targets(name: str, samples: Sequence[Sample]) -> Target:
    rows = [i for i, s in enumerate(samples) if name in s.targets]
    values = [samples[i].targets[name] for i in rows]
    for row, value in zip(rows, values, strict=True):
        if value.shape != values[0].shape or value.dtype != values[0].dtype:
            found = f"{tuple(value.shape)} {value.dtype}"
            expected = f"{tuple(values[0].shape)} {values[0].dtype} as in {samples[rows[0]].id}"
            raise ShapeError.at(
                f"sample {samples[row].id}/{name}", found, expected, "Give all labels one form."
            )
    return Target(torch.stack(values), torch.tensor(rows, dtype=torch.int64))
