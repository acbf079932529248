"""How well predicted boundaries match true ones: the F-measure of one threshold for the whole set (odsF).

Ref: the benchmark of the Berkeley segmentation data set (Martin, Fowlkes, Malik, PAMI 2004), which SEISM and
prismformore/Boundary-Detection-Evaluation-Tools follow: a prediction as an 8-bit picture, thresholded and
thinned, its pixels assigned one to one to true pixels at most `max_dist` away. Assignments here are of the
greatest number (Hopcroft-Karp), which is what the benchmark's cheapest assignment, with its high price of
leaving a pixel out, has too. There is neither non-maximum suppression before the thresholds, nor
interpolation between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, DenseKind
from mmzoo.errors import ConfigError
from mmzoo.layers.thinning import thin
from mmzoo.metrics.dense import DenseMetric
from mmzoo.metrics.rows import Rows


class Boundary(DenseMetric):
    """`odsF@<max_dist>` and `oisF@<max_dist>`.

    Math: P = matched / predicted and R = matched / true pixels, F = 2PR / (P + R). ods: sums over the set,
    best threshold of all; ois: each image at its own best threshold, then sums over the set.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """The protocol."""

        max_dist: float = 0.0075
        """Farthest that matched pixels may be apart, in diagonals of the labelled part of the image: 0.0075
        for PASCAL, 0.011 for NYUD."""
        thresholds: int = 99
        """How many, evenly between 0 and 1; time grows with it (30 is common where it must be quick)."""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if not 0 < self.max_dist < 1 or self.thresholds < 1:
                found = f"max_dist {self.max_dist:g}, thresholds {self.thresholds}"
                raise ConfigError.at("max_dist, thresholds", found, "0 … 1, at least 1", "Use 0.0075 and 99.")

    kind: ClassVar[DenseKind] = DenseKind.EDGE

    def measure(self, values: Float[Tensor, "1 h w"], true: Float[Tensor, "1 h w"]) -> dict[str, np.ndarray]:
        """Return, for each threshold, how many pixels match and how many are predicted; and the true ones."""
        valid = (true[0] != IGNORE).numpy()
        real = (true[0].numpy() >= 0.5) & valid
        pixels = np.round(255 * values[0].double().sigmoid().numpy()) / 255  # what an 8-bit picture holds
        if valid.any():
            rows, cols = (np.flatnonzero(valid.any(axis=a)) for a in (1, 0))
            part = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
            valid, real, pixels = valid[part], real[part], pixels[part]
        levels = np.arange(1, self.config.thresholds + 1) / (self.config.thresholds + 1)
        lines = thin((pixels >= levels[:, None, None]) & valid)
        reach = self.config.max_dist * float(np.hypot(*valid.shape))
        matched = [count_matched(line, real, reach) for line in lines]
        return {
            "matched": np.array(matched),
            "predicted": lines.sum(axis=(1, 2)),
            "true": np.array(int(real.sum())),
        }

    def names(self) -> tuple[str, ...]:
        """Name the figures."""
        return (f"odsF@{self.config.max_dist:g}", f"oisF@{self.config.max_dist:g}")

    def sum_up(self, rows: Rows) -> dict[str, float]:
        """Return both figures; none where no image has a boundary."""
        if not rows["true"].sum():
            return {}
        name = f"{self.config.max_dist:g}"
        whole = f_measure(rows["matched"].sum(0), rows["predicted"].sum(0), rows["true"].sum())
        each = f_measure(rows["matched"], rows["predicted"], rows["true"][:, None]).argmax(axis=1)[:, None]
        matched, predicted = (np.take_along_axis(rows[k], each, 1).sum() for k in ("matched", "predicted"))
        best = f_measure(matched, predicted, rows["true"].sum())
        return {f"odsF@{name}": float(whole.max()), f"oisF@{name}": float(best)}


def f_measure(matched: Any, predicted: Any, true: Any) -> Any:
    """Return 2PR / (P + R) = 2 matched / (predicted + true)."""
    return 2 * matched / np.maximum(predicted + true, 1)


def count_matched(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], reach: float) -> int:
    """Return the greatest number of one-to-one pairs of pixels at most `reach` pixels apart."""
    try:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import maximum_bipartite_matching
    except ImportError as error:
        do = "Run `pip install 'mmzoo[dense]'`, or drop the metric."
        raise ConfigError.at("metrics.boundary", "scipy is not installed", "scipy", do) from error

    rows, cols = _pairs(predicted, true, reach)
    if not len(rows):
        return 0
    shape = (int(predicted.sum()), int(true.sum()))
    graph = csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, cols)), shape=shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _pairs(
    predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], reach: float
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Return the numbers, in reading order, of predicted and true pixels that are near each other."""
    far = int(reach)
    number = np.full((true.shape[0] + 2 * far, true.shape[1] + 2 * far), -1)
    inner = number[far : far + true.shape[0], far : far + true.shape[1]]
    inner[true] = np.arange(int(true.sum()))
    y, x = np.nonzero(predicted)
    steps = np.indices((2 * far + 1, 2 * far + 1)).reshape(2, -1) - far
    steps = steps[:, np.hypot(*steps) <= reach] + far
    found = number[y[:, None] + steps[0], x[:, None] + steps[1]]
    rows, at = np.nonzero(found >= 0)
    return rows, found[rows, at]
