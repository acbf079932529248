"""The state that the metrics share: arrays with one row a sample, or a row for each of its entries where it
 has several, kept by pass and by sample id.
 Samples that come twice (a sampler that pads the last batch of a rank, an overlap of shards) count once,
however the states were merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from mmzoo.batch import Batch, Prediction, entry_of_row, has_several
from mmzoo.errors import ConfigError, ShapeError

ENTRY = "entry"
"""Column that counts the rows of a sample which has several; without it a sample has one row."""


@dataclass(frozen=True)
class Rows:
    """Columns of equal length by name, and the id of each row. What comes twice is dropped by `joined`."""

    ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column."""
        return self.columns[name]

    def take(self, rows: np.ndarray) -> Rows:
        """Return the given rows."""
        return Rows(tuple(self.ids[i] for i in rows), {k: c[rows] for k, c in self.columns.items()})


RowsByPass = dict[str, tuple[Rows, ...]]
"""The state: for each pass the rows of every batch seen; joined only at the end, so that merging copies
nothing."""


def merge(a: RowsByPass, b: RowsByPass) -> RowsByPass:
    """Join two states; passes keep the order of the state that has more of them."""
    first, second = (a, b) if len(a) >= len(b) else (b, a)
    return {p: a.get(p, ()) + b.get(p, ()) for p in {**first, **second}}


def joined(parts: tuple[Rows, ...]) -> Rows:
    """Return all rows, each sample, or entry of a sample, once (as first seen)."""
    parts = tuple(part for part in parts if len(part))
    ids = [i for part in parts for i in part.ids]
    keys = [key for part in parts for key in _keys(part)]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    keep = np.sort(np.fromiter(first.values(), dtype=np.int64, count=len(first)))
    columns = {k: np.concatenate([part[k] for part in parts]) for k in parts[0].columns} if parts else {}
    whole = Rows(tuple(ids), columns)
    return whole if len(keep) == len(ids) else whole.take(keep)


def by_pass(state: RowsByPass) -> dict[str, Rows]:
    """Return the joined rows of every pass that has any."""
    found = {p: joined(parts) for p, parts in state.items()}
    return {p: rows for p, rows in found.items() if len(rows)}


def _keys(part: Rows) -> list[Any]:
    """Return what must not come twice: ids, with the number of the entry where those are counted."""
    if ENTRY not in part.columns:
        return list(part.ids)
    return list(zip(part.ids, part[ENTRY].tolist(), strict=True))


def plain(name: str, prediction: Prediction, batch: Batch) -> Rows:
    """Return the predictions of one pass as a column `values` (float32), and which entry of its sample each
    is."""
    values = prediction.values.detach().float().cpu().numpy()
    if values.ndim != 2:
        raise ShapeError.at(
            f"metric/{name}", f"predictions {values.shape}", "(rows, width)", "Use another head."
        )
    ids = tuple(batch.ids[i] for i in prediction.index.tolist())
    return Rows(ids, {"values": values, ENTRY: entry_of_row(prediction.index).numpy()})


def labelled(name: str, prediction: Prediction, batch: Batch, target: str) -> Rows:
    """Return `values` and `labels` of those rows of one pass that have the label; one row a sample."""
    _check_named(target)
    if has_several(prediction.index):
        do = "Drop the metric, or give samples one entry (data.captions.evaluate=first)."
        raise ShapeError.at(f"metric/{name}", "samples with several entries", "one row a sample", do)
    whole = plain(name, prediction, batch)
    rows = Rows(whole.ids, {"values": whole["values"]})
    found = batch.targets.get(target)
    if found is None:
        return Rows((), {"values": rows["values"][:0], "labels": np.zeros(0, dtype=np.int64)})
    own = {sample: row for row, sample in enumerate(found.index.tolist())}
    keep = [i for i, sample in enumerate(prediction.index.tolist()) if sample in own]
    labels = found.values.detach().cpu().numpy()[[own[int(prediction.index[i])] for i in keep]]
    kept = rows.take(np.asarray(keep, dtype=np.int64))
    return Rows(kept.ids, {**kept.columns, "labels": labels})


class LabelledSamples(NamedTuple):
    """The samples of one pass that have the label: their ids, predictions and labels, all on the host; labels
    may differ in length."""

    name: str
    ids: tuple[str, ...]
    values: Shaped[Tensor, "k ..."]
    true: tuple[Shaped[Tensor, ...], ...]


def each_labelled(
    predictions: Mapping[str, Prediction], batch: Batch, target: str
) -> Iterator[LabelledSamples]:
    """Yield the labelled samples of every pass that has any, whatever the form of predictions and labels."""
    _check_named(target)
    labels = batch.targets.get(target)
    if labels is None:
        return
    own = {sample: row for row, sample in enumerate(labels.index.tolist())}
    every = tuple(row.detach().cpu() for row in labels.rows())
    for name, prediction in predictions.items():
        samples = prediction.index.tolist()
        rows = [i for i, sample in enumerate(samples) if sample in own]
        if rows:
            ids = tuple(batch.ids[samples[i]] for i in rows)
            true = tuple(every[own[samples[i]]] for i in rows)
            yield LabelledSamples(name, ids, prediction.values.detach()[rows].float().cpu(), true)


def _check_named(target: str) -> None:
    if not target:
        do = "Set the task's target, or drop the metric."
        raise ConfigError.at("metric", "no target", "the name of a label", do)


def beside(name: str, prediction: Prediction, batch: Batch, target: str, expected: str) -> Rows:
    """Return what `labelled` does; raise unless the label has an entry for each of the pass's outputs."""
    rows = labelled(name, prediction, batch, target)
    if len(rows) and rows["labels"].shape != rows["values"].shape:
        found = f"labels {rows['labels'].shape} for predictions {rows['values'].shape}"
        do = "Check the head and the label's options."
        raise ShapeError.at(f"batch.targets.{target}", found, expected, do)
    return rows


def averaged(by_pass: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each figure's mean over passes under its own name, and `<pass>/<figure>` where there are several
    passes."""
    names = dict.fromkeys(k for figures in by_pass.values() for k in figures)
    found = {k: float(np.mean([f[k] for f in by_pass.values() if k in f])) for k in names}
    if len(by_pass) > 1:
        found |= {f"{p}/{k}": v for p, figures in by_pass.items() for k, v in figures.items()}
    return found
