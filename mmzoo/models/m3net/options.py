"""M3Net's options, and what they say of it to recipes: its inputs, its heads, the one pass it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from mmzoo import schema
from mmzoo.batch import PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.layers.channel_scaling import Gate
from mmzoo.modalities.bev import BevPreprocess, VoxelPreprocess
from mmzoo.models.base import JOINT, HeadSpec, ModelConfig, Need
from mmzoo.models.m3net.grid import GridConfig

BOXES, MAP, OCCUPANCY = "boxes", "map", "occupancy"
TASKS = (BOXES, MAP, OCCUPANCY)
CAMERA, LIDAR, OCCUPIED = "camera", "lidar", "occupied"


class Fusion(str, Enum):
    """How camera and lidar views become one."""

    MAFI = "mafi"
    CONV = "conv"


class Voxels(str, Enum):
    """Which voxels ask the view what they are."""

    ALL = "all"
    OCCUPIED = "occupied"


class Compat(str, Enum):
    """Which code the numbers follow."""

    NONE = "none"
    M3NET = "m3net"


class View(schema.Configurable):
    """One input, whose rows the model takes as they are."""

    kind: ClassVar[str] = "bev"

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """One input."""

        preprocess: Any
        """what it must look like"""


class OwnHead(schema.Configurable):
    """A head that is part of the model's body: it only says what it gives."""

    gives: ClassVar[PredictionKind]

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How many classes it tells apart."""

        num_classes: int
        """classes"""


class Boxes(OwnHead):
    """Boxes around the vehicle."""

    gives = PredictionKind.BOXES_3D

    @dataclass(kw_only=True)
    class Config(OwnHead.Config):
        """How many classes it tells apart."""


class GroundMap(OwnHead):
    """The ground seen from above."""

    gives = PredictionKind.GROUND_MAP

    @dataclass(kw_only=True)
    class Config(OwnHead.Config):
        """How many classes it tells apart."""


class Occupancy(OwnHead):
    """What fills each voxel."""

    gives = PredictionKind.VOXELS

    @dataclass(kw_only=True)
    class Config(OwnHead.Config):
        """How many classes it tells apart."""


CLASSES: dict[str, tuple[str, type[OwnHead]]] = {
    BOXES: ("num_classes", Boxes),
    MAP: ("map_classes", GroundMap),
    OCCUPANCY: ("occupancy_classes", Occupancy),
}
"""Task -> the option that counts its classes, and its head."""


COUNTS = (
    *("camera_channels", "lidar_channels", "neck_channels", "dim", "num_heads", "layers", "hidden_dim"),
    *("num_boxes", "num_classes", "map_classes", "stripes", "occupancy_classes", "levels", "pool"),
)
"""Options that count something there must be one of."""
SMALL_CLASSES = ("pedestrian", "traffic_cone")
"""Box classes of nuScenes that may fill one cell."""


@dataclass(kw_only=True)
class M3NetConfig(ModelConfig):
    """Sizes and choices; the defaults are the paper's."""

    camera_channels: int = 80
    """channels of the camera view"""
    lidar_channels: int = 256
    """channels of the lidar view"""
    neck_channels: int = 256
    """channels after fusion; the neck gives twice as many"""
    dim: int = 256
    """width of queries and memory"""
    num_heads: int = 8
    """attention heads"""
    layers: int = 6
    """decoder layers"""
    hidden_dim: int = 1024
    """width of the feed-forwards"""
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    """boxes, map, occupancy: those the model has; a recipe's tasks set them"""
    targets: dict[str, str] = field(default_factory=dict)
    """task -> label in the data whose classes it predicts; a recipe's tasks set them"""
    num_boxes: int = 200
    """box queries"""
    num_classes: int = 10
    """classes of boxes; set by the data where there are some"""
    small_classes: list[int] = field(default_factory=lambda: [8, 9])
    """numbers of the box classes that may fill one cell; unless set, those that the data call pedestrian or
    traffic_cone"""
    map_classes: int = 6
    """classes of the map, which may overlap; set by the data where there are some"""
    stripes: int = 5
    """stripes of map rows, each with its own queries"""
    occupancy_classes: int = 17
    """classes of voxels, 0 free; set by the data where there are some"""
    levels: int = 5
    """voxels along z before the last resizing"""
    voxels: Voxels = Voxels.ALL
    """which voxels have an occupancy query: all, or those that the input `occupied` says hold lidar points"""
    pool: int = 4
    """cells an occupancy query spans along x and y where all voxels have one"""
    grid: GridConfig = field(default_factory=GridConfig)
    """where cells lie"""
    fusion: Fusion = Fusion.MAFI
    """mafi, or one convolution"""
    gate: Gate = Gate.LINEAR
    """task-oriented channel scaling: linear, sigmoid or off"""
    compat: Compat = Compat.NONE
    """m3net: as the released code computes, defects included (specified in `interop`)"""

    def __post_init__(self) -> None:
        """Check what must fit."""
        unknown = [t for t in self.tasks if t not in TASKS]
        if unknown or not self.tasks:
            raise ConfigError.at(
                "tasks", str(self.tasks), f"some of {', '.join(TASKS)}", "Name at least one."
            )
        for name in COUNTS:
            if (count := getattr(self, name)) < 1:
                raise ConfigError.at(name, str(count), "1 or more", "Leave it out for M3Net's own.")
        if any(not 0 <= kind < self.num_classes for kind in self.small_classes):
            expected = f"classes 0 to {self.num_classes - 1}"
            do = "Number box classes as the data do; [] for none."
            raise ConfigError.at("small_classes", str(self.small_classes), expected, do)
        if self.dim % self.num_heads:
            found = f"dim {self.dim} with {self.num_heads} heads"
            raise ConfigError.at("dim", found, "a multiple of num_heads", "Change one of them.")
        if self.grid.map_cells % self.stripes:
            found = f"{self.stripes} stripes of {self.grid.map_cells} rows"
            raise ConfigError.at("stripes", found, "a divisor of grid.map_cells", "Set stripes=1.")
        if self.lora.rank:
            do = "Set model.freeze=[fusion, near, far] to train the rest alone."
            raise ConfigError.at("lora.rank", "low-rank factors in M3Net", "0: it has no trunk", do)

    @property
    def inputs(self) -> dict[str, View.Config]:
        """What each input must look like."""
        where: dict[str, Any] = {"grid": self.grid, "levels": self.levels}
        views = {
            CAMERA: View.Config(preprocess=BevPreprocess.Config(channels=self.camera_channels, **where)),
            LIDAR: View.Config(preprocess=BevPreprocess.Config(channels=self.lidar_channels, **where)),
        }
        if self.voxels is Voxels.OCCUPIED and OCCUPANCY in self.tasks:
            views[OCCUPIED] = View.Config(preprocess=VoxelPreprocess.Config(**where))
        return views

    @property
    def modalities(self) -> dict[str, View.Config]:
        """The inputs."""
        return self.inputs

    @property
    def default_passes(self) -> tuple[str, ...]:
        """All inputs at once: the only pass there is."""
        return (JOINT.join(self.inputs),)

    @property
    def heads(self) -> dict[str, HeadSpec]:
        """The heads of the body, by task."""
        found: dict[str, HeadSpec] = {}
        for task in self.tasks:
            count, head = CLASSES[task]
            options = head.Config(num_classes=getattr(self, count))  # pyright: ignore[reportCallIssue] OwnHead's
            found[task] = HeadSpec(
                head=options, passes=list(self.default_passes), target=self.targets.get(task, "")
            )
        return found

    def for_tasks(self, needs: Mapping[str, Need]) -> M3NetConfig:
        """Return a copy with the tasks of a recipe; they have the names, heads and inputs of M3Net's own."""
        faults: list[str] = []
        tasks = [t for t in TASKS if t in needs]
        targets = {t: needs[t].target for t in tasks if needs[t].target}
        made = dataclasses.replace(self, tasks=tasks, targets=targets) if tasks else self
        for name, need in needs.items():
            if name not in TASKS:
                do = f"M3Net's tasks are {', '.join(TASKS)}; rename it, or choose another model."
                faults.append(
                    str(ConfigError.at(f"tasks.{name}", "no head in M3Net", "one of its tasks", do))
                )
            elif need.head is not None:
                found, do = "a head of the task's own", "Leave the head out."
                faults.append(str(ConfigError.at(f"tasks.{name}.head", found, "M3Net's own", do)))
            elif need.passes and set(need.passes) - set(self.default_passes) - set(made.default_passes):
                found, expected = ", ".join(need.passes), ", ".join(made.default_passes)
                do = "Leave passes out."
                faults.append(str(ConfigError.at(f"tasks.{name}.passes", found, expected, do)))
        if faults:
            raise ConfigError("\n".join(faults))
        return made
