"""What open_clip's image and text towers share as adapters: options, freezing, the way into the trunk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.layers.init import trunc_normal_
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.modalities.open_clip_zoo import OpenClipModel, check_name, create_tower


class TowerOutput(str, Enum):
    """What of a tower becomes tokens."""

    TOKENS = "tokens"
    POOLED = "pooled"


@dataclass(kw_only=True)
class TowerConfig(OpenClipModel, ModalityAdapter.Config):
    """Options of a tower; each side adds its `preprocess`."""

    row: ClassVar[str]

    freeze: bool = False
    "Whether the tower is left as it is: evaluation mode, no gradient."
    out: TowerOutput = TowerOutput.TOKENS
    "tokens or pooled."
    preprocess: Any
    "From the raw input to what the tower reads."

    def __post_init__(self) -> None:
        """Check the name; let preprocess know whose record or tokenizer is meant."""
        check_name(self.model, self.tag, self.row)
        self.preprocess.model = self.preprocess.model or self.model


class OpenClipTower(ModalityAdapter):
    """A tower, a projection of its output to the trunk's width, and a CLS token of our own before it.

    A frozen tower stays in evaluation mode and out of the graph, whatever the model's mode.
    """

    Config = TowerConfig
    side: ClassVar[str]

    def __init__(self, config: Any, *, name: str, dim: int, num_heads: int) -> None:
        """Create the tower and the projection."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        self.tower: Any = create_tower(config, self.side, name)
        self.proj = nn.Linear(self.settle_output(), dim)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        trunc_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        if config.freeze:
            self.tower.requires_grad_(requires_grad=False)
            self.tower.eval()

    def settle_output(self) -> int:
        """Drop what the wanted output leaves unused of the new tower, and return that output's width."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> OpenClipTower:  # noqa: FBT001, FBT002 torch's signature
        """Switch the mode of all but a frozen tower."""
        super().train(mode)
        if self.config.freeze:
            self.tower.eval()
        return self

    def gradients(self) -> AbstractContextManager[Any]:
        """Return the context that the tower runs in."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze)

    def after_cls(self, tokens: Float[Tensor, "k n d"]) -> Float[Tensor, "k n+1 d"]:
        """Put the CLS token before a sequence."""
        cls = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([cls, tokens], dim=1)
