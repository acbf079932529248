"""PASCAL-Context in the published folder layout: classes, human parts, saliency, normals and boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmzoo.batch import IGNORE
from mmzoo.datamodules import pascal_parts
from mmzoo.datamodules.dense_files import (
    DenseFolder,
    FolderImages,
    classes,
    read_map,
    read_names,
    read_normals,
)
from mmzoo.datamodules.dense_layouts import PASCAL_MAPS, VOC_CLASSES
from mmzoo.errors import ConfigError, DataError
from mmzoo.layers.thinning import thin

ALSO_KEPT = ("tvmonitor",)
"""Class whose normals are kept though the other list has another name for it."""
NO_CLASS = "unknown"


class NormalsOf(str, Enum):
    """Which pixels' normals count."""

    SHARED_CLASSES = "shared_classes"
    ALL = "all"


class PascalContext(DenseFolder):
    """Reads ImageSets/Context/{train,val}.txt, JPEGImages/ID.jpg and five labels.

    Encodings: semseg/VOC12/ID.png, else semseg/pascal-context/ID.png, 0 … 20, 255 ignored; edges are the
    thinned places where the Laplacian of LabelMap in pascal-context/trainval/ID.mat is not zero;
    human_parts/ID.mat by `pascal_parts`; normals_distill/ID.png 2 v / 255 - 1, kept where the class of
    LabelMap is one that both NYU and PASCAL-Context name; sal_distill/ID.png v / 255 > 0.5. `val.txt` is what
    is reported. The layout's cache of who has parts (ImageSets/Parts) is neither read nor written.
    """

    @dataclass(kw_only=True)
    class Config(DenseFolder.Config):
        """What to read."""

        normals_of: NormalsOf = NormalsOf.SHARED_CLASSES
        """shared_classes: as published, where both lists of names have the class; all: everywhere."""
        context_names: str = ""
        """File of the 459 class names of LabelMap in order of number from 1, one a line; below root."""
        nyu_names: str = ""
        """File of NYU's 894 class names, one a line; below root."""

    config: Config
    targets = ("semseg", "human_parts", "sal", "normals", "edge")
    folders = {  # noqa: RUF012 a table
        "semseg": ("semseg/VOC12", "semseg/pascal-context"),
        "human_parts": ("human_parts",),
        "sal": ("sal_distill",),
        "normals": ("normals_distill",),
        "edge": (PASCAL_MAPS,),
    }
    lists = {"train": "ImageSets/Context/train.txt", "test": "ImageSets/Context/val.txt"}  # noqa: RUF012 a table

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write a few images of the indoor world in this layout and return the options that read them."""
        from mmzoo.datamodules.dense_make import write_pascal_context

        root = folder / "PASCALContext"
        write_pascal_context(root, 20, size=(16, 16))
        config = cls.Config(root=str(root), val_share=0.2)
        config.context_names, config.nyu_names = "names/context.txt", "names/nyu.txt"
        return config

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Return the names of VOC's classes and of the parts."""
        return {"semseg": VOC_CLASSES, "human_parts": pascal_parts.NAMES}

    def images(self, split: str) -> PascalImages:
        """Return the images of a split."""
        return PascalImages(self.root, self.ids(split), self._kept())

    def _kept(self) -> Bool[np.ndarray, " classes"] | None:
        """Return, by number of LabelMap, whether a pixel's normal counts; None: all do."""
        options = self.config
        if "normals" not in self.wanted or options.normals_of is NormalsOf.ALL:
            return None
        if not (options.context_names and options.nyu_names):
            found = "no context_names and nyu_names"
            expected = "both lists, since only normals of classes that both name are trained on"
            do = "Give them, set normals_of=all, or leave normals out of data.targets."
            raise ConfigError.at("data", found, expected, do)
        context, nyu = (read_names(self.root / n) for n in (options.context_names, options.nyu_names))
        return shared(context, nyu)


class PascalImages(FolderImages):
    """The images of one split."""

    def __init__(self, root: Path, ids: tuple[str, ...], kept: Bool[np.ndarray, " classes"] | None) -> None:
        """Read nothing yet."""
        super().__init__(root, ids)
        self.kept = kept

    def file(self, name: str) -> Path:
        """Return the image's file."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def label(self, name: str, target: str) -> Tensor | None:
        """Read a label."""
        ending = "mat" if target in ("edge", "human_parts") else "png"
        every = (self.root / folder / f"{name}.{ending}" for folder in PascalContext.folders[target])
        path = next((p for p in every if p.is_file()), None)
        if path is None:
            return None
        if target == "semseg":
            return classes(read_map(path))
        if target == "sal":
            return classes((read_map(path) > 127.5).astype(np.int64))
        if target == "human_parts":
            parts = pascal_parts.read_parts(path)
            return None if parts is None else classes(parts)
        if target == "edge":
            return boundaries(pascal_parts.read_mat(path, "LabelMap"))
        return self._normals(name, path)

    def _normals(self, name: str, path: Path) -> Float[Tensor, "3 h w"]:
        normals = read_normals(path)
        if self.kept is None:
            return normals
        numbers = pascal_parts.read_mat(self.root / PASCAL_MAPS / f"{name}.mat", "LabelMap").astype(np.int64)
        if numbers.max() >= len(self.kept):
            found, expected = f"class {numbers.max()}", f"at most the {len(self.kept) - 1} of context_names"
            raise DataError.at(name, found, expected, "Complete the list of names.")
        return normals.masked_fill(~torch.from_numpy(self.kept[numbers])[None], IGNORE)


def shared(context: tuple[str, ...], nyu: tuple[str, ...]) -> Bool[np.ndarray, " classes"]:
    """Return, by number of LabelMap (0: none), whether NYU names the class too."""
    both = (set(context) & set(nyu) - {NO_CLASS}) | set(ALSO_KEPT)
    return np.array([False, *(name in both for name in context)])


def boundaries(numbers: Int[np.ndarray, "h w"] | np.ndarray) -> Float[Tensor, "1 h w"]:
    """Return 1 on thinned pixels where a map of classes changes: where its Laplacian is not zero."""
    padded = np.pad(numbers.astype(np.int64), 1, mode="reflect")
    inner = padded[1:-1, 1:-1]
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return torch.from_numpy(thin(around != 4 * inner).astype(np.float32))[None]
