"""What every datamodule is: map-style splits of Samples, and loaders whose place can be saved and found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from mmzoo import schema
from mmzoo.batch import DataInfo
from mmzoo.datamodules.loader import LoaderConfig, ResumableLoader, SampleSource
from mmzoo.modalities.base import Preprocess


class DataModule(pl.LightningDataModule, schema.Configurable):
    """Subclasses nest Config (with `loader: LoaderConfig`), and give `info()` and `source(split)`.

    Splits are `train`, `val` and `test`; `val` is carved from the training part and serves selection, `test` is what
    is reported. `preprocesses` maps a modality name of the model to its Preprocess; modalities the model lacks are
    not decoded. Every file that cannot be read is skipped, counted and named; the run fails past `max_bad_share`.
    """

    def __init__(self, config: Any, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Keep the options; read nothing yet."""
        super().__init__()
        self.config, self.preprocesses, self.seed = config, dict(preprocesses), seed
        self._loaders: dict[str, ResumableLoader] = {}

    def info(self) -> DataInfo:
        """Say what the data hold (class names, subjects and voxel counts, sample counts); reads as little as it can."""
        raise NotImplementedError

    def source(self, split: str) -> SampleSource:
        """Return the samples of a split: `len()`, and `get(i, generator)` -> Sample (generator None: no augmentation)."""
        raise NotImplementedError

    def _loader(self, split: str) -> ResumableLoader:
        if split not in self._loaders:
            options: LoaderConfig = self.config.loader
            source = self.source("train" if split == "reference" else split)
            self._loaders[split] = ResumableLoader(source, options, train=split == "train", seed=self.seed)
        return self._loaders[split]

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
        """Return the loader of any split by name; `reference` is the training split in order, without augmentation."""
        return self._loader(split)
