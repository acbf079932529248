"""fMRI runs on disk (NIfTI + events.tsv): what was shown is the label, runs are the unit of every split.

What happens to a run, in this order: voxels of the mask, polynomial detrend within the run, z-score of each
voxel, shift of the labels by the haemodynamic lag. A split never divides a run, since volumes of one run
share their noise and their drift. Labels play no part in any of the statistics; see `Normalise` for which
volumes do.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from mmzoo.batch import DataInfo, Item, Sample
from mmzoo.datamodules import scans
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.captions import check_captions, write_captions
from mmzoo.datamodules.files import require
from mmzoo.datamodules.records import choose, natural_key
from mmzoo.datamodules.split import SPLITS
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.fmri import Scan

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 6
"""One run in that many is held out where none is named, for test and for validation each."""


class Normalise(str, enum.Enum):
    """Which volumes give the mean and standard deviation that a voxel is z-scored with, after the detrend.

    train: all volumes of the subject's training runs, one mean and deviation for all runs; nothing of a
    held-out run but its own drift enters. run: all volumes of the run itself, labels unseen; needs whole
    runs at test time, and takes away differences of gain between runs. none: the detrended signal as it is.
    """

    TRAIN = "train"
    RUN = "run"
    NONE = "none"


class Unit(str, enum.Enum):
    """What one sample is: one volume, or all volumes of an event (their mean, or one of them: `repeats`)."""

    VOLUME = "volume"
    BLOCK = "block"


@dataclass(frozen=True)
class Trial:
    """One sample: the volumes of a run that show one event."""

    run: scans.Run
    volumes: tuple[int, ...]
    label: str

    @property
    def id(self) -> str:
        """Return `subject/run/first volume`."""
        return f"{self.run.id}/{self.volumes[0]:04d}"


class Bids(DataModule):
    """fMRI of any number of subjects, each with its own voxels; modality `fmri`, with captions also `text`.

    Everything is read when first asked for, and then kept in memory as float32 (volumes x voxels of the
    mask).
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """Where the runs are, how they become samples, which are held out."""

        root: str
        """folder that holds the subjects' folders"""
        image: str = "bold"
        """name of the image of a run: `bold` in …_bold.nii.gz, `bold_1slice` in bold_1slice.nii.gz"""
        task: str = ""
        """only runs of that task; empty: all"""
        subjects: list[str] = field(default_factory=list)
        """only these subjects' folders (sub-01); empty: all"""
        mask: str = ""
        """mask: a name under <subject>/masks/, or a path under root with {subject}; empty: bright voxels"""
        mask_threshold: float = 0.2
        """mask values above it count; without a mask file, a share of the 98th percentile of the means"""
        tr_s: float | None = None
        """repetition time in seconds; null: from the sidecar, else the image's header"""
        detrend: int = 1
        """order of the polynomial taken out of each run: 0 its mean, 1 its line too, …"""
        normalise: Normalise = Normalise.TRAIN
        """which volumes z-score a voxel: train, run or none"""
        unit: Unit = Unit.VOLUME
        """what one sample is: volume or block"""
        lag_s: float = 5.0
        """haemodynamic lag in seconds: an event shows in the volumes from its onset + lag to its end + lag"""
        label_column: str = "trial_type"
        """column of the events files that holds the label"""
        exclude: list[str] = field(default_factory=lambda: ["rest"])
        """labels that are no class"""
        test_runs: list[int] = field(default_factory=list)
        """each subject's runs for the test split, counted from 1 in order of name; empty: the last sixth"""
        val_runs: list[int] = field(default_factory=list)
        """runs for validation; empty: the last sixth of the others"""
        target: str = "label"
        """name of the label in the batch"""
        captions: list[str] = field(default_factory=list)
        """sentences with {label}, as modality `text` (in training one at random, else the first)"""
        class_names: dict[str, str] = field(default_factory=dict)
        """label in the files -> class name to show and to write in captions; empty: as in the files"""

        def __post_init__(self) -> None:
            """Check ranges and that no run is in two splits."""
            both = sorted(set(self.test_runs) & set(self.val_runs))
            if both:
                raise ConfigError.at(
                    "val_runs", f"{both} are in test_runs too", "other runs", "Leave them out of one."
                )
            if self.detrend < 0:
                raise ConfigError.at("detrend", f"{self.detrend}", "an order of 0 or more", "Set detrend=1.")
            check_captions(self.captions)

    def __init__(self, config: Config, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Keep the options; read nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self._subjects: dict[str, Subject] = {}
        self._trials: dict[str, list[Trial]] = {}

    @property
    def subjects(self) -> dict[str, Subject]:
        """The subjects by name, found on first use."""
        if not self._subjects:
            c = self.config
            root = require(Path(c.root).expanduser(), c.get)
            runs = scans.find_runs(root, c.image, c.task, c.subjects)
            self._subjects = {name: Subject(c, found) for name, found in runs.items()}
        return self._subjects

    def trials(self, split: str) -> list[Trial]:
        """Return the samples of a split in order of subject, run and time."""
        if not self._trials:
            self._trials = {s: [t for p in self.subjects.values() for t in p.trials(s)] for s in SPLITS}
        if split not in self._trials:
            raise ConfigError.at("data", f"no split {split!r}", ", ".join(SPLITS), "Choose one of them.")
        return self._trials[split]

    def classes(self) -> tuple[str, ...]:
        """Return the class names of all splits in natural order."""
        return tuple(sorted({t.label for s in SPLITS for t in self.trials(s)}, key=natural_key))

    def info(self) -> DataInfo:
        """Return classes, voxels of each subject and sample counts; reads masks, events and headers."""
        voxels = {name: int(subject.mask.sum()) for name, subject in self.subjects.items()}
        modalities = ("fmri", "text") if self.config.captions else ("fmri",)
        counts = {s: len(self.trials(s)) for s in SPLITS}
        return DataInfo({self.config.target: self.classes()}, voxels, modalities, counts)

    def source(self, split: str) -> Trials:
        """Return the samples of a split."""
        return Trials(self, split)

    def to_image(self, subject: str, values: Float[np.ndarray, " v"]) -> Any:
        """Put a value for each voxel of a subject back into its place: a nibabel image on the runs' grid."""
        return self.subjects[subject].to_image(values)

    @classmethod
    def fake(cls, folder: Path) -> Bids.Config:
        """Write two subjects of different voxel counts, four small runs each, in the BIDS layout."""
        from mmzoo.datamodules.scan_files import write_small_bids

        write_small_bids(folder, {"01": 12, "02": 9})
        return cls.Config(root=str(folder), mask="roi", lag_s=4.0, captions=["a scan of a {label}"])


class Trials:
    """The samples of one split of a Bids data set."""

    def __init__(self, data: Bids, split: str) -> None:
        """Share the data set's cache."""
        self.data, self.split, self.name = data, split, f"fmri {split}"
        self.trials = data.trials(split)
        self.classes = {name: i for i, name in enumerate(data.classes())}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.trials)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Load one sample."""
        trial, config, prep = self.trials[index], self.data.config, self.data.preprocesses
        inputs: dict[str, Item] = {}
        if "fmri" in prep:
            subject = trial.run.subject
            values = self.data.subjects[subject].volumes(trial.run)[list(trial.volumes)]
            raw = Scan(values if config.unit is Unit.BLOCK else values[0], subject)
            inputs["fmri"] = prep["fmri"](raw, generator=generator)
        if "text" in prep and config.captions:
            sentence = choose(write_captions(config.captions, trial.label), generator)
            inputs["text"] = prep["text"](sentence, generator=generator)
        target = torch.tensor(self.classes[trial.label])
        return Sample(trial.id, inputs, {config.target: target})


class Subject:
    """One person: runs, mask, and the cleaned volumes of the runs read so far."""

    def __init__(self, config: Bids.Config, runs: Sequence[scans.Run]) -> None:
        """Read nothing yet."""
        self.config, self.runs, self.name = config, list(runs), runs[0].subject
        self._mask: Bool[np.ndarray, "x y z"] | None = None
        self._clean: dict[str, Float[np.ndarray, "t v"]] = {}
        self._statistics: tuple[np.ndarray, np.ndarray] | None = None

    def split(self) -> dict[str, list[scans.Run]]:
        """Return the runs of each split."""
        numbers = [r.number for r in self.runs]
        test = self._named("test_runs", numbers) or _last(numbers)
        rest = [n for n in numbers if n not in test]
        val = self._named("val_runs", rest) or _last(rest)
        return {
            "train": [r for r in self.runs if r.number in rest and r.number not in val],
            "val": [r for r in self.runs if r.number in val],
            "test": [r for r in self.runs if r.number in test],
        }

    def _named(self, option: str, known: list[int]) -> list[int]:
        wanted: list[int] = getattr(self.config, option)
        missing = sorted(set(wanted) - set(known))
        if missing:
            found = f"{missing} (the subject has {len(self.runs)} runs)"
            raise DataError.at(f"{option} of {self.name}", found, f"of {known}", "Name runs that are there.")
        return wanted

    def trials(self, split: str) -> list[Trial]:
        """Return the samples of a split."""
        return [t for run in self.split()[split] for t in self._trials_of(run)]

    def _trials_of(self, run: scans.Run) -> list[Trial]:
        config = self.config
        volumes, tr_s = scans.read_geometry(run, config.tr_s)
        starts = np.arange(volumes) * tr_s
        events = [
            e for e in scans.read_events(run.events, config.label_column) if e.label not in config.exclude
        ]
        trials: list[Trial] = []
        for event in events:
            since = starts - (event.onset_s + config.lag_s)
            length = max(event.duration_s, tr_s)
            label = config.class_names.get(event.label, event.label)
            inside = np.flatnonzero((since > -1e-6) & (since < length - 1e-6)).tolist()
            if not inside:
                log.info("%s: %s at %g s lies beyond the run's end", run.id, event.label, event.onset_s)
            elif config.unit is Unit.BLOCK:
                trials.append(Trial(run, tuple(inside), label))
            else:
                trials += [Trial(run, (v,), label) for v in inside]
        return list({t.id: t for t in trials}.values())

    @property
    def mask(self) -> Bool[np.ndarray, "x y z"]:
        """Which voxels count, in numpy's (C) order."""
        if self._mask is None:
            config, first = self.config, self.runs[0]
            if config.mask:
                path = scans.find_mask(Path(config.root).expanduser(), first, config.mask)
                self._mask = scans.read_mask(path, config.mask_threshold)
            else:
                self._mask = scans.bright_mask(self.split()["train"], config.mask_threshold)
            if not self._mask.any():
                do = "Lower mask_threshold or choose another mask."
                raise DataError.at(f"mask of {self.name}", "no voxel", "at least one", do)
        return self._mask

    def volumes(self, run: scans.Run) -> Float[np.ndarray, "t v"]:
        """Return a run's cleaned volumes, from memory after the first time."""
        values = self._detrended(run)
        if self.config.normalise is Normalise.NONE:
            return values
        if self.config.normalise is Normalise.RUN:
            return _scaled(values, values.mean(axis=0), values.std(axis=0))
        return _scaled(values, *self._training_statistics())

    def _detrended(self, run: scans.Run) -> Float[np.ndarray, "t v"]:
        if run.name not in self._clean:
            whole = scans.read_volumes(run)
            if whole.shape[:3] != self.mask.shape:
                found = f"a grid of {whole.shape[:3]}"
                do = "Bring all runs of a subject onto one grid."
                raise DataError.at(str(run.image), found, f"{self.mask.shape} as the mask", do)
            self._clean[run.name] = scans.detrend(whole[self.mask].T, self.config.detrend)
        return self._clean[run.name]

    def _training_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        if self._statistics is None:
            joined = np.concatenate([self._detrended(r) for r in self.split()["train"]])
            self._statistics = joined.mean(axis=0), joined.std(axis=0)
        return self._statistics

    def to_image(self, values: Float[np.ndarray, " v"]) -> Any:
        """Put a value for each voxel of the mask into a nibabel image, zero elsewhere."""
        nibabel = scans.nibabel()
        grid = np.zeros(self.mask.shape, np.float32)
        grid[self.mask] = values
        return nibabel.Nifti1Image(grid, nibabel.load(self.runs[0].image).affine)


def leave_one_run_out(config: Bids.Config, runs: int) -> list[Bids.Config]:
    """Return the configs of the protocol: each run in turn is the test part, the one before it validates."""
    numbers = range(1, runs + 1)
    return [dataclasses.replace(config, test_runs=[n], val_runs=[(n - 2) % runs + 1]) for n in numbers]


def _last(numbers: list[int]) -> list[int]:
    count = max(1, len(numbers) // HELD_OUT_SHARE) if len(numbers) > 1 else 0
    return numbers[len(numbers) - count :]


def _scaled(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Float[np.ndarray, "t v"]:
    """Return the z-score; a voxel that never changes becomes zero."""
    return ((values - mean) / np.where(std > 0, std, np.inf)).astype(np.float32)
