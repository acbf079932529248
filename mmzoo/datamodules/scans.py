"""Finding and reading fMRI runs on disk: NIfTI images, their events and masks, in two layouts.

BIDS: `sub-01/[ses-a/]func/sub-01_[…]_bold.nii.gz` with `…_events.tsv` and a `…_bold.json` beside or above it.
OpenfMRI: `sub001/BOLD/task001_run001/bold*.nii.gz` with `*events.tsv` in the same folder.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mmzoo.errors import ConfigError, DataError, close_matches

SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
"""Units of time a NIfTI header may name; headers that name none mean seconds."""
MATCHED = ("sub", "ses", "task", "acq", "run")
"""BIDS entities by which an image finds its events (`space-`, `desc-`, … belong to the image alone)."""


@dataclass(frozen=True)
class Event:
    """One line of an events file: times in seconds from the start of the run."""

    onset_s: float
    duration_s: float
    label: str


@dataclass(frozen=True)
class Run:
    """One run of one subject; `number` counts a subject's runs from 1 in the order of their names."""

    subject: str
    number: int
    name: str
    image: Path
    events: Path

    @property
    def id(self) -> str:
        """Return `subject/name`."""
        return f"{self.subject}/{self.name}"


def nibabel() -> Any:
    """Import nibabel, or say which extra brings it."""
    try:
        import nibabel as package
    except ImportError as error:
        do = "Install mmzoo[fmri]."
        raise ConfigError.at("data.type: bids", "nibabel is not installed", "the extra `fmri`", do) from error
    return package


def find_runs(root: Path, image: str, task: str = "", subjects: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Return the runs of each subject under `root`, in order; `image` is the image's (last) name: `bold`.

    Raises DataError saying what was looked for where nothing, or a run without events, is found.
    """
    folders = {p.name: p for p in sorted(root.glob("sub*")) if p.is_dir()}
    for name in subjects:
        if name not in folders:
            raise DataError.at(str(root), f"no subject {name!r}", "its folder", close_matches(name, folders))
    found: dict[str, list[Run]] = {}
    for subject, folder in folders.items():
        if subjects and subject not in subjects:
            continue
        images = [*_openfmri_images(folder, image, task), *_bids_images(folder, image, task)]
        runs = [
            Run(subject, number, _run_name(path), path, _events_of(path))
            for number, path in enumerate(images, start=1)
        ]
        if runs:
            found[subject] = runs
    if not found:
        expected = f"sub*/BOLD/{task or 'task*'}_run*/{image}.nii.gz or sub-*/[ses-*/]func/*_{image}.nii.gz"
        raise DataError.at(str(root), "no fMRI runs", expected, _other_images(folders.values(), image))
    return found


def _openfmri_images(folder: Path, image: str, task: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"BOLD/{task or 'task'}*_run*/{image}.nii*"))


def _bids_images(folder: Path, image: str, task: str) -> list[Path]:
    paths = [*folder.glob(f"func/*_{image}.nii*"), *folder.glob(f"ses-*/func/*_{image}.nii*")]
    return sorted(p for p in paths if not task or _entities(p).get("task") == task)


def _other_images(folders: Any, image: str) -> str:
    names = {p.name.split(".nii")[0].rsplit("_", 1)[-1] for f in folders for p in f.glob("**/func/*.nii*")}
    names |= {p.name.split(".nii")[0] for f in folders for p in f.glob("BOLD/*/*.nii*")}
    return close_matches(image, names) if names else "Set data.root to the folder that holds the subjects."


def _entities(path: Path) -> dict[str, str]:
    return dict(re.findall(r"([a-z]+)-([A-Za-z0-9]+)", path.name))


def _run_name(image: Path) -> str:
    if image.parent.parent.name == "BOLD":
        return image.parent.name
    return image.name.split(".nii")[0]


def _events_of(image: Path) -> Path:
    if image.parent.parent.name == "BOLD":
        found = sorted(image.parent.glob("*events.tsv"))
    else:
        mine = {k: v for k, v in _entities(image).items() if k in MATCHED}
        found = [
            p
            for p in sorted(image.parent.glob("*_events.tsv"))
            if {k: v for k, v in _entities(p).items() if k in MATCHED} == mine
        ]
    if len(found) != 1:
        listed = ", ".join(p.name for p in found) or "none"
        raise DataError.at(
            str(image), f"events files: {listed}", "exactly one *_events.tsv of this run", "Add it."
        )
    return found[0]


def read_events(path: Path, column: str) -> list[Event]:
    """Read onset, duration and the label column of an events file; lines labelled `n/a` are left out."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = list(rows[0]) if rows else []
    for name in ("onset", "duration", column):
        if name not in columns:
            found = f"columns {', '.join(columns) or 'none'}"
            raise DataError.at(
                str(path), found, f"onset, duration and {column}", f"Add {name}, or set label_column."
            )
    events: list[Event] = []
    for line, row in enumerate(rows, start=2):
        label = (row[column] or "").strip()
        if label in ("", "n/a"):
            continue
        try:
            events.append(Event(float(row["onset"]), float(row["duration"]), label))
        except (TypeError, ValueError) as error:
            found = f"onset {row['onset']!r}, duration {row['duration']!r}"
            raise DataError.at(
                f"{path}, line {line}", found, "numbers of seconds", "Mend the line."
            ) from error
    return sorted(events, key=lambda e: e.onset_s)


def read_geometry(run: Run, tr_s: float | None = None) -> tuple[int, float]:
    """Return a run's number of volumes and its repetition time in seconds; reads no voxels."""
    header = nibabel().load(run.image).header
    shape = header.get_data_shape()
    if len(shape) != 4:
        raise DataError.at(
            str(run.image), f"{len(shape)} axes", "4 (x y z time)", "Give one 4-D image a run."
        )
    step = tr_s or _sidecar_tr(run) or float(header.get_zooms()[3]) * SECONDS[header.get_xyzt_units()[1]]
    if not (math.isfinite(step) and step > 0):
        raise DataError.at(str(run.image), f"repetition time {step:g} s", "a positive time", "Set data.tr_s.")
    return int(shape[3]), step


def _sidecar_tr(run: Run) -> float | None:
    stem = run.image.name.split(".nii")[0]
    task = _entities(run.image).get("task")
    beside = [run.image.with_name(f"{stem}.json")]
    above = [p / f"task-{task}_bold.json" for p in run.image.parents[1:4]] if task else []
    for path in [*beside, *above]:
        if path.is_file():
            value = json.loads(path.read_text()).get("RepetitionTime")
            if value:
                return float(value)
    return None


def find_mask(root: Path, run: Run, mask: str) -> Path:
    """Find a subject's mask: a path under `root` ({subject} filled in), or a name among `<subject>/masks/`.

    Of several files of that name, the one on the run's grid counts (shape and affine).
    """
    if "/" in mask or ".nii" in mask:
        candidates = [root / mask.format(subject=run.subject)]
    else:
        candidates = sorted((root / run.subject).glob(f"masks/**/{mask}.nii*"))
    candidates = [p for p in candidates if p.is_file()]
    if not candidates:
        known = {p.name.split(".nii")[0] for p in (root / run.subject).glob("masks/**/*.nii*")}
        raise DataError.at(
            f"mask of {run.subject}", f"no mask {mask!r}", "a mask image", close_matches(mask, known)
        )
    image = nibabel().load(run.image)
    fits = [p for p in candidates if _same_grid(nibabel().load(p), image)]
    if not fits:
        found = f"{candidates[0]} has the grid {nibabel().load(candidates[0]).shape}"
        do = "Resample it (nilearn.image.resample_to_img), or choose the image it was made for (data.image)."
        raise DataError.at(
            f"mask of {run.subject}", found, f"that of {run.image.name}, {image.shape[:3]}", do
        )
    return fits[0]


def _same_grid(mask: Any, image: Any) -> bool:
    return mask.shape[:3] == image.shape[:3] and np.allclose(mask.affine, image.affine, atol=1e-3)


def read_mask(path: Path, threshold: float) -> Bool[np.ndarray, "x y z"]:
    """Return where a mask image exceeds the threshold."""
    values = np.asarray(nibabel().load(path).dataobj, dtype=np.float32)
    return values.reshape(values.shape[:3]) > threshold


def read_volumes(run: Run) -> Float[np.ndarray, "x y z t"]:
    """Read a run's voxels as float32, scaled as its header says."""
    try:
        return np.asarray(nibabel().load(run.image).dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError.at(
            str(run.image), f"unreadable ({reason})", "an intact NIfTI image", "Fetch it again."
        ) from error


def bright_mask(runs: Sequence[Run], threshold: float) -> Bool[np.ndarray, "x y z"]:
    """Return voxels that vary in every run and whose mean exceeds `threshold` x the 98th percentile of means.

    Why: without a mask file the head must be told from the air around it. Only training runs are looked at.
    """
    total, alive = None, None
    for run in runs:
        values = read_volumes(run)
        total = values.mean(axis=-1) if total is None else total + values.mean(axis=-1)
        varies = values.std(axis=-1) > 0
        alive = varies if alive is None else alive & varies
    if total is None or alive is None:
        raise DataError.at(
            "mask", "no training run", "at least one", "Leave runs out of test_runs and val_runs."
        )
    return alive & (total / len(runs) > threshold * float(np.percentile(total / len(runs), 98)))


def detrend(values: Float[np.ndarray, "t v"], order: int) -> Float[np.ndarray, "t v"]:
    """Take the best-fitting polynomial of each voxel's time course away (order 0: its mean; 1: its line too).

    Math: X - Q Q^T X, Q an orthonormal basis of the polynomials up to `order` over the run. Uses no label.
    """
    time = np.linspace(-1.0, 1.0, len(values))
    basis, _ = np.linalg.qr(np.polynomial.legendre.legvander(time, order))
    whole = values.astype(np.float64)
    return (whole - basis @ (basis.T @ whole)).astype(np.float32)
