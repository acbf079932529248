"""M3Net on simulated streets: three tasks jointly, one at a time, without MAFI, without channel scaling.

    python -m benchmarks.m3net_world --out DIR --seeds 0 1 2

Trains the recipe `driving`, one run after the other, each row by one override, and prints the table: what a
joint model gains or loses against the single-task models, and what the two parts of M3Net are worth. A run
whose figures lie in DIR already is not repeated, so the script may be stopped and started again, or given
more seeds later. Figures: on the test streets, which no model has seen. All models have the same backbone and
as many steps; a single-task model spends them on its one task. `--split val` prints the table of the
validation streets, where options are chosen.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks.indoor_table import spread
from mmzoo.metrics.delta import delta_m

FIGURES = {"boxes": "boxes/NDS4", "map": "map/mIoU", "occupancy": "occupancy/mIoU"}
"""Task -> its figure in the table."""
JOINT = {
    "joint": (),
    "joint, MAFI off": ("model.fusion=conv",),
    "joint, TCS off": ("model.gate=off",),
}
"""Row -> what differs from the recipe."""
SINGLE = "single-task models"

Figures = Mapping[str, float]


def train(out: pathlib.Path, name: str, overrides: Sequence[str], split: str) -> Figures:
    """Return the figures of a run, training and evaluating it unless its folder has them."""
    folder = out / name
    found = folder / "eval.json"
    if not found.is_file():
        print(f"training {name}", file=sys.stderr, flush=True)
        mmzoo("train", "driving", f"run_dir={folder}", "overwrite=true", *overrides)
    if split not in json.loads(found.read_text()):
        mmzoo("eval", str(folder), "--split", split)
    return json.loads(found.read_text())[split]["metrics"]


def mmzoo(*words: str) -> None:
    """Run a command of mmzoo; what it prints goes nowhere."""
    subprocess.run([sys.executable, "-m", "mmzoo", *words], check=True, stdout=subprocess.DEVNULL)


def one_seed(out: pathlib.Path, seed: int, options: Sequence[str], split: str) -> dict[str, Figures]:
    """Return each row's figures of one seed: the single-task models' first, one figure of each."""
    common = [f"seed={seed}", *options]
    rows: dict[str, Figures] = {}
    for title, overrides in JOINT.items():
        name = title.replace(", ", "-").replace(" ", "-").lower()
        figures = train(out, f"{name}-s{seed}", [*common, *overrides], split)
        rows[title] = {figure: figures[figure] for figure in FIGURES.values()}
    single = {
        figure: train(out, f"{task}-alone-s{seed}", [*common, f"only=[{task}]"], split)[figure]
        for task, figure in FIGURES.items()
    }
    return {SINGLE: single, **rows}


def table(seeds: Mapping[int, Mapping[str, Figures]]) -> str:
    """Return the table in Markdown: mean over seeds, ± their standard deviation where there are several."""
    titles = list(next(iter(seeds.values())))
    lines = [
        "| model | " + " | ".join(FIGURES.values()) + " | Delta_m % |",
        "| --- |" + " ---: |" * (len(FIGURES) + 1),
    ]
    for title in titles:
        cells = [spread([rows[title][figure] for rows in seeds.values()]) for figure in FIGURES.values()]
        gains = [delta_m(rows[title], rows[SINGLE]) for rows in seeds.values()]
        lines.append(f"| {title} | {' | '.join(cells)} | {spread(gains, sign='+')} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/m3net_world"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. trainer.max_steps=200")
    arguments = parser.parse_args()
    found: dict[int, dict[str, Figures]] = {}
    for seed in arguments.seeds:
        found[seed] = one_seed(arguments.out, seed, arguments.options, arguments.split)
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
