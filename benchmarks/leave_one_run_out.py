"""Haxby categories, leave one run out: the recipe's model, trained anew for each run, and ridge regression.

Each of the twelve runs is the test set once; the recipe keeps its options except which runs are held out (the
run after the tested one selects the epoch). Ridge reads the same voxels, prepared the same way, and chooses
its penalty on the training runs alone. Needs the data (`mmzoo train haxby` says how to get them).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mmzoo import recipe

NUM_RUNS = 12
PENALTIES = [10.0**power for power in range(-1, 7)]


def held_out(run: int) -> list[str]:
    """Return the overrides that test one run and select on the next."""
    return [f"data.test_runs=[{run}]", f"data.val_runs=[{run % NUM_RUNS + 1}]"]


def model_accuracy(run: int, folder: Path, overrides: list[str]) -> float:
    """Train the recipe without a run from the command line and return its accuracy on that run, per cent."""
    where = folder / f"run_{run:02}"
    mmzoo = [sys.executable, "-m", "mmzoo"]
    train = [*mmzoo, "train", "haxby", f"run_dir={where}", *held_out(run), *overrides]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    told = subprocess.run([*mmzoo, "eval", str(where), "--json"], check=True, capture_output=True, text=True)
    return 100 * float(json.loads(told.stdout)["metrics"]["classify/top1"])


def ridge_accuracy(run: int) -> float:
    """Return the accuracy of ridge regression on the same volumes, per cent."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.preprocessing import StandardScaler

    built = recipe.build(recipe.load("haxby", held_out(run)))

    def volumes(*splits: str) -> tuple[np.ndarray, np.ndarray]:
        sources = [built.datamodule.source(split) for split in splits]
        samples = [source.get(i, None) for source in sources for i in range(len(source))]
        values = [s.inputs["fmri"].values.flatten().numpy() for s in samples]
        return np.stack(values), np.array([int(s.targets["label"]) for s in samples])

    x, y = volumes("train", "val")
    scaler = StandardScaler().fit(x)
    fitted = RidgeClassifierCV(alphas=PENALTIES).fit(scaler.transform(x), y)
    test_x, test_y = volumes("test")
    return 100 * float((fitted.predict(scaler.transform(test_x)) == test_y).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further overrides of the recipe")
    options = parser.parse_args()
    ours: list[float] = []
    ridge: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(1, NUM_RUNS + 1):
            ours.append(model_accuracy(run, Path(folder), options.overrides))
            ridge.append(ridge_accuracy(run))
            print(f"run {run:2}   mmzoo {ours[-1]:5.1f} %   ridge {ridge[-1]:5.1f} %", flush=True)
    means = f"mmzoo {statistics.mean(ours):5.1f} %   ridge {statistics.mean(ridge):5.1f} %"
    print(f"mean     {means}   (chance 12.5 %)")


if __name__ == "__main__":
    main()
