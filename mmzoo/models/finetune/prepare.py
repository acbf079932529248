"""How much of a model learns: its options `freeze` and `lora`, and what they do to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmzoo import schema
from mmzoo.models.finetune.freeze import set_frozen, settle
from mmzoo.models.finetune.lora import LoraConfig, add_lora, is_factor


@dataclass(kw_only=True)
class FineTuneConfig(schema.Config):
    """Options of fine-tuning that a model has."""

    freeze: list[str] = field(default_factory=list)
    """parts that do not learn, in order, `~` before a part thaws it: trunk, trunk.blocks.0-5,
    trunk.ffn.image, modalities.audio, heads.x, norms, trunk.norms, names with wildcards such as *.bias"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """low-rank factors on linear maps; freezes all but them and the heads"""


def prepare(model: nn.Module, config: FineTuneConfig) -> None:
    """Add the factors and freeze what the options say; factors themselves are never frozen."""
    add_lora(model, config.lora)
    factors = [name for name, _ in model.named_parameters() if is_factor(name)]
    set_frozen(model, config.freeze, keep=factors)
    if config.freeze or config.lora.rank:
        settle(model)


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return what is saved beside weights without the options of fine-tuning: a model like any other."""
    made = {**config, "model": _plain_model(config["model"])}
    saved = config.get("recipe")
    if isinstance(saved, dict) and isinstance(saved.get("model"), dict):
        made["recipe"] = {**saved, "model": _plain_model(saved["model"])}
    return made


def _plain_model(options: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if "trunk" in options:
        parts["trunk"] = _without(options["trunk"], "init_from")
    if "modalities" in options:
        parts["modalities"] = {m: _without(c, "ffn") for m, c in options["modalities"].items()}
    return {**_without(options, "freeze", "lora"), **parts}


def _without(options: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in keys}
