"""Task-oriented channel scaling (TCS): shared features, scaled for each task by token and channel."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from jaxtyping import Float
from torch import Tensor, nn


class Gate(str, Enum):
    """What a gate's last layer ends with; off leaves the features as they are."""

    LINEAR = "linear"
    SIGMOID = "sigmoid"
    OFF = "off"


class TaskChannelScaling(nn.Module):
    """One gate a task: `tcs(x, task)` scales x; `tcs.gate(x, task)` is the factor alone.

    Math: x * g, g = G_t GELU(P_t x), P and G linear; without the sigmoid a gate may change signs.
    Shape: x (... d), any axes before the channels.
    Ref: M3Net 2025 (linear, as released).
    """

    def __init__(self, dim: int, tasks: Sequence[str], kind: Gate = Gate.LINEAR) -> None:
        """Two linear maps a task."""
        super().__init__()
        self.kind = kind
        self.proj, self.out = nn.ModuleDict(), nn.ModuleDict()
        for task in tasks if kind is not Gate.OFF else ():
            self.proj[task], self.out[task] = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def gate(self, x: Float[Tensor, "*axes d"], task: str) -> Float[Tensor, "*axes d"]:
        """Return the factors."""
        if self.kind is Gate.OFF:
            return x.new_ones(()).expand_as(x)
        found = self.out[task](nn.functional.gelu(self.proj[task](x)))
        return found.sigmoid() if self.kind is Gate.SIGMOID else found

    def forward(self, x: Float[Tensor, "*axes d"], task: str) -> Float[Tensor, "*axes d"]:
        """Scale."""
        return x if self.kind is Gate.OFF else x * self.gate(x, task)
