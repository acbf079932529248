"""The least a decoder can do: each task's own norm and one convolution, by default on the final map only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.decoders.base import Decoded, Decoder, DecoderConfig, Levels

NORM_EPS = 1e-6


class FinalBranch(nn.Module):
    """One task: ReLU(BN(Conv3x3(LN(x)))), LN over channels. Weights: `norm.*`, `conv.*`, `conv_norm.*`."""

    def __init__(self, dim: int, width: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.conv, self.conv_norm = nn.Conv2d(dim, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "k c h w"]) -> Float[Tensor, "k f h w"]:
        """Mix neighbours."""
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.relu(self.conv_norm(self.conv(x)))


class FinalDecoder(Decoder):
    """Reads the final tokens, and taps where asked for; tasks share nothing. With head `upsample` SETR-PUP.

    Why: where tasks part inside the trunk (routing by task), what is left for a decoder is to enlarge.
    Ref: the norm and first convolution of M3ViT's VisionTransformerUpHead; Zheng et al. 2021 (SETR), 3.2.
    """

    @dataclass(kw_only=True)
    class Config(DecoderConfig):
        """Sizes."""

        taps: list[int] | None = field(default_factory=list)
        """numbers of trunk blocks after which the stream is read too, concatenated with the final output"""
        width: int = 256
        """channels of the feature map that each task gets"""

    def __init__(self, config: Config, *, dims: tuple[int, ...], tasks: tuple[str, ...]) -> None:
        """Make each task's layers."""
        super().__init__(config, dims=dims, tasks=tasks)
        self.branches = nn.ModuleDict({task: FinalBranch(sum(dims), config.width) for task in tasks})

    def decode(self, levels: Mapping[str, Levels], generator: torch.Generator | None) -> Decoded:
        """Decode each task."""
        del generator
        return Decoded({task: self.branches[task](torch.cat(list(own), 1)) for task, own in levels.items()})
