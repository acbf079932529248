"""The embedded data set of driving: simulated streets around a vehicle; needs no download.

The form of the samples is that of every data set of scenes, see `scene`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmzoo.batch import DataInfo, Sample
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.scene import (
    BOXES,
    CAMERA,
    INPUTS,
    KINDS,
    LIDAR,
    MAP,
    OCCUPANCY,
    OCCUPIED,
    Scene,
    channels_of,
    grid_of,
)
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.world_driving.scene import BOX_CLASSES, MAP_CLASSES, VOXEL_CLASSES, VOXEL_COUNTS
from mmzoo.datamodules.world_driving.views import DrivingConfig, SensorConfig, lidar_channels, see
from mmzoo.errors import ConfigError, close_matches
from mmzoo.modalities.base import Preprocess

APART = 1_000_000
"""Between the numbers of the first streets of two splits."""


class Driving(DataModule):
    """Streets with vehicles and people: a camera-like view that tells classes well and places badly, a
    lidar-like view the other way round; boxes, map and occupancy that agree by construction.

    Why: something to train and test models of scenes on within minutes. Every street is drawn anew from
    (world_seed, split, number), so no street is in two splits. Grids, and how many channels the camera has,
    are the model's; the lidar's view has a channel a level and three more (motion x y, whether it returned).
    """

    @dataclass(kw_only=True)
    class Config(SensorConfig, DataModule.Config):
        """Options; those inherited from the sensors decide how hard it is."""

        num_train: int = 1024
        """Streets to train on."""
        num_val: int = 128
        """Streets that selection looks at."""
        num_test: int = 128
        """Streets that are reported."""
        world_seed: int = 0
        """Of the streets and the sensors' noise; apart from the run's seed."""

        def __post_init__(self) -> None:
            """Check the counts."""
            super().__post_init__()
            for split in SPLITS:
                if not 0 <= self.count(split) <= APART:
                    found = f"{self.count(split)}"
                    raise ConfigError.at(f"num_{split}", found, f"0 to {APART:,}", "Change it.")

        def count(self, split: str) -> int:
            """Return the number of streets of a split."""
            return int(getattr(self, f"num_{split}"))

    config: Config

    def __init__(self, config: Config, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Lay the streets out on the model's grid; draw none yet."""
        super().__init__(config, preprocesses, seed=seed)
        self.world = _world(config, preprocesses)
        wanted, made = channels_of(preprocesses, LIDAR), lidar_channels(self.world)
        if wanted not in (0, made):
            expected = f"{made}: one for each of {self.world.levels} levels and three more"
            do = f"Set model.lidar_channels={made}."
            raise ConfigError.at("data", f"a model that reads {wanted} lidar channels", expected, do)
        self._sources: dict[str, Streets] = {}

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Return the options of a few streets; nothing is written."""
        del folder
        return cls.Config(num_train=12, num_val=4, num_test=4)

    def info(self) -> DataInfo:
        """Say what there is, without drawing anything."""
        self.check_modalities(INPUTS, "data")
        labels = {BOXES: BOX_CLASSES, MAP: MAP_CLASSES, OCCUPANCY: VOXEL_CLASSES}
        counts = {split: self.config.count(split) for split in SPLITS}
        voxels = dict(zip(VOXEL_CLASSES, map(float, VOXEL_COUNTS), strict=True))
        return DataInfo(labels, {}, INPUTS, counts, scene=KINDS, class_counts={OCCUPANCY: voxels})

    def source(self, split: str) -> Streets:
        """Return the streets of a split."""
        if split not in SPLITS:
            raise ConfigError.at("data", f"no split {split!r}", "a split", close_matches(split, SPLITS))
        if split not in self._sources:
            self._sources[split] = Streets(self.config, self.world, split, self.preprocesses)
        return self._sources[split]


class Streets:
    """The streets of one split, each drawn when it is first asked for and kept in memory."""

    def __init__(
        self,
        config: Driving.Config,
        world: DrivingConfig,
        split: str,
        preprocesses: Mapping[str, Preprocess],
    ) -> None:
        """Keep what drawing needs."""
        self.name, self.split, self.count = f"driving/{split}", split, config.count(split)
        self.seed, self.world, self.preprocesses = config.world_seed, world, dict(preprocesses)
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        """Return the number of streets."""
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        """Leave drawn streets behind: a worker draws those that it is asked for."""
        return {**self.__dict__, "_kept": {}}

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Return a street; training sees it as it is, too."""
        del generator
        if index not in self._kept:
            self._kept[index] = self._draw(index)
        return self._kept[index]

    def _draw(self, index: int) -> Sample:
        seen = see(self.world, self.seed, SPLITS.index(self.split) * APART + index)
        kinds = seen.street.classes[:, None].astype(np.float32)
        scene = Scene(
            {CAMERA: seen.camera, LIDAR: seen.lidar, OCCUPIED: seen.occupied},
            np.concatenate([seen.street.boxes, kinds], axis=1),
            seen.street.map,
            seen.street.occupancy,
        )
        return scene.sample(f"{self.split}-{index:06d}", self.preprocesses)


def _world(config: SensorConfig, preprocesses: Mapping[str, Preprocess]) -> DrivingConfig:
    """Return the sizes that the model wants, the world's own where it says nothing."""
    sensors: dict[str, Any] = {
        "noise": config.noise,
        "blur_share": config.blur_share,
        "return_m": config.return_m,
    }
    wanted = grid_of(preprocesses)
    if wanted is None:
        return DrivingConfig(**sensors)
    channels = channels_of(preprocesses, CAMERA) or DrivingConfig().camera_channels
    return DrivingConfig(**sensors, **wanted.grid.to_dict(), levels=wanted.levels, camera_channels=channels)
