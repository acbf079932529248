"""Contrast between passes: vectors of the same sample are drawn together, those of different samples
apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind, has_several
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers import distributed
from mmzoo.layers.contrast import Keys
from mmzoo.layers.contrast_loss import infonce_sums, sigmoid_sums
from mmzoo.objectives.base import Objective
from mmzoo.objectives.pairs import Pair, PairRows, all_pairs, check_pairs, gather_pairs, passes_of
from mmzoo.state import LossState, Sum


@dataclass(kw_only=True)
class ContrastConfig(schema.Config):
    """What InfoNCE and SigLIP share."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    """pairs of passes to contrast, e.g. [[image, text], [audio, image+text]]; empty: every two modalities"""
    chunk: int = 512
    """rows of logits held at once; bounds the memory, changes nothing else"""

    def __post_init__(self) -> None:
        """Check the pairs."""
        check_pairs(self.pairs, "pairs")
        if self.chunk < 1:
            raise ConfigError.at("chunk", str(self.chunk), "a positive number of rows", "Leave it at 512.")


class Contrast(Objective):
    """Sums a contrast over the rows of every pair: the samples that have both.

    total.count is the number of rows over all pairs, so that each row of each pair weighs the same; parts are
    named `image~text`. While gradients are wanted, rows are contrasted with those of all ranks; without
    gradient (evaluation, where ranks may have different numbers of batches) a rank keeps to itself, and of a
    sample with several entries (captions of a picture) the first one counts. Training takes one a sample:
    the others would be pushed away from what they describe.
    """

    reads: ClassVar[PredictionKind] = PredictionKind.VECTORS
    depends_on_batch: ClassVar[bool] = True
    takes_several: ClassVar[bool] = True
    Config = ContrastConfig

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def passes(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return the passes of the configured pairs, else every modality."""
        return passes_of(self.config.pairs, modalities, "pairs")

    def parts(self, passes: tuple[str, ...]) -> tuple[str, ...]:
        """Name the pairs."""
        return tuple(f"{a}~{b}" for a, b in (self.config.pairs or all_pairs(passes)))

    def __call__(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> LossState:
        """Return this rank's share of the contrast; labels are not used."""
        del batch, target
        for name, prediction in predictions.items() if torch.is_grad_enabled() else ():
            if has_several(prediction.index):
                do = "Draw one of them, or make each a sample (data.captions.train=one or pairs)."
                raise ShapeError.at(
                    f"objective/{name}", "samples with several entries", "one to train on", do
                )
        share = distributed.world_size() > 1 and torch.is_grad_enabled()
        rows = gather_pairs(predictions, self.config.pairs, share=share)
        anchor = _anchor(predictions, rows.pairs if rows else ())
        if rows is None:
            return LossState(Sum(anchor, torch.zeros_like(anchor)))
        sums = self.sums(rows, predictions)
        counts = [torch.tensor(float(n), device=sums.device) for n in rows.layout.local]
        parts = {f"{a}~{b}": Sum(sums[p], counts[p]) for p, (a, b) in enumerate(rows.pairs)}
        return LossState(Sum(sums.sum() + anchor, torch.stack(counts).sum()), parts)

    def sums(self, rows: PairRows, predictions: Mapping[str, Prediction]) -> Float[Tensor, " pairs"]:
        """Return this rank's summed loss of each pair."""
        raise NotImplementedError


class Smoothing(str, Enum):
    """Which columns share the smoothed part of the target."""

    ALL = "all"
    """every column, the right one included (torch)"""
    OTHERS = "others"
    """every column but the right one (fairseq, ONE-PEACE)"""


class InfoNce(Contrast):
    """Symmetric InfoNCE: a row's own column among all columns, and a column's own row among all rows.

    Math: mean over rows of ½ [CE(s a_i·b_j over j, i) + CE(s a_j·b_i over j, i)], s = exp(clamped log-scale).
    Ref: Radford et al. 2021 (CLIP). ONE-PEACE's code keeps the key side without gradient; here both sides
    learn unless `keys` says otherwise.
    """

    @dataclass(kw_only=True)
    class Config(ContrastConfig):
        """Pairs and label smoothing."""

        label_smoothing: float = 0.0
        """share ε of the target spread evenly over columns"""
        smooth_over: Smoothing = Smoothing.ALL
        """all: ε/m on each of m columns; others: ε/(m - 1) on each wrong one and 1 - ε on the right one"""
        # compat(onepeace): `fixed`, since it gathers the other side without gradient, even on one process
        keys: Keys = Keys.LEARNED
        """learned: both sides of a comparison learn; fixed: the query alone, each side being query once"""

        def __post_init__(self) -> None:
            """Check the range."""
            super().__post_init__()
            _check_smoothing(self.label_smoothing)

    def sums(self, rows: PairRows, predictions: Mapping[str, Prediction]) -> Float[Tensor, " pairs"]:
        """Return this rank's summed InfoNCE of each pair."""
        scale = _scalar(predictions, "scale", rows, "Use head.type=contrastive.")
        shares = tuple(self._share(columns) for columns in rows.layout.totals)
        return infonce_sums(rows.a, rows.b, scale, rows.layout, shares, self.config.chunk, self.config.keys)

    def _share(self, columns: int) -> float:
        """Return the share that, spread over all columns, is the one asked for."""
        share = self.config.label_smoothing
        return share if self.config.smooth_over is Smoothing.ALL else share * columns / max(1, columns - 1)


class SigLip(Contrast):
    """Sigmoid contrast: every row-column pair is a yes-no question of its own.

    Math: mean over rows i of Σ_j softplus(-z_ij (s a_i·b_j + o)), z = 1 where i = j and -1 elsewhere.
    Ref: Zhai et al. 2023; start from scale_init 10 and offset_init -10.
    """

    @dataclass(kw_only=True)
    class Config(ContrastConfig):
        """Pairs."""

    def sums(self, rows: PairRows, predictions: Mapping[str, Prediction]) -> Float[Tensor, " pairs"]:
        """Return this rank's summed sigmoid contrast of each pair."""
        scale = _scalar(predictions, "scale", rows, "Use head.type=contrastive.")
        offset = _scalar(predictions, "offset", rows, "Set head.offset_init=-10.")
        return sigmoid_sums(rows.a, rows.b, scale, offset, rows.layout, self.config.chunk)


def _check_smoothing(value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError.at("label_smoothing", str(value), "a share in [0, 1)", "Try 0.1.")


def _scalar(predictions: Mapping[str, Prediction], name: str, rows: PairRows, do: str) -> Float[Tensor, ""]:
    """Return the head's scale or offset; any number where this rank has no predictions, hence no rows."""
    if not predictions:
        return rows.a.new_ones(())
    found = getattr(next(iter(predictions.values())), name)
    if found is None:
        raise ConfigError.at("contrast", f"predictions without {name}", f"a head that learns a {name}", do)
    return found.to(rows.a.dtype)


def _anchor(predictions: Mapping[str, Prediction], pairs: tuple[Pair, ...]) -> Float[Tensor, ""]:
    """Return zero, tied to whatever the pairs leave unused, so that every rank can run its backward pass."""
    used = {name for pair in pairs for name in pair}
    loose = [p for name, p in predictions.items() if name not in used]
    terms = [x.sum().float() * 0.0 for p in loose for x in (p.values, p.scale, p.offset) if x is not None]
    if terms:
        return torch.stack(terms).sum()
    place = next((p.values.device for p in predictions.values()), distributed.device())
    return torch.zeros((), device=place, requires_grad=not predictions)
