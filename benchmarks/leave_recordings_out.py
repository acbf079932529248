"""CMU actions, three rotations: every recording of an action that has several is the test set once.

The recipe is trained anew for each rotation on all that is not held out, without a validation part (its
options were chosen before, on recordings carved from training). Of actions with a single recording a stretch
is held out, at an end that the rotation's seed draws. Prints the accuracy of each rotation, and of all
windows together: the fixed split of the recipe tests some actions on two windows, which says little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROTATIONS = (
    ("01_12", "01_13", "01_14", "02_09", "03_02", "03_04"),
    ("01_01", "01_02", "01_03", "01_04", "01_05", "02_07", "02_01", "02_02", "03_03"),
    ("01_06", "01_07", "01_08", "01_09", "01_10", "01_11", "02_08", "03_01", "03_04"),
)
"""Recordings that are tested; hop has two recordings, so one of them is tested twice."""


def held_out(number: int) -> list[str]:
    """Return the overrides that hold out a rotation's recordings, and leave nothing for validation."""
    groups = json.dumps(ROTATIONS[number]).replace(" ", "")
    none = ["data.split.val_groups=[]", "data.split.val_share=0"]
    return [f"data.split.test_groups={groups}", f"data.split.seed={number}", *none]


def confusion(number: int, folder: Path, overrides: list[str]) -> tuple[list[str], np.ndarray]:
    """Train without a rotation's recordings; return the classes and the test set's confusion matrix."""
    where = folder / f"rotation_{number}"
    command = [sys.executable, "-m", "mmzoo", "train", "mocap", f"run_dir={where}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, *held_out(number), *overrides], check=True, **quiet)
    subprocess.run([sys.executable, "-m", "mmzoo", "eval", str(where)], check=True, **quiet)
    found = json.loads((where / "eval.json").read_text())["test"]["matrices"]["classify/confusion"]
    return found["rows"], np.array(found["values"])


def accuracy(matrix: np.ndarray) -> dict[str, float]:
    """Return mean-class and plain accuracy of a confusion matrix (rows: truth)."""
    hits, tested = matrix.diagonal(), matrix.sum(axis=1)
    by_class = (hits / tested.clip(min=1))[tested > 0].mean()
    return {"mean_class": float(by_class), "top1": float(hits.sum() / tested.sum())}


def told(matrix: np.ndarray) -> str:
    """Return the accuracies of a confusion matrix in words."""
    found = accuracy(matrix)
    return f"mean class {100 * found['mean_class']:5.1f} %   top-1 {100 * found['top1']:5.1f} %"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further overrides of the recipe")
    options = parser.parse_args()
    total: np.ndarray | None = None
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(ROTATIONS)):
            names, matrix = confusion(number, Path(folder), options.overrides)
            total = matrix if total is None else total + matrix
            print(f"rotation {number}   {told(matrix)}", flush=True)
    if total is not None:
        print(f"together     {told(total)}")
        for name, row in zip(names, total, strict=True):
            counts = ", ".join(f"{int(n)} {other}" for other, n in zip(names, row, strict=True) if n)
            print(f"  {name:10} {counts}")


if __name__ == "__main__":
    main()
