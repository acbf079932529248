"""A decoder after TaskExpert: task-generic experts, assembled by each task's gates, and a memory of its own.

TaskExpert's code was never released, and its paper's text leaves layers and sizes open; what is known is the
scheme (experts shared by tasks, sample-dependent gates a task, a feature memory a task that is read as one
more expert and written at every level). All sizes, activations and the memory's start are mmzoo's design, so
numbers from this module are not the paper's.
Axis letters: k rows, f width, h w grid, e experts and the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.decoders.base import (
    Decoded,
    Decoder,
    DecoderConfig,
    Levels,
    conv_norm_gelu,
    pointwise,
    projected,
    squared_variation,
)
from mmzoo.decoders.mlore_block import GateOrder, gates_of
from mmzoo.errors import ConfigError


class Gate(str, Enum):
    """How finely a task chooses."""

    POOLED = "pooled"
    """one weight an expert for the whole image"""
    TOKEN = "token"
    """one weight an expert at every place"""


class Experts(nn.ModuleList):
    """Math: X_e = GELU(BN(Conv3x3(Conv1x1 x))), one for each expert, shared by all tasks."""

    def __init__(self, dim: int, width: int, count: int) -> None:
        """Make the experts."""
        super().__init__(
            nn.Sequential(pointwise(dim, width), *conv_norm_gelu(width, width)) for _ in range(count)
        )

    def forward(self, x: Float[Tensor, "k c h w"]) -> Float[Tensor, "k e f h w"]:
        """Decompose a feature map."""
        return torch.stack([expert(x) for expert in self], dim=1)


class TaskReader(nn.Module):
    """What a task has to itself at a level: its gate, how it reads its memory, what it writes there.

    Math: g = softmax(W2 GELU(W1 [pool(A x) ; pool(B m)])); F = Conv1x1(GELU(BN(Σ_e g_e X_e))), the last X_e =
    Conv1x1 m; m' = m + F.
    """

    def __init__(self, config: TaskExpertDecoder.Config, dim: int) -> None:
        """Make the layers."""
        super().__init__()
        self.config = config
        width, quarter = config.width, max(1, config.width // 4)
        self.look, self.recall = pointwise(dim, quarter), pointwise(width, quarter)
        self.gate = nn.Sequential(
            pointwise(2 * quarter, quarter), nn.GELU(), pointwise(quarter, config.num_experts + 1)
        )
        self.read = pointwise(width, width)
        self.norm, self.write = nn.BatchNorm2d(width), pointwise(width, width)

    def gates(
        self, x: Float[Tensor, "k c h w"], memory: Float[Tensor, "k f h w"]
    ) -> Float[Tensor, "k e gh gw"]:
        """Return the weight of each expert and, last, of the memory: one, or one a place."""
        seen, recalled = self.look(x), self.recall(memory)
        if self.config.gate is Gate.POOLED:
            seen, recalled = seen.mean((2, 3), keepdim=True), recalled.mean((2, 3), keepdim=True)
        logits = self.gate(torch.cat([seen, recalled], 1))
        return gates_of(logits, self.config.top_k or logits.shape[1], GateOrder.TOP_K_SOFTMAX)

    def forward(
        self,
        x: Float[Tensor, "k c h w"],
        experts: Float[Tensor, "k n f h w"],
        memory: Float[Tensor, "k f h w"],
    ) -> tuple[Float[Tensor, "k f h w"], Float[Tensor, "k e gh gw"]]:
        """Return the new memory and the gates."""
        gates = self.gates(x, memory)
        shared, own = gates[:, :-1, None], gates[:, -1:]
        mixed = (shared * experts).sum(1) + own * self.read(memory)
        return memory + self.write(F.gelu(self.norm(mixed))), gates


class TaskExpertDecoder(Decoder):
    """Goes through the levels from shallow to deep; the memories after the last one are what heads read.

    Aux `balance`: weight * Σ_levels CV^2 of the gates' mean over images, places and tasks.
    Ref: Ye and Xu 2023 (TaskExpert, ICCV) for the scheme; the rest is design, see the module's docstring.
    """

    @dataclass(kw_only=True)
    class Config(DecoderConfig):
        """Options."""

        num_experts: int = 5
        """task-generic experts at each level; the memory is one more"""
        gate: Gate = Gate.POOLED
        """pooled: weights for the whole image; token: at every place"""
        top_k: int = 0
        """experts (the memory among them) that a gate keeps; 0: all"""
        balance_weight: float = 3e-4
        """factor on the balance loss"""

        def __post_init__(self) -> None:
            """Check the numbers."""
            super().__post_init__()
            if self.num_experts < 1:
                raise ConfigError.at("decoder.num_experts", str(self.num_experts), "1 or more", "Raise it.")
            if not 0 <= self.top_k <= self.num_experts + 1:
                expected = f"0 to {self.num_experts + 1}"
                raise ConfigError.at("decoder.top_k", str(self.top_k), expected, "Use 0 for all.")
            if not self.balance_weight >= 0:
                found = str(self.balance_weight)
                raise ConfigError.at("decoder.balance_weight", found, "0 or more", "Use 0 for none.")

    def __init__(self, config: Config, *, dims: tuple[int, ...], tasks: tuple[str, ...]) -> None:
        """Make the experts of each level and the readers and first memory of each task."""
        super().__init__(config, dims=dims, tasks=tasks)
        self.experts = nn.ModuleList(Experts(dim, config.width, config.num_experts) for dim in dims)
        self.readers = nn.ModuleDict(
            {task: nn.ModuleList(TaskReader(config, dim) for dim in dims) for task in tasks}
        )
        self.memories = nn.ParameterDict({task: nn.Parameter(torch.empty(config.width)) for task in tasks})
        for memory in self.memories.values():
            nn.init.trunc_normal_(memory, std=0.02)

    def decode(self, levels: Mapping[str, Levels], generator: torch.Generator | None) -> Decoded:
        """Decode; statistics: `route.<level>.<task>` (k e), the gates averaged over places; `variation`."""
        del generator
        parts = projected(levels, list(self.experts))
        memory = {task: self._start(task, own[0]) for task, own in levels.items()}
        stats: dict[str, Tensor] = {}
        variation = next(iter(memory.values())).new_zeros(())
        for i in range(len(self.dims)):
            means: list[Tensor] = []
            for task, own in levels.items():
                reader = cast("nn.ModuleList", self.readers[task])[i]
                memory[task], gates = reader(own[i], parts[task][i], memory[task])
                means.append(gates.mean((2, 3)))
                stats[f"route.{i}.{task}"] = means[-1].detach()
            variation = variation + squared_variation(torch.cat(means).mean(0))
        stats["variation"] = variation.detach()
        return Decoded(memory, {"balance": self.config.balance_weight * variation}, stats)

    def _start(self, task: str, like: Float[Tensor, "k c h w"]) -> Float[Tensor, "k f h w"]:
        start = self.memories[task][None, :, None, None]
        return start.expand(len(like), -1, *like.shape[2:])
