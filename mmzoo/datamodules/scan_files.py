"""Writing fMRI runs in the BIDS layout: NIfTI volumes, events, masks; for tests and the simulated world."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mmzoo.datamodules.scans import Event, nibabel

VOXEL_MM = 3.0


@dataclass(frozen=True)
class RunName:
    """The entities of one run's files; an empty session is left out."""

    subject: str
    task: str
    run: int
    session: str = ""

    def folder(self, root: Path) -> Path:
        """Return the folder of the run's files."""
        middle = [f"ses-{self.session}"] if self.session else []
        return root.joinpath(f"sub-{self.subject}", *middle, "func")

    @property
    def stem(self) -> str:
        """Return the part of the file names before `_bold`."""
        session = f"_ses-{self.session}" if self.session else ""
        return f"sub-{self.subject}{session}_task-{self.task}_run-{self.run}"


def write_run(
    root: Path, name: RunName, volumes: Float[np.ndarray, "x y z t"], events: Sequence[Event], tr_s: float
) -> None:
    """Write one run: image, sidecar with the repetition time, events."""
    folder = name.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    save_image(folder / f"{name.stem}_bold.nii.gz", volumes, tr_s)
    (folder / f"{name.stem}_bold.json").write_text(
        json.dumps({"RepetitionTime": tr_s, "TaskName": name.task})
    )
    write_events(folder / f"{name.stem}_events.tsv", events)


def save_image(path: Path, volumes: Float[np.ndarray, "x y z t"], tr_s: float) -> None:
    """Write the volumes of a run as NIfTI, its header naming the repetition time (s)."""
    image = nibabel().Nifti1Image(volumes.astype(np.float32), np.diag([VOXEL_MM] * 3 + [1.0]))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((VOXEL_MM,) * 3 + (tr_s,))
    nibabel().save(image, path)


def write_events(path: Path, events: Sequence[Event]) -> None:
    """Write onset, duration (s) and label of each event."""
    lines = ["onset\tduration\ttrial_type", *(f"{e.onset_s:g}\t{e.duration_s:g}\t{e.label}" for e in events)]
    path.write_text("\n".join(lines) + "\n")


def write_mask(root: Path, subject: str, name: str, mask: Bool[np.ndarray, "x y z"]) -> None:
    """Write a mask where `Bids` finds it by name."""
    folder = root / f"sub-{subject}" / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    image = nibabel().Nifti1Image(mask.astype(np.uint8), np.diag([VOXEL_MM] * 3 + [1.0]))
    nibabel().save(image, folder / f"{name}.nii.gz")


def haemodynamic_response(tr_s: float, length_s: float = 30.0) -> Float[np.ndarray, " t"]:
    """Return the double-gamma response to a unit impulse, sampled every `tr_s` seconds, of unit sum.

    Math: h(t) = g(t; 6) - g(t; 16) / 6, g(t; a) = t^(a-1) exp(-t) / (a-1)!, peaking near 5 s, undershoot
    near 15 s.
    """
    time = np.arange(0.0, length_s, tr_s)
    factorial = {6: 120.0, 16: 1307674368000.0}
    gammas = {a: time ** (a - 1) * np.exp(-time) / factorial[a] for a in (6, 16)}
    response = gammas[6] - gammas[16] / 6.0
    return response / response.sum()


def simulate_run(
    responses: Float[np.ndarray, "e v"],
    events: Sequence[Event],
    frames: tuple[int, float],
    rng: np.random.Generator,
) -> Float[np.ndarray, "t v"]:
    """Turn the voxels' responses to each event into time courses; `frames` = number of volumes, TR (s).

    Math: y = 100 + 2 (h * sum_e r_e box_e) + slow drift + white noise of sd 0.5 (percent of the mean signal).
    """
    count, tr_s = frames
    fine = 10
    box = np.zeros((count * fine, responses.shape[1]))
    for response, event in zip(responses, events, strict=True):
        start, end = (round(s / tr_s * fine) for s in (event.onset_s, event.onset_s + event.duration_s))
        box[start:end] += response
    kernel = haemodynamic_response(tr_s / fine)
    signal = np.apply_along_axis(lambda c: np.convolve(c, kernel)[: len(c)], 0, box)[::fine]
    time = np.linspace(0.0, 1.0, count)[:, None]
    drift = rng.standard_normal(responses.shape[1]) * time + np.cos(np.pi * time) * rng.standard_normal()
    return (100.0 + 2.0 * signal + drift + 0.5 * rng.standard_normal(signal.shape)).astype(np.float32)


def on_grid(
    values: Float[np.ndarray, "t v"], mask: Bool[np.ndarray, "x y z"], outside: float = 5.0
) -> Float[np.ndarray, "x y z t"]:
    """Put the voxels' time courses on the grid; beyond the mask there is a dim constant."""
    grid = np.full((*mask.shape, len(values)), outside, np.float32)
    grid[mask] = values.T
    return grid


def write_small_bids(
    root: Path, subjects: Mapping[str, int], runs: int = 4, classes: Sequence[str] = ("cat", "house")
) -> None:
    """Write a tiny data set: subject -> number of voxels; a run shows every class twice for 8 s, TR 2 s."""
    for number, (subject, voxels) in enumerate(subjects.items()):
        rng = np.random.default_rng(number)
        patterns = rng.standard_normal((len(classes), voxels))
        mask = np.zeros(4 * 4 * 3, bool)
        mask[rng.permutation(48)[:voxels]] = True
        mask = mask.reshape(4, 4, 3)
        write_mask(root, subject, "roi", mask)
        for run in range(1, runs + 1):
            order = rng.permutation(2 * len(classes)) % len(classes)
            events = [Event(6.0 + 16.0 * i, 8.0, classes[int(c)]) for i, c in enumerate(order)]
            count = round((events[-1].onset_s + 20.0) / 2.0)
            values = simulate_run(patterns[order], events, (count, 2.0), rng)
            write_run(root, RunName(subject, "view", run), on_grid(values, mask), events, 2.0)
