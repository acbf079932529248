"""Denoising contrast: what the model makes of a hidden token, found among what it sees of all tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, PredictionKind, TokenPrediction
from mmzoo.errors import ConfigError, ShapeError, close_matches
from mmzoo.layers import distributed
from mmzoo.layers.denoise_loss import denoising_sum
from mmzoo.objectives.base import Objective
from mmzoo.state import LossState, Sum

JOINT = "+"


class DenoisingContrast(Objective):
    """Sums, over the modalities of every pass, weight · mean over hidden tokens of a cross-entropy.

    Why: unlike reconstruction it needs no target of the input's own kind, so pixels, words, sound, voxels and
    joints are all learned alike.
    Math: z and t are unit vectors, x_ij = scale · z_i · t_j, the keys t all tokens of that modality in this
    rank's batch; loss_i = (1 - ε - e') (-log p_i,own) + e' Σ_j (-log p_ij), e' = ε / (n - 1). The loss is the
    weighted sum of the parts' means, each over all its hidden tokens, in training those of all ranks. Parts
    are named by pass, or by pass and modality (`image+text/text`).
    Ref: ONE-PEACE section 3.2; weights in stage 1: text 0.5, image 1, joint 0.5; stage 2: audio 1, joint 0.5.
    Its code averages the ranks' means, which is the same where ranks hide equally many tokens.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Weights, temperature, smoothing."""

        weights: dict[str, float] = field(default_factory=dict)
        """factor of a part, or of all parts of a pass; those not named have 1"""
        scale: float = 2.5
        """factor on cosines (inverse temperature), not learned"""
        label_smoothing: float = 0.1
        """ε, share of the target spread over the other keys"""
        chunk: int = 512
        """rows of logits held at once; bounds the memory, changes nothing else"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            faults: list[str] = []
            for name, weight in self.weights.items():
                if not weight >= 0:
                    faults.append(
                        str(ConfigError.at(f"weights.{name}", f"{weight:g}", "0 or more", "Use 1."))
                    )
            if not self.scale > 0 or not 0 <= self.label_smoothing < 1 or self.chunk < 1:
                found = f"{self.scale:g}, {self.label_smoothing:g}, {self.chunk}"
                expected = "a positive number, a share in [0, 1), a positive number of rows"
                do = "Leave them out for ONE-PEACE's."
                faults.append(str(ConfigError.at("scale, label_smoothing, chunk", found, expected, do)))
            if faults:
                raise ConfigError("\n".join(faults))

    reads: ClassVar[PredictionKind] = PredictionKind.TOKENS
    depends_on_batch: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        """Keep the options."""
        self.config = config

    def __call__(self, predictions: Mapping[str, Prediction], batch: Batch, target: str) -> LossState:
        """Return this rank's share of the loss, in which every rank counts as one; labels are not used."""
        del batch, target
        parts = {name: self._part(name, p) for name, p in predictions.items()}
        counts = {name: len(p.values) for name, p in predictions.items()}
        ranks = 1
        if distributed.world_size() > 1 and torch.is_grad_enabled():
            counts, ranks = _sums(distributed.gather_objects(counts)), distributed.world_size()
        weights = {name: self.weight(name) for name in parts}
        if not parts:
            total = torch.zeros((), device=distributed.device(), requires_grad=torch.is_grad_enabled())
        else:
            shares = [weights[name] * part.sum / max(counts[name], 1) for name, part in parts.items()]
            total = ranks * torch.stack(shares).sum()
        return LossState(Sum(total, total.new_tensor(float(any(counts.values())))), parts, weights)

    def weight(self, part: str) -> float:
        """Return the factor of a part: its own, else its pass's, else 1."""
        weights = self.config.weights
        return weights.get(part, weights.get(part.partition("/")[0], 1.0))

    def _part(self, name: str, prediction: Prediction) -> Sum:
        if not isinstance(prediction, TokenPrediction):
            found = f"a {type(prediction).__name__} for {name}"
            raise ShapeError.at(
                "denoising_contrast", found, "hidden tokens and keys", "Use head.type=denoise."
            )
        queries = _unit(prediction.values)
        own = prediction.own.to(queries.device, non_blocking=True)
        options = self.config
        total = denoising_sum(
            queries, _unit(prediction.keys), own, options.scale, options.label_smoothing, options.chunk
        )
        return Sum(total, queries.new_tensor(float(len(queries))))

    def check(self, passes: tuple[str, ...]) -> None:
        """Raise where a weight names neither a pass nor a modality of one."""
        known = {*passes, *(f"{p}/{m}" for p in passes if JOINT in p for m in p.split(JOINT))}
        unknown = [name for name in self.config.weights if name not in known]
        if unknown:
            do = close_matches(unknown[0], known)
            raise ConfigError.at("weights", repr(unknown[0]), "a pass of the task, or pass/modality", do)


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the number of hidden tokens of each part over all ranks."""
    names = dict.fromkeys(name for own in counts for name in own)
    return {name: sum(own.get(name, 0) for own in counts) for name in names}


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1, eps=1e-12)
