"""MLoRE: mixture of low-rank experts over several depths of a backbone (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmzoo.decoders.base import (
    Decoded,
    Decoder,
    Levels,
    conv_norm_gelu,
    pointwise,
    projected,
    squared_variation,
)
from mmzoo.decoders.mlore_block import MloreBlock, MloreConfig


class MloreDecoder(Decoder):
    """Two MLoRE blocks a level, then each task weighs the levels pixel by pixel.

    Math: f_l = Conv1x1(x_l); z_l = block2_l(block1_l(f_l, t), t); m = softmax_l(Conv3x3(GELU(BN(Conv1x1(cat_l
    z_l))))); y_t = Σ_l m_l z_l. Aux `balance`: weight * Σ_blocks CV^2 of the gates' mean over images and
    tasks.
    Ref: Yang et al. 2024, "Multi-Task Dense Prediction via Mixture of Low-Rank Experts"; the code is
    the authority where the two part (gate order by data set, unbounded noise scale).
    """

    @dataclass(kw_only=True)
    class Config(MloreConfig):
        """Options."""

    def __init__(self, config: Config, *, dims: tuple[int, ...], tasks: tuple[str, ...]) -> None:
        """Make the projections, the blocks and each task's weighing of levels."""
        super().__init__(config, dims=dims, tasks=tasks)
        width, count = config.width, len(dims)
        self.fuse = nn.ModuleList(pointwise(dim, width) for dim in dims)
        self.first = nn.ModuleList(MloreBlock(config, tasks) for _ in dims)
        self.second = nn.ModuleList(MloreBlock(config, tasks) for _ in dims)
        self.masks = nn.ModuleDict(
            {
                task: nn.Sequential(
                    *conv_norm_gelu(count * width, width, 1), nn.Conv2d(width, count, 3, padding=1)
                )
                for task in tasks
            }
        )

    def decode(self, levels: Mapping[str, Levels], generator: torch.Generator | None) -> Decoded:
        """Decode; statistics: `route1.<level>.<task>`, `route2.…` (k e), the blocks' gates; `variation`."""
        maps = projected(levels, list(self.fuse))
        found: dict[str, list[Tensor]] = {task: [] for task in levels}
        stats: dict[str, Tensor] = {}
        variation = next(iter(maps.values()))[0].new_zeros(())
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            features = {task: own[i] for task, own in maps.items()}
            for name, block in (("route1", first), ("route2", second)):
                features, gates = block(features, generator)
                variation = variation + squared_variation(torch.cat(list(gates.values())).mean(0))
                stats |= {f"{name}.{i}.{task}": g.detach() for task, g in gates.items()}
            for task, x in features.items():
                found[task].append(x)
        merged = {task: self._merge(task, own) for task, own in found.items()}
        stats["variation"] = variation.detach()
        return Decoded(merged, {"balance": self.config.balance_weight * variation}, stats)

    def _merge(self, task: str, maps: list[Tensor]) -> Tensor:
        weights = self.masks[task](torch.cat(maps, 1)).softmax(1)
        return (torch.stack(maps, 1) * weights[:, :, None]).sum(1)
