"""What watches and keeps a training run, put together: speed, history, progress, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from mmzoo.learners.ema import Ema
from mmzoo.learners.history import History
from mmzoo.learners.keeper import Keeper
from mmzoo.learners.meter import Meter
from mmzoo.learners.progress import Progress
from mmzoo.learners.trainer import TrainerConfig


def run_callbacks(
    config: TrainerConfig, metrics: Path, checkpoints: Path, highlights: Sequence[str] = ()
) -> list[pl.Callback]:
    """Return the callbacks of a run in the order they must act: count, write, show, save (and leave).

    The average of the weights is brought up to date before anything is saved.
    """
    meter, progress = Meter(), Progress(tuple(highlights))
    history = History(metrics, meter, config.log_every_steps, (progress.hear,))
    keeper = Keeper(
        checkpoints, monitor=config.monitor, mode=config.monitor_mode, save_every_s=config.save_every_s
    )
    average = [Ema(config.ema)] if config.ema.decay else []
    return [meter, *average, history, progress, keeper]
