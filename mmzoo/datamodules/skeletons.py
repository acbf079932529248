"""Skeleton files: `.npz` of windows, pyskl/mmaction2 pickles, folders of NTU `.skeleton` text."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmzoo.batch import DataInfo, Item, Sample
from mmzoo.datamodules import motions, ntu
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.captions import check_captions, write_captions
from mmzoo.datamodules.files import require
from mmzoo.datamodules.motions import ArrayKeys, Clip
from mmzoo.datamodules.records import choose, natural_key
from mmzoo.datamodules.split import SPLITS, SplitConfig, divide
from mmzoo.datamodules.windows import Within, divide_windows
from mmzoo.errors import ConfigError, DataError, close_matches
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.joints import LayoutName


class Format(str, enum.Enum):
    """What the files are: arrays (.npz), pyskl (.pkl), ntu (a folder of .skeleton); auto: by the name."""

    AUTO = "auto"
    ARRAYS = "arrays"
    PYSKL = "pyskl"
    NTU = "ntu"


class Sampling(str, enum.Enum):
    """What an epoch draws: natural: each clip once; balanced: as many in all, as many of each class."""

    NATURAL = "natural"
    BALANCED = "balanced"


class Skeletons(DataModule):
    """Skeleton clips with one class each; the modality is `skeleton`, with captions also `text`.

    Splits: a pyskl pickle and NTU's protocols name train and test, and validation is carved from train, by
    performer where names tell one. Windows of named recordings go by `divide_windows`: by recording, or by
    time with a gap. Clips of which nothing is known are drawn one by one.
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """What to read and how to divide it."""

        root: str
        """the .npz or .pkl file, or the folder of .skeleton files"""
        format: Format = Format.AUTO
        """auto, arrays, pyskl or ntu"""
        layout: LayoutName | None = None
        """what the joints of the files are (cmu31, …), for models that want another layout; null: theirs"""
        axes: str = "ntvc"
        """axes of the array in an .npz: samples, frames (t), joints (v), coordinates (c), persons (p)"""
        values_key: str = "positions"
        """name of the array of coordinates in an .npz"""
        labels_key: str = "label"
        """name of the array of classes in an .npz"""
        trials_key: str = "trial"
        """name of the array of recordings in an .npz; windows of one recording are in order of time"""
        train_part: str = "xsub_train"
        """name of the training split in a pyskl pickle"""
        test_part: str = "xsub_val"
        """name of the split in a pyskl pickle that is reported"""
        score_threshold: float = 0.0
        """2-D keypoints with a lower score count as unseen"""
        protocol: ntu.Protocol = ntu.Protocol.XSUB
        """train/test division of .skeleton files: xsub, xset or xview"""
        num_persons: int = 2
        """persons kept of a .skeleton file, those who move most"""
        classes: list[str] = field(default_factory=list)
        """only these classes, named as in the files; empty: all"""
        class_names: dict[str, str] = field(default_factory=dict)
        """class in the files -> name to show and to write in captions; empty: as in the files"""
        min_per_class: int = 1
        """classes with fewer clips are left out"""
        split: SplitConfig = field(default_factory=SplitConfig)
        """shares for test and validation, where the files name none"""
        split_gap: int = 0
        """windows left unused beside a held-out stretch of a recording: its overlap with the next windows"""
        within: Within = Within.STRETCH
        """what is held out of a class with one recording: stretch, or windows one by one (they overlap)"""
        sampling: Sampling = Sampling.NATURAL
        """natural or balanced"""
        target: str = "label"
        """name of the label in the batch"""
        captions: list[str] = field(default_factory=list)
        """sentences with {label}, as modality `text` (in training one at random, else the first)"""

        def __post_init__(self) -> None:
            """Check axes, counts and captions."""
            self.keys().check()
            check_captions(self.captions)
            for name in ("num_persons", "min_per_class"):
                if getattr(self, name) < 1:
                    raise ConfigError.at(name, f"{getattr(self, name)}", "at least 1", f"Set {name}=1.")
            if self.split_gap < 0:
                raise ConfigError.at(
                    "split_gap", f"{self.split_gap}", "0 or more windows", "Set split_gap=0."
                )

        def keys(self) -> ArrayKeys:
            """Return the names of an .npz file's arrays."""
            return ArrayKeys(self.values_key, self.labels_key, self.trials_key, self.axes)

    def __init__(self, config: Config, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Keep the options; read nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self._parts: dict[str, list[Clip]] | None = None

    @property
    def parts(self) -> dict[str, list[Clip]]:
        """The clips of each split, listed on first use."""
        if self._parts is None:
            clips = self._kept(self._read())
            named = {c.part for c in clips} != {""}
            self._parts = self._divide_named(clips) if named else self._divide(clips)
        return self._parts

    def classes(self) -> tuple[str, ...]:
        """Return the class names of all splits in natural order."""
        found = {self._name(c) for clips in self.parts.values() for c in clips}
        return tuple(sorted(found, key=natural_key))

    def info(self) -> DataInfo:
        """Return classes and counts; reads names only of NTU text, the whole file of the other formats."""
        modalities = ("skeleton", "text") if self.config.captions else ("skeleton",)
        counts = {s: len(clips) for s, clips in self.parts.items()}
        return DataInfo({self.config.target: self.classes()}, {}, modalities, counts)

    def source(self, split: str) -> SampleClips:
        """Return the samples of a split."""
        if split not in SPLITS:
            raise ConfigError.at(
                "data", f"no split {split!r}", ", ".join(SPLITS), close_matches(split, SPLITS)
            )
        return SampleClips(self, split)

    def _name(self, clip: Clip) -> str:
        return self.config.class_names.get(clip.label, clip.label)

    def _read(self) -> list[Clip]:
        config = self.config
        path = require(Path(config.root).expanduser(), config.get)
        kind = config.format
        if kind is Format.AUTO:
            by_suffix = {".npz": Format.ARRAYS, ".pkl": Format.PYSKL, ".pickle": Format.PYSKL}
            kind = Format.NTU if path.is_dir() else by_suffix.get(path.suffix, Format.AUTO)
        if kind is Format.ARRAYS:
            return motions.read_arrays(path, config.keys())
        if kind is Format.PYSKL:
            return motions.read_pyskl(path, config.score_threshold)
        if kind is Format.NTU:
            return motions.read_ntu_folder(path, config.protocol, config.num_persons)
        raise DataError.at(
            str(path), "an unknown format", ".npz, .pkl or a folder of .skeleton", "Set data.format."
        )

    def _kept(self, clips: Sequence[Clip]) -> list[Clip]:
        config = self.config
        known = {c.label for c in clips}
        for name in config.classes:
            if name not in known:
                do = close_matches(name, known)
                raise DataError.at("data.classes", f"no class {name!r}", "a class of the files", do)
        sizes = Counter({c.id: c.label for c in clips}.values())
        wanted = [n for n in config.classes or known if sizes[n] >= config.min_per_class]
        kept = [c for c in clips if c.label in wanted]
        if not kept:
            do = "Lower min_per_class."
            raise DataError.at(
                str(config.root), "no clip is left", "at least one class that is large enough", do
            )
        return kept

    def _divide(self, clips: list[Clip]) -> dict[str, list[Clip]]:
        config = self.config
        labels, trials = [c.label for c in clips], [c.trial for c in clips]
        if any(trials):
            found = divide_windows(labels, trials, config.split, config.split_gap, config.within)
        else:
            found = divide(labels, None, config.split)
        return {s: [clips[i] for i in found[s]] for s in SPLITS}

    def _divide_named(self, clips: list[Clip]) -> dict[str, list[Clip]]:
        config = self.config
        ours = {"train": "train", "test": "test"}
        if "train" not in {c.part for c in clips}:
            ours = {config.train_part: "train", config.test_part: "test"}
        known = {c.part for c in clips}
        for name in ours:
            if name not in known:
                do = close_matches(name, known)
                raise DataError.at(
                    str(config.root), f"no split {name!r}", "train_part and test_part of the file", do
                )
        found = {s: [c for c in clips if ours.get(c.part) == s] for s in ("train", "test")}
        training = found["train"]
        trials = [c.trial for c in training]
        groups = trials if all(trials) and len(set(trials)) > 1 else None
        carved = divide([c.label for c in training], groups, config.split, parts=("train", "val"))
        return {**found, **{s: [training[i] for i in rows] for s, rows in carved.items()}}

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write 3 classes of 12 short windows of 25 joints, from two recordings each, one person."""
        rng = np.random.default_rng(0)
        labels = np.repeat(["wave", "kick", "jump"], 12)
        trials = np.array([f"{name}_{i % 12 // 6}" for i, name in enumerate(labels)])
        rest = rng.standard_normal((3, 1, 25, 3))
        values = np.repeat(rest, 12, axis=0) + 0.1 * rng.standard_normal((36, 10, 25, 3)).cumsum(axis=1)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "windows.npz"
        np.savez(path, positions=values.astype(np.float16), label=labels, trial=trials)
        return cls.Config(root=str(path), captions=["someone does a {label}"], sampling=Sampling.BALANCED)


class SampleClips:
    """The samples of one split of a Skeletons data set.

    Balanced sampling draws a clip of a small class several times an epoch. Copies have numbers of their own
    beyond the split's length, and ids `x~1`, since a batch holds an id only once.
    """

    def __init__(self, data: Skeletons, split: str) -> None:
        """Share the data set's clips."""
        self.data, self.name = data, f"skeletons {split}"
        self.clips = data.parts[split]
        names = {name: i for i, name in enumerate(data.classes())}
        self.labels = [names[data._name(c)] for c in self.clips]
        if split == "train" and data.config.sampling is Sampling.BALANCED:
            self.order = self._balanced

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Read one clip; a number beyond the length is a further draw of the clip `index mod length`."""
        copy, place = divmod(index, len(self.clips))
        clip, config, prep = self.clips[place], self.data.config, self.data.preprocesses
        inputs: dict[str, Item] = {}
        if "skeleton" in prep:
            motion = dataclasses.replace(clip.read(), layout=config.layout)
            inputs["skeleton"] = prep["skeleton"](motion, generator=generator)
        if "text" in prep and config.captions:
            sentence = choose(write_captions(config.captions, self.data._name(clip)), generator)
            inputs["text"] = prep["text"](sentence, generator=generator)
        name = f"{clip.id}~{copy}" if copy else clip.id
        return Sample(name, inputs, {config.target: torch.tensor(self.labels[place])})

    def _balanced(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw as many clips of each class; within a class every clip comes once before any comes again."""
        labels = torch.tensor(self.labels)
        present = labels.unique().tolist()
        quota = -(-len(labels) // len(present))
        parts: list[Tensor] = []
        for label in present:
            members = (labels == label).nonzero()[:, 0]
            rounds = -(-quota // len(members))
            drawn = [
                members[torch.randperm(len(members), generator=generator)] + k * len(labels)
                for k in range(rounds)
            ]
            parts.append(torch.cat(drawn)[:quota])
        mixed = torch.cat(parts)
        return mixed[torch.randperm(len(mixed), generator=generator)][: len(labels)]
