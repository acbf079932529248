"""Losses of multiple choice: every sample has one score for each of its answers, of which one is right."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind, Target, entry_of_row
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.labelled import Labelled
from mmzoo.state import Sum


class Choice(Labelled):
    """Sums a loss over the labelled samples of every pass; parts are named by the pass.

    The scores of a sample are one row of a table, filled up where others have more answers; `sum` sees
    which cells are real and which is right.
    """

    reads: ClassVar[PredictionKind] = PredictionKind.CHOICES
    takes_several: ClassVar[bool] = True

    def part(self, name: str, prediction: Prediction, batch: Batch, target: str) -> Sum:
        """Return the summed loss of the labelled samples of a pass, and how many they are."""
        logits = prediction.values.float()
        if logits.ndim != 2 or logits.shape[1] != 1:
            found = f"predictions {tuple(logits.shape)}"
            raise ShapeError.at(f"objective/{name}", found, "(rows, 1)", "Use head.type=choice_mlp.")
        labels = batch.targets.get(target)
        if labels is None or not len(logits):
            return Sum(logits.sum() * 0.0, logits.new_zeros(()))
        samples, counts = prediction.index.unique_consecutive(return_counts=True)
        keep, right = _matched(samples, labels)
        table, real = _table(logits[:, 0], prediction.index, counts)
        right = right.to(logits.device)
        _check_right(right, counts[keep], f"batch.targets.{target}")
        rows = keep.to(logits.device)
        table, real = table.index_select(0, rows), real.to(logits.device).index_select(0, rows)
        return Sum(self.sum(table, real, right), logits.new_tensor(float(len(rows))))

    def sum(
        self, scores: Float[Tensor, "s c"], real: Bool[Tensor, "s c"], right: Int[Tensor, " s"]
    ) -> Float[Tensor, ""]:
        """Return the summed loss of samples; cells that are not real hold no score."""
        raise NotImplementedError


class Against(str, Enum):
    """Which answers the right one is held against."""

    OTHERS = "others"
    """the wrong ones"""
    ALL = "all"
    """itself too, which adds the margin to every sample's loss and nothing to a gradient"""


class ChoiceHinge(Choice):
    """The right answer should lead every other by a margin.

    Math: mean over samples of Σ_j max(0, margin + s_j - s_right).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Margin and range."""

        margin: float = 1.0
        """lead at which a wrong answer costs nothing"""
        # compat(onepeace): `all`, which sums over the right answer as well: the margin more, same gradient
        against: Against = Against.OTHERS
        """what the sum runs over: others, or all answers"""

        def __post_init__(self) -> None:
            """Check the margin."""
            if not self.margin > 0:
                raise ConfigError.at("margin", f"{self.margin:g}", "a positive number", "ONE-PEACE uses 1.")

    def sum(
        self, scores: Float[Tensor, "s c"], real: Bool[Tensor, "s c"], right: Int[Tensor, " s"]
    ) -> Float[Tensor, ""]:
        """Return the summed hinge."""
        own = right[:, None]
        counted = real if self.config.against is Against.ALL else real.scatter(1, own, value=False)
        lack = F.relu(self.config.margin + scores - scores.gather(1, own))
        return lack.masked_fill(~counted, 0.0).sum()


class ChoiceCrossEntropy(Choice):
    """Softmax over the answers of a sample. Math: mean over samples of -log softmax(s)_right."""

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    def sum(
        self, scores: Float[Tensor, "s c"], real: Bool[Tensor, "s c"], right: Int[Tensor, " s"]
    ) -> Float[Tensor, ""]:
        """Return the summed cross-entropy."""
        return F.cross_entropy(scores.masked_fill(~real, -torch.inf), right, reduction="sum")


def _matched(samples: Int[Tensor, " s"], labels: Target) -> tuple[Int[Tensor, " l"], Int[Tensor, " l"]]:
    """Return the places of the labelled samples among `samples`, and their labels."""
    own = {sample: row for row, sample in enumerate(labels.index.tolist())}
    keep = [i for i, sample in enumerate(samples.tolist()) if sample in own]
    rows = torch.tensor([own[int(samples[i])] for i in keep], dtype=torch.int64)
    right = labels.values.index_select(0, rows.to(labels.values.device))
    if right.ndim != 1 or right.is_floating_point():
        found = f"labels {tuple(right.shape)} {str(right.dtype).removeprefix('torch.')}"
        raise ShapeError.at("choice", found, "the number of the right answer", "Set data.choices.column.")
    return torch.tensor(keep, dtype=torch.int64), right


def _table(
    scores: Float[Tensor, " k"], index: Int[Tensor, " k"], counts: Int[Tensor, " s"]
) -> tuple[Float[Tensor, "s c"], Bool[Tensor, "s c"]]:
    """Lay the scores out by sample; the mask, on the host, says which cells hold one."""
    real = torch.arange(int(counts.max()))[None] < counts[:, None]
    sample = torch.arange(len(counts)).repeat_interleave(counts)
    place = (sample * real.shape[1] + entry_of_row(index)).to(scores.device, non_blocking=True)
    return scores.new_zeros(real.numel()).index_copy(0, place, scores).view(real.shape), real


def _check_right(right: Int[Tensor, " l"], counts: Int[Tensor, " l"], where: str) -> None:
    """Raise where the right answer is not among those given; on the host only, so as not to wait."""
    if right.device.type != "cpu":
        return
    wrong = (right < 0) | (right >= counts)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        found = f"answer {int(right[at])} of {int(counts[at])}"
        raise ShapeError.at(where, found, "the number of one of them, from 0", "Check the choices.")
