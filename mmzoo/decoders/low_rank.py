"""Convolutions of low rank, mixtures of them, and the one plain convolution that a mixture equals.

Axis letters: k rows, f width, h w grid, e experts, r rank, s all ranks together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

KERNEL = 3
"""Side of the spatial kernel."""


class LowRankConv(nn.Module):
    """y = U (D * x + b_d) + b_u: a 3x3 convolution down to `rank` channels, a 1x1 convolution back up.

    Weights: `down.*` (r f 3 3), `up.*` (f r 1 1), both Kaiming-uniform as torch's linear layers, biases 0.
    Ref: MLoRE section 3.2 (low-rank experts, after LoRA without its zero start).
    """

    def __init__(self, width: int, rank: int) -> None:
        """Make the two convolutions."""
        super().__init__()
        self.rank = rank
        self.down = nn.Conv2d(width, rank, KERNEL, padding=KERNEL // 2)
        self.up = nn.Conv2d(rank, width, 1)
        for conv in (self.down, self.up):
            nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Float[Tensor, "k f h w"]) -> Float[Tensor, "k f h w"]:
        """Convolve."""
        return self.up(self.down(x))


class LowRankMixture(nn.ModuleList):
    """Experts of different ranks, added with weights that each row brings along.

    Math: y = Σ_e g_e (U_e (D_e * x + b_e) + c_e). All experts are evaluated: the products of all ranks are
    one convolution down and one up, since experts add.
    """

    def __init__(self, width: int, ranks: Sequence[int]) -> None:
        """Make an expert of each rank."""
        super().__init__(LowRankConv(width, rank) for rank in ranks)

    def forward(self, x: Float[Tensor, "k f h w"], gates: Float[Tensor, "k e"]) -> Float[Tensor, "k f h w"]:
        """Mix the experts' answers."""
        down, down_bias, up, up_bias = self._stacked()
        hidden = F.conv2d(x, down, down_bias, padding=KERNEL // 2)
        hidden = hidden * self._by_rank(gates)[:, :, None, None]
        return F.conv2d(hidden, up[:, :, None, None]) + (gates @ up_bias)[:, :, None, None]

    def folded(self, gates: Float[Tensor, "k e"]) -> tuple[Float[Tensor, "k f f 3 3"], Float[Tensor, "k f"]]:
        """Return kernel and bias of the one 3x3 convolution that the mixture is for each row.

        Why: the 1x1 convolution follows the 3x3 one without anything between them, so kernels multiply; b_e
        meets no border, being added after the padding.
        """
        down, down_bias, up, up_bias = self._stacked()
        weighted = up[None] * self._by_rank(gates)[:, None]
        kernel = (weighted @ down.flatten(1)).unflatten(2, down.shape[1:])
        return kernel, weighted @ down_bias + gates @ up_bias

    def _experts(self) -> list[LowRankConv]:
        return [expert for expert in self if isinstance(expert, LowRankConv)]

    def _by_rank(self, gates: Float[Tensor, "k e"]) -> Float[Tensor, "k s"]:
        ranks = torch.tensor([expert.rank for expert in self._experts()], device=gates.device)
        return gates.repeat_interleave(ranks, dim=1, output_size=sum(e.rank for e in self._experts()))

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return down (s f 3 3), its bias (s), up (f s), its biases (e f)."""
        parts = [dict(expert.named_parameters()) for expert in self._experts()]
        return (
            torch.cat([p["down.weight"] for p in parts]),
            torch.cat([p["down.bias"] for p in parts]),
            torch.cat([p["up.weight"].flatten(1) for p in parts], dim=1),
            torch.stack([p["up.bias"] for p in parts]),
        )


def conv_by_row(
    x: Float[Tensor, "k f h w"], kernel: Float[Tensor, "k g f 3 3"], bias: Float[Tensor, "k g"]
) -> Float[Tensor, "k g h w"]:
    """Convolve each row with a kernel of its own."""
    rows = len(x)
    grouped = F.conv2d(
        x.flatten(0, 1)[None], kernel.flatten(0, 1), bias.flatten(), padding=KERNEL // 2, groups=rows
    )
    return grouped[0].unflatten(0, (rows, -1))
