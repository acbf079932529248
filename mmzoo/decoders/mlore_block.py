"""One MLoRE block: a router a task chooses among low-rank experts that all tasks share.

Axis letters: k rows, f width, h w grid, e experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.decoders.base import DecoderConfig, pointwise
from mmzoo.decoders.low_rank import LowRankConv, LowRankMixture, conv_by_row
from mmzoo.errors import ConfigError


class GateOrder(str, Enum):
    """Which comes first in making gates of logits."""

    TOP_K_SOFTMAX = "top_k_softmax"
    """softmax over the chosen experts alone: gates add to 1 (released NYUD-v2 models)"""
    SOFTMAX_TOP_K = "softmax_top_k"
    """softmax over all, then the chosen ones are kept as they are (released PASCAL-Context models)"""


class Inference(str, Enum):
    """How a block is computed in evaluation; the result is the same to rounding."""

    EXPERTS = "experts"
    """as in training: every expert on the feature map"""
    FOLDED = "folded"
    """experts, their batch norm, the task's own and the shared kernel become one 3x3 kernel a row"""


@dataclass(kw_only=True)
class MloreConfig(DecoderConfig):
    """Options of the decoder; the defaults are those of the paper's ViT-S model on PASCAL-Context."""

    ranks: list[int] = field(default_factory=lambda: list(range(8, 65, 4)))
    """rank of each expert; their number is that of the experts"""
    top_k: int = 9
    """experts that a router keeps"""
    task_rank: int = 32
    """rank of the convolution that each task has to itself"""
    gate_order: GateOrder = GateOrder.SOFTMAX_TOP_K
    """top_k_softmax (NYUD-v2) or softmax_top_k (PASCAL-Context)"""
    balance_weight: float = 1e-4
    """factor on the balance loss"""
    pool_grid: tuple[int, int] = (32, 32)
    """rows and columns of the routers' learned weights of pixels; other grids get them resized"""
    inference: Inference = Inference.EXPERTS
    """how blocks are computed in evaluation: experts or folded"""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        faults = [
            (self.width % 4 != 0, "width", str(self.width), "a multiple of 4", "Routers work on a quarter."),
            (min(self.ranks, default=0) < 1, "ranks", str(self.ranks), "positive ranks", "Give some."),
            (not 1 <= self.top_k <= len(self.ranks), "top_k", str(self.top_k), "1 to all", "Lower it."),
            (self.task_rank < 1, "task_rank", str(self.task_rank), "a positive rank", "Raise it."),
            (min(self.pool_grid) < 1, "pool_grid", str(self.pool_grid), "two positive sides", "Raise them."),
            (not self.balance_weight >= 0, "balance_weight", str(self.balance_weight), "0 or more", "Use 0."),
        ]  # fmt: skip
        lines = [str(ConfigError.at(f"decoder.{name}", *rest)) for wrong, name, *rest in faults if wrong]
        if lines:
            raise ConfigError("\n".join(lines))


class PixelPool(nn.Module):
    """A learned weighted sum over pixels: y = Σ_n w_n x_n + b.

    Why: the reference ties w to one image size, a linear layer over h*w pixels; here it lies on a grid and is
    resized bilinearly to others, scaled so that the sum of weights stays. At its own size nothing changes.
    Weights: `weight` (1, rows * cols), `bias` (1).
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        """Draw the weights from a truncated normal of 0.02."""
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.empty(1, grid[0] * grid[1]))
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "k f h w"]) -> Float[Tensor, "k f"]:
        """Pool."""
        grid = (x.shape[2], x.shape[3])
        weight = self.weight
        if grid != self.grid:
            table = weight.unflatten(1, self.grid)[None]
            scale = (self.grid[0] * self.grid[1]) / (grid[0] * grid[1])
            weight = F.interpolate(table, grid, mode="bilinear", align_corners=False).flatten(2)[0] * scale
        return (x.flatten(2) * weight).sum(2) + self.bias


class MloreRouter(nn.Module):
    """Looks at a task's feature map and answers one row of numbers for each image.

    Math: a = mean_hw conv3(GELU(LN(conv1 z))); b = conv2(GELU(LN(pool z))); out = out_layer [a ; b].
    Ref: MLoRE section 3.3 and its code.
    """

    def __init__(self, width: int, outputs: int, grid: tuple[int, int]) -> None:
        """Make both branches."""
        super().__init__()
        quarter = width // 4
        self.conv1, self.norm = pointwise(width, quarter), nn.LayerNorm(quarter)
        self.conv3 = pointwise(quarter, quarter)
        self.pool, self.pool_norm = PixelPool(grid), nn.LayerNorm(width)
        self.conv2 = pointwise(width, quarter)
        self.out = pointwise(2 * quarter, outputs)

    def forward(self, z: Float[Tensor, "k f h w"]) -> Float[Tensor, "k o"]:
        """Answer."""
        local = self.norm(self.conv1(z).movedim(1, -1)).movedim(-1, 1)
        local = self.conv3(F.gelu(local)).mean((2, 3), keepdim=True)
        whole = self.conv2(F.gelu(self.pool_norm(self.pool(z)))[:, :, None, None])
        return self.out(torch.cat([local, whole], 1)).flatten(1)


def gates_of(
    logits: Float[Tensor, "k e *places"], top_k: int, order: GateOrder
) -> Float[Tensor, "k e *places"]:
    """Return the experts' weights, zero for all but the `top_k` largest logits."""
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(
        1, logits.topk(top_k, dim=1).indices, value=True
    )
    if order is GateOrder.TOP_K_SOFTMAX:
        return logits.masked_fill(~chosen, -torch.inf).softmax(dim=1)
    return logits.softmax(dim=1).masked_fill(~chosen, 0.0)


class TaskBranch(nn.Module):
    """What a task has to itself in a block: entry, router, low-rank convolution, norms, exit."""

    def __init__(self, config: MloreConfig) -> None:
        """Make the parts."""
        super().__init__()
        width, experts = config.width, len(config.ranks)
        self.enter = pointwise(width, width)
        self.router = MloreRouter(width, 2 * experts + 1, config.pool_grid)
        self.own = LowRankConv(width, config.task_rank)
        self.mixture_norm, self.norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.leave = pointwise(width, width)

    def finish(self, y: Float[Tensor, "k f h w"]) -> Float[Tensor, "k f h w"]:
        """Norm, activate, mix channels."""
        return self.leave(F.gelu(self.norm(y)))


class MloreBlock(nn.Module):
    """Math: for task t, z = enter_t(x); y = BN_t(Σ_e g_e lora_e(z)) + mix * lora_t(z) + share(stop(z)); out =
    leave_t(GELU(BN'_t(y))), with g and mix from the task's router, one of each for an image.

    The shared convolution trains but passes no gradient to its input; `mix` has no bounds. In training
    logits get noise of a scale that the router gives too, without a bound either.
    Ref: MLoRE section 3, and its code where the paper is silent.
    """

    def __init__(self, config: MloreConfig, tasks: tuple[str, ...]) -> None:
        """Make what tasks share and what each has to itself."""
        super().__init__()
        self.config = config
        self.experts = LowRankMixture(config.width, config.ranks)
        self.share = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.branches = nn.ModuleDict({task: TaskBranch(config) for task in tasks})

    def forward(
        self, inputs: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each task's features (k f h w) and gates (k e)."""
        branches = {task: cast("TaskBranch", self.branches[task]) for task in inputs}
        entered = {task: branches[task].enter(x) for task, x in inputs.items()}
        routes = {task: self.route(branches[task], z, generator) for task, z in entered.items()}
        gates = {task: gates for task, (gates, _) in routes.items()}
        if self.config.inference is Inference.FOLDED and not self.training:
            sums = {task: self._folded(branches[task], z, *routes[task]) for task, z in entered.items()}
        else:
            sums = self._mixed(branches, entered, routes)
        return {task: branches[task].finish(y) for task, y in sums.items()}, gates

    def route(
        self, branch: TaskBranch, z: Float[Tensor, "k f h w"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "k e"], Float[Tensor, "k 1"]]:
        """Return the gates of each image and the weight of the task's own convolution."""
        experts = len(self.experts)
        logits, scale, mix = branch.router(z).split([experts, experts, 1], dim=1)
        if self.training:
            noise = torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
            logits = logits + noise * scale
        return gates_of(logits, self.config.top_k, self.config.gate_order), mix

    def _mixed(
        self,
        branches: Mapping[str, TaskBranch],
        entered: Mapping[str, Tensor],
        routes: Mapping[str, tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Run shared experts and convolution once over the rows of all tasks."""
        rows = torch.cat(list(entered.values()))
        sizes = [len(z) for z in entered.values()]
        mixed = self.experts(rows, torch.cat([gates for gates, _ in routes.values()])).split(sizes)
        shared = self.share(rows.detach()).split(sizes)
        sums: dict[str, Tensor] = {}
        for (task, z), mixture, common in zip(entered.items(), mixed, shared, strict=True):
            branch, (_, mix) = branches[task], routes[task]
            sums[task] = branch.mixture_norm(mixture) + mix[:, :, None, None] * branch.own(z) + common
        return sums

    def _folded(
        self, branch: TaskBranch, z: Float[Tensor, "k f h w"], gates: Tensor, mix: Tensor
    ) -> Float[Tensor, "k f h w"]:
        """Run one convolution a row, whose kernel is the sum of all.

        Math: kernel = s K_experts + mix K_t + K_share, s = γ / sqrt(var + eps) of the experts' batch norm.
        """
        norm = branch.mixture_norm
        kernel, bias = self.experts.folded(gates)
        own_kernel, own_bias = folded(branch.own)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # pyright: ignore[reportOptionalOperand] tracked
        shift = norm.bias - norm.running_mean * scale  # pyright: ignore[reportOptionalOperand] tracked
        share_bias = self.share.bias if self.share.bias is not None else torch.zeros_like(shift)
        whole = scale[:, None, None, None] * kernel + self.share.weight
        whole = whole + mix[:, :, None, None, None] * own_kernel
        return conv_by_row(z, whole, scale * bias + shift + mix * own_bias + share_bias)


def folded(conv: LowRankConv) -> tuple[Float[Tensor, "f f 3 3"], Float[Tensor, " f"]]:
    """Return kernel and bias of the 3x3 convolution that a low-rank one is."""
    parts = dict(conv.named_parameters())
    up = parts["up.weight"].flatten(1)
    kernel = (up @ parts["down.weight"].flatten(1)).unflatten(1, parts["down.weight"].shape[1:])
    return kernel, up @ parts["down.bias"] + parts["up.bias"]
