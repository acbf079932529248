"""NYUD-v2 in the published folder layout: classes, normals, boundaries and depth of rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmzoo.batch import IGNORE
from mmzoo.datamodules.dense_files import (
    DenseFolder,
    FolderImages,
    classes,
    read_map,
    read_names,
    read_normals,
)
from mmzoo.datamodules.dense_layouts import NYUD_CLASSES
from mmzoo.errors import DataError


class Nyud(DenseFolder):
    """Reads gt_sets/{train,val}.txt, images/ID.png, segmentation/ID.png, depth/ID.npy, normals/ID.png and
    edge/ID.png.

    Encodings: segmentation 1 … 40 is class 0 … 39, 0 is ignored; depth in metres, 0 invalid; normals
    2 v / 255 - 1; edges v / 255. `val.txt` is what is reported.
    """

    @dataclass(kw_only=True)
    class Config(DenseFolder.Config):
        """What to read."""

        class_names: str = ""
        """File of class names, one a line, for a layout with other classes than the forty; empty: those."""

    config: Config
    targets = ("semseg", "normals", "edge", "depth")
    folders = {"semseg": ("segmentation",), "normals": ("normals",), "edge": ("edge",), "depth": ("depth",)}  # noqa: RUF012 a table
    lists = {"train": "gt_sets/train.txt", "test": "gt_sets/val.txt"}  # noqa: RUF012 a table

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write a few images of the indoor world in this layout and return the options that read them."""
        from mmzoo.datamodules.dense_make import write_nyud

        write_nyud(folder / "NYUDv2", 20, size=(16, 16))
        return cls.Config(root=str(folder / "NYUDv2"), val_share=0.2)

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Return the forty names, or those of the file given."""
        given = self.config.class_names
        return {"semseg": read_names(Path(given).expanduser()) if given else NYUD_CLASSES}

    def images(self, split: str) -> NyudImages:
        """Return the images of a split."""
        return NyudImages(self.root, self.ids(split), len(self.class_names()["semseg"]))


class NyudImages(FolderImages):
    """The images of one split."""

    def __init__(self, root: Path, ids: tuple[str, ...], num_classes: int) -> None:
        """Read nothing yet."""
        super().__init__(root, ids)
        self.num_classes = num_classes

    def file(self, name: str) -> Path:
        """Return the image's file."""
        return self.root / "images" / f"{name}.png"

    def label(self, name: str, target: str) -> Tensor | None:
        """Read a label."""
        folder, ending = Nyud.folders[target][0], "npy" if target == "depth" else "png"
        path = self.root / folder / f"{name}.{ending}"
        if not path.is_file():
            return None
        if target == "semseg":
            return self._classes(path)
        if target == "normals":
            return read_normals(path)
        if target == "edge":
            return torch.from_numpy(read_map(path).astype(np.float32) / 255)[None]
        depth = np.squeeze(np.load(path, allow_pickle=False)).astype(np.float32)
        return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32))[None]

    def _classes(self, path: Path) -> Tensor:
        numbers = classes(read_map(path)) - 1
        if int(numbers.max()) >= self.num_classes:
            expected = f"0 (none) … {self.num_classes}"
            do = "Give the names of all classes as data.class_names."
            raise DataError.at(str(path), f"class {int(numbers.max()) + 1}", expected, do)
        return numbers.masked_fill(numbers < 0, IGNORE)
