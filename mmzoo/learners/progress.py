"""What a watcher sees while a model trains: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)
PLAIN_EVERY_S = 5.0
"""Seconds between plain lines, at least."""
REFRESH_S = 0.1
"""Seconds between two drawings of the bar."""


class Progress(pl.Callback):
    """Shows where training is. It hears the history's lines for figures, and each step only moves the bar."""

    def __init__(self, highlights: tuple[str, ...] = ()) -> None:
        """`highlights` are the validation figures worth a line."""
        self.highlights = highlights
        self.total = 0
        self._live: Any = None
        self._task: Any = None
        self._shown_at = 0.0
        self._start = 0.0
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        steps = trainer.estimated_stepping_batches
        self.total = int(steps) if steps not in (float("inf"), -1) else 0
        self._start, self._first = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero and wants_bar():
            self._open(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._live is not None:
            now = time.perf_counter()
            if now - self._shown_at > REFRESH_S or trainer.global_step == self.total:
                self._shown_at = now
                self._live.update(self._task, completed=trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what is going on."""
        if self._live is not None:
            self._live.update(self._task, description="valid")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on training."""
        if self._live is not None:
            self._live.update(self._task, description="train")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def hear(self, line: Mapping[str, Any]) -> None:
        """Show a line of the history."""
        validated = any(k.startswith("val/") for k in line)
        if validated:
            self._print(val_line(line, self.highlights))
        elif self._live is not None:
            self._live.update(self._task, figures=bar_figures(line))
        elif self._is_due(line["step"]):
            self._print(self._plain(line))

    def _is_due(self, step: int) -> bool:
        now = time.perf_counter()
        if now - self._shown_at < PLAIN_EVERY_S and step not in (1, self.total):
            return False
        self._shown_at = now
        return True

    def _plain(self, line: Mapping[str, Any]) -> str:
        done = line["step"] - self._first
        spent = time.perf_counter() - self._start
        left = f"  left {_clock(spent / done * (self.total - line['step']))}" if self.total and done else ""
        total = f"/{self.total}" if self.total else ""
        return f"step {line['step']}{total}  {train_figures(line)}{left}"

    def _print(self, text: str) -> None:
        live = self._live is not None
        if live:
            self._live.console.print(text, markup=False, highlight=False)
        log.info("%s", text, extra={"quiet": live})

    def _open(self, trainer: pl.Trainer) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._live = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24 if console.width >= 100 else 8),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._live.add_task(
            "train", total=self.total or None, completed=trainer.global_step, figures=""
        )
        self._live.start()


def wants_bar() -> bool:
    """Say whether to draw a live bar: stderr is a terminal, and nobody asked for quiet."""
    return (
        sys.stderr.isatty() and not os.environ.get("MMZOO_NO_PROGRESS") and os.environ.get("TERM") != "dumb"
    )


def train_figures(line: Mapping[str, Any]) -> str:
    """Return loss, learning rate and speed of a training line."""
    parts: list[tuple[str, Callable[[float], str]]] = [
        ("train/loss", lambda v: f"loss {v:.4g}"),
        ("lr", lambda v: f"lr {v:.1e}"),
        ("samples_per_s", lambda v: f"{v:,.0f} samples/s"),
        ("tokens_per_s", lambda v: f"{v / 1e3:,.1f}k tokens/s"),
        ("mfu", lambda v: f"MFU {v:.0%}"),
    ]
    return "  ".join(show(line[key]) for key, show in parts if line.get(key))


def bar_figures(line: Mapping[str, Any]) -> str:
    """Return the same for a bar, which must fit into 80 columns."""
    parts: list[tuple[str, Callable[[float], str]]] = [
        ("train/loss", lambda v: f"loss {v:.4g}"),
        ("samples_per_s", lambda v: f"{v:,.0f}/s"),
        ("tokens_per_s", lambda v: f"{v / 1e3:,.1f}k tok/s"),
        ("mfu", lambda v: f"MFU {v:.0%}"),
    ]
    return "  ".join(show(line[key]) for key, show in parts if line.get(key))


def val_line(line: Mapping[str, Any], highlights: tuple[str, ...]) -> str:
    """Return the validation figures worth showing: the loss, the highlights, else the first few."""
    figures = {k.removeprefix("val/"): v for k, v in line.items() if k.startswith("val/")}
    chosen = [h for h in highlights if h in figures] or [k for k in figures if "loss" not in k][:4]
    shown = dict.fromkeys(k for k in ("loss", *chosen) if k in figures)
    return f"step {line['step']}  validation  " + "  ".join(f"{k} {figures[k]:.4g}" for k in shown)


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
