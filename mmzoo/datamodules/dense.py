"""What data sets that label every pixel share: reading, augmentation, padding, and which pixels are ignored.

The image size is the model's (`model.modalities.image.preprocess.size`): in training a random part of that
size, in evaluation the whole image in its middle. Mean and deviation are the model's too; pads are zero after
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.batch import IGNORE, DataInfo, DenseKind, Item, Sample
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.dense_augment import (
    DenseAugment,
    Labelled,
    augment,
    margins,
    pad_labels,
    resize,
)
from mmzoo.datamodules.faults import decoding
from mmzoo.datamodules.split import SPLITS
from mmzoo.errors import ConfigError, DataError, close_matches
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_augment import ImageAugment
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.record_preprocess import RecordPreprocess

IMAGE = "image"
PEOPLE = "human_parts"
"""Label that is ignored as a whole where an image shows nobody."""
KINDS = {
    "semseg": DenseKind.CLASSES,
    PEOPLE: DenseKind.CLASSES,
    "sal": DenseKind.SALIENCY,
    "normals": DenseKind.NORMALS,
    "edge": DenseKind.EDGE,
    "depth": DenseKind.DEPTH,
}
"""The labels of the benchmark by the names they go by."""
CHANNELS = {
    "sal": ("background", "salient"),
    "normals": ("x", "y", "z"),
    "edge": ("boundary",),
    "depth": ("metres",),
}
"""Names of the channels of those labels that have no classes."""


class Fit(str, Enum):
    """How an image of another size comes to the model's in evaluation (training crops from the same)."""

    PAD = "pad"
    SHRINK = "shrink"


@runtime_checkable
class DenseImages(Protocol):
    """The labelled images of a split, by number; travels to worker processes."""

    ids: Sequence[str]

    def read(self, index: int, targets: Sequence[str]) -> Labelled:
        """Read an image and those of the named labels that it has."""
        ...


class DenseData(DataModule):
    """Subclasses give `images(split)`, `counts()`, `targets` and `class_names()`; the modality is `image`."""

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """Options that all dense data sets share."""

        targets: list[str] = field(default_factory=list)
        """Labels to read; empty = all that the data set has."""
        augment: DenseAugment = field(default_factory=DenseAugment)
        """What training does to image and labels together."""
        fit: Fit = Fit.PAD
        """pad: as it is, in the middle (too large an image is an error); shrink: scaled down to fit first."""

    targets: tuple[str, ...]

    def __init__(self, config: Any, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Keep the options; check which labels are wanted."""
        super().__init__(config, preprocesses, seed=seed)
        for name in config.targets:
            if name not in self.targets:
                do = close_matches(name, self.targets)
                raise ConfigError.at("data.targets", f"no label {name!r}", "labels of the data set", do)
        _check_preprocess(_plain(preprocesses.get(IMAGE)))

    @property
    def wanted(self) -> tuple[str, ...]:
        """The labels that are read."""
        return tuple(t for t in self.targets if not self.config.targets or t in self.config.targets)

    def info(self) -> DataInfo:
        """Say what the data hold."""
        self.check_modalities((IMAGE,), "data")
        names = self.class_names()
        labels = {t: names.get(t) or CHANNELS[t] for t in self.wanted}
        dense = {t: KINDS[t] for t in self.wanted}
        return DataInfo(labels, {}, (IMAGE,), self.counts(), dense)

    def source(self, split: str) -> DenseSource:
        """Return the samples of a split."""
        if split not in SPLITS:
            raise ConfigError.at("data", f"no split {split!r}", "a split", close_matches(split, SPLITS))
        made = DenseSource(self, split)
        if split != SPLITS[0] and len(made):
            made.check_size()
        return made

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Return the class names of each label that has classes."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split."""
        raise NotImplementedError

    def images(self, split: str) -> DenseImages:
        """Return the images of a split."""
        raise NotImplementedError


class DenseSource:
    """The labelled images of one split as Samples, of the model's size where it has one."""

    def __init__(self, data: DenseData, split: str) -> None:
        """Keep what reading needs; read nothing yet."""
        self.name, self.images = f"{type(data).__name__.lower()} {split}", data.images(split)
        self.targets, self.augment, self.fit = data.wanted, data.config.augment, data.config.fit
        self.preprocess = _plain(data.preprocesses.get(IMAGE))

    def check_size(self) -> None:
        """Raise ConfigError where the first image does not fit the model's size: with images of one size none
        would, and training would end at its first validation."""
        if not isinstance(self.preprocess, ImagePreprocess) or self.fit is Fit.SHRINK:
            return
        name, size = self.images.ids[0], self.preprocess.config.size
        with contextlib.suppress(DataError):  # what cannot be read is the loader's to count
            with decoding(name):
                given = self.images.read(0, ()).size
            if too_large := _too_large(given, size):
                raise ConfigError.at(f"{self.name}: {name}", *too_large)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images.ids)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Read, augment and pad one sample."""
        name = self.images.ids[index]
        with decoding(name):
            whole = self.images.read(index, self.targets)
            if not isinstance(self.preprocess, ImagePreprocess):
                return Sample(name, self._as_it_is(whole), dict(whole.labels))
            return self._sample(name, whole, self.preprocess, generator)

    def _sample(
        self, name: str, whole: Labelled, preprocess: ImagePreprocess, generator: torch.Generator | None
    ) -> Sample:
        size: tuple[int, int] = preprocess.config.size
        if self.fit is Fit.SHRINK:
            whole = _shrink(whole, size)
        if generator is not None:
            whole = augment(whole, size, self.augment, generator)
        if too_large := _too_large(whole.size, size):
            raise DataError.at(name, *too_large)
        pixels = F.pad(preprocess.normalise(whole.image), margins(whole.size, size))
        return Sample(name, {IMAGE: Item(pixels)}, _without_nobody(pad_labels(whole, size)))

    def _as_it_is(self, whole: Labelled) -> dict[str, Item]:
        if self.preprocess is None:
            return {}
        return {IMAGE: self.preprocess(whole.image.permute(1, 2, 0).numpy())}


def _too_large(given: tuple[int, int], size: tuple[int, int]) -> tuple[str, str, str] | None:
    """Return what was found, what is expected and what to do where an image is larger than the model's."""
    if given[0] <= size[0] and given[1] <= size[1]:
        return None
    do = "Raise model.modalities.image.preprocess.size, or set data.fit=shrink."
    return f"an image of {given[0]} x {given[1]}", f"at most the model's {size[0]} x {size[1]}", do


def _plain(preprocess: Preprocess | None) -> Preprocess | None:
    """Return what a record fills in, where the preprocess is that of a timm or open_clip model."""
    core = preprocess.core if preprocess is not None else None
    return core.filled if isinstance(core, RecordPreprocess) else core


def _shrink(whole: Labelled, size: tuple[int, int]) -> Labelled:
    """Scale down to fit; depth stays, since every image is then of one camera with a shorter focal length."""
    scale = min(1.0, size[0] / whole.size[0], size[1] / whole.size[1])
    if scale == 1:
        return whole
    return resize(whole, (max(1, int(whole.size[0] * scale)), max(1, int(whole.size[1] * scale))))


def _without_nobody(labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ignore the parts of people as a whole where the image shows none."""
    parts = labels.get(PEOPLE)
    if parts is not None and not bool(((parts != 0) & (parts != IGNORE)).any()):
        labels[PEOPLE] = torch.full_like(parts, IGNORE)
    return labels


def _check_preprocess(preprocess: Preprocess | None) -> None:
    if isinstance(preprocess, ImagePreprocess) and preprocess.config.augment != ImageAugment():
        where, found = "model.modalities.image.preprocess.augment", "the image's own augmentation"
        expected = "none, since the labels would not follow"
        raise ConfigError.at(where, found, expected, "Leave it out; data.augment changes both together.")
