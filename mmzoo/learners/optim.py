"""Optimiser and schedule: torch's fused AdamW by default, any timm optimiser by name, warm-up then cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn

from mmzoo import schema
from mmzoo.errors import ConfigError, MmzooError, close_matches
from mmzoo.learners.param_groups import ParameterGroup, WeightDecayOn, group_parameters

ADAMW, ADAMW_BETAS, ADAMW_EPS = "adamw", (0.9, 0.98), 1e-8
"""The optimiser that torch fuses, and its options where none are given."""


class Decay(str, Enum):
    """How the learning rate falls after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    POLY = "poly"
    CONSTANT = "constant"


@dataclass(kw_only=True)
class OptimConfig(schema.Config):
    """How parameters are updated."""

    name: str = "adamw"
    """`adamw` (torch, fused) or any optimiser timm lists"""
    lr: float = 1e-3
    """peak learning rate"""
    weight_decay: float = 0.05
    """decoupled; on what, `weight_decay_on` says"""
    weight_decay_on: WeightDecayOn = WeightDecayOn.MATRICES
    """matrices: never on biases, norms, scales, special tokens, positions and relative tables; onepeace: as
    its released training, which spares the biases, norms, CLS tokens and positions of text and image only"""
    betas: tuple[float, ...] | None = None
    """decay of the moment averages; null: the optimiser's own, of adamw here (0.9, 0.98)"""
    eps: float | None = None
    """added to the denominator; null: the optimiser's own, of adamw here 1e-8"""
    warmup: float = 0.05
    """share of all steps with linear warm-up"""
    decay: Decay = Decay.COSINE
    """how the rate falls afterwards"""
    poly_power: float = 0.9
    """exponent of decay poly: the rate is (1 - share of steps done) to this power"""
    min_lr_ratio: float = 0.01
    """final over peak learning rate"""
    layer_decay: float = 1.0
    """learning rate of the layer below over that of a layer; 1: the same for all. Heads and final norms learn
    at `lr`, the last block at lr * layer_decay, …, the adapters at lr * layer_decay^(depth + 1)"""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """part of the model (as for model.freeze) -> one more factor on its learning rate, the longest name wins,
    e.g. {modalities.image: 0.1}"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.lr > 0:
            raise ConfigError.at("optim.lr", str(self.lr), "a positive number", "Try 1e-3.")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError.at("optim.betas", str(self.betas), "shares in [0, 1)", "Try [0.9, 0.98].")
        if self.eps is not None and not self.eps > 0:
            raise ConfigError.at("optim.eps", str(self.eps), "a positive number", "Try 1e-8.")
        if not 0 <= self.warmup < 1:
            raise ConfigError.at("optim.warmup", str(self.warmup), "a share in [0, 1)", "Try 0.05.")
        if not self.poly_power > 0:
            raise ConfigError.at("optim.poly_power", str(self.poly_power), "a positive number", "Try 0.9.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError.at("optim.layer_decay", str(self.layer_decay), "a factor in (0, 1]", "Try 0.9.")
        for part, scale in self.lr_scales.items():
            if not scale >= 0:
                do = "Use model.freeze to keep a part as it is."
                raise ConfigError.at(f"optim.lr_scales.{part}", str(scale), "a factor of 0 or more", do)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[ParameterGroup]:
    """Return the trainable parameters grouped by learning rate and decay, as the options say."""
    return group_parameters(
        model,
        weight_decay=config.weight_decay,
        decay_on=config.weight_decay_on,
        layer_decay=config.layer_decay,
        lr_scales=config.lr_scales,
    )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser over the trainable parameters, without decay where it does harm."""
    groups = parameter_groups(model, config)
    if not groups:
        raise ConfigError.at("learner", "no trainable parameter", "at least one", "Freeze less of the model.")
    params: list[dict[str, Any]] = [
        {
            "params": [p for _, p in group.parameters],
            "weight_decay": group.weight_decay,
            "lr": config.lr * group.lr_scale,
            "lr_scale": group.lr_scale,
        }
        for group in groups
    ]
    given = moment_options(config)
    if config.name == ADAMW:
        options: dict[str, Any] = {"betas": ADAMW_BETAS, "eps": ADAMW_EPS, **given}
        fused = torch.optim.AdamW(params, lr=config.lr, fused=True, **options)
        # compat(lightning): under mixed precision it refuses to clip gradients for optimisers that unscale
        # them by themselves; told that this one does not, it unscales (float16 only) and clips as for others
        fused._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
        return fused
    return _of_timm(params, config, given)


def _of_timm(
    params: list[dict[str, Any]], config: OptimConfig, given: Mapping[str, Any]
) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage] its public place

    scales = [group.pop("lr_scale") for group in params]  # some of its optimisers take no unknown key
    try:
        made = create_optimizer_v2(
            params, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, **given
        )
    except (ValueError, AssertionError, ImportError) as error:
        raise _unusable(config.name, str(error)) from error
    for group, scale in zip(made.param_groups, scales, strict=True):
        group["lr_scale"] = scale
    return made


def moment_options(config: OptimConfig) -> dict[str, Any]:
    """Return `betas` and `eps` where they are given; raise where the optimiser takes none such."""
    given = {k: v for k in ("betas", "eps") if (v := getattr(config, k)) is not None}
    wanted = {"betas": 2, "eps": 1} if config.name == ADAMW else _wanted_by_timm(config.name)
    for name, value in given.items():
        count = len(value) if isinstance(value, tuple) else 1
        if count != wanted[name]:
            expected = f"{wanted[name]} of them" if wanted[name] else f"none, for {config.name} takes none"
            do = f"Leave learner.optim.{name} out, or choose another optimiser."
            raise ConfigError.at(f"optim.{name}", str(value), expected, do)
    return given


def _wanted_by_timm(name: str) -> dict[str, int]:
    """Return how many betas and eps an optimiser of timm takes; raise where it is none that runs here."""
    from timm.optim import (
        get_optimizer_info,  # pyright: ignore[reportPrivateImportUsage] its public place
        list_optimizers,  # pyright: ignore[reportPrivateImportUsage] its public place
    )

    try:
        info = get_optimizer_info(name.lower().rpartition("_")[2])
    except ValueError as error:
        raise _unusable(name, close_matches(name, [ADAMW, *map(str, list_optimizers())])) from error
    if info.second_order:
        raise _unusable(name, "It needs second derivatives; choose one that does not.")
    return {"betas": info.num_betas if info.has_betas else 0, "eps": int(info.has_eps)}


def _unusable(name: str, do: str) -> MmzooError:
    return ConfigError.at("optim.name", repr(name), "adamw or an optimiser of timm", do)


def check_schedule(total_steps: int | float, config: OptimConfig) -> None:
    """Raise ConfigError where a schedule needs the number of steps and time alone ends the training."""
    if math.isinf(total_steps) and (config.warmup > 0 or config.decay is not Decay.CONSTANT):
        found = f"{config.decay.value} with warmup {config.warmup:g} over an unknown number of steps"
        do = "Set trainer.max_steps or max_epochs too, or optim.decay=constant and optim.warmup=0."
        raise ConfigError.at("learner.optim", found, "a schedule that needs no end", do)


def lr_factor(step: int, total_steps: int | float, config: OptimConfig) -> float:
    """Return the factor on the peak learning rate at a step (0-based).

    Math: linear from 1/w to 1 over w warm-up steps, then min + (1 - min) f(u) with u in [0, 1]: f = (1 +
    cos(pi u)) / 2 for cosine, 1 - u for linear, (1 - u)^p for poly.
    """
    warmup = int(config.warmup * total_steps) if config.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if config.decay is Decay.CONSTANT:
        return 1.0
    u = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.decay is Decay.COSINE:
        fall = (1 + math.cos(math.pi * u)) / 2
    else:
        fall = (1 - u) ** (config.poly_power if config.decay is Decay.POLY else 1.0)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * fall
