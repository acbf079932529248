"""LoRA from options: which linear maps get low-rank factors, what else learns, and PEFT's files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.checkpoints.files import write_atomic
from mmzoo.errors import CheckpointError, ConfigError, close_matches
from mmzoo.layers.low_rank import FACTOR_A, FACTOR_B, LoraLinear
from mmzoo.models.finetune.parts import select
from mmzoo.trunk.experts import Experts

log = logging.getLogger(__name__)
FACTORS = (FACTOR_A, FACTOR_B)
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
TARGETS = ("qkv", "out")
EXPERTS = ("ffn", "w_in", "w_out")
"""Targets by which one may mean experts, whose stacked weights are no linear maps."""
TRAINED_IN_FULL = ("heads", "decoder")
"""Parts that learn beside the factors: heads of new tasks could not do without."""


@dataclass(kw_only=True)
class LoraConfig(schema.Config):
    """Low-rank adaptation: everything but the factors and the heads is frozen."""

    rank: int = 0
    """width of the factors; 0: no LoRA"""
    alpha: float | None = None
    """the factors' product is scaled by alpha / rank; null: rank, a scale of 1"""
    dropout_prob: float = 0.0
    """dropout before the factors"""
    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    """linear maps of the trunk by their last name (qkv, out, w_in, w_out), ffn for those of the
    feed-forwards, or parts of the model such as modalities.fmri.core; experts take no factors"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        faults: list[ConfigError | Any] = []
        if self.rank < 0:
            faults.append(ConfigError.at("lora.rank", str(self.rank), "0 (off) or more", "Try 8."))
        if self.alpha is not None and not self.alpha > 0:
            faults.append(ConfigError.at("lora.alpha", str(self.alpha), "a positive number", "Try null."))
        if not 0 <= self.dropout_prob < 1:
            faults.append(ConfigError.at("lora.dropout_prob", str(self.dropout_prob), "0 <= p < 1", "Try 0."))
        given = {
            "alpha": self.alpha is not None,
            "dropout_prob": self.dropout_prob > 0,
            "targets": self.targets != list(TARGETS),
        }
        if not self.rank and any(given.values()):
            idle = " and ".join(name for name, is_given in given.items() if is_given)
            do = f"Set model.lora.rank=8, or leave {idle} out."
            faults.append(ConfigError.at("lora.rank", f"0 (off), but {idle} given", "1 or more then", do))
        if self.rank and not self.targets:
            faults.append(ConfigError.at("lora.targets", "none", "linear maps", "Try [qkv, out]."))
        if faults:
            raise ConfigError("\n".join(map(str, faults)))

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return 1.0 if self.alpha is None else self.alpha / max(self.rank, 1)


def add_lora(model: nn.Module, config: LoraConfig) -> list[str]:
    """Replace the targets by LoraLinear, freeze all but factors and heads; return the targets' names."""
    if not config.rank:
        return []
    targets = _targets(model, config.targets)
    idle = [n for n, module in model.named_modules() if isinstance(module, Experts)]
    if idle and set(config.targets) & set(EXPERTS):
        log.warning("lora: experts take no factors, %d stay frozen (%s first)", len(idle), idle[0])
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        owner, base = model.get_submodule(parent), model.get_submodule(name)
        if not isinstance(base, nn.Linear):
            raise ConfigError.at("model.lora.targets", name, "a linear map", "Choose other targets.")
        setattr(owner, leaf, LoraLinear(base, config.rank, config.scale, config.dropout_prob))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_factor(name) or name.partition(".")[0] in TRAINED_IN_FULL)
    return targets


def is_factor(name: str) -> bool:
    """Say whether a parameter is a LoRA factor."""
    return name.endswith(FACTORS)


def _targets(model: nn.Module, wanted: list[str]) -> list[str]:
    linears = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    in_trunk = [n for n in linears if n.startswith("trunk.")]
    chosen: dict[str, None] = {}
    for target in wanted:
        found = [n for n in in_trunk if n.rpartition(".")[2] == target]
        if target == "ffn":
            found = [n for n in in_trunk if ".ffn." in n]
        if not found and ("." in target or "*" in target):
            owners = {n.rpartition(".")[0] for n in select(model, target, "model.lora.targets")}
            found = [n for n in linears if n in owners]
        if not found:
            known = {n.rpartition(".")[2] for n in in_trunk} | {"ffn" for n in in_trunk if ".ffn." in n}
            found_text, expected = (
                f"{target!r} names no linear map",
                "names of the trunk's linear maps or a part",
            )
            if target in EXPERTS and any(isinstance(module, Experts) for module in model.modules()):
                found_text += " (experts take no LoRA)"
            raise ConfigError.at("model.lora.targets", found_text, expected, close_matches(target, known))
        chosen |= dict.fromkeys(found)
    return [n for n in linears if n in chosen]


def merge(model: nn.Module) -> int:
    """Fold every layer's factors into the weight it multiplies by; `unmerge` gives the same bits back."""
    layers = lora_layers(model)
    for layer in layers.values():
        layer.merge()
    return len(layers)


def unmerge(model: nn.Module) -> int:
    """Take `merge` back."""
    layers = lora_layers(model)
    for layer in layers.values():
        layer.unmerge()
    return len(layers)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return the layers that have factors, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def merged_state(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return a state dict with every pair of factors folded into its weight: a plain model's."""
    plain = {name: tensor for name, tensor in state.items() if not is_factor(name)}
    for name, low in state.items():
        if name.endswith(FACTOR_A):
            layer = name.removesuffix(FACTOR_A)
            high, weight = state[layer + FACTOR_B], state[f"{layer}weight"]
            plain[f"{layer}weight"] = weight.addmm(high.to(weight.dtype), low.to(weight.dtype), alpha=scale)
    return plain


def write_adapter(model: nn.Module, config: LoraConfig, folder: str | Path, base: str = "") -> Path:
    """Write the factors, and what else learned, in PEFT's names: two small files beside a base model.

    Where a layer learned, its buffers (a batch norm's statistics) are part of what it learned.
    """
    folder = Path(folder)
    learned = {n: p.requires_grad for n, p in model.named_parameters()}
    others = dict.fromkeys(_owner(n) for n, learns in learned.items() if learns and not is_factor(n))
    own = {n: t for n, t in model.state_dict().items() if learned.get(n, _owner(n) in others)}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PEFT_PREFIX + n: t.detach().cpu().contiguous() for n, t in own.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    options = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.rank * config.scale,
        "lora_dropout": config.dropout_prob,
        "target_modules": list(lora_layers(model)),
        "modules_to_save": list(others) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    write_atomic(folder / ADAPTER_CONFIG, (json.dumps(options, indent=2) + "\n").encode())
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> LoraConfig:
    """Put factors from PEFT's files onto a plain base model; return their options."""
    folder = Path(folder)
    try:
        options: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        config = _options_of(options)
    except KeyError as error:
        found, expected = f"no option {error}", "PEFT's options of LoRA"
        raise CheckpointError.at(str(folder / ADAPTER_CONFIG), found, expected, "Mend the file.") from error
    except (OSError, ValueError) as error:
        expected = f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
        raise CheckpointError.at(str(folder), str(error), expected, "Give an adapter's folder.") from error
    add_lora(model, config)
    state = {k.removeprefix(PEFT_PREFIX): t for k, t in tensors.items()}
    known = model.state_dict()
    wrong = [n for n, t in state.items() if n not in known or known[n].shape != t.shape]
    missing = [n for n in known if is_factor(n) and n not in state]
    if wrong or missing:
        first = [*wrong, *missing][0]
        found = f"{len(wrong)} tensors that the model lacks, {len(missing)} missing ({first} first)"
        raise CheckpointError.at(str(folder), found, "an adapter of this model", "Build its base model.")
    model.load_state_dict(state, strict=False)
    return config


def _options_of(options: Mapping[str, Any]) -> LoraConfig:
    """Read PEFT's options; the rank-stabilised scale alpha / sqrt(rank) becomes an alpha that gives it."""
    rank, alpha, targets = int(options["r"]), float(options["lora_alpha"]), options["target_modules"]
    if not isinstance(targets, list):
        raise ConfigError.at("target_modules", repr(targets), "a list of names", "Write the names out.")
    return LoraConfig(
        rank=rank,
        alpha=alpha * math.sqrt(rank) if options.get("use_rslora") else alpha,
        dropout_prob=float(options.get("lora_dropout", 0.0)),
        targets=[str(t) for t in targets],
    )


def _owner(name: str) -> str:
    """Return the module that holds a parameter, for PEFT to save whole: `heads.classify.linear`."""
    return name.rpartition(".")[0] or name
