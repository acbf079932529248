"""Dense decoders on the indoor world, against single-task models of the same backbone and budget.

    python -m benchmarks.indoor_table --out DIR --seeds 0 1 2

Trains, one run after the other, the decoders on all six tasks and the plain decoder on each task alone (that
is what Delta_m compares with), all with the same options, and prints the table. A run whose test figures lie
in DIR already is not repeated, so the script may be stopped and started again, or given more seeds later.
Figures: on the test split, whose rooms and sets of furniture occur in no other split. What may differ between
rows is the decoder alone; a single-task model gets as many steps for its one task as the others for all six.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mmzoo.metrics.delta import delta_m

TASKS = {
    "semseg": "semseg/mIoU",
    "human_parts": "human_parts/mIoU",
    "sal": "sal/F_maxf",
    "normals": "normals/mErr_deg",
    "edge": "edge/odsF@0.0075",
    "depth": "depth/rmse_m",
}
"""Task -> its figure in the table."""
DECODERS = {"multi_head": "multi-head baseline", "task_expert": "TaskExpert-style", "mlore": "MLoRE"}
SINGLE = "single-task models"

Figures = Mapping[str, float]


def train(out: pathlib.Path, name: str, overrides: Sequence[str]) -> Figures:
    """Return the test figures of a run, training it unless its folder has them."""
    folder = out / name
    found = folder / "eval.json"
    if not found.is_file():
        print(f"training {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "mmzoo", "train", "indoor", f"run_dir={folder}", "overwrite=true"]
        subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
    return json.loads(found.read_text())["test"]["metrics"]


def one_seed(out: pathlib.Path, seed: int, options: Sequence[str]) -> dict[str, Figures]:
    """Return each row's figures of one seed: the single-task models' first, one figure of each."""
    common = [f"seed={seed}", *options]
    single: dict[str, float] = {}
    for task, figure in TASKS.items():
        single[figure] = train(out, f"single-{task}-s{seed}", [*common, f"only={task}"])[figure]
    rows: dict[str, Figures] = {SINGLE: single}
    for decoder, title in DECODERS.items():
        figures = train(out, f"{decoder}-s{seed}", [*common, f"model=indoor_{decoder}_tiny"])
        rows[title] = {figure: figures[figure] for figure in TASKS.values()}
    return rows


def table(seeds: Mapping[int, Mapping[str, Figures]]) -> str:
    """Return the table in Markdown: mean over seeds, ± their standard deviation where there are several."""
    titles = list(next(iter(seeds.values())))
    lines = [
        "| model | " + " | ".join(TASKS.values()) + " | Delta_m % |",
        "| --- |" + " ---: |" * (len(TASKS) + 1),
    ]
    for title in titles:
        cells = [spread([rows[title][figure] for rows in seeds.values()]) for figure in TASKS.values()]
        gains = [delta_m(rows[title], rows[SINGLE]) for rows in seeds.values()]
        lines.append(f"| {title} | {' | '.join(cells)} | {spread(gains, sign='+')} |")
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return the mean, and the standard deviation where there is more than one value."""
    mean = format(
        statistics.fmean(values), f"{sign}.3g" if abs(statistics.fmean(values)) >= 100 else f"{sign}.3f"
    )
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/indoor_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. trainer.max_steps=200")
    arguments = parser.parse_args()
    found: dict[int, dict[str, Figures]] = {}
    for seed in arguments.seeds:
        found[seed] = one_seed(arguments.out, seed, arguments.options)
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
