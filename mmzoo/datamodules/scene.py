"""The form of a scene around a vehicle, which every data set of scenes gives its samples in.

Axes of all maps and voxels are [y, x] with the vehicle in the middle; positions are (x, y, z) in metres, yaw
is in radians from x towards y. Where the cells lie is the model's to say: the grid in the options of its
Preprocess (`grid_of`), as a picture's size is the model's. A Sample holds, each where the scene has it:

    inputs["camera"]     (c, cells, cells) float: features of a camera's bird's-eye view
    inputs["lidar"]      (l, cells, cells) float: features of a lidar's
    inputs["occupied"]   (levels, cells, cells) bool: the voxels that hold lidar points
    lists["boxes"]       (n, 10) float: x y z of the middle, length, width, height, yaw, velocity x y, class
    targets["map"]       (classes, map_cells, map_cells) float 0 or 1; classes may overlap
    targets["occupancy"] (levels, cells, cells) int64 class: 0 free, 255 not known

In a Batch, `inputs[m].values` are (k, ...); `targets["boxes"].values` (k, longest, 10), the real number of
boxes of each row in `.sizes` (`.rows()` cuts them); the others (k, ...). A scene without a label leaves its
key out, one without boxes has (0, 10). A velocity that is not known is nan in both parts.
`DataInfo.labels` names the classes of each label in the order of their numbers, `DataInfo.scene` says what
kind each is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from mmzoo.batch import Sample, SceneKind
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.bev import BevPreprocess, VoxelConfig, VoxelPreprocess, as_tensor

CAMERA, LIDAR, OCCUPIED = INPUTS = ("camera", "lidar", "occupied")
BOXES, MAP, OCCUPANCY = LABELS = ("boxes", "map", "occupancy")
KINDS = {BOXES: SceneKind.BOXES_3D, MAP: SceneKind.GROUND_MAP, OCCUPANCY: SceneKind.VOXELS}
"""What each label is."""
BOX_NUMBERS = 10
"""Numbers of a box: the middle 3, sizes 3, yaw, velocity 2, class."""
Array = np.ndarray


@dataclass(frozen=True)
class Scene:
    """One scene as it was made or read, before the model's Preprocess; what it lacks is None or no key."""

    inputs: Mapping[str, Shaped[Array, "c y x"]] = field(default_factory=dict)
    boxes: Float[Array, "n 10"] | None = None
    map: Shaped[Array, "k hm wm"] | None = None
    occupancy: Int[Array, "z y x"] | None = None

    def sample(
        self, name: str, preprocesses: Mapping[str, Preprocess], generator: torch.Generator | None = None
    ) -> Sample:
        """Return the scene as a Sample with those inputs that the model reads."""
        given = {m: self.inputs[m] for m in preprocesses if m in self.inputs}
        inputs = {m: preprocesses[m](raw, generator=generator) for m, raw in given.items()}
        targets = {}
        if self.map is not None:
            targets[MAP] = as_tensor(self.map).float()
        if self.occupancy is not None:
            targets[OCCUPANCY] = as_tensor(self.occupancy).long()
        boxes = as_tensor(self.boxes).float() if self.boxes is not None else None
        return Sample(name, inputs, targets, lists={} if boxes is None else {BOXES: boxes})


def grid_of(preprocesses: Mapping[str, Preprocess]) -> VoxelConfig | None:
    """Return levels and grid that the model wants, None where it reads no scene."""
    for name in INPUTS:
        prepare = preprocesses.get(name)
        if isinstance(prepare, BevPreprocess | VoxelPreprocess):
            return prepare.config
    return None


def channels_of(preprocesses: Mapping[str, Preprocess], name: str) -> int:
    """Return how many channels of a view the model wants; 0: any."""
    prepare = preprocesses.get(name)
    return prepare.config.channels if isinstance(prepare, BevPreprocess) else 0
