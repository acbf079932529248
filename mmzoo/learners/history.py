"""The history of a run: one JSON object a line as it happens, the same as a CSV table at the end."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmzoo.learners.meter import Meter

Listener = Callable[[dict[str, Any]], None]
"""Hears every line: `step`, `epoch`, `time_s`, then figures named as they were logged (`train/loss`, …)."""


class History(pl.Callback):
    """Writes `metrics.jsonl` every few steps and after each validation, and `metrics.csv` at the end.

    Why: the learner's figures are read straight from it, since Lightning's per-step logging costs more than a
    small model's step. A resumed run first drops the lines after its checkpoint: the file tells one story.
    """

    def __init__(self, path: Path, meter: Meter, every: int, listeners: tuple[Listener, ...] = ()) -> None:
        """Write to `path`, one training line every `every` steps."""
        self.path, self.meter, self.every, self.listeners = path, meter, max(1, every), listeners
        self._logged = -1
        self._start, self._elapsed, self._rate = 0.0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; drop what a resumed run will write again."""
        self._start, self._logged = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_history(self.path) if line["step"] <= trainer.global_step]
            self._elapsed = kept[-1]["time_s"] if kept else 0.0
            self.path.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of this step (of parts without a factor), before the schedule moves on."""
        groups = [g for o in trainer.optimizers for g in o.param_groups if g.get("lr_scale", 1.0)]
        self._rate = groups[0]["lr"] / groups[0].get("lr_scale", 1.0) if groups else 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line where it is due: the first step, every few steps, the last, and where the learner has
        figures that it seldom has."""
        step = trainer.global_step
        due = step % self.every == 0 or step in (1, trainer.max_steps)
        if step == self._logged or not (due or getattr(pl_module, "line_due", False)):
            return
        self._logged = step
        rates = self.meter.read(trainer.world_size)
        if trainer.is_global_zero:
            losses = {k: float(v) for k, v in getattr(pl_module, "last_losses", {}).items()}
            self._write(trainer, {**losses, "lr": self._rate, **rates})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what validation found."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self._write(trainer, found)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the table."""
        if trainer.is_global_zero and self.path.is_file():
            write_csv(read_history(self.path), self.path.with_suffix(".csv"))

    def _write(self, trainer: pl.Trainer, figures: Mapping[str, float]) -> None:
        seconds = self._elapsed + time.perf_counter() - self._start
        head = {"step": trainer.global_step, "epoch": trainer.current_epoch, "time_s": round(seconds, 3)}
        line = {**head, **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for listener in self.listeners:
            listener(line)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(text) for text in texts if text.endswith("}\n")]


def write_csv(lines: list[dict[str, Any]], path: Path) -> None:
    """Write the history as a table: one row a step, one column a figure, empty where it was not measured."""
    columns = dict.fromkeys(key for line in lines for key in line)
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        rows.setdefault(line["step"], {}).update(line)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows.values())
