"""Figures of classification from the rank of the right class and the predicted class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mmzoo.errors import ShapeError


def ranks(
    scores: Float[np.ndarray, "k classes"], labels: Int[np.ndarray, " k"], where: str
) -> Int[np.ndarray, " k"]:
    """Return how many classes stand before the right one (0 = predicted); equal scores stand in index
    order."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < scores.shape[1]):
        found = f"class {int(labels.max() if labels.min() >= 0 else labels.min())}"
        raise ShapeError.at(where, found, f"0..{scores.shape[1] - 1}", "Check the label names and the head.")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def confusion(
    labels: Int[np.ndarray, " k"], predicted: Int[np.ndarray, " k"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Return counts: row = true class, column = predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def top_k(rank: Int[np.ndarray, " k"], ks: Sequence[int], classes: int) -> dict[str, float]:
    """Return `top<k>`, the share of rows whose right class is among the first k; a k that takes in all is
    left out."""
    return {f"top{k}": float((rank < k).mean()) for k in ks if k == 1 or k < classes}


def per_class(table: Int[np.ndarray, "classes classes"]) -> dict[str, float]:
    """Return `mean_class` (mean recall over the classes that occur) and `macro_f1` (over those true or
    predicted).

    Math: recall_c = n_cc / Σ_p n_cp; F1_c = 2 n_cc / (Σ_p n_cp + Σ_t n_tc).
    """
    right, true, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    seen, named = true > 0, (true + predicted) > 0
    return {
        "mean_class": float((right[seen] / true[seen]).mean()),
        "macro_f1": float((2 * right[named] / (true + predicted)[named]).mean()),
    }


def average_precision(scores: Float[np.ndarray, " k"], positive: Int[np.ndarray, " k"]) -> float:
    """Return the area under precision over recall, step by step; samples of equal score enter together.

    Math: Σ_t (R_t - R_{t-1}) P_t over the distinct scores t from high to low.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())
