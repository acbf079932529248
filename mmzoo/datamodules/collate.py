"""Samples -> Batch: rows only for the modalities a sample has, padded at the end of each axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mmzoo.batch import Batch, ModalityInput, Sample, Target
from mmzoo.errors import ShapeError


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples into a Batch.

    Shape: inputs[m].values (k, *largest extent of each axis), zero beyond a row's `sizes`; `index` names the
    sample of each row, which has a row for each of its entries. A modality or label that no sample has is no
    key. `valid` is False in the padding.
    """
    inputs = {m: _join_items(m, samples) for m in _keys(dict.fromkeys(s.modalities) for s in samples)}
    targets = {t: _join_targets(t, samples) for t in _keys(s.targets for s in samples)}
    source = tuple(s.source for s in samples)
    targets |= {t: _join_lists(t, samples) for t in _keys(s.lists for s in samples)}
    return Batch(tuple(s.id for s in samples), inputs, targets, source if any(source) else ())


def _keys(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the keys of all mappings in order of first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _join_items(name: str, samples: Sequence[Sample]) -> ModalityInput:
    entries = [(i, item) for i, s in enumerate(samples) for item in s.entries(name)]
    rows, items = [i for i, _ in entries], [item for _, item in entries]
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
    _check_alike(name, [samples[i].id for i in rows], values, 0)
    return Target(torch.stack(values), torch.tensor(rows, dtype=torch.int64))


def _join_lists(name: str, samples: Sequence[Sample]) -> Target:
    """Pad labels that are lists to the longest."""
    rows = [i for i, s in enumerate(samples) if name in s.lists]
    values = [samples[i].lists[name] for i in rows]
    _check_alike(name, [samples[i].id for i in rows], values, 1)
    sizes = torch.tensor([len(v) for v in values], dtype=torch.int64)
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    return Target(padded, torch.tensor(rows, dtype=torch.int64), sizes)


def _check_alike(name: str, ids: Sequence[str], values: Sequence[Tensor], first: int) -> None:
    """Raise ShapeError where labels differ in type, or in form from axis `first` on."""
    form = (values[0].ndim, values[0].shape[first:], values[0].dtype)
    for sample, value in zip(ids, values, strict=True):
        if (value.ndim, value.shape[first:], value.dtype) != form:
            found = f"{tuple(value.shape)} {value.dtype}"
            expected = f"{tuple(values[0].shape)} {values[0].dtype} as in {ids[0]}"
            raise ShapeError.at(f"sample {sample}/{name}", found, expected, "Give all labels one form.")
