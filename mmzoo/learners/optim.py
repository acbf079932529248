"""Optimiser and schedule: torch's fused AdamW by default, any timm optimiser by name, warm-up then cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import nn

from mmzoo import schema
from mmzoo.errors import ConfigError


class Decay(str, Enum):
    """How the learning rate falls after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


@dataclass(kw_only=True)
class OptimConfig(schema.Config):
    """How parameters are updated."""

    name: str = "adamw"
    """`adamw` (torch, fused) or any optimiser timm lists"""
    lr: float = 1e-3
    """peak learning rate"""
    weight_decay: float = 0.05
    """decoupled; never on biases, norms, scales, CLS tokens and positions"""
    betas: tuple[float, float] = (0.9, 0.98)
    """decay of the moment averages"""
    eps: float = 1e-8
    """added to the denominator"""
    warmup: float = 0.05
    """share of all steps with linear warm-up"""
    decay: Decay = Decay.COSINE
    """how the rate falls afterwards"""
    min_lr_ratio: float = 0.01
    """final over peak learning rate"""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """parameter-name prefix -> factor on its learning rate (longest prefix wins), e.g. {adapters.image:
    0.1}"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.lr > 0:
            raise ConfigError.at("optim.lr", str(self.lr), "a positive number", "Try 1e-3.")
        if not 0 <= self.warmup < 1:
            raise ConfigError.at("optim.warmup", str(self.warmup), "a share in [0, 1)", "Try 0.05.")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser over the trainable parameters, without decay where it does harm."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (_decays(name, parameter), _scale(name, config.lr_scales))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ConfigError.at("learner", "no trainable parameter", "at least one", "Freeze less of the model.")
    params = [
        {"params": p, "weight_decay": config.weight_decay if decays else 0.0, "lr": config.lr * scale}
        for (decays, scale), p in groups.items()
    ]
    if config.name == "adamw":
        fused = torch.optim.AdamW(params, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        # compat(lightning): under mixed precision it refuses to clip gradients for optimisers that unscale
        # them by themselves; told that this one does not, it unscales (float16 only) and clips as for others
        fused._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
        return fused
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage] its public place

    try:
        return create_optimizer_v2(params, opt=config.name, lr=config.lr, weight_decay=config.weight_decay)
    except (ValueError, AssertionError) as error:
        do = f"timm says: {error}"
        raise ConfigError.at("optim.name", repr(config.name), "adamw or an optimiser of timm", do) from error


def check_schedule(total_steps: int | float, config: OptimConfig) -> None:
    """Raise ConfigError where a schedule needs the number of steps and time alone ends the training."""
    if math.isinf(total_steps) and (config.warmup > 0 or config.decay is not Decay.CONSTANT):
        found = f"{config.decay.value} with warmup {config.warmup:g} over an unknown number of steps"
        do = "Set trainer.max_steps or max_epochs too, or optim.decay=constant and optim.warmup=0."
        raise ConfigError.at("learner.optim", found, "a schedule that needs no end", do)


def lr_factor(step: int, total_steps: int | float, config: OptimConfig) -> float:
    """Return the factor on the peak learning rate at a step (0-based).

    Math: linear from 1/w to 1 over w warm-up steps, then min + (1 - min) (1 + cos(pi u)) / 2 with u in [0,
    1].
    """
    warmup = int(config.warmup * total_steps) if config.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if config.decay is Decay.CONSTANT:
        return 1.0
    u = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    fall = (1 + math.cos(math.pi * u)) / 2 if config.decay is Decay.COSINE else 1 - u
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * fall


def _decays(name: str, parameter: nn.Parameter) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and not any(w in leaf for w in ("cls", "position", "pos_embed", "bias"))


def _scale(name: str, scales: dict[str, float]) -> float:
    matching = [p for p in scales if name.startswith(p)]
    return scales[max(matching, key=len)] if matching else 1.0
