"""A linear map whose weight is frozen and learns through two narrow matrices beside it (LoRA)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.errors import ConfigError

FACTOR_A, FACTOR_B = "lora_A.weight", "lora_B.weight"
"""Names of the two factors below the layer's, as in PEFT's files."""


class LoraLinear(nn.Linear):
    """y = W x + b + scale · B A dropout(x), of which A and B learn.

    Why: fine-tunes a layer with rank · (in + out) weights. Names and shapes of `weight` and `bias` stay those
    of the plain layer, so its checkpoints load; reading `.weight` gives W + scale · B A, so code that
    multiplies by it by itself computes the same (without dropout, which it must then do without).
    Weights: `weight` (out in) and `bias` (out) as before, `lora_A.weight` (r in), `lora_B.weight` (out r).
    A starts Kaiming-uniform, B at zero: at first the layer is the old one, bit for bit.
    Ref: Hu et al. 2021 (LoRA), section 4.1.
    """

    in_features: int
    out_features: int

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout_prob: float = 0.0) -> None:
        """Take over the parameters of `base` and put fresh factors of width `rank` beside them."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.scale, self.dropout_prob = rank, scale, dropout_prob
        self._parameters["weight"] = base._parameters["weight"]
        self.register_parameter("bias", base.bias)
        like = {"device": self.base_weight.device, "dtype": self.base_weight.dtype}
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.register_buffer("merged", None, persistent=False)
        self.train(base.training)

    @property
    def base_weight(self) -> nn.Parameter:
        """The frozen W."""
        weight = self._parameters["weight"]
        if weight is None:
            raise ConfigError.at("lora", "a linear map without a weight", "one with", "Choose other targets.")
        return weight

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride] read as the sum
        """W + scale · B A."""
        if self.merged is not None:
            return self.merged
        if self.training and self.dropout_prob > 0.0:
            found = f"{self.dropout_prob:g} on a layer whose weight is read directly"
            raise ConfigError.at(
                "model.lora.dropout_prob", found, "0", "Set it to 0, or choose other targets."
            )
        return torch.addmm(self.base_weight, self.lora_B.weight, self.lora_A.weight, alpha=self.scale)

    def forward(self, input: Float[Tensor, "*rows i"]) -> Float[Tensor, "*rows o"]:
        """Map the rows."""
        return self.project(input, self.bias)

    def project(self, x: Float[Tensor, "*rows i"], bias: Tensor | None) -> Float[Tensor, "*rows o"]:
        """Map the rows, with another bias than the layer's own."""
        if self.merged is not None:
            return F.linear(x, self.merged, bias)
        low = self.lora_A(F.dropout(x, self.dropout_prob, self.training))
        return F.linear(x, self.base_weight, bias) + self.scale * self.lora_B(low)

    def merge(self) -> None:
        """Compute W + scale · B A once and multiply by it from now on; training mode takes it back.

        W itself stays as it is, so `unmerge` gives the very same bits again.
        """
        with torch.no_grad():
            self.eval()
            self.merged = self.weight.detach().clone()

    def unmerge(self) -> None:
        """Multiply by W and by the factors again."""
        self.merged = None

    def train(self, mode: bool = True) -> LoraLinear:  # noqa: FBT001, FBT002 torch's signature
        """Set the mode; factors that change must not be hidden behind an old sum."""
        if mode:
            self.merged = None
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


def linear(layer: nn.Linear, x: Float[Tensor, "*rows i"], bias: Tensor | None) -> Float[Tensor, "*rows o"]:
    """Return the layer's product with another bias than its own, LoRA factors included."""
    if isinstance(layer, LoraLinear):
        return layer.project(x, bias)
    return F.linear(x, layer.weight, bias)
