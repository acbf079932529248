"""Dense labels in files: lists of ids, pictures as maps, and what NYUD and PASCAL readers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mmzoo.batch import IGNORE
from mmzoo.datamodules.dense import KINDS, DenseData
from mmzoo.datamodules.dense_augment import Labelled
from mmzoo.datamodules.files import require
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.pixels import decode_image, to_pixels

SHORT = 0.02
"""A normal shorter than this stands for none: 8 bits have no zero, only ±0.004."""


class DenseFolder(DenseData):
    """A folder with a list of ids for training and one for the report; validation is carved from training.

    `folders` says where a label's files lie, below the root; a label of which the folder is absent is not
    given, an image that lacks a file lacks that label.
    """

    @dataclass(kw_only=True)
    class Config(DenseData.Config):
        """Options that both layouts share."""

        root: str
        """The data set's folder."""
        val_share: float = 0.05
        """Share of the training list carved out for selection; the other list is what is reported."""

        def __post_init__(self) -> None:
            """Check the share."""
            if not 0 <= self.val_share < 1:
                found = f"{self.val_share:g}"
                raise ConfigError.at("val_share", found, "a share of at least 0 and under 1", "Use 0.05.")

    folders: ClassVar[Mapping[str, tuple[str, ...]]]
    lists: ClassVar[Mapping[str, str]]
    """Split -> file of ids."""

    def __init__(self, config: Any, preprocesses: Mapping[str, Any], *, seed: int = 0) -> None:
        """Keep the options; read nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self._ids: dict[str, tuple[str, ...]] | None = None

    @property
    def root(self) -> Path:
        """The data set's folder."""
        return Path(self.config.root).expanduser()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The labels asked for, else those of which a folder is there."""
        if self.config.targets:
            return super().wanted
        return tuple(t for t in self.targets if any((self.root / f).is_dir() for f in self.folders[t]))

    def ids(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split, in the order of its list."""
        if self._ids is None:
            root = require(self.root, self.config.get)
            train, test = (read_ids(root / self.lists[s]) for s in ("train", "test"))
            rng = np.random.default_rng(
                0
            )  # of its own, so that runs of other seeds select on the same images
            held = set(rng.permutation(len(train))[: round(self.config.val_share * len(train))].tolist())
            self._ids = {
                "train": tuple(name for i, name in enumerate(train) if i not in held),
                "val": tuple(name for i, name in enumerate(train) if i in held),
                "test": test,
            }
        return self._ids[split]

    def counts(self) -> dict[str, int]:
        """Return the number of ids of each split."""
        counts = {split: len(self.ids(split)) for split in ("train", "val", "test")}
        for target in self.wanted:
            if not any((self.root / f).is_dir() for f in self.folders[target]):
                expected = " or ".join(self.folders[target])
                do = f"Add it, or leave {target} out of data.targets."
                raise DataError.at(str(self.root), f"no labels of {target}", expected, do)
        return counts


class FolderImages:
    """The images of one split of a folder; `file` names an image's file, `label` reads one of its labels."""

    def __init__(self, root: Path, ids: Sequence[str]) -> None:
        """Read nothing yet."""
        self.root, self.ids = root, ids

    def read(self, index: int, targets: Sequence[str]) -> Labelled:
        """Read an image and those of the named labels that it has."""
        name = self.ids[index]
        path = self.file(name)
        image = to_pixels(decode_image(path.read_bytes(), path.name)).contiguous()
        found = {t: self.label(name, t) for t in targets}
        labels = {t: v for t, v in found.items() if v is not None}
        for target, values in labels.items():
            if values.shape[-2:] != image.shape[-2:]:
                shown = f"{target} of {values.shape[-2]} x {values.shape[-1]}"
                size = f"the image's {image.shape[-2]} x {image.shape[-1]}"
                raise DataError.at(name, shown, size, "Mend or remove the file.")
        return Labelled(image, labels, {t: KINDS[t] for t in labels})

    @abstractmethod
    def file(self, name: str) -> Path:
        """Return the image's file."""

    @abstractmethod
    def label(self, name: str, target: str) -> Tensor | None:
        """Read a label; None where the image has none."""


def read_ids(path: Path) -> tuple[str, ...]:
    """Return the lines of a list; an id twice is an error."""
    if not path.is_file():
        do = "Is data.root the data set's folder? `mmzoo data make` writes the layout."
        raise DataError.at(str(path), "nothing there", "a list of ids, one a line", do)
    ids = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise DataError.at(str(path), f"{twice[0]!r} twice", "each id once", "Remove one.")
    return ids


def read_names(path: Path) -> tuple[str, ...]:
    """Return class names in order of index: a line each, `name` or `number: name`."""
    if not path.is_file():
        do = "Write the names in order of their numbers, one a line."
        raise DataError.at(str(path), "nothing there", "a list of class names", do)
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line.partition(":")[2].strip() or line for line in lines if line)


def read_map(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Return the numbers of a picture of one channel; of a palette picture the indices, not the colours."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.array(picture if picture.mode in ("P", "L") else picture.convert("L"))


def read_normals(path: Path) -> Float[Tensor, "3 h w"]:
    """Return 2 v / 255 - 1 of an RGB picture; pixels without a normal (zero) are ignored."""
    values = torch.from_numpy(decode_image(path.read_bytes(), path.name)).permute(2, 0, 1).float()
    normals = 2 * values / 255 - 1
    return normals.masked_fill((normals.norm(dim=0) < SHORT)[None], IGNORE)


def classes(values: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]) -> Int[Tensor, "h w"]:
    """Return a map of numbers as a label."""
    return torch.from_numpy(values.astype(np.int64))
