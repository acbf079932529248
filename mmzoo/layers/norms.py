"""Normalisation: the one home of the default epsilon, channel-wise layer norm, and a norm chosen by
modality.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

DEFAULT_EPS = 1e-5
"""Epsilon of every layer norm unless a config says otherwise (ONE-PEACE; timm's ViT has 1e-6)."""


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channel axis of a channel-first map, at each place by itself.

    Shape: (b, c, *places) -> the same. Ref: ONE-PEACE section 3.1 (hMLP stem, audio extractor).
    """

    def forward(self, input: Float[Tensor, "b c *places"]) -> Float[Tensor, "b c *places"]:
        """Normalise."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ModalityNorm(nn.Module):
    """One layer norm a modality, each on its own rows of a modality-major buffer.

    Why: ONE-PEACE ends its shared trunk with a norm of its own for each modality (section 3.1).
    Shape: (t, d) -> (t, d); modalities without rows cost nothing.
    """

    def __init__(self, dim: int, modalities: tuple[str, ...], *, eps: float = DEFAULT_EPS) -> None:
        """Make a norm for each name."""
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim, eps=eps) for name in modalities})

    def forward(self, x: Float[Tensor, "t d"], slices: Mapping[str, tuple[int, int]]) -> Float[Tensor, "t d"]:
        """Normalise the rows `slices[modality]` with that modality's norm; the slices tile the buffer in
        order.
        """
        if len(slices) == 1:
            return self.norms[next(iter(slices))](x)
        parts = x.split([end - start for start, end in slices.values()])
        return torch.cat([self.norms[name](part) for name, part in zip(slices, parts, strict=True)])
