"""Retrieval between passes: given one view of a sample, find the same sample among the views of another
kind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.classify import check_ks
from mmzoo.metrics.rows import Rows, RowsByPass, by_pass, merge, plain

TIE = 1e-6
"""Cosines closer than this are equal: float32 products of equal vectors differ by less."""

PROTOCOLS = ("/each", "/any", "/each_any")
"""What the name of a pair ends with where samples have several entries."""


class Retrieval(Metric):
    """`image->text/R@k`, `image->text/MedR` (given the image, find the text) for all ordered pairs of passes.

    Queries and candidates are the samples that have both passes; the right candidate is the one of the
    query's id. Where samples have several entries of a pass (five captions of a picture), each is a query and
    a candidate by itself, and the names say so: `image->text/any/R@k` counts a query as soon as any of its
    own candidates is among the first k, `text->image/each/R@k` every entry as a query (`each_any`: both).
    `mean/R@k` and `mean/MedR` average over pairs; `mean/chance` is what R@1 would be by guessing, 1 /
    candidates with one entry each.
    Math: let g candidates be nearer than the nearest of the query's own, t others as near, and s of its own
    at that distance. The s + t stand in random order behind the g, so that with j = min(max(k - g, 0), s + t)
    R@k is the mean over queries of 1 - C(t, j) / C(s + t, j), and the rank counts as g + (s + t + 1) / (s +
    1). So equal vectors (two samples of one caption, or a collapsed model) never help: the latter scores
    exactly chance.
    Ref: Karpathy & Fei-Fei 2015 (five captions a picture). Some fMRI code bases transpose "forward" and
    "backward" retrieval; names here say what is given.
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
    takes_several: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return the vectors of each pass."""
        del target
        return {name: (plain(name, p, batch),) for name, p in predictions.items()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return (*(f"R@{k}" for k in self.config.ks), "MedR", "chance")

    def figure_names(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the figures of every ordered pair, with one or several entries a sample, and their means."""
        pairs = [f"{a}->{b}" for a, b in itertools.permutations(passes, 2)]
        starts = [f"{pair}{protocol}" for pair in pairs for protocol in ("", *PROTOCOLS)]
        own = [f"{start}/{name}" for start in starts for name in self.names() if name != "chance"]
        return (*own, *(f"mean/{name}" for name in self.names()))

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
            both = in_common(found[a], found[b])
            if len(both.queries):
                standing = compare(both, self.config.chunk)
                name = f"{a}->{b}/{protocol}" if (protocol := both.protocol) else f"{a}->{b}"
                figures |= {f"{name}/R@{k}": standing.recall(k) for k in self.config.ks}
                figures[f"{name}/MedR"] = float(np.median(standing.rank()))
                chances.append(both.chance)
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
            both = in_common(found[a], found[b])
            if len(both.queries):
                table[i, j] = compare(both, self.config.chunk).recall(1)
        return {"retrieval": table} if len(passes) > 1 else {}


@dataclass(frozen=True)
class Both:
    """Queries and candidates of the samples that have both passes, and the sample of each row."""

    queries: Float[np.ndarray, "q e"]
    candidates: Float[np.ndarray, "c e"]
    asking: Int[np.ndarray, " q"]
    owners: Int[np.ndarray, " c"]

    @property
    def protocol(self) -> str:
        """Return `each`, `any` or both where samples have several queries or candidates; empty otherwise."""
        several = {"each": self.asking, "any": self.owners}
        return "_".join(word for word, owner in several.items() if len(np.unique(owner)) < len(owner))

    @property
    def chance(self) -> float:
        """Return what R@1 would be by guessing: the mean share of candidates that are a query's own."""
        return float(np.bincount(self.owners)[self.asking].mean() / len(self.owners))


@dataclass(frozen=True)
class Standing:
    """For each query: how many candidates are nearer than the nearest of its own, how many others are as near
    as that, and how many of its own are."""

    nearer: Float[np.ndarray, " q"]
    equal: Float[np.ndarray, " q"]
    own: Float[np.ndarray, " q"]

    def recall(self, k: int) -> float:
        """Return the expected share of queries of which an own candidate is among the first k.

        Math: C(t, j) / C(s + t, j) is the product over i < s of max(0, t - j + i + 1) / (t + i + 1).
        """
        taken = np.clip(k - self.nearer, 0, self.own + self.equal)
        missed = np.ones_like(taken)
        for i in range(int(self.own.max(initial=0))):
            left = np.maximum(self.equal - taken + i + 1, 0) / (self.equal + i + 1)
            missed *= np.where(i < self.own, left, 1.0)
        return float((1 - missed).mean())

    def rank(self) -> Float[np.ndarray, " q"]:
        """Return the expected rank of each query's first own candidate."""
        return self.nearer + (self.own + self.equal + 1) / (self.own + 1)


def in_common(a: Rows, b: Rows) -> Both:
    """Return the vectors of the samples that both have."""
    shared = set(a.ids) & set(b.ids)
    number = {sample: i for i, sample in enumerate(dict.fromkeys(i for i in a.ids if i in shared))}
    sides: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for rows in (a, b):
        kept = np.array([row for row, sample in enumerate(rows.ids) if sample in number], dtype=np.int64)
        sides.append(rows["values"][kept])
        owners.append(np.array([number[rows.ids[row]] for row in kept], dtype=np.int64))
    return Both(sides[0], sides[1], owners[0], owners[1])


def compare(both: Both, chunk: int) -> Standing:
    """Rank the candidates of each query by cosine, `chunk` queries at a time."""
    queries, candidates = (F.normalize(torch.from_numpy(x), dim=1) for x in (both.queries, both.candidates))
    asking, owners = torch.from_numpy(both.asking), torch.from_numpy(both.owners)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(queries), chunk):
        cosines = queries[start : start + chunk] @ candidates.T
        own = asking[start : start + chunk, None] == owners
        lead = cosines - cosines.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        level = lead.abs() <= TIE
        parts.append(((lead > TIE).sum(dim=1), (level & ~own).sum(dim=1), (level & own).sum(dim=1)))
    return Standing(*(torch.cat(column).double().numpy() for column in zip(*parts, strict=True)))
