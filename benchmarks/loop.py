"""What a step costs above the mathematics: a bare loop against Lightning with all of mmzoo's callbacks.

Both train the same tiny model on the same batches in one process, in turn; CPU time of one thread, median.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch

from mmzoo import recipe
from mmzoo.learners.callbacks import run_callbacks
from mmzoo.learners.optim import build_optimizer

OPTIONS = """
data.num_events=200 data.num_val=4 data.num_test=4 data.image_size=32 data.loader.batch_size=8
model.modalities.image.preprocess.size=[32,32] model.trunk.dim=32 model.trunk.depth=1
model.trunk.num_heads=2 model.trunk.ffn.hidden_dim=32 model.modalities.fmri.hidden_dim=16
trainer.val_every_steps=100000 trainer.threads=1 trainer.monitor=val/loss trainer.monitor_mode=min
"""
TINY = OPTIONS.split()


def build(steps: int, folder: pathlib.Path | None) -> Any:
    """Build the tiny recipe, with callbacks where there is a folder for them."""
    config = recipe.load("five_senses", [*TINY, f"trainer.max_steps={steps}", f"data.cache_dir={CACHE}"])
    found = run_callbacks(config.trainer, folder / "metrics.jsonl", folder, []) if folder else []
    return recipe.build(config, folder, found)


def bare(steps: int) -> float:
    """Return the CPU seconds of a plain PyTorch loop over the same batches."""
    made = build(steps, None)
    task = made.learner.tasks["align"]
    optimizer = build_optimizer(made.model, made.config.learner.optim)
    loader, done = made.datamodule.train_dataloader(), 0
    start = time.process_time()
    while done < steps:
        for batch in loader:
            optimizer.zero_grad()
            task.loss(made.model(batch, ["align"]), batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(made.model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.process_time() - start


def lightning(steps: int) -> float:
    """Return the CPU seconds of `Trainer.fit` with mmzoo's callbacks, its last checkpoint included."""
    with tempfile.TemporaryDirectory() as folder:
        made = build(steps, pathlib.Path(folder))
        start = time.process_time()
        made.trainer.fit(made.learner, made.datamodule)
        return time.process_time() - start


CACHE = pathlib.Path(tempfile.gettempdir()) / "mmzoo-benchmark-loop"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of both")
    parser.add_argument("--steps", type=int, default=100, help="training steps in each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    bare(5)
    ratios: list[float] = []
    extra: list[float] = []
    for number in range(options.rounds):
        pair = [bare, lightning] if number % 2 == 0 else [lightning, bare]
        found = {run: run(options.steps) for run in pair}
        ratios.append(found[bare] / found[lightning])
        extra.append((found[lightning] - found[bare]) / options.steps * 1e6)
    figures = {"speed_vs_bare_loop": statistics.median(ratios), "extra_us_per_step": statistics.median(extra)}
    if options.json:
        print(json.dumps(figures))
        return
    print(f"speed against a bare loop {figures['speed_vs_bare_loop']:.2f}x, ", end="")
    print(f"{figures['extra_us_per_step']:.0f} us a step more (median of {options.rounds})")


if __name__ == "__main__":
    main()
