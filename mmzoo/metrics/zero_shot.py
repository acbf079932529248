"""Zero-shot classification: a vector belongs to the class whose name's vector is nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.metrics.base import Metric, MetricContext
from mmzoo.metrics.classify import check_ks
from mmzoo.metrics.rows import Rows, RowsByPass, averaged, by_pass, labelled, merge
from mmzoo.metrics.scores import confusion, per_class, ranks, top_k


class ZeroShot(Metric):
    """`top<k>` and `mean_class` of every pass that holds no text, against the class names written as
    sentences.

    With several such passes each figure is also given as `<pass>/<figure>`, and the bare name is the mean.
    Math: class vector = normalise(mean over prompts of normalise(text vector)); class = argmax of the cosine.
    Ref: Radford et al. 2021, section 3.1 (prompt ensembling).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What to compare with, and what to report."""

        target: str = ""
        """label whose class names are the sentences; empty: the task's target"""
        templates: list[str] = field(default_factory=lambda: ["{}"])
        """sentences, {} being the class name; their vectors are averaged"""
        topk: list[int] = field(default_factory=lambda: [1, 5])
        """right if among the first k classes; a k of all classes or more is left out"""
        text: str = "text"
        """name of the text modality; passes that hold it are left out, since it may name the class"""

        def __post_init__(self) -> None:
            """Check the sentences and numbers."""
            check_ks("topk", self.topk)
            wrong = [t for t in self.templates if t.count("{}") != 1]
            if wrong or not self.templates:
                found = repr(wrong[0]) if wrong else "none"
                raise ConfigError.at(
                    "templates", found, "sentences with one {} each", "Try 'a photo of a {}'."
                )

    needs_class_vectors = True
    reads: ClassVar[PredictionKind] = PredictionKind.VECTORS

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> RowsByPass:
        """Return the vectors and labels of each pass without text."""
        wanted = {name: p for name, p in predictions.items() if self.config.text not in name.split("+")}
        return {name: (labelled(name, p, batch, self.config.target or target),) for name, p in wanted.items()}

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return (*(f"top{k}" for k in self.config.topk), "mean_class")

    def figure_names(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the figures of the passes without text."""
        return super().figure_names(tuple(p for p in passes if self.config.text not in p.split("+")))

    def merge(self, a: RowsByPass, b: RowsByPass) -> RowsByPass:
        """Join two states."""
        return merge(a, b)

    def compute(self, state: RowsByPass, context: MetricContext) -> dict[str, float]:
        """Return the figures of each pass and their means."""
        names = self._names(context)
        figures: dict[str, dict[str, float]] = {}
        for name, rows in by_pass(state).items():
            rank, table = self._compare(name, rows, names)
            top = top_k(rank, self.config.topk, len(names))
            figures[name] = {**top, "mean_class": per_class(table)["mean_class"]}
        return averaged(figures)

    def figures(self, state: RowsByPass, context: MetricContext) -> dict[str, np.ndarray]:
        """Return `zero_shot`, the confusion matrix, one for each pass where there are several."""
        names = self._names(context)
        tables = {name: self._compare(name, rows, names)[1] for name, rows in by_pass(state).items()}
        return {"zero_shot" if len(tables) == 1 else f"{p}/zero_shot": t for p, t in tables.items()}

    def _names(self, context: MetricContext) -> Float[np.ndarray, "classes e"]:
        target = self.config.target or context.target
        if target not in context.class_vectors:
            known = f"one of {', '.join(context.class_vectors)}" if context.class_vectors else "class vectors"
            do = "Name a target whose classes have names."
            raise DataError.at("metric/zero_shot", f"no class vectors of {target!r}", known, do)
        return class_centres(context.class_vectors[target]).numpy()

    def _compare(
        self, name: str, rows: Rows, names: Float[np.ndarray, "classes e"]
    ) -> tuple[np.ndarray, np.ndarray]:
        if rows["values"].shape[1] != names.shape[1]:
            found = f"vectors of {rows['values'].shape[1]}, class vectors of {names.shape[1]}"
            raise ShapeError.at(f"metric/{name}", found, "one width", "Embed the names with the same head.")
        scores, labels = rows["values"] @ names.T, rows["labels"].astype(np.int64)
        rank = ranks(scores, labels, f"metric/{name}")
        return rank, confusion(labels, scores.argmax(axis=1), len(names))


def class_centres(vectors: Float[Tensor, "classes prompts e"]) -> Float[Tensor, "classes e"]:
    """Return one unit vector a class: the mean of its prompts' unit vectors, made unit again."""
    return F.normalize(F.normalize(vectors.detach().float().cpu(), dim=-1).mean(dim=1), dim=-1)
