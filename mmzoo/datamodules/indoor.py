"""The embedded data set of dense tasks: a procedural indoor world; needs no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mmzoo.datamodules.dense import KINDS, DenseData
from mmzoo.datamodules.dense_augment import DenseAugment, Labelled
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.world_indoor.cache import open_world
from mmzoo.datamodules.world_indoor.classes import CLASSES, PARTS
from mmzoo.datamodules.world_indoor.rooms import IndoorWorldConfig, view_name


class Indoor(DenseData):
    """Furnished rooms, ray-cast: image, classes, parts of people, the salient object, normals, boundaries,
    depth.

    Why: something to train and test dense tasks on within minutes, whose labels agree exactly. No set of
    furniture (nor any room) is in two splits, so val and test need generalisation. Depth is along the optical
    axis; normals have x right, y up, z towards the camera.
    """

    @dataclass(kw_only=True)
    class Config(IndoorWorldConfig, DenseData.Config):
        """Options; those inherited from the world decide the data, these how they are shown."""

        augment: DenseAugment = field(default_factory=lambda: DenseAugment(scale=(1.0, 1.5)))
        """What training does to image and labels together; no image is smaller than the model's size."""
        cache_dir: str | None = None
        """Folder for the rendered arrays; null = indoor under MMZOO_HOME."""

    config: Config
    targets = tuple(KINDS)

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Return the options of a tiny world kept in `folder`."""
        return cls.Config(num_train=12, num_val=4, num_test=4, size=(16, 16), cache_dir=str(folder))

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Return the names of the world's classes and of the parts of people."""
        return {"semseg": CLASSES, "human_parts": PARTS}

    def counts(self) -> dict[str, int]:
        """Return what the options say, without rendering anything."""
        return {split: self.config.count(split) for split in SPLITS}

    def images(self, split: str) -> IndoorImages:
        """Return the images of a split, rendering them if no cache holds them."""
        root = Path(self.config.cache_dir).expanduser() if self.config.cache_dir else None
        arrays = open_world(self.config, split, root)
        ids = [view_name(split, number, self.config) for number in range(self.config.count(split))]
        return IndoorImages(ids, arrays)


class IndoorImages:
    """The images of one split; reads memory-mapped arrays, so worker processes share them."""

    def __init__(self, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays."""
        self.ids, self._arrays = ids, dict(arrays)

    def read(self, index: int, targets: Sequence[str]) -> Labelled:
        """Return an image and its labels."""
        image = torch.from_numpy(np.array(self._arrays["image"][index])).permute(2, 0, 1)
        labels = {t: self._label(t, index) for t in targets}
        return Labelled(image, labels, {t: KINDS[t] for t in targets})

    def _label(self, target: str, index: int) -> torch.Tensor:
        values = torch.from_numpy(np.array(self._arrays[target][index]))
        if target == "normals":
            return values.float().permute(2, 0, 1)
        return values.float()[None] if target in ("edge", "depth") else values.long()
