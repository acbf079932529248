"""Moving average of the weights (EMA): what validation sees, `best` keeps and the export holds."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from mmzoo import schema
from mmzoo.errors import ConfigError


@dataclass(kw_only=True)
class EmaConfig(schema.Config):
    """Average of the weights over the last 1 / (1 - decay) steps or so."""

    decay: float = 0.0
    """share of the average that a step keeps, e.g. 0.999; 0: no average"""
    start_step: int = 0
    """optimiser step from which on it averages; until then it is a copy of the weights"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.decay < 1:
            raise ConfigError.at("ema.decay", str(self.decay), "0 (off) or a share below 1", "Try 0.999.")
        if self.start_step < 0:
            raise ConfigError.at("ema.start_step", str(self.start_step), "0 or more", "Leave it at 0.")


class Ema(EMAWeightAveraging):
    """Lightning's average, mended for short and resumed runs.

    Math: a <- decay a + (1 - decay) w after each step, from the weights of the first averaged step on.
    Why: before `start_step` Lightning would validate the untrained copy; here the average follows.
    At the end it would overwrite the weights before the last checkpoint is written, here after, so that a
    run that is continued goes on from its own weights. Checkpoints hold the average under `state_dict`, the
    weights under `current_model_state`. Buffers are copied, not averaged: some are whole numbers.
    It would take the average back before the learner's end of validation, which embeds class names for
    zero-shot figures; here after.
    """

    def __init__(self, config: EmaConfig) -> None:
        """Average with the options' decay."""
        start = config.start_step or None
        super().__init__(decay=config.decay, use_buffers=False, update_starting_at_step=start)
        self.start_step = config.start_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after a step, or follow before the start."""
        if trainer.global_step <= self.start_step and self._average_model is not None:
            self._average_model.module.load_state_dict(pl_module.state_dict())
            self._latest_update_step = trainer.global_step
            return
        self._make_room(pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _make_room(self, pl_module: pl.LightningModule) -> None:
        """Give the copy the buffers that have changed their size (a balancer's memory of gradients)."""
        if self._average_model is None:
            return
        for mine, theirs in zip(self._average_model.module.modules(), pl_module.modules(), strict=True):
            own = dict(mine.named_buffers(recurse=False))
            for name, buffer in theirs.named_buffers(recurse=False):
                if name not in own or own[name].shape != buffer.shape:
                    setattr(mine, name, buffer.detach().clone())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the average in the model: its figures are yet to be computed."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the model its weights back."""
        if self._average_model is not None:
            self._swap_models(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the weights alone: the last checkpoint is yet to be written."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model, and be done."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)
            self._average_model = None

    @contextmanager
    def averaged(self, pl_module: pl.LightningModule) -> Generator[None]:
        """Lend the average to the model."""
        if self._average_model is None:
            yield
            return
        self._swap_models(pl_module)
        try:
            yield
        finally:
            self._swap_models(pl_module)


def ema_of(trainer: pl.Trainer) -> Ema | None:
    """Return the trainer's average, if it keeps one."""
    return next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # pyright: ignore[reportAttributeAccessIssue] set by its connector
