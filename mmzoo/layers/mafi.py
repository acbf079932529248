"""Modality-adaptive feature integration (MAFI): two maps of one place fused under channel attention."""

from __future__ import annotations

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelAttention(str, Enum):
    """Which weights turn a map's mean into channel gates."""

    SEPARATE = "separate"
    SHARED = "shared"


class Mafi(nn.Module):
    """Fuses two maps; each map, by itself, says which channels of the fusion matter.

    Math: f = CBR([a; b]); out = f * s_b(CBR(b)) + f * s_a(CBR(a)); s(z) = sigmoid(Conv1x1(mean over places));
    CBR = 3x3 convolution, batch norm, ReLU.
    Shape: a (b ca h w) and b (b cb h w) -> (b c h w).
    Ref: M3Net 2025. compat(m3net): the released code applies one s to both (`attention=shared`) and keeps the
    other's weights unused; a is its camera map, b its lidar map.
    """

    def __init__(
        self, first: int, second: int, dim: int, attention: ChannelAttention = ChannelAttention.SEPARATE
    ) -> None:
        """Take the numbers of channels of a, of b, and of the result."""
        super().__init__()
        self.joint = _conv(first + second, dim)
        self.first, self.second = _conv(first, dim), _conv(second, dim)
        self.gate_second = nn.Conv2d(dim, dim, 1)
        self.gate_first = nn.Conv2d(dim, dim, 1) if attention is ChannelAttention.SEPARATE else None

    def forward(self, a: Float[Tensor, "b ca h w"], b: Float[Tensor, "b cb h w"]) -> Float[Tensor, "b c h w"]:
        """Fuse."""
        fused = self.joint(torch.cat([a, b], dim=1))
        of_b = self.gate_second(self.second(b).mean(dim=(2, 3), keepdim=True)).sigmoid()
        gate = self.gate_second if self.gate_first is None else self.gate_first
        of_a = gate(self.first(a).mean(dim=(2, 3), keepdim=True)).sigmoid()
        return fused * of_b + fused * of_a


class PlainFusion(nn.Module):
    """The fusion that MAFI is compared with: one 3x3 convolution of both maps."""

    def __init__(self, first: int, second: int, dim: int) -> None:
        """Take the numbers of channels of a, of b, and of the result."""
        super().__init__()
        self.joint = _conv(first + second, dim)

    def forward(self, a: Float[Tensor, "b ca h w"], b: Float[Tensor, "b cb h w"]) -> Float[Tensor, "b c h w"]:
        """Fuse."""
        return self.joint(torch.cat([a, b], dim=1))


def _conv(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())
