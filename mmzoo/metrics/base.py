"""What every metric is: the same state idea as a loss, not optimised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, Prediction, PredictionKind

LOWER_IS_BETTER = frozenset(
    ("loss", "MedR", "rmse_m", "log_rmse", "abs_rel", "sq_rel_m", "mErr_deg", "rmse_deg", "MAE", "RMSE")
) | {"ATE_m", "ASE", "AOE_rad", "AVE_m_s"}
"""Last parts of the names of figures of which less is better."""
NOT_SHARES = LOWER_IS_BETTER | {"delta_m", "R2"}
"""Figures that are no shares of one, and are shown as they are."""


@dataclass(frozen=True)
class MetricContext:
    """What a metric may need at the end beside its state.

    class_vectors: target -> class embeddings (classes, prompts, e), for zero-shot; reference: the state of
    the training split, for kNN and probes (only where `needs_reference`); target: the task's label name.
    """

    info: DataInfo
    target: str = ""
    class_vectors: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Any = None


class Metric(schema.Configurable):
    """`state = update(…)` for each batch, `merge` them (batches, then ranks), `compute` once.

    A state is a picklable value on the host. Results are named `<figure>` or `<pass>/<figure>`; the learner
    prefixes the task. `reads` says which predictions it takes.
    """

    reads: ClassVar[PredictionKind]
    needs_reference: bool = False
    needs_class_vectors: bool = False
    takes_several: ClassVar[bool] = False
    """Whether a sample may have several rows, one for each of its entries."""

    def update(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> Any:
        """Return the state of one batch."""
        raise NotImplementedError

    def merge(self, a: Any, b: Any) -> Any:
        """Join two states; merging the states of parts equals the state of the whole."""
        raise NotImplementedError

    def compute(self, state: Any, context: MetricContext) -> dict[str, float]:
        """Return the figures."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """Return the last words of the names of all figures it may give; empty where data
        have a say in them."""
        return ()

    def figure_names(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the whole names of all figures it may give for these passes, where `names` tells; a split
        need not give them all."""
        each = passes if len(passes) > 1 else ()
        return (*self.names(), *(f"{p}/{name}" for p in each for name in self.names()))

    def figures(self, state: Any, context: MetricContext) -> dict[str, np.ndarray]:
        """Return matrices worth drawing in the report (`confusion`, `retrieval`); default none."""
        del state, context
        return {}
