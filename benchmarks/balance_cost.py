"""What each balancing method costs a step, against the static sum: CPU time of training steps, same batches.

`python -m benchmarks.balance_cost RECIPE [key=value …]` trains every method for a few steps (the first are
left out), each right after the static sum, and prints the ratio of the medians over steps.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from mmzoo import recipe, registry
from mmzoo.batch import Batch

WARM_UP = 3


class Clock(pl.Callback):
    """Keeps the CPU seconds of every step."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start."""
        self._since = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop."""
        self.seconds.append(time.process_time() - self._since)


def measure(name: str, overrides: Sequence[str], method: str, batches: list[Batch]) -> float:
    """Return the median CPU seconds of a step."""
    clock = Clock()
    steps = [f"trainer.max_steps={len(batches)}", "trainer.accelerator=cpu", "trainer.threads=1"]
    built = recipe.build(
        recipe.load(name, [*overrides, *steps, f"learner.balance={method}"]), callbacks=[clock], fetch=False
    )
    built.trainer.fit(built.learner, DataLoader(batches, batch_size=None))  # pyright: ignore[reportArgumentType] a list serves
    return statistics.median(clock.seconds[WARM_UP:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balance_cost", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    built = recipe.build(recipe.load(options.recipe, options.overrides))
    batches = list(itertools.islice(built.datamodule.train_dataloader(), options.steps + WARM_UP))
    for method in sorted(registry.table("balancers")):
        plain = measure(options.recipe, options.overrides, "static", batches)
        seconds = measure(options.recipe, options.overrides, method, batches)
        sys.stdout.write(f"{method:12s} {seconds / plain:5.2f}  ({1000 * plain:.0f} ms the static sum)\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
