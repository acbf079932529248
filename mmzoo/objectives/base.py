"""What every objective is: predictions and a batch in, a mergeable loss state out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, Prediction, PredictionKind
from mmzoo.state import LossState


class Objective(schema.Configurable):
    """Has no parameters of its own (a temperature belongs to the head).

    Under several processes it returns this rank's share, with rows of other ranks gathered where the
    mathematics needs them, so that sum over ranks of `total.sum` divided by the sum of `total.count` is the
    whole batch's loss, and the sum over ranks of the gradients of `total.sum` is its gradient times that
    count. `reads` says which predictions it takes, `depends_on_batch` whether a sample's loss depends on the
    others of its batch.
    """

    reads: ClassVar[PredictionKind]
    depends_on_batch: ClassVar[bool] = False
    takes_several: ClassVar[bool] = False
    """Whether a sample may have several rows, one for each of its entries."""

    lesson: ClassVar[PredictionKind | None] = None
    """What it wants of a teacher, as labels of the batch (see `lesson_name`); None: it needs none."""

    def lessons(self, passes: tuple[str, ...]) -> dict[str, str]:
        """Return, for each pass that it compares with a teacher's, the teacher's pass."""
        del passes
        return {}

    def passes(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Name the passes whose predictions it needs, given the model's modalities; empty means whatever the
        task says."""
        del modalities
        return ()

    def parts(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the parts of its loss that can be balanced by themselves, given the passes it will see: those
        of `LossState.parts` that carry gradients and make up the total. Empty means the total alone."""
        del passes
        return ()

    def check(self, passes: tuple[str, ...]) -> None:
        """Raise ConfigError where the options do not fit the passes that the task reads."""
        del passes

    def learn_classes(self, info: DataInfo, target: str) -> None:
        """Take what the data say of the label's classes, before the first batch; raise ConfigError where the
        options do not fit them."""
        del info, target

    def __call__(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> LossState:
        """Return the loss state of a batch; `target` names the label in `batch.targets` ('' where none is
        used)."""
        raise NotImplementedError
