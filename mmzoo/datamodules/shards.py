"""WebDataset shards of any mixture of modalities: streamed in training, read by index where order matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.batch import DataInfo
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.captions import EvaluateOn
from mmzoo.datamodules.files import require
from mmzoo.datamodules.loader import ResumableLoader
from mmzoo.datamodules.numbers import NumbersConfig
from mmzoo.datamodules.records import RecordSource, Vocabulary, count_voxels
from mmzoo.datamodules.shard_format import Fields
from mmzoo.datamodules.shard_index import Carve, Evaluated, RawReader, ShardFiles, ShardRecords
from mmzoo.datamodules.shard_notes import Notes, read_notes
from mmzoo.datamodules.shard_stream import Shards as Streamed
from mmzoo.datamodules.shard_stream import StreamLoader, expand
from mmzoo.datamodules.shard_survey import entries_of, labels_of, survey, told
from mmzoo.datamodules.shard_write import write_shards
from mmzoo.datamodules.split import SPLITS
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess


class Reading(str, Enum):
    """How training reads shards."""

    STREAM = "stream"
    INDEX = "index"


class Shards(DataModule):
    """Tars of `key.extension` members: see `shard_format` for what they may hold.

    Why: sequential reading is what network disks and addresses can do. Training streams through the
    webdataset package, in an order that (seed, epoch) fix and that can be resumed; validation and test
    read local shards by index, so that no sample is lost or seen twice. Splits that the options do not
    name are carved by a hash of the sample's name: the same sample is always on the same side.
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """Options."""

        root: str = "."
        """Folder of the shards; addresses (https://…) stand by themselves."""
        train: str | list[str] = "*.tar"
        """Training shards: `train-{000000..000099}.tar`, `*.tar`, addresses, or a list of these."""
        val: str | list[str] | None = None
        """Shards that select; null = carved from the training shards by val_share."""
        test: str | list[str] | None = None
        """Shards that are reported; null = carved from the training shards by test_share."""
        val_share: float = 0.1
        """Share of what is left to train on that selects, 0 to 1."""
        test_share: float = 0.1
        """Share of all samples that is reported, 0 to 1."""
        fields: dict[str, str] = field(default_factory=dict[str, str])
        """Member extension -> modality, where the extension does not tell (`npy: fmri`)."""
        labels: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
        """Target -> class names in index order; empty = from info.json beside the shards, else read from
        all."""
        numbers: dict[str, NumbersConfig] = field(default_factory=dict[str, NumbersConfig])
        """Label of numbers -> how the json holds it (`columns`: what its numbers are called); not named = as
        info.json says, else plain numbers."""
        captions: EvaluateOn | None = None
        """What evaluation makes of several phrasings of a text: all or first; null = as info.json says, else
        first. What training shards hold side by side stays so."""
        samples: dict[str, int] = field(default_factory=dict[str, int])
        """Split -> number of samples; needed for addresses, counted for local shards."""
        ignore: list[str] = field(default_factory=list[str])
        """Extensions not to read."""
        read: Reading = Reading.STREAM
        """How training reads: stream (sequential, through webdataset) or index (any order, local shards)."""
        shuffle_buffer: int = 1000
        """Samples that are shuffled together in a stream; shards are shuffled too."""

        def __post_init__(self) -> None:
            """Check the ranges."""
            if self.shuffle_buffer < 1:
                found = f"{self.shuffle_buffer}"
                raise ConfigError.at(
                    "shuffle_buffer", found, "at least 1", "Set shuffle_buffer=1 for no shuffling."
                )
            for name in ("val_share", "test_share"):
                if not 0.0 <= getattr(self, name) < 1.0:
                    found = f"{getattr(self, name):g}"
                    raise ConfigError.at(name, found, "a share of at least 0 and under 1", "Set 0.1.")

    def __init__(self, config: Any, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Open nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self._records: dict[str, ShardRecords] = {}
        self._vocabulary: Vocabulary | None = None
        self._read: Notes | None = None

    def info(self) -> DataInfo:
        """Read the shards' headers, one scan of each subject and the training samples' numbers; what
        info.json does not tell, from all samples."""
        notes, vocabulary = self._notes(), self._labels()
        if not self._local():
            return DataInfo(
                labels=vocabulary.labels,
                modalities=tuple(self.preprocesses),
                counts=dict(self.config.samples),
                numeric=vocabulary.kinds,
                several=entries_of(notes, self.captions_shown, self.preprocesses),
                moments=notes.moments,
            )
        parts = {split: self._split(split) for split in SPLITS}
        modalities = dict.fromkeys(m for records in parts.values() for m in records.modalities())
        if notes.modalities is None:
            notes = notes.beside(survey(parts.values(), self.captions_shown))
        modalities |= dict.fromkeys(notes.modalities or ())
        self.check_modalities(tuple(modalities), f"data ({self.config.root})")
        return DataInfo(
            labels=vocabulary.labels,
            subjects=count_voxels([(r.files, r) for r in parts.values()], self.preprocesses),
            modalities=tuple(modalities),
            counts={split: len(records) for split, records in parts.items()},
            numeric=vocabulary.kinds,
            several=entries_of(notes, self.captions_shown, self.preprocesses),
            moments=vocabulary.moments(parts["train"]),
        )

    def source(self, split: str) -> RecordSource:
        """Return the samples of a split of local shards, by index."""
        return self._source(split, evaluated=split != "train")

    def reference(self) -> RecordSource:
        """Return the training samples with their captions as in evaluation."""
        return self._source("train", evaluated=True)

    def _source(self, split: str, *, evaluated: bool) -> RecordSource:
        if not self._local():
            do = "Fetch the shards, or set data.val and data.test to local ones."
            raise DataError.at("data", f"{split} shards at an address", "local files for random access", do)
        records = self._split(split)
        shown = Evaluated(records, self.captions_shown) if evaluated else records
        name = f"{Path(self.config.root).name}/{split}"
        return RecordSource(shown, records.files, self.preprocesses, self._labels(), name=name)

    def make_loader(self, split: str) -> ResumableLoader:
        """Stream the training split unless told to read by index; read the others by index."""
        if split != "train" or self.config.read is Reading.INDEX:
            return super().make_loader(split)
        streamed = Streamed(
            urls=tuple(self._urls("train")),
            keep=self._carve("train").raw,
            buffer=self.config.shuffle_buffer,
            num_samples=self._count("train"),
        )
        make = RawReader(self._fields(), self.preprocesses, self._labels())
        name = f"{Path(self.config.root).name}/train"
        return StreamLoader(streamed, make, self.config.loader, name=name, seed=self.seed)

    def _urls(self, split: str) -> list[str]:
        patterns = getattr(self.config, split)
        patterns = self.config.train if patterns is None else patterns
        given = [patterns] if isinstance(patterns, str) else patterns
        if not any("://" in p or p.startswith("/") for p in given):
            require(Path(self.config.root), self.config.get)
        found = expand(given, self.config.root)
        if not found:
            do = self.config.get or "Check data.root and the pattern."
            raise DataError.at(
                str(self.config.root), f"no shards {', '.join(given)}", "at least one .tar", do
            )
        return found

    def _local(self) -> bool:
        return not any("://" in url for split in SPLITS for url in self._urls(split))

    def _carve(self, split: str) -> Carve:
        """Return what decides which of the training shards' samples are of a split."""
        config = self.config
        shares = (0.0 if config.val else config.val_share, 0.0 if config.test else config.test_share)
        return Carve(split, *shares)

    def _count(self, split: str) -> int:
        if split in self.config.samples:
            return self.config.samples[split]
        if not self._local():
            do = f"Set data.samples={{{split}: N}}."
            raise ConfigError.at(
                "data.samples", f"no number of {split} samples", "one, for shards at an address", do
            )
        return len(self._split(split))

    def _notes(self) -> Notes:
        if self._read is None:
            self._read = read_notes(Path(self.config.root))
        return self._read

    @property
    def captions_shown(self) -> EvaluateOn:
        """Return what evaluation makes of several captions: as told, else as info.json says."""
        return self.config.captions or self._notes().captions or EvaluateOn.FIRST

    def _fields(self) -> Fields:
        notes = self._notes()
        given = {t: tuple(str(n) for n in names) for t, names in self.config.labels.items()}
        numbers = {**{t: label.config for t, label in notes.numbers.items()}, **self.config.numbers}
        ignore = frozenset(self.config.ignore)
        return Fields(self.config.fields, ignore, given or notes.labels, numbers, notes.own_ids)

    def _labels(self) -> Vocabulary:
        """Return what labels are: as told, else as all samples have them; those that the model can use."""
        if self._vocabulary is None:
            notes, known = self._notes(), bool(self.config.labels) or not self._local()
            if known or notes.told:
                notes = told(notes, self.config.labels, self.config.numbers)
            else:
                parts = [self._split(split) for split in SPLITS]
                notes = labels_of(parts, self.config.numbers, self.config.root)
            numbers = {t: n for t, n in notes.numbers.items() if n.read_by(self.preprocesses)}
            self._vocabulary = Vocabulary(notes.labels, numbers)
        return self._vocabulary

    def _split(self, split: str) -> ShardRecords:
        """Index the shards of a split; carved splits share the training shards."""
        if split not in self._records:
            files = ShardFiles([Path(url) for url in self._urls(split)], self.config.get)
            records = ShardRecords.scan(files, self._fields())
            own = split != "train" and getattr(self.config, split) is not None
            self._records[split] = records if own else records.where(self._carve(split))
        return self._records[split]

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write three shards of 16 samples: a small picture, a caption, a class."""
        from PIL import Image

        rng = np.random.default_rng(0)
        samples: list[dict[str, Any]] = []
        for i in range(48):
            path = folder / "one.png"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)
            caption, label = f"picture, number {i}", ("cat", "dog")[i % 2]
            meta = {"labels": {"label": label}}
            samples.append({"__key__": f"{i:04d}", "png": path.read_bytes(), "txt": caption, "json": meta})
            path.unlink()
        write_shards(folder / "shards", samples, per_shard=16, labels={"label": ("cat", "dog")})
        return cls.Config(root=str(folder / "shards"), shuffle_buffer=8)
