"""Writes scans of people of the simulated world in the layout and the design of Haxby et al. 2001.

Why: the shipped weights know four people's brains. What they bring to another experiment can be measured with
the same four (`write_haxby_known`) and with four whose voxels they never saw (`write_haxby`). The world is
the default one (its code of meaning is the same in every brain), the pictures are those of its validation
and test splits, the labels eight actions; a volume is noisier than the scans that the weights learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from mmzoo.datamodules import scan_files, scans
from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.datamodules.world import brain
from mmzoo.datamodules.world.events import ACTIONS, Event, WorldConfig, keyed, make_events
from mmzoo.datamodules.world.render import CHUNK, Renderer
from mmzoo.errors import ConfigError

CATEGORIES = ACTIONS[:8]
NUM_SUBJECTS = 4
MIN_RUNS = 3 * NUM_SUBJECTS
"""One for each split."""
TR_S = 2.5
VOLUMES, BLOCK, PITCH, FIRST = 121, 9, 14, 5
"""Of a run: volumes in all, volumes of a block, from block to block, before the first."""
EXEMPLARS = 2
"""Pictures shown during a volume, whose responses it averages."""
NCSNR = 0.45
"""Median over voxels of signal sd / noise sd in one volume: where visual voxels of NSD lie."""
DRIFT, AUTOCORRELATION, SHARED = 0.5, 0.3, 0.3
"""Slow drift (sd of the noise), noise of a volume with the one before, share of noise that voxels share."""
_STREAM = 3000
"""First number of the random keys of this file, beyond those of events and of the world's subjects."""

Signals = Float[np.ndarray, "n v"]


def write_haxby(folder: Path, runs: int, *, seed: int = 0) -> str:
    """Write so many runs, dealt to four new people that `seed` draws; say what was written."""
    return _write_people(folder, runs, new_subjects(seed, NUM_SUBJECTS), seed)


def write_haxby_known(folder: Path, runs: int, *, seed: int = 0) -> str:
    """Write so many runs, dealt to the world's own four people; `seed` draws designs and noise."""
    return _write_people(folder, runs, world_subjects(), seed)


@into_new_folder
def _write_people(folder: Path, runs: int, people: Sequence[brain.Subject], seed: int) -> str:
    if runs < MIN_RUNS or runs % NUM_SUBJECTS:
        found, do = f"{runs} runs", f"Ask for {12 * NUM_SUBJECTS}, Haxby's twelve for each."
        expected = f"a multiple of {NUM_SUBJECTS}, at least {MIN_RUNS}"
        raise ConfigError.at("data make", found, expected, do)
    shown, signals = _responses(WorldConfig(), people)
    each = runs // NUM_SUBJECTS
    for number, (person, signal) in enumerate(zip(people, signals, strict=True), start=1):
        rng = keyed(_STREAM + 1, seed, number)
        for run in range(1, each + 1):
            order = rng.permutation(len(CATEGORIES))
            values = _run(person, signal[_pictures(shown, order, rng)], order, rng)
            _write(folder / person.name / "BOLD" / f"task001_run{run:03d}", values, order)
    voxels = ", ".join(f"{p.name} {len(p.roi)}" for p in people)
    return f"{each} runs of {len(people)} people, {len(CATEGORIES)} categories; voxels: {voxels}"


def new_subjects(seed: int, count: int) -> list[brain.Subject]:
    """Draw people who are none of the world's, each with 350 to 480 voxels."""
    rngs = [keyed(_STREAM, seed, number) for number in range(1, count + 1)]
    names = [f"sub{number:03d}" for number in range(1, count + 1)]
    return [
        brain.draw_subject(name, int(rng.integers(350, 481)), NCSNR, rng)
        for name, rng in zip(names, rngs, strict=True)
    ]


def world_subjects() -> list[brain.Subject]:
    """Return the default world's people: their voxels, at the noise of one volume."""
    return [brain.make_subject(name, WorldConfig().world_seed, NCSNR) for name in brain.SUBJECTS]


def _responses(config: WorldConfig, people: Sequence[brain.Subject]) -> tuple[list[Event], list[Signals]]:
    """Return the events that are shown, and each person's noiseless responses to them."""
    held = [event for split in ("val", "test") for event in make_events(config, split)]
    shown = [event for event in held if event.action < len(CATEGORIES)]
    renderer = Renderer(config, people)
    parts = [renderer.signals(shown[at : at + CHUNK]) for at in range(0, len(shown), CHUNK)]
    return shown, [np.concatenate(signals) for signals in zip(*parts, strict=True)]


def _pictures(
    shown: Sequence[Event], order: Int[np.ndarray, " b"], rng: np.random.Generator
) -> Int[np.ndarray, "b m e"]:
    """Draw the pictures of each block's volumes among those of its category."""
    kinds = np.array([event.action for event in shown])
    chosen = [rng.permutation(np.flatnonzero(kinds == kind))[: BLOCK * EXEMPLARS] for kind in order]
    return np.stack(chosen).reshape(len(order), BLOCK, EXEMPLARS)


def _run(
    person: brain.Subject,
    signal: Float[np.ndarray, "b m e v"],
    order: Int[np.ndarray, " b"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "t v"]:
    """Return a run's volumes around 100, of which noise has a standard deviation of 1.

    Math: y = 100 + ncsnr s + e + drift; s = the mean response to the pictures of a volume, 0 in between (the
    files name the volumes that respond, as Haxby's do, so there is no lag); e_t = rho e_(t-1) + sqrt(1 -
    rho^2) n_t with n = sqrt(1 - c^2) white + c global.
    """
    size = (VOLUMES, len(person.roi))
    driven = np.zeros(size)
    for at in range(len(order)):
        start = FIRST + PITCH * at
        driven[start : start + BLOCK] = signal[at].mean(axis=1)
    fresh = np.sqrt(1 - SHARED**2) * rng.standard_normal(size) + SHARED * rng.standard_normal((VOLUMES, 1))
    noise = fresh.copy()
    for t in range(1, VOLUMES):
        noise[t] = AUTOCORRELATION * noise[t - 1] + np.sqrt(1 - AUTOCORRELATION**2) * fresh[t]
    slope = DRIFT * rng.standard_normal(size[1]) * np.linspace(-1.7, 1.7, VOLUMES)[:, None]
    return 100.0 + person.ncsnr * driven + noise + slope


def _write(folder: Path, values: Float[np.ndarray, "t v"], order: Int[np.ndarray, " b"]) -> None:
    """Write one slice and its events; voxels outside the brain are zero."""
    side = int(np.ceil(np.sqrt(values.shape[1] / 0.7)))
    near = ((np.indices((side, side)).reshape(2, -1) - (side - 1) / 2) ** 2).sum(axis=0)
    inside = np.zeros(side * side, bool)
    inside[np.argsort(near, kind="stable")[: values.shape[1]]] = True
    volumes = scan_files.on_grid(values.astype(np.float32), inside.reshape(side, side, 1), outside=0.0)
    folder.mkdir(parents=True)
    scan_files.save_image(folder / "bold_1slice.nii.gz", volumes, TR_S)
    events = [
        scans.Event(TR_S * (FIRST + PITCH * at), TR_S * BLOCK, CATEGORIES[kind])
        for at, kind in enumerate(order)
    ]
    scan_files.write_events(folder / "events.tsv", events)
