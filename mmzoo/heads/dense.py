"""The dense head: from a decoder's feature map to a value, or the logits of classes, at every pixel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import nn

from mmzoo import schema
from mmzoo.batch import DataInfo, FeatureMap, Prediction, PredictionKind
from mmzoo.errors import ConfigError, close_matches
from mmzoo.heads.base import Head


class DenseHead(Head):
    """Enlarges the map, mixes neighbours, predicts, enlarges to the image.

    Shape: (k f h w) -> (k c height width), logits or values in float32, at the image's size.
    Math: resize(Conv1x1(GELU(BN(Conv3x3(resize(x, upsample)))))), both resizings bilinear.
    Ref: the head of InvPT, TaskPrompter and MLoRE.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Sizes."""

        num_channels: int = 0
        """outputs a pixel: classes, or 3 of a normal, 1 of a depth; 0: as many as the data set names for the
        task's target"""
        upsample: int = 4
        """factor on both sides of the map before the 3x3 convolution"""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if self.num_channels < 0:
                do = "Use 0: as many as the data has."
                raise ConfigError.at("num_channels", str(self.num_channels), "0 or more", do)
            if self.upsample < 1:
                raise ConfigError.at("upsample", str(self.upsample), "1 or more", "Use 1 for none.")

    gives: ClassVar[PredictionKind] = PredictionKind.DENSE
    reads_maps: ClassVar[bool] = True

    def __init__(self, config: Config, *, dim: int, passes: tuple[str, ...]) -> None:
        """Make the layers; the number of channels must be known by now."""
        super().__init__(config, dim=dim, passes=passes)
        if config.num_channels < 1:
            do = "Set it, or give the task a target that the data set has labels for."
            raise ConfigError.at("head.num_channels", "0", "a number of channels", do)
        self.conv, self.norm = nn.Conv2d(dim, dim, 3, padding=1), nn.BatchNorm2d(dim)
        self.out = nn.Conv2d(dim, config.num_channels, 1)

    def forward(self, sequence: FeatureMap, pass_name: str) -> Prediction:  # pyright: ignore[reportIncompatibleMethodOverride] reads_maps tells the model
        """Predict every pixel of the rows of one pass."""
        del pass_name
        x = sequence.values
        if self.config.upsample > 1:
            factor = float(self.config.upsample)
            x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        x = self.out(F.gelu(self.norm(self.conv(x)))).float()
        if tuple(x.shape[2:]) != sequence.size:
            x = F.interpolate(x, sequence.size, mode="bilinear", align_corners=False)
        return Prediction(x, sequence.index)

    @classmethod
    def resolve(cls, config: Any, info: DataInfo, target: str) -> Any:
        """Fill an open `num_channels` from the names that the data give the target's channels."""
        names = info.labels.get(target)
        if names is None:
            if config.num_channels:
                return config
            do = close_matches(target, info.labels) if target else "Set the task's target."
            raise ConfigError.at("head", f"no labels of target {target!r}", "a label of the data set", do)
        if config.num_channels not in (0, len(names)):
            found = f"{config.num_channels}, but target {target!r} has {len(names)}"
            do = "Set it to 0 to follow the data."
            raise ConfigError.at("head.num_channels", found, "the same number", do)
        return dataclasses.replace(config, num_channels=len(names))
