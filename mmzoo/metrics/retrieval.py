"""Retrieval between passes: given one view of a sample, find the same sample among the views of another
kind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.classify import check_ks
from mmzoo.metrics.rows import Rows, RowsByPass, by_pass, merge, plain

TIE = 1e-6
"""Cosines closer than this are equal: float32 products of equal vectors differ by less."""


class Retrieval(Metric):
    """`image->text/R@k`, `image->text/MedR` (given the image, find the text) for all ordered pairs of passes.

    Queries and candidates are the samples that have both passes; the right candidate is the one of the
    query's id. `mean/R@k` and `mean/MedR` average over pairs; `mean/chance` is 1 / candidates, what R@1 would
    be by guessing.
    Math: with g candidates nearer than the right one and t as near, ranks g+1 … g+1+t are equally likely: R@k
    is the expected share of queries ranked within k, min(max(k - g, 0), t + 1) / (t + 1), and the rank counts
    as g + 1 + t/2. So equal vectors (two samples of one caption, or a collapsed model) never help: the latter
    scores exactly chance.
    Ref: some fMRI code bases transpose "forward" and "backward" retrieval; names here say what is given.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What to report."""

        ks: list[int] = field(default_factory=lambda: [1, 5, 10])
        """the k of R@k"""
        chunk: int = 1024
        """queries compared at once; bounds the memory, changes nothing else"""

        def __post_init__(self) -> None:
            """Check the numbers."""
            check_ks("ks", self.ks)
            if self.chunk < 1:
                raise ConfigError.at(
                    "chunk", str(self.chunk), "a positive number of rows", "Leave it at 1024."
                )

    reads: ClassVar[PredictionKind] = PredictionKind.VECTORS

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return the vectors of each pass."""
        del target
        return {name: (plain(name, p, batch),) for name, p in predictions.items()}

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of every ordered pair and their means."""
        del context
        found = by_pass(state)
        figures: dict[str, float] = {}
        chances: list[float] = []
        for a, b in itertools.permutations(found, 2):
            queries, candidates = in_common(found[a], found[b])
            if len(queries):
                nearer, equal = standing(queries, candidates, self.config.chunk)
                figures |= {f"{a}->{b}/R@{k}": recall(nearer, equal, k) for k in self.config.ks}
                figures[f"{a}->{b}/MedR"] = float(np.median(nearer + 1 + equal / 2))
                chances.append(1 / len(queries))
        names = dict.fromkeys(k.rsplit("/", 1)[1] for k in figures)
        means = {
            f"mean/{n}": float(np.mean([v for k, v in figures.items() if k.endswith(f"/{n}")])) for n in names
        }
        return {**figures, **means, "mean/chance": float(np.mean(chances))} if chances else {}

    def figures(self, state: RowsByPass, context: MetricContext) -> dict[str, np.ndarray]:
        """Return the matrix of R@1: row = what is given, column = what is found; NaN where there is no such
        pair."""
        del context
        found = by_pass(state)
        passes = list(found)
        table = np.full((len(passes), len(passes)), np.nan)
        for (i, a), (j, b) in itertools.permutations(enumerate(passes), 2):
            queries, candidates = in_common(found[a], found[b])
            if len(queries):
                table[i, j] = recall(*standing(queries, candidates, self.config.chunk), 1)
        return {"retrieval": table} if len(passes) > 1 else {}


def in_common(a: Rows, b: Rows) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n e"]]:
    """Return the vectors of the samples that both have, in the same order."""
    own = {sample: row for row, sample in enumerate(b.ids)}
    pairs = [(i, own[sample]) for i, sample in enumerate(a.ids) if sample in own]
    rows = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return a["values"][rows[:, 0]], b["values"][rows[:, 1]]


def standing(
    queries: Float[np.ndarray, "n e"], candidates: Float[np.ndarray, "n e"], chunk: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return for each query how many candidates are nearer than its own (cosine), and how many others as
    near."""
    vectors = [torch.nn.functional.normalize(torch.from_numpy(x), dim=1) for x in (queries, candidates)]
    nearer, equal = torch.zeros(len(queries)), torch.zeros(len(queries))
    for start in range(0, len(queries), chunk):
        cosines = vectors[0][start : start + chunk] @ vectors[1].T
        lead = cosines - cosines.diagonal(start)[: len(cosines), None]
        nearer[start : start + chunk] = (lead > TIE).sum(dim=1).float()
        equal[start : start + chunk] = (lead.abs() <= TIE).sum(dim=1).float() - 1
    return nearer.double().numpy(), equal.double().numpy()


def recall(nearer: Float[np.ndarray, " n"], equal: Float[np.ndarray, " n"], k: int) -> float:
    """Return the expected share of queries whose own candidate is among the first k."""
    return float((np.clip(k - nearer, 0, equal + 1) / (equal + 1)).mean())
