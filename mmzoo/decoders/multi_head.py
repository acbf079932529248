"""The plain baseline: tasks share the backbone and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mmzoo.decoders.base import Decoded, Decoder, DecoderConfig, Levels, conv_norm_gelu


class MultiHeadDecoder(Decoder):
    """Each task concatenates the levels, mixes channels, then neighbours; no task sees another.

    Why: the baseline that multi-task decoders are measured against ("MTL baseline" of InvPT and later
    papers). With a single task it is the single-task model of the same size.
    Math: y_t = GELU(BN(Conv3x3(GELU(BN(Conv1x1(cat_l x_l)))))).
    """

    @dataclass(kw_only=True)
    class Config(DecoderConfig):
        """Sizes."""

    def __init__(self, config: Config, *, dims: tuple[int, ...], tasks: tuple[str, ...]) -> None:
        """Make the convolutions of each task."""
        super().__init__(config, dims=dims, tasks=tasks)
        self.branches = nn.ModuleDict(
            {
                task: nn.Sequential(
                    conv_norm_gelu(sum(dims), config.width, 1), conv_norm_gelu(config.width, config.width)
                )
                for task in tasks
            }
        )

    def decode(self, levels: Mapping[str, Levels], generator: torch.Generator | None) -> Decoded:
        """Decode each task."""
        del generator
        return Decoded({task: self.branches[task](torch.cat(list(own), 1)) for task, own in levels.items()})
