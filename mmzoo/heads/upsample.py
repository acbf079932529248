"""A dense head that enlarges a decoder's map step by step (the tail of SETR-PUP and of M3ViT's decoder)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.batch import DataInfo, FeatureMap, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.heads.base import Head
from mmzoo.heads.dense import DenseHead


class UpsampleHead(Head):
    """Doubles the map and mixes neighbours `upsample` times, predicts, doubles once more, meets the image.

    Shape: (k f h w) -> (k c height width), logits or values in float32.
    Math: x_i = ReLU(BN(Conv3x3(double(x_{i-1})))); resize(double(Conv1x1(x_n))), all bilinear; with n = 0
    resize(Conv1x1(x_0)).
    Weights: `convs.<i>.*`, `norms.<i>.*`, `out.*`. Ref: Zheng et al. 2021 (SETR), section 3.2.
    """

    @dataclass(kw_only=True)
    class Config(DenseHead.Config):
        """Sizes."""

        upsample: int = 1
        """3x3 convolutions, each on a map of double size; 3 with a map of 1/16 is SETR-PUP"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if self.num_channels < 0 or self.upsample < 0:
                found = f"{self.num_channels}, {self.upsample}"
                raise ConfigError.at("num_channels, upsample", found, "0 or more", "Raise them.")

    gives: ClassVar[PredictionKind] = PredictionKind.DENSE
    reads_maps: ClassVar[bool] = True

    def __init__(self, config: Config, *, dim: int, passes: tuple[str, ...]) -> None:
        """Make the layers; the number of channels must be known by now."""
        super().__init__(config, dim=dim, passes=passes)
        if config.num_channels < 1:
            do = "Set it, or give the task a target that the data set has labels for."
            raise ConfigError.at("head.num_channels", "0", "a number of channels", do)
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(config.upsample))
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(config.upsample))
        self.out = nn.Conv2d(dim, config.num_channels, 1)

    def forward(self, sequence: FeatureMap, pass_name: str) -> Prediction:  # pyright: ignore[reportIncompatibleMethodOverride] reads_maps tells the model
        """Predict every pixel of the rows of one pass."""
        del pass_name
        x = sequence.values
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(_double(x))))
        x = self.out(x).float()
        if self.config.upsample:
            x = _double(x)
        if tuple(x.shape[2:]) != sequence.size:
            x = F.interpolate(x, sequence.size, mode="bilinear", align_corners=False)
        return Prediction(x, sequence.index)

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Fill an open `num_channels` from the names that the data give the target's channels."""
        return DenseHead.resolve(config, info, target)


def _double(x: Float[Tensor, "k c h w"]) -> Float[Tensor, "k c h2 w2"]:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
