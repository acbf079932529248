"""Keeps `last.ckpt` to continue from and `best.ckpt` to use; Ctrl-C and SIGTERM leave a good `last.ckpt`."""

from __future__ import annotations

import logging
import math
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmzoo.errors import ConfigError, close_matches
from mmzoo.learners.ema import ema_of

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ASK_EVERY = 10
"""Steps between the ranks' agreements on whether to save or stop (each costs a message)."""


class Interrupted(Exception):  # noqa: N818 it is a wish, not an error
    """Training stopped because the user asked; the checkpoint to continue from has been written."""


class Keeper(pl.Callback):
    """Saves `last` now and then, at validations, at the end and when asked to stop; `best` by a figure.

    A signal only sets a flag: the step in progress is finished, so that the checkpoint is exact and the
    resumed run repeats the uninterrupted one. A second signal stops at once, without saving.
    """

    def __init__(self, folder: Path, *, monitor: str, mode: str, save_every_s: float) -> None:
        """Save into `folder`; `monitor` names the figure whose best value `best` keeps."""
        self.folder, self.monitor, self.mode, self.save_every_s = folder, monitor, mode, save_every_s
        self.best: float | None = None
        self._asked = False
        self._saved_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def last_path(self) -> Path:
        """The checkpoint to continue from."""
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        """The checkpoint that did best on validation."""
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know again what was best."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for signals in place of Lightning, which would leave in the middle of a step."""
        self._saved_at = time.monotonic()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where due, stop where asked; a step that validates does both after its validation."""
        if _within_a_step(trainer) or (trainer.world_size > 1 and trainer.global_step % ASK_EVERY):
            return
        due = time.monotonic() - self._saved_at > self.save_every_s
        stop = self._agreed(trainer, self._asked)
        if (stop or self._agreed(trainer, due)) and not _validates_next(trainer):
            self._save_last(trainer)
            self._leave(trainer, stop)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `last`, and `best` if it is."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._improved(trainer):
            self._save_best(trainer, pl_module)
        self._save_last(trainer)
        self._leave(trainer, self._agreed(trainer, self._asked))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state; without any validation it is also the best there is."""
        self._save_last(trainer)
        if self.best is None:
            self._save_best(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("stopping after this step; once more stops at once, without a checkpoint")

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:  # noqa: FBT001 a vote
        return trainer.strategy.reduce_boolean_decision(wish, all=False) if trainer.world_size > 1 else wish

    def _save_best(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was validated: the average of the weights where there is one."""
        average = ema_of(trainer)
        with average.averaged(pl_module) if average else nullcontext():
            trainer.save_checkpoint(self.best_path, weights_only=True)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last_path, weights_only=False)
        self._saved_at = time.monotonic()

    def _leave(self, trainer: pl.Trainer, stop: bool) -> None:  # noqa: FBT001 what was agreed
        if stop and trainer.global_step != trainer.max_steps:
            raise Interrupted(f"stopped at step {trainer.global_step}")

    def _improved(self, trainer: pl.Trainer) -> bool:
        figures = trainer.callback_metrics
        if self.monitor not in figures:
            do = close_matches(self.monitor, [k for k in figures if k.startswith("val/")])
            raise ConfigError.at("trainer.monitor", repr(self.monitor), "a figure of validation", do)
        value = float(figures[self.monitor])
        if math.isnan(value):  # no ground to call it better, and nothing later would beat it
            return False
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better:
            self.best = value
        return better


def _within_a_step(trainer: pl.Trainer) -> bool:
    """Say whether gradients are still being accumulated, which a checkpoint does not hold."""
    return trainer.accumulate_grad_batches > 1 and trainer.fit_loop._should_accumulate()


def _validates_next(trainer: pl.Trainer) -> bool:
    """Say whether Lightning validates right after this step (it has no public way of asking)."""
    loop = trainer.fit_loop
    fetcher = getattr(loop, "_data_fetcher", None)
    return fetcher is not None and bool(loop.epoch_loop._should_check_val_fx(fetcher))
