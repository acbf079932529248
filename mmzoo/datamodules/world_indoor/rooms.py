"""Draws rooms and views of them; a split has its own plans (sets of furniture), so held-out rooms are new."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmzoo import schema
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.world_indoor.classes import FURNITURE
from mmzoo.datamodules.world_indoor.furnish import PUT, Room
from mmzoo.datamodules.world_indoor.rays import Camera
from mmzoo.datamodules.world_indoor.solids import Builder, Solids
from mmzoo.errors import ConfigError

WALL = 0.2
"""Thickness of the room's faces (metres)."""
FOCAL = 0.81
"""Focal length in image widths: that of the Kinect with which NYUD was taken."""
PRESENT = 0.7
"""Probability with which a room has each kind of furniture."""
SHARES = {"train": range(7), "val": range(7, 8), "test": range(8, 10)}
"""Which tenths of all plans a split has."""


@dataclass(kw_only=True)
class IndoorWorldConfig(schema.Config):
    """What decides how the world comes out."""

    num_train: int = 800
    """Training images."""
    num_val: int = 80
    """Validation images."""
    num_test: int = 160
    """Test images."""
    views_per_room: int = 4
    """Images of each room, from other places."""
    size: tuple[int, int] = (96, 128)
    """Height and width (pixels)."""
    world_seed: int = 0
    """Seed of the world; apart from the run's, so that runs with other seeds see the same one."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_train", "num_val", "num_test", "views_per_room"):
            if getattr(self, name) < 1:
                raise ConfigError.at(name, f"{getattr(self, name)}", "at least 1", f"Set {name}=1.")
        if min(self.size) < 8:
            raise ConfigError.at("size", f"{self.size}", "at least 8 pixels each way", "Try [96, 128].")

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]


@dataclass(frozen=True)
class View:
    """One image to be made: the room's solids, the camera and the light."""

    solids: Solids
    camera: Camera
    light: Float[np.ndarray, " 3"]


def view_name(split: str, number: int, config: IndoorWorldConfig) -> str:
    """Name an image: its split, room and view."""
    room, view = divmod(number, config.views_per_room)
    return f"{split}-{room:04d}-{view}"


def plan_split(plan: tuple[str, ...]) -> str:
    """Return the split to which all rooms of a plan belong."""
    tenth = hashlib.sha256(",".join(sorted(plan)).encode()).digest()[0] % 10
    return next(split for split, tenths in SHARES.items() if tenth in tenths)


def make_view(config: IndoorWorldConfig, split: str, number: int) -> View:
    """Draw a view; the same for the same options, split and number."""
    room, view = divmod(number, config.views_per_room)
    key = [config.world_seed, SPLITS.index(split), room]
    made = make_room(np.random.default_rng(key), split)
    rng = np.random.default_rng([*key, 1 + view])
    wide, high, deep = made.size
    light = np.array([rng.uniform(0.2, 0.8) * wide, high - 0.25, rng.uniform(0.2, 0.8) * deep])
    return View(made.builder.done(), _camera(made, rng, config.size), light)


def make_room(rng: np.random.Generator, split: str) -> Room:
    """Draw a room of a plan of the split: its faces, then its furniture."""
    while True:
        plan = tuple(name for name in FURNITURE if rng.random() < PRESENT)
        if len(plan) >= 3 and plan_split(plan) == split:
            break
    wide, high, deep = (float(x) for x in rng.uniform((3.0, 2.4, 3.2), (5.0, 2.9, 6.0)))
    room = Room(Builder(rng), (wide, high, deep))
    _faces(room)
    for name, put in PUT.items():
        if name in plan:
            for _ in range(int(rng.integers(1, 4)) if name == "chair" else 1):
                put(room)
    return room


def _faces(room: Room) -> None:
    (wide, high, deep), builder = room.size, room.builder
    wall = builder.paint("wall")
    middle = np.array([wide, high, deep]) / 2
    for axis, side in ((0, 0), (0, 1), (2, 0), (2, 1), (1, 0), (1, 1)):
        name = "wall" if axis != 1 else ("floor", "ceiling")[side]
        paint = builder.begin(name) if axis == 1 else wall
        if axis != 1:
            builder.begin("wall")
        centre, size = middle.copy(), np.array([wide, high, deep])
        centre[axis] = (size[axis] + WALL / 2) if side else -WALL / 2
        size[axis] = WALL
        builder.box(centre, size + WALL * (np.arange(3) != axis), paint)


def _camera(room: Room, rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Stand where nothing else does and look at some piece of furniture, or across the room."""
    wide, high, deep = room.size
    place = np.array([wide / 2, 1.5, 0.4])
    for _ in range(50):
        x, z = rng.uniform((0.35, 0.35), (wide - 0.35, deep - 0.35))
        if room.free(float(x), float(z), 0.3, 0.3):
            place = np.array([x, rng.uniform(1.1, min(1.9, high - 0.4)), z])
            break
    aims = [(x, z) for x, z, _, _ in room.taken if np.hypot(x - place[0], z - place[2]) > 0.8]
    aim = aims[int(rng.integers(len(aims)))] if aims else (wide / 2, deep / 2)
    yaw = np.arctan2(aim[0] - place[0], aim[1] - place[2]) + rng.normal(0, 0.25)
    pitch, roll = rng.uniform(-0.5, 0.0), rng.normal(0, 0.04)
    ahead = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross(ahead, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, ahead)
    c, s = np.cos(roll), np.sin(roll)
    turn = np.stack([c * right + s * up, c * up - s * right, -ahead], axis=1)
    return Camera(place, turn, FOCAL * size[1], size)
