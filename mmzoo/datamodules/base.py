"""What every datamodule is: map-style splits of Samples, and loaders whose place can be saved and found
again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmzoo import schema
from mmzoo.batch import DataInfo
from mmzoo.datamodules.loader import LoaderConfig, ResumableLoader, SampleSource
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess


class DataModule(pl.LightningDataModule, schema.Configurable):
    """Subclasses nest Config (with `loader: LoaderConfig`), and give `info()`, `source(split)` and
    `fake(folder)`.

    Splits are `train`, `val` and `test`; `val` is carved from the training part and serves selection,
    `test` is what is reported. `preprocesses` maps a modality name of the model to its Preprocess;
    modalities the model lacks are not decoded. Every file that cannot be read is skipped, counted and
    named; the run fails past `max_bad_share`.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options that all data sets share."""

        loader: LoaderConfig = field(default_factory=LoaderConfig)
        """How batches are made."""
        get: str = ""
        """How to come by the data, in words: what the error says where they are missing."""

    def __init__(self, config: Any, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Keep the options; read nothing yet."""
        super().__init__()
        self.config, self.preprocesses, self.seed = config, dict(preprocesses), seed
        self._loaders: dict[str, ResumableLoader] = {}

    def info(self) -> DataInfo:
        """Say what the data hold (class names, subjects, counts, modalities); reads as little as it can."""
        raise NotImplementedError

    def source(self, split: str) -> SampleSource:
        """Return the samples of a split: `len()` and `get(i, generator)` (generator None: no
        augmentation)."""
        raise NotImplementedError

    def reference(self) -> SampleSource:
        """Return the samples of the training split as evaluation sees them."""
        return self.source("train")

    @classmethod
    def fake(cls, folder: Path) -> Any:
        """Write a tiny data set of this format into a folder and return the Config that reads it."""
        raise NotImplementedError

    def _loader(self, split: str) -> ResumableLoader:
        if split not in self._loaders:
            self._loaders[split] = self.make_loader(split)
        return self._loaders[split]

    def make_loader(self, split: str) -> ResumableLoader:
        """Make the loader of a split; `reference` is the training split in order, without augmentation."""
        source = self.reference() if split == "reference" else self.source(split)
        if split == "train" and not len(source):
            do = "Lower the shares of the other splits, or look at the data with `mmzoo data inspect`."
            raise DataError.at("data", "no sample to train on", "at least one", do)
        return ResumableLoader(source, self.config.loader, train=split == "train", seed=self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader (shuffled anew each epoch by seed and epoch)."""
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        """Return the validation loader."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Return the test loader."""
        return self._loader("test")

    def loader(self, split: str) -> ResumableLoader:
        """Return the loader of train, val, test or reference (train in order, without augmentation)."""
        return self._loader(split)

    def check_modalities(self, found: tuple[str, ...], where: str) -> None:
        """Raise ConfigError where the data have none of the modalities that the model reads."""
        if self.preprocesses and not set(found) & set(self.preprocesses):
            expected = f"one of the model's ({', '.join(self.preprocesses)})"
            do = "Choose another model, or say what the files are (data.modality=…)."
            raise ConfigError.at(where, f"modalities {', '.join(found) or 'none'}", expected, do)
