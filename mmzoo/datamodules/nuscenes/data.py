"""nuScenes on the published folder layout, as scenes around a vehicle; plain NumPy, no devkit.

Layout below `root`: the info pickles, samples/ and sweeps/ (points, pictures), nuScenes-Occupancy/ (voxels),
map/ or maps/expansion/ (map). What a key frame lacks of labels is left out of its sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from mmzoo.batch import DataInfo, Sample
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.faults import decoding
from mmzoo.datamodules.files import require
from mmzoo.datamodules.nuscenes import cameras, labels, points, road_map
from mmzoo.datamodules.nuscenes.augment import Motion, SceneAugment, move
from mmzoo.datamodules.nuscenes.infos import Info, read_infos
from mmzoo.datamodules.nuscenes.layout import HeightFrom, Layout
from mmzoo.datamodules.scene import (
    BOXES,
    CAMERA,
    INPUTS,
    KINDS,
    LABELS,
    LIDAR,
    MAP,
    OCCUPANCY,
    OCCUPIED,
    Scene,
)
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.world_driving.scene import BOX_CLASSES, MAP_CLASSES
from mmzoo.errors import ConfigError, DataError, close_matches
from mmzoo.modalities.base import Preprocess

Array = np.ndarray
NAMES = {BOXES: BOX_CLASSES, MAP: MAP_CLASSES, OCCUPANCY: labels.VOXEL_CLASSES}
"""The classes of each label in the order of their numbers."""


class NuScenes(DataModule):
    """Reads info pickles and what they name; the training pickle is train and, by scenes, val; the other is
    test.

    Views are raw input on the model's grid, not features of trained networks: the lidar's is statistics of
    points (`points.pillars`, as many as the model's lidar channels leave beside its levels), the camera's
    the colours of the lidar's points in the pictures (`cameras.camera_view`, four channels a span of height).
    With `bev` they are read instead: TOKEN.npz with camera (c, cells, cells) and lidar (l, cells, cells).
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """What to read."""

        root: str
        """The data set's folder."""
        train_infos: str = "nuscenes_infos_10sweeps_train.pkl"
        """Info pickle to train on, below root."""
        test_infos: str = "nuscenes_infos_10sweeps_val.pkl"
        """Info pickle that is reported, below root."""
        val_share: float = 0.05
        """Share of the training pickle's scenes carved out for selection."""
        bev: str = ""
        """Folder of precomputed views, <lidar_token>.npz; below root. Empty: views are made of the files."""
        occupancy: str = "nuScenes-Occupancy"
        """Folder of the voxel labels, below root."""
        map: str = "map"
        """Folder of map rasters, below root; frames without one are drawn from maps/expansion."""
        targets: list[str] = field(default_factory=list)
        """Labels to read, of boxes, map and occupancy; empty: all that are there."""
        sweeps: int = 10
        """Turns of the lidar, the key frame's included."""
        min_points: int = 1
        """Boxes that fewer lidar points hit are left out, in training and evaluation."""
        patch: int = 4
        """Pixels of a side of the patch whose mean is a point's colour."""
        height_from: HeightFrom = HeightFrom.GROUND
        """Where z is 0 in grids and boxes: ground, or lidar (1.84 m higher) as in the published grids."""
        augment: SceneAugment = field(default_factory=SceneAugment)
        """What training does to views and labels together."""

        def __post_init__(self) -> None:
            """Check the numbers."""
            for name, least in (("sweeps", 1), ("min_points", 0), ("patch", 1)):
                if getattr(self, name) < least:
                    found, do = f"{getattr(self, name)}", f"Set {name}={least}."
                    raise ConfigError.at(name, found, f"at least {least}", do)
            if not 0 <= self.val_share < 1:
                found = f"{self.val_share:g}"
                raise ConfigError.at("val_share", found, "a share of at least 0 and under 1", "Use 0.05.")
            for name in self.targets:
                if name not in LABELS:
                    do = close_matches(name, LABELS)
                    raise ConfigError.at("targets", f"no label {name!r}", "labels of scenes", do)

    config: Config

    def __init__(self, config: Config, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Take grids and channels from the model; read nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self.layout = Layout.of(preprocesses, config.height_from, made=not config.bev)
        self._infos: dict[str, tuple[Info, ...]] | None = None

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write a few simulated streets in this layout and return the options that read them."""
        from mmzoo.datamodules.nuscenes.write import write_nuscenes

        write_nuscenes(folder / "nuscenes", 12, size=(18, 32))
        return cls.Config(root=str(folder / "nuscenes"), val_share=0.3)

    @property
    def root(self) -> Path:
        """The data set's folder."""
        return Path(self.config.root).expanduser()

    def infos(self, split: str) -> tuple[Info, ...]:
        """Return the key frames of a split."""
        if self._infos is None:
            root = require(self.root, self.config.get)
            train, test = (read_infos(root / n) for n in (self.config.train_infos, self.config.test_infos))
            twice = {i.token for i in train} & {i.token for i in test}
            if twice:
                found = (
                    f"{len(twice)} key frames of {self.config.test_infos} are in {self.config.train_infos}"
                )
                raise DataError.at(str(root), found, "each in one of them", "Use the published splits.")
            held = _held(train, self.config.val_share)
            self._infos = {
                "train": tuple(i for i in train if i.scene not in held),
                "val": tuple(i for i in train if i.scene in held),
                "test": test,
            }
        return self._infos[split]

    def info(self) -> DataInfo:
        """Say what there is."""
        counts = {split: len(self.infos(split)) for split in SPLITS}
        modalities = tuple(m for m in INPUTS if m in self._inputs())
        self.check_modalities(modalities, "data")
        names = {target: NAMES[target] for target in self.wanted}
        return DataInfo(names, {}, modalities, counts, scene={t: KINDS[t] for t in self.wanted})

    @property
    def wanted(self) -> tuple[str, ...]:
        """The labels asked for, else those of which something is there."""
        places = {
            BOXES: (),
            MAP: (self.root / self.config.map, self.root / road_map.FOLDER),
            OCCUPANCY: (self.root / self.config.occupancy,),
        }
        there = [name for name, folders in places.items() if not folders or any(f.is_dir() for f in folders)]
        for name in self.config.targets:
            if name not in there:
                expected = " or ".join(f.name for f in places[name])
                do = f"Add it, or leave {name} out of data.targets."
                raise DataError.at(str(self.root), f"no labels of {name}", expected, do)
        return tuple(name for name in LABELS if name in (self.config.targets or there))

    def source(self, split: str) -> KeyFrames:
        """Return the key frames of a split."""
        if split not in SPLITS:
            raise ConfigError.at("data", f"no split {split!r}", "a split", close_matches(split, SPLITS))
        return KeyFrames(self, split)

    def _inputs(self) -> tuple[str, ...]:
        """Return the inputs that key frames have; of precomputed views, those in the first one's file."""
        if not self.config.bev:
            return INPUTS
        first = (self.infos("train") + self.infos("test"))[0]
        return tuple(read_views(self.root / self.config.bev, first.token, INPUTS))


class KeyFrames:
    """The key frames of one split as Samples."""

    def __init__(self, data: NuScenes, split: str) -> None:
        """Keep what reading needs; read no key frame yet."""
        self.name, self.infos = f"nuscenes/{split}", data.infos(split)
        self.config, self.layout, self.wanted = data.config, data.layout, data.wanted
        self.root, self.preprocesses = data.root, dict(data.preprocesses)

    def __len__(self) -> int:
        """Return the number of key frames."""
        return len(self.infos)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Read one key frame; moved as a whole in training."""
        info = self.infos[index]
        with decoding(info.token):
            scene = self.scene(info)
            if generator is not None:
                scene = move(scene, Motion.draw(self.config.augment, generator))
            return scene.sample(info.token, self.preprocesses)

    def scene(self, info: Info) -> Scene:
        """Read what the model reads of a key frame, and its labels."""
        names = tuple(m for m in INPUTS if m in self.preprocesses)
        if self.config.bev:
            views = read_views(self.root / self.config.bev, info.token, names)
        else:
            views = self._views(info, names)
        return Scene(views, self._boxes(info), self._map(info), self._occupancy(info))

    def _views(self, info: Info, names: tuple[str, ...]) -> dict[str, Shaped[Array, "c y x"]]:
        if not names:
            return {}
        cloud, views = points.read_points(self.root, info, self.config.sweeps), {}
        space = self.layout.space
        if CAMERA in names:
            now = cloud.xyz[cloud.lag_s == 0]
            rest = space, self.layout.bands, self.config.patch
            views[CAMERA] = cameras.camera_view(self.root, info.cameras, now, *rest)
        if LIDAR in names:
            views[LIDAR] = points.pillars(cloud, space, self.layout.statistics)
        if OCCUPIED in names:
            views[OCCUPIED] = points.occupied(cloud, space)
        return views

    def _boxes(self, info: Info) -> Float[Array, "n 10"] | None:
        if BOXES not in self.wanted or info.boxes is None:
            return None
        least, reach = self.config.min_points, self.layout.space.range_m
        values, classes = labels.boxes_in(info.boxes, BOX_CLASSES, reach, least)
        made = np.concatenate([values, classes[:, None].astype(np.float32)], axis=1)
        made[:, 2] += self.layout.raise_m
        return made

    def _map(self, info: Info) -> Float[Array, "k y x"] | None:
        if MAP not in self.wanted:
            return None
        size = self.layout.map_cells, self.layout.map_range_m
        return labels.read_map(self.root, self.root / self.config.map, info, *size)

    def _occupancy(self, info: Info) -> Shaped[Array, "z y x"] | None:
        if OCCUPANCY not in self.wanted:
            return None
        return labels.read_occupancy(self.root / self.config.occupancy, info, self.layout.space)


def read_views(folder: Path, token: str, names: tuple[str, ...]) -> dict[str, Shaped[Array, "c y x"]]:
    """Read those of the named views that a file of precomputed ones holds."""
    path = folder / f"{token}.npz"
    if not path.is_file():
        do = "Write one for each key frame, or leave data.bev out."
        raise DataError.at(str(path), "no such file", f"the views {' and '.join(INPUTS[:2])}", do)
    with decoding(path.name), np.load(path, allow_pickle=False) as file:
        found: dict[str, Any] = {name: file[name] for name in names if name in file.files}
    return found


def _held(infos: tuple[Info, ...], share: float) -> set[str]:
    """Return the scenes that are carved out, the same whatever the run's seed."""
    scenes = sorted({info.scene for info in infos})
    order = np.random.default_rng(0).permutation(len(scenes))
    return {scenes[i] for i in order[: round(share * len(scenes))].tolist()}
