"""Fine-tuning by one override against training from scratch: the same data, steps and seeds.

    python -m benchmarks.fine_tune --out DIR --data mocap rotations known people few --steps 50 150

`mocap`: the recipe's strict split of real motions, which tests some actions on two windows. `rotations`:
every recording of an action that has several is tested once, in three runs whose windows are counted together
(`benchmarks.leave_recordings_out`); nothing validates there. `known`: `mmzoo data make haxby_known --n 48`,
the people whom the weights know in another experiment, nine training runs of 72 volumes each. `people`:
`mmzoo data make haxby --n 48`, the same with four people whom they do not know. `known_few`, `few`: with two
of the training runs.

Rows. `fine-tuned`: `model=five_senses_tiny.five_senses`, nothing else. `scratch`: the same architecture and
inputs with random weights and the recipe's options. `scratch, same options`: and what the card recommends.
`recipe's own model`: the recipe as it is. Every run goes its whole schedule in the given number of steps;
its last weights are reported on the test split, so that no split chooses anything. The card's options were
chosen on the validation splits. `--split val` prints the table of those, with which further options (the last
arguments, for every row) are compared. A run whose figures lie in DIR already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.leave_recordings_out import ROTATIONS, accuracy, held_out
from mmzoo import recipe
from mmzoo.checkpoints import cards
from mmzoo.datamodules.haxby_make import write_haxby, write_haxby_known
from mmzoo.learners.evaluate import evaluate

CHECKPOINT = "five_senses_tiny.five_senses"
FACING = "model.modalities.skeleton.preprocess.facing=front"
"""Of the inputs: what the card recommends for motions recorded in a studio, whose axes mean nothing."""
RUNS = 48
"""Of four people: Haxby's twelve each."""
TWO_RUNS = "data.val_runs=[3,4,5,6,7,8,9,10]"
TRAINING_RUNS = {"known": (), "known_few": (TWO_RUNS,), "people": (), "few": (TWO_RUNS,)}
"""Of the runs that are not tested, those that validate do not train."""
MOTIONS = ("mocap", "rotations")
FIGURES = dict.fromkeys(MOTIONS, ("mean_class", "top1")) | {
    "known": ("top1",),
    "known_few": ("top1",),
    "people": ("top1",),
    "few": ("top1",),
}

ROWS = ("fine-tuned", "scratch", "scratch, same options", "recipe's own model")
CONFUSION = "classify/confusion"
PLAIN = str.maketrans(" ", "_", ",'")
"""From the name of a row to that of a folder."""

Figures = Mapping[str, float]


def rows(data: str) -> dict[str, list[str]]:
    """Return the rows of a table: name -> overrides."""
    card = cards.find(CHECKPOINT)
    modality, inputs = ("skeleton", [FACING]) if data in MOTIONS else ("fmri", [])
    fresh = [f"model={card.arch}"]
    options = [[f"model={CHECKPOINT}"], [*fresh, *inputs], [*fresh, *card.fine_tune[modality]], []]
    return dict(zip(ROWS, options, strict=True))


def base(data: str, out: pathlib.Path) -> tuple[str, list[list[str]]]:
    """Return the recipe and the runs that a figure takes: what each holds out. Data are made on first use."""
    if data == "mocap":
        return "mocap", [[]]
    if data == "rotations":
        return "mocap", [held_out(number) for number in range(len(ROTATIONS))]
    folder, write = (
        (out / "known_people", write_haxby_known)
        if data.startswith("known")
        else (out / "new_people", write_haxby)
    )
    if not folder.exists():
        write(folder, RUNS)
    return "haxby", [[f"data.root={folder}", *TRAINING_RUNS[data]]]


def train(file: pathlib.Path, name: str, overrides: Sequence[str], split: str) -> np.ndarray:
    """Return the confusion matrix (rows: truth) of a run, training it unless the file has it."""
    if not file.is_file():
        print(f"training {file.parent.name}", file=sys.stderr, flush=True)
        built = recipe.build(recipe.load(name, overrides))
        built.trainer.limit_val_batches = 0
        built.trainer.fit(built.learner, datamodule=built.datamodule)
        counts = built.datamodule.info().counts
        found = {
            part: evaluate(built.learner, built.datamodule, part).figures[CONFUSION].tolist()
            for part in ("val", "test")
            if counts.get(part)
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"overrides": list(overrides), "confusion": found}))
    return np.array(json.loads(file.read_text())["confusion"][split])


def measure(asked: argparse.Namespace, data: str, steps: int, seed: int) -> dict[str, Figures]:
    """Return the figures of the rows asked for, for one budget and seed."""
    name, folds = base(data, asked.out)
    options = rows(data)
    budget = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", f"seed={seed}"]
    common = [*budget, "trainer.accelerator=cpu", "trainer.threads=1", *asked.options]
    found: dict[str, Figures] = {}
    for title in asked.rows:
        run = f"{data}-{title.translate(PLAIN)}-{steps}-s{seed}"
        matrices = [
            train(
                asked.out / f"{run}-{number}" / "eval.json",
                name,
                [*options[title], *held, *common],
                asked.split,
            )
            for number, held in enumerate(folds)
        ]
        found[title] = accuracy(np.sum(matrices, axis=0))
    return found


def table(data: str, found: Mapping[int, Sequence[Mapping[str, Figures]]]) -> str:
    """Return the table in Markdown: budgets in columns, per cent, mean ± standard deviation over seeds."""
    columns = [(steps, figure) for steps in found for figure in FIGURES[data]]
    head = [f"{data}", *(f"{steps} steps, {figure}" for steps, figure in columns)]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(columns)]
    for title in next(iter(found.values()))[0]:
        cells = [_spread([100 * seed[title][figure] for seed in found[steps]]) for steps, figure in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def main() -> None:
    """Train what is missing and print a table for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/fine_tune"))
    parser.add_argument("--data", nargs="+", choices=list(FIGURES), default=list(FIGURES))
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 150, 400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. learner.optim.lr=1e-3")
    asked = parser.parse_args()
    if asked.split == "val" and "rotations" in asked.data:
        parser.error(
            "--split val: rotations have no validation part. Leave them out: --data mocap known people"
        )
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for data in asked.data:
        found = {steps: [measure(asked, data, steps, seed) for seed in asked.seeds] for steps in asked.steps}
        print(table(data, found), flush=True)


if __name__ == "__main__":
    main()
