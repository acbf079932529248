"""The figures of an evaluation: kept as JSON, shown as text tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo import run_folder
from mmzoo.cli import console
from mmzoo.learners.evaluate import Evaluation
from mmzoo.metrics.base import NOT_SHARES

PAIR = "->"
MOST_CLASSES = 200
"""Larger confusion matrices are neither stored nor drawn."""


@dataclass(frozen=True)
class Matrix:
    """A matrix with the names of its axes: `retrieval` (given × found) or `confusion` (true × predicted)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists; NaN (a cell that does not exist) becomes null."""
        values = [[None if math.isnan(v) else v for v in row] for row in self.values]
        return {"rows": list(self.rows), "columns": list(self.columns), "values": values}

    @classmethod
    def from_dict(cls, node: Mapping[str, Any]) -> Matrix:
        """Undo `to_dict`."""
        values = tuple(tuple(math.nan if v is None else float(v) for v in row) for row in node["values"])
        return cls(tuple(node["rows"]), tuple(node["columns"]), values)


@dataclass(frozen=True)
class Results:
    """The figures of one split, named `task/metric`, its matrices, and how many samples it has."""

    split: str
    metrics: Mapping[str, float]
    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    samples: int = 0
    checkpoint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "split": self.split,
            "samples": self.samples,
            "checkpoint": self.checkpoint,
            "metrics": dict(self.metrics),
            "matrices": {k: m.to_dict() for k, m in self.matrices.items()},
        }

    @classmethod
    def from_dict(cls, node: Mapping[str, Any]) -> Results:
        """Undo `to_dict`."""
        matrices = {k: Matrix.from_dict(m) for k, m in node.get("matrices", {}).items()}
        return cls(
            node["split"], node["metrics"], matrices, node.get("samples", 0), node.get("checkpoint", "")
        )


def from_evaluation(found: Evaluation, samples: int, checkpoint: str) -> Results:
    """Take over what `evaluate` returned, with names on the matrices' axes."""
    matrices = {
        name: matrix
        for name, values in found.figures.items()
        if values.ndim == 2
        and (matrix := _named(values, _axis(name, found.labels), square=not is_routing(name))) is not None
    }
    return Results(found.split, dict(found.metrics), matrices, samples, checkpoint)


def load(path: Path) -> dict[str, Results]:
    """Read the results of a run by split; empty where there are none."""
    return {split: Results.from_dict(node) for split, node in run_folder.read_json(path).items()}


def save(path: Path, results: Results) -> None:
    """Put the results of a split beside those of the others."""
    every = run_folder.read_json(path)
    run_folder.write_json(path, {**every, results.split: results.to_dict()})


def text(results: Results) -> str:
    """Return the tables: the headline figures, then each matrix that a terminal can hold."""
    parts = [f"{results.split}: {results.samples:,} samples"]
    rows = [(name, show(name, value)) for name, value in headline(results).items()]
    if rows:
        parts.append(console.table(("figure", "value"), rows))
    parts += [
        f"{title(name)}\n{grid(matrix)}" for name, matrix in results.matrices.items() if is_retrieval(name)
    ]
    return "\n\n".join(parts)


def headline(results: Results) -> dict[str, float]:
    """Return the figures but for those of single pairs, which the matrices show."""
    return {k: v for k, v in results.metrics.items() if PAIR not in k and "/loss/" not in k}


def show(name: str, value: float) -> str:
    """Write a figure: shares in per cent, the rest in four digits."""
    last = name.rsplit("/", 1)[-1]
    if last in NOT_SHARES or not 0 <= value <= 1:
        return f"{value:.4g}"
    return f"{100 * value:.1f} %"


def title(name: str) -> str:
    """Say what a matrix shows."""
    task, _, kind = name.rpartition("/")
    says = {
        "retrieval": "R@1 in per cent: given the row, find the column",
        "confusion": "true row, predicted column",
        "experts": "share of each row's choices on each expert, in per cent",
    }
    return f"{task}: {says.get(kind, kind)}"


def is_retrieval(name: str) -> bool:
    """Say whether a matrix is one of retrieval."""
    return name.endswith("/retrieval")


def is_routing(name: str) -> bool:
    """Say whether a matrix holds the share of tokens on each expert of a block."""
    return name.startswith("routing/") and name.endswith("/experts")


def grid(matrix: Matrix) -> str:
    """Lay out a matrix of shares in per cent."""
    rows = [
        [name, *("–" if math.isnan(v) else f"{100 * v:.1f}" for v in row)]
        for name, row in _named_rows(matrix)
    ]
    return console.table(("", *matrix.columns), rows, right=range(1, len(matrix.columns) + 1))


def _named_rows(matrix: Matrix) -> Sequence[tuple[str, tuple[float, ...]]]:
    return list(zip(matrix.rows, matrix.values, strict=True))


def _axis(name: str, labels: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    task, kind = name.split("/", 1)[0], name.rsplit("/", 1)[-1]
    return labels.get(name) or labels.get(f"{task}/{kind}") or ()


def _named(values: np.ndarray, names: tuple[str, ...], *, square: bool = True) -> Matrix | None:
    if max(values.shape) > MOST_CLASSES:
        return None
    rows = names if len(names) == values.shape[0] else tuple(map(str, range(values.shape[0])))
    columns = names if square and len(names) == values.shape[1] else tuple(map(str, range(values.shape[1])))
    return Matrix(rows, columns, tuple(tuple(float(v) for v in row) for row in values))
