"""How well labels can be read from frozen vectors: nearest neighbours and a linear probe, fitted on the
training split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError, DataError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.classify import check_ks
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, by_pass, labelled, merge
from mmzoo.metrics.scores import confusion, per_class, ranks, top_k


class Probe(Metric):
    """Keeps labelled vectors; subclasses score those of the state by those of the reference, pass by pass."""

    needs_reference = True
    reads: ClassVar[PredictionKind] = PredictionKind.VECTORS

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return the vectors and labels of each pass."""
        return {name: (labelled(name, p, batch, target),) for name, p in predictions.items()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return ("top1", "mean_class")

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return `top1` and `mean_class`, of each pass where there are several; passes without reference are
        left out."""
        if context.reference is None:
            do = "Run the metric over the training split first, or drop it."
            raise DataError.at("metric", "no reference", "the state of the training split", do)
        reference, found = by_pass(context.reference), by_pass(state)
        figures: dict[str, dict[str, float]] = {}
        for name in (p for p in found if p in reference):
            rows, known = found[name], reference[name]
            classes = 1 + int(max(rows["labels"].max(), known["labels"].max()))
            scores = self.scores(rows, known, classes)
            labels = rows["labels"].astype(np.int64)
            table = confusion(labels, scores.argmax(axis=1), classes)
            rank = ranks(scores, labels, f"metric/{name}")
            figures[name] = {**top_k(rank, [1], classes), "mean_class": per_class(table)["mean_class"]}
        return averaged(figures)

    def scores(self, rows: Rows, known: Rows, classes: int) -> Float[np.ndarray, "k classes"]:
        """Return a score for each row and class."""
        raise NotImplementedError


class Knn(Probe):
    """The vote of the k nearest reference vectors by cosine; a sample never votes for itself.

    Math: score_c = Σ over the k nearest j of class c of exp(cos_j / T).
    Ref: Wu et al. 2018 (instance discrimination), section 3.4; DINO's evaluation uses k = 20, T = 0.07.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Neighbourhood."""

        k: int = 20
        """number of neighbours that vote"""
        temperature: float = 0.07
        """small: the nearest decide; large: each neighbour counts the same"""
        chunk: int = 1024
        """rows compared at once; bounds the memory, changes nothing else"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            check_ks("k", [self.k])
            check_ks("chunk", [self.chunk])
            if not self.temperature > 0:
                found = str(self.temperature)
                raise ConfigError.at("temperature", found, "a positive number", "Leave it at 0.07.")

    def scores(self, rows: Rows, known: Rows, classes: int) -> Float[np.ndarray, "k classes"]:
        """Return the votes."""
        queries, vectors = (F.normalize(torch.from_numpy(r["values"]), dim=1) for r in (rows, known))
        labels = torch.from_numpy(known["labels"].astype(np.int64))
        column = {sample: i for i, sample in enumerate(known.ids)}
        itself = torch.tensor([column.get(sample, -1) for sample in rows.ids])
        votes = torch.zeros(len(rows), classes)
        for start in range(0, len(rows), self.config.chunk):
            cosines = queries[start : start + self.config.chunk] @ vectors.T
            own = itself[start : start + len(cosines)]
            twice = torch.nonzero(own >= 0).flatten()
            cosines[twice, own[twice]] = -torch.inf
            near = cosines.topk(min(self.config.k, len(known)), dim=1)
            weights = torch.exp((near.values - 1) / self.config.temperature)
            votes[start : start + len(cosines)].scatter_add_(1, labels[near.indices], weights)
        return votes.numpy()


class LinearProbe(Probe):
    """Ridge regression of one-hot labels on standardised vectors, solved in closed form.

    The penalty is the one with the least squared error on a held-out part of the reference (accuracy would
    tie too often on small sets); then all of the reference is fitted.
    Math: W = (XᵀX/n + λ 1)⁻¹ Xᵀ(Y - mean Y)/n; X standardised by the reference; class = argmax of X W + mean
    Y.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Penalties."""

        penalties: list[float] = field(default_factory=lambda: [10.0**p for p in range(-5, 3)])
        """λ to choose from; features have variance 1"""
        held_out: float = 0.2
        """share of the reference that chooses among them"""
        seed: int = 0
        """which samples are held out"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not self.penalties or min(self.penalties) <= 0:
                raise ConfigError.at("penalties", str(self.penalties), "positive numbers", "Try [0.01, 1.0].")
            if not 0 < self.held_out < 1:
                raise ConfigError.at("held_out", str(self.held_out), "a share in (0, 1)", "Leave it at 0.2.")

    def scores(self, rows: Rows, known: Rows, classes: int) -> Float[np.ndarray, "k classes"]:
        """Return the regressed labels."""
        known = known.take(np.argsort(np.asarray(known.ids), kind="stable"))
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(self.config.seed)).numpy()
        held = int(self.config.held_out * len(known))
        penalties = self.config.penalties
        best = max(penalties)
        if held and len(penalties) > 1:
            inner, outer = known.take(order[held:]), known.take(order[:held])
            tried = ridge(inner["values"], inner["labels"], outer["values"], penalties, classes)
            hot = np.eye(classes)[outer["labels"].astype(np.int64)]
            best = penalties[int(np.argmin([np.square(scores - hot).sum() for scores in tried]))]
        return ridge(known["values"], known["labels"], rows["values"], [best], classes)[0]


def ridge(
    x: Float[np.ndarray, "n e"],
    labels: Int[np.ndarray, " n"],
    queries: Float[np.ndarray, "k e"],
    penalties: list[float],
    classes: int,
) -> list[Float[np.ndarray, "k classes"]]:
    """Fit one-hot labels for each penalty, with one decomposition for all, and return the queries' scores."""
    known = torch.from_numpy(x).double()
    mean, std = known.mean(dim=0), known.std(dim=0, correction=0)
    std = torch.where(std > 1e-8 * std.max(), std, torch.ones_like(std))

    def standardise(values: Tensor) -> Tensor:
        return (values - mean) / std

    known, asked = standardise(known), standardise(torch.from_numpy(queries).double())
    hot = F.one_hot(torch.from_numpy(labels.astype(np.int64)), classes).double()
    share = hot.mean(dim=0)
    values, basis = torch.linalg.eigh(known.T @ known / len(known))
    projected = basis.T @ (known.T @ (hot - share)) / len(known)
    asked = asked @ basis
    return [(asked @ (projected / (values + p)[:, None]) + share).float().numpy() for p in penalties]
