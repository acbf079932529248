"""What every decoder is: feature maps of several depths of a backbone in, one feature map a dense task out.

Axis letters: k rows, c channels of a level, f width of the decoder, h w grid, e experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError

Levels = Sequence[Tensor]
"""Feature maps (k c h w) of one backbone, the shallowest first; the last is its final, normed output."""
T = TypeVar("T")


class Source(str, Enum):
    """Where the levels come from."""

    TRUNK = "trunk"
    """the trunk's tokens after some of its blocks, laid back on the grid"""
    BACKBONE = "backbone"
    """the adapter's own backbone (timm with `levels`); the trunk's answer is not read, so depth 0 will do"""


@dataclass(frozen=True)
class Decoded:
    """A decoder's answer: task -> features (k f h w); aux scalars, weighted already; free statistics."""

    features: dict[str, Tensor]
    aux: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class DecoderConfig(schema.Config):
    """What all decoders share."""

    source: Source = Source.TRUNK
    """where the feature maps come from: trunk or backbone"""
    taps: list[int] | None = None
    """numbers of trunk blocks after which the stream is read, beside the final normed output; null: after a
    quarter, a half and three quarters of them"""
    width: int = 192
    """channels of the feature map that each task gets"""

    def __post_init__(self) -> None:
        """Check the width and that taps ascend."""
        if self.width < 1:
            raise ConfigError.at("decoder.width", str(self.width), "a positive width", "Try 192.")
        if self.taps is not None and (min(self.taps, default=0) < 0 or sorted(set(self.taps)) != self.taps):
            expected = "ascending numbers of blocks"
            raise ConfigError.at("decoder.taps", str(self.taps), expected, "Leave it null for quarters.")

    def taps_of(self, depth: int) -> tuple[int, ...]:
        """Return after how many of `depth` blocks to read the stream; the final output comes beside these."""
        if self.source is Source.BACKBONE:
            return ()
        if self.taps is None:
            return tuple(sorted({depth * i // 4 for i in (1, 2, 3)} - {0, depth}))
        if max(self.taps, default=0) >= max(depth, 1):
            found, do = f"{self.taps} of a trunk of {depth} blocks", "The final output is always read."
            raise ConfigError.at("decoder.taps", found, f"numbers below {depth}", do)
        return tuple(self.taps)


class Decoder(nn.Module, schema.Configurable):
    """`dims` are the channels of each level, `tasks` the names of the dense tasks it will serve.

    Levels of different grids (a convolutional backbone) are brought to the finest one first.
    """

    def __init__(self, config: Any, *, dims: tuple[int, ...], tasks: tuple[str, ...]) -> None:
        """Keep the options and the sizes."""
        super().__init__()
        self.config, self.dims, self.tasks = config, dims, tasks

    @property
    def width(self) -> int:
        """Return the channels of the features that it gives."""
        return self.config.width

    def forward(self, levels: Mapping[str, Levels], generator: torch.Generator | None = None) -> Decoded:
        """Decode for the tasks that are keys of `levels`; those that share a backbone pass hold the same
        object. `generator` draws what is random in training (None: torch's own).
        """
        return self.decode(_once_each(levels, same_grid), generator)

    def decode(self, levels: Mapping[str, Levels], generator: torch.Generator | None) -> Decoded:
        """Decode levels that lie on one grid."""
        raise NotImplementedError


def same_grid(levels: Levels) -> list[Tensor]:
    """Resize all levels bilinearly to the finest grid among them."""
    finest = max((tuple(x.shape[2:]) for x in levels), key=lambda grid: grid[0] * grid[1])
    return [
        x if tuple(x.shape[2:]) == finest else F.interpolate(x, finest, mode="bilinear", align_corners=False)
        for x in levels
    ]


def _once_each(levels: Mapping[str, Levels], make: Callable[[Levels], T]) -> dict[str, T]:
    """Return `make` of each task's levels, computed once where tasks share them."""
    made: dict[int, T] = {}
    for own in levels.values():
        if id(own) not in made:
            made[id(own)] = make(own)
    return {task: made[id(own)] for task, own in levels.items()}


def projected(levels: Mapping[str, Levels], layers: Sequence[nn.Module]) -> dict[str, list[Tensor]]:
    """Apply the i-th layer to the i-th level, once where tasks share their levels."""
    return _once_each(levels, lambda own: [layer(x) for layer, x in zip(layers, own, strict=True)])


def pointwise(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    """Return a 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def conv_norm_gelu(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Return convolution, batch norm and GELU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.GELU())


def squared_variation(mean_gates: Float[Tensor, " e"]) -> Float[Tensor, ""]:
    """Return the squared coefficient of variation, by the unbiased deviation; 0 for a single expert.

    Math: CV^2 = var(g) / mean(g)^2, var with n - 1.
    """
    if len(mean_gates) < 2:
        return mean_gates.sum() * 0.0
    return mean_gates.var() / mean_gates.mean().square()
