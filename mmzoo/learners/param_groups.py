"""Groups of parameters that share a learning rate and a weight decay: by layer, by part, by kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from mmzoo.models.finetune.parts import select


class WeightDecayOn(str, Enum):
    """Which parameters weight decay pulls towards zero."""

    MATRICES = "matrices"
    ONEPEACE = "onepeace"


SPECIAL = ("cls", "token", "position", "pos_embed", "_embedding")
"""In names of parameters that stand for a token or a place (`table`: positions or relative biases)."""
HOLDERS = ("mask_tokens", "views")
"""Dicts of such parameters, whose own names are those of modalities."""
STACKED = ("b_", "norm_")
"""Before the names of biases and norms of many experts, which stacked look like matrices."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are updated alike. `layer` 0 is the adapters, i + 1 block i, depth + 1 what follows."""

    layer: int
    lr_scale: float
    weight_decay: float
    parameters: list[tuple[str, nn.Parameter]] = field(default_factory=list, repr=False)

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(p.numel() for _, p in self.parameters)


def group_parameters(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_on: WeightDecayOn = WeightDecayOn.MATRICES,
    layer_decay: float = 1.0,
    lr_scales: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """Group the parameters that learn, in the model's order.

    Math: lr_scale = layer_decay^(L + 1 - layer) times the factor of the part with the longest name.
    Ref: ONE-PEACE's optimiser groups (after BEiT); timm's param_groups_layer_decay differs in the final norm,
    which it counts to the last block and ONE-PEACE to the head.
    """
    layers, last = layer_ids(model)
    scales = part_scales(model, lr_scales or {})
    groups: dict[tuple[int, float, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layers[name] if layer_decay < 1 else last
        scale = layer_decay ** (last - layer) * scales.get(name, 1.0)
        decays = is_decayed(name, parameter, decay_on)
        group = ParameterGroup(layer, scale, weight_decay if decays else 0.0)
        groups.setdefault((layer, scale, decays), group).parameters.append((name, parameter))
    return list(groups.values())


def layer_ids(model: nn.Module) -> tuple[dict[str, int], int]:
    """Return the layer of each parameter and the last layer's number.

    Adapters are 0 but for relative tables of their own for each block, which go with the block; block i is
    i + 1; final norms, projections and heads are depth + 1.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = {int(m[1]) for n in names if (m := re.match(r"trunk\.blocks\.(\d+)\.", n))}
    last = len(blocks) + 1
    tables = [m for n in names if (m := re.match(r"(adapters\.[^.]+\.biases\.)(\d+)\.", n))]
    per_layer = {m[1] for m in tables if int(m[2]) > 0}
    return {name: _layer_id(name, per_layer, last) for name in names}, last


def _layer_id(name: str, per_layer: set[str], last: int) -> int:
    if match := re.match(r"trunk\.blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    if match := re.match(r"(adapters\.[^.]+\.biases\.)(\d+)\.", name):
        return int(match[2]) + 1 if match[1] in per_layer else 0
    return 0 if name.startswith("adapters.") else last


def part_scales(model: nn.Module, lr_scales: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of each parameter that a part names; where several do, the longest name wins."""
    found: dict[str, float] = {}
    for part in sorted(lr_scales, key=len):
        found |= dict.fromkeys(select(model, part, "learner.optim.lr_scales"), lr_scales[part])
    return found


def is_decayed(name: str, parameter: nn.Parameter, decay_on: WeightDecayOn = WeightDecayOn.MATRICES) -> bool:
    """Say whether weight decay applies to a parameter."""
    words = name.split(".")
    leaf = words[-1]
    if parameter.ndim <= 1 or leaf.endswith("bias") or leaf.startswith(STACKED):
        return False
    if decay_on is WeightDecayOn.ONEPEACE:
        # compat(onepeace): relative tables, mask tokens and the position of audio's CLS decay; so do the
        # pretraining decoder's text CLS and image positions, for want of a comma in the released list
        spared = leaf in ("cls_token", "positions") or words[-2:] == ["positions", "table"]
        forgotten = ("text" in words and leaf == "cls_token") or ("image" in words and "positions" in words)
        return not spared or (words[0] != "adapters" and forgotten)
    if leaf == "table" or any(word in HOLDERS for word in words[:-1]):
        return False
    return leaf == "weight" or not any(word in leaf for word in SPECIAL)
