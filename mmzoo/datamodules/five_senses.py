"""The embedded default data set: a simulated world seen by five senses; needs no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmzoo.batch import DataInfo, Item, Sample
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.world import brain
from mmzoo.datamodules.world.cache import open_world
from mmzoo.datamodules.world.caption import caption
from mmzoo.datamodules.world.events import ATTRIBUTES, SENSES, SPLITS, Event, WorldConfig, make_events
from mmzoo.datamodules.world.render import Arrays, voxel_slices
from mmzoo.errors import ConfigError, DataError, close_matches
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.fmri import Scan

KEPT = 1000
"""Added to a variant's number in the key of its kept augmentation, apart from what the world draws."""


class Scanned(str, Enum):
    """Whose scans of an event training shows; evaluation shows one subject's, the same each time."""

    ONE = "one"
    ALL = "all"


class Keep(str, Enum):
    """Which preprocessed inputs stay in memory."""

    NONE = "none"
    EVAL = "eval"
    ALL = "all"


class FiveSenses(DataModule):
    """Events (who does what, how fast, on which side, where) as image, audio, text, fMRI and skeleton.

    Why: something to train, test and show every part of the product on, within minutes, without a download.
    Splits are by combination of attributes, so val and test need generalisation; `mmzoo.datamodules.world`
    says how each sense shows each attribute.
    """

    @dataclass(kw_only=True)
    class Config(WorldConfig, DataModule.Config):
        """Options; those inherited from the world decide the data, these how they are shown."""

        scanned: Scanned = Scanned.ONE
        """one: each training draw shows a random subject's scans; all: every event once for each subject."""
        num_captions: int = 8
        """Phrasings of an event that training draws from; evaluation uses the first."""
        missing_prob: float = 0.0
        """Probability with which a sample lacks each of its modalities; the same ones in each epoch."""
        min_modalities: int = 2
        """Modalities that a sample keeps at least, whatever `missing_prob` says."""
        missing_splits: list[str] = field(default_factory=lambda: ["train"])
        """Splits whose samples may lack modalities."""
        keep: Keep = Keep.NONE
        """Preprocessed inputs that stay in memory; all = training's too, their augmentation drawn once."""
        cache_dir: str | None = None
        """Folder for the rendered arrays; null = five_senses under MMZOO_HOME."""

        def __post_init__(self) -> None:
            """Check what the world does not."""
            super().__post_init__()
            if not 0.0 <= self.missing_prob < 1.0:
                do = "Set e.g. missing_prob=0.3."
                raise ConfigError.at("missing_prob", f"{self.missing_prob:g}", "at least 0, below 1", do)
            if not 1 <= self.min_modalities <= len(SENSES):
                found = f"{self.min_modalities}"
                raise ConfigError.at("min_modalities", found, f"1 to {len(SENSES)}", "Use 2 for contrast.")
            if self.num_captions < 1:
                raise ConfigError.at("num_captions", f"{self.num_captions}", "at least 1", "Raise it.")
            for split in self.missing_splits:
                if split not in SPLITS:
                    do = close_matches(split, SPLITS)
                    raise ConfigError.at("missing_splits", repr(split), "names of splits", do)

    config: Config

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Return the options of a tiny world kept in `folder`."""
        return cls.Config(num_events=20, num_val=4, num_test=4, image_size=32, cache_dir=str(folder))

    def info(self) -> DataInfo:
        """Say what there is, without rendering anything."""
        counts = {split: self.config.count(split) for split in SPLITS}
        if self.config.scanned is Scanned.ALL and "fmri" in self.preprocesses:
            counts["train"] *= len(brain.SUBJECTS)
        labels = dict(ATTRIBUTES)
        return DataInfo(labels=labels, subjects=dict(brain.SUBJECTS), modalities=SENSES, counts=counts)

    def source(self, split: str) -> EventSource:
        """Return the samples of a split, rendering it if no cache holds it."""
        if split not in SPLITS:
            raise DataError.at("five_senses", f"no split {split!r}", "a split", close_matches(split, SPLITS))
        for name in self.preprocesses:
            if name not in SENSES:
                do = close_matches(name, SENSES)
                raise ConfigError.at("five_senses", f"the model wants {name!r}", "names of its senses", do)
        root = Path(self.config.cache_dir).expanduser() if self.config.cache_dir else None
        return EventSource(self.config, split, open_world(self.config, split, root), self.preprocesses)

    def noise_ceiling(self, subject: str) -> Float[np.ndarray, " v"]:
        """Return the variance share of each voxel that the best model can explain in the mean of all
        repeats."""
        made = brain.make_subject(subject, self.config.world_seed, self.config.ncsnr)
        return made.noise_ceiling(self.config.num_repeats)


class EventSource:
    """The events of one split as Samples; reads memory-mapped arrays, so worker processes share them."""

    def __init__(
        self, config: FiveSenses.Config, split: str, arrays: Arrays, preprocesses: Mapping[str, Preprocess]
    ) -> None:
        """List the events and decide what each lacks."""
        self.config, self.split, self.preprocesses = config, split, dict(preprocesses)
        self.name = f"five_senses {split}"
        self.events = make_events(config, split)
        self._arrays = dict(arrays)
        self._voxels, self._subjects = voxel_slices(), tuple(brain.SUBJECTS)
        self._present = self._draw_present()
        self._targets = [_targets(event) for event in self.events]
        self._kept: dict[tuple[str, int, int], Item] = {}
        every = config.scanned is Scanned.ALL and split == "train" and "fmri" in self.preprocesses
        self._copies = len(self._subjects) if every else 1

    def __len__(self) -> int:
        """Return the number of samples: events, times subjects where all are shown."""
        return len(self.events) * self._copies

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Return one sample; the generator draws subject, phrasing and augmentation."""
        at, copy = divmod(index, self._copies)
        event = self.events[at]
        inputs = {
            name: self._item(name, at, self._variant(name, event, copy, generator), generator)
            for name, here in zip(SENSES, self._present[at], strict=True)
            if here
        }
        name = f"{event.id}/{self._subjects[copy]}" if self._copies > 1 else event.id
        return Sample(name, inputs, self._targets[at])

    def raw(self, sense: str, at: int, variant: int = 0) -> Any:
        """Return what a sense recorded of an event, in the raw form its Preprocess takes.

        `variant` is the phrasing of text and the number of the subject of fmri.
        """
        if sense == "text":
            return caption(self.events[at], variant)
        if sense == "fmri":
            subject = self._subjects[variant]
            return Scan(self._arrays[sense][at][:, self._voxels[subject]].astype(np.float32), subject)
        if sense == "audio":
            return self._arrays[sense][at].astype(np.float32) / 32768.0, self.config.sample_rate_hz
        return np.array(self._arrays[sense][at], dtype=np.float32 if sense == "skeleton" else None)

    def _variant(self, sense: str, event: Event, copy: int, generator: torch.Generator | None) -> int:
        if sense == "text" and generator is not None:
            return int(torch.randint(self.config.num_captions, (), generator=generator))
        if sense != "fmri":
            return 0
        if self._copies > 1:
            return copy
        if generator is not None:
            return int(torch.randint(len(self._subjects), (), generator=generator))
        return int(event.rng("fmri", 1).integers(len(self._subjects)))

    def _item(self, sense: str, at: int, variant: int, generator: torch.Generator | None) -> Item:
        keep = self.config.keep is Keep.ALL or (self.config.keep is Keep.EVAL and generator is None)
        key = (sense, at, variant)
        if keep and key in self._kept:
            return self._kept[key]
        if keep and generator is not None:  # keyed by what it is, so that a resumed run draws the same
            seed = int(self.events[at].rng(sense, KEPT + variant).integers(2**62))
            generator = torch.Generator().manual_seed(seed)
        item = self.preprocesses[sense](self.raw(sense, at, variant), generator=generator)
        if keep:
            self._kept[key] = item
        return item

    def _draw_present(self) -> Bool[np.ndarray, "n 5"]:
        """Decide which senses each event has: those of the model, less the missing ones, but
        `min_modalities`."""
        wanted = np.array([sense in self.preprocesses for sense in SENSES])
        present = np.tile(wanted, (len(self.events), 1))
        if self.config.missing_prob == 0.0 or self.split not in self.config.missing_splits:
            return present
        least = min(self.config.min_modalities, int(wanted.sum()))
        for row, event in zip(present, self.events, strict=True):
            chance = np.where(wanted, event.rng("missing").random(len(SENSES)), -1.0)
            last_to_go = np.argsort(-chance)[:least]
            row &= chance >= self.config.missing_prob
            row[last_to_go] = True
        return present


def _targets(event: Event) -> dict[str, Tensor]:
    return {name: torch.tensor(getattr(event, name)) for name in ATTRIBUTES}
