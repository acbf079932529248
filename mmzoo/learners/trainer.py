"""Trainer options and the Lightning Trainer made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.utils.deterministic
from pytorch_lightning.utilities.exceptions import (
    MisconfigurationException,  # pyright: ignore[reportPrivateImportUsage] its public place
)

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.ema import EmaConfig


class Checkpointing(str, Enum):
    """What is recomputed in backward instead of kept."""

    NONE = "none"
    BLOCK = "block"
    FFN = "ffn"


@dataclass(kw_only=True)
class TrainerConfig(schema.Config):
    """How long, where, how precisely."""

    max_steps: int = -1
    """optimiser steps; below 1: by epochs"""
    max_epochs: int = -1
    """passes through the training split; below 1: by steps"""
    max_minutes: float = 0.0
    """stop after this many minutes of training; 0: no limit"""
    accelerator: str = "auto"
    """auto, cpu or gpu"""
    devices: int = 1
    """processes (CPU) or GPUs"""
    strategy: str = "auto"
    """auto (ddp where devices > 1), ddp, fsdp, or a strategy name of Lightning"""
    precision: str = "32-true"
    """32-true, bf16-mixed or 16-mixed"""
    grad_clip: float = 1.0
    """largest gradient norm; 0: off"""
    accumulate: int = 1
    """batches a step"""
    val_every_steps: int = 0
    """steps between validations; 0: after every epoch"""
    log_every_steps: int = 10
    """steps between lines of metrics.jsonl"""
    save_every_s: float = 60.0
    """seconds between saves of checkpoints/last.ckpt (also saved at validations, at the end, at Ctrl-C)"""
    checkpointing: Checkpointing = Checkpointing.NONE
    """activation checkpointing in the trunk's blocks"""
    compile: bool = False
    """torch.compile the trunk's blocks (GPU; no gain on CPU)"""
    tensorboard: bool = False
    """also write TensorBoard event files (extra: log)"""
    monitor: str = "val/loss"
    """figure whose best value is kept in checkpoints/best.ckpt"""
    monitor_mode: str = "min"
    """min or max"""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice"""
    deterministic: bool = True
    """refuse operations without a deterministic algorithm"""
    sync_batchnorm: bool = False
    """batch norms take their statistics from the batches of all GPUs, not from each one's own"""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """moving average of the weights, which validation and the export then use"""

    def __post_init__(self) -> None:
        """Check that training ends, and the names."""
        faults: list[str] = []
        if self.max_steps < 1 and self.max_epochs < 1 and self.max_minutes <= 0:
            found, do = "no end", "Set trainer.max_steps=1000."
            faults.append(str(ConfigError.at("trainer", found, "max_steps, max_epochs or max_minutes", do)))
        if self.monitor_mode not in ("min", "max"):
            faults.append(
                str(ConfigError.at("trainer.monitor_mode", self.monitor_mode, "min or max", "Choose one."))
            )
        if self.precision not in ("32-true", "bf16-mixed", "16-mixed"):
            expected = "32-true, bf16-mixed or 16-mixed"
            faults.append(str(ConfigError.at("trainer.precision", self.precision, expected, "Choose one.")))
        for name, least in (
            ("devices", 1),
            ("accumulate", 1),
            ("log_every_steps", 1),
            ("val_every_steps", 0),
        ):
            value = getattr(self, name)
            if value < least:
                do = f"Set trainer.{name}={least}."
                faults.append(str(ConfigError.at(f"trainer.{name}", str(value), f"at least {least}", do)))
        if faults:
            raise ConfigError("\n".join(faults))


def build_trainer(
    config: TrainerConfig, run_dir: Path | None, callbacks: Sequence[pl.Callback], loggers: Any
) -> pl.Trainer:
    """Make the Trainer; data order, restarts and files are mmzoo's own, so Lightning's are switched off."""
    on_cpu = config.accelerator == "cpu" or not torch.cuda.is_available()
    if config.sync_batchnorm and config.devices > 1 and on_cpu:
        expected, do = "GPUs: PyTorch has it for them alone", "Set trainer.sync_batchnorm=false."
        raise ConfigError.at("trainer.sync_batchnorm", f"{config.devices} processes on a CPU", expected, do)
    minutes = config.max_minutes
    # 7 % of a small step
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    options: dict[str, Any] = {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "strategy": _strategy(config),
        "precision": config.precision,
        "max_steps": config.max_steps if config.max_steps > 0 else -1,
        "max_epochs": config.max_epochs if config.max_epochs > 0 else -1,
        "max_time": timedelta(minutes=minutes) if minutes > 0 else None,
        "gradient_clip_val": config.grad_clip or None,
        "accumulate_grad_batches": config.accumulate,
        "val_check_interval": config.val_every_steps * config.accumulate or None,
        "check_val_every_n_epoch": None if config.val_every_steps else 1,
        "log_every_n_steps": config.log_every_steps,
        "default_root_dir": str(run_dir) if run_dir else None,
        "logger": loggers or False,
        "callbacks": list(callbacks),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "deterministic": "warn" if config.deterministic else False,
        "sync_batchnorm": config.sync_batchnorm,
    }
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        found = f"accelerator={config.accelerator}, devices={config.devices}, strategy={config.strategy}"
        do = f"Lightning says: {' '.join(str(error).split())}"
        raise ConfigError.at("trainer", found, "what this machine has", do) from error


def allow_several_backward_passes() -> None:
    """Let compiled blocks be gone back through once a task, as comparing the tasks' gradients does.

    Why: a compiled backward pass may write into what the forward pass left, and then refuses a second one.
    Holds for the whole process, so that what was compiled before is compiled anew.
    """
    from torch._functorch import config as functorch

    if functorch.donated_buffer:
        functorch.donated_buffer = False
        torch.compiler.reset()


def _strategy(config: TrainerConfig) -> str:
    if config.strategy in ("auto", "ddp") and config.devices > 1:
        return "ddp_find_unused_parameters_true"  # a rank's batch may lack a modality that another's has
    return config.strategy
