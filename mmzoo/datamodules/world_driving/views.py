"""What the sensors' bird's-eye views would hold of a street, and batches of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.datamodules.world_driving.scene import (
    MAP_CLASSES,
    NUM_VOXEL_CLASSES,
    Street,
    StreetGrids,
    street,
)
from mmzoo.errors import ConfigError

Array = np.ndarray
WEIGHTS_SEED = 20_240_601
"""Of the fixed random features that stand for a trained camera network."""


@dataclass(kw_only=True)
class SensorConfig(schema.Config):
    """How well the sensors see."""

    noise: float = 0.3
    """standard deviation of what is added to the camera's features; the lidar gets a third of it"""
    blur_share: float = 1.5
    """how the camera's blur grows with distance: standard deviation in cells at the view's edge"""
    return_m: float = 18.0
    """distance at which half of the lidar's columns come back empty, in metres"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("noise", 0.0), ("blur_share", 0.1), ("return_m", 0.1)):
            value = getattr(self, name)
            if not value >= least:
                raise ConfigError.at(name, f"{value:g}", f"at least {least:g}", f"Set {name}={least:g}.")


@dataclass(kw_only=True)
class DrivingConfig(SensorConfig, StreetGrids):
    """Sizes of the simulated streets, and how well they are seen."""

    camera_channels: int = 16
    """channels of the camera-like view"""


@dataclass(frozen=True)
class Scenes:
    """A batch of streets.

    Shape: camera (b c y x), lidar (b z+3 y x), occupied (b z y x) the voxels that returned points, map
    (b 6 hm wm), occupancy (b z y x); boxes (n 9) and classes (n) of each scene.
    """

    camera: Float[Tensor, "b c y x"]
    lidar: Float[Tensor, "b l y x"]
    occupied: Bool[Tensor, "b z y x"]
    map: Float[Tensor, "b k hm wm"]
    occupancy: Int[Tensor, "b z y x"]
    boxes: tuple[Float[Tensor, "_ 9"], ...]
    classes: tuple[Int[Tensor, " _"], ...]


def lidar_channels(config: DrivingConfig) -> int:
    """Return the channels of the lidar-like view."""
    return config.levels + 3


def scenes(config: DrivingConfig, seed: int, numbers: range | list[int]) -> Scenes:
    """Simulate the streets of these numbers; each depends on (seed, number) alone."""
    seen = [see(config, seed, number) for number in numbers]

    def stack(rows: list[Array]) -> Tensor:
        return torch.from_numpy(np.stack(rows))

    return Scenes(
        stack([s.camera for s in seen]),
        stack([s.lidar for s in seen]),
        stack([s.occupied for s in seen]),
        stack([s.street.map for s in seen]),
        stack([s.street.occupancy for s in seen]),
        tuple(torch.from_numpy(s.street.boxes) for s in seen),
        tuple(torch.from_numpy(s.street.classes) for s in seen),
    )


@dataclass(frozen=True)
class Seen:
    """One street and what the sensors make of it."""

    street: Street
    camera: Float[Array, "c y x"]
    lidar: Float[Array, "l y x"]
    occupied: Bool[Array, "z y x"]


def see(config: DrivingConfig, seed: int, number: int) -> Seen:
    """Simulate one street; it depends on (seed, number) alone."""
    rng = np.random.default_rng((seed, number))
    made = street(rng, config)
    camera = camera_view(config, made, rng)
    returned = rng.random((config.cells, config.cells)) < 1 / (1 + (_distance(config) / config.return_m) ** 4)
    return Seen(made, camera, lidar_view(config, made, returned, rng), (made.occupancy > 0) & returned[None])


def camera_view(config: DrivingConfig, made: Street, rng: np.random.Generator) -> Float[Array, "c y x"]:
    """Return features of what things are, blurred with distance as depth is uncertain, and noise.

    Why: cameras tell classes well and distances badly.
    """
    kinds = np.concatenate(
        [
            np.eye(NUM_VOXEL_CLASSES)[made.occupancy[0]],
            np.eye(NUM_VOXEL_CLASSES)[made.occupancy[1:].max(axis=0)],
        ],
        axis=-1,
    )
    fixed = np.random.default_rng(WEIGHTS_SEED).normal(
        size=(kinds.shape[-1] + len(MAP_CLASSES), config.camera_channels)
    )
    marks = _resize(made.map, config)
    seen = np.concatenate([kinds, np.moveaxis(marks, 0, -1)], axis=-1) @ fixed
    distance = _distance(config)[..., None] / config.range_m
    blurred = [seen]
    for _ in range(3):
        blurred.append(_smooth(blurred[-1], config.blur_share))
    level = np.clip(distance * 3, 0, 2.999)
    low = level.astype(int)
    mixed = sum(
        np.where(low == i, (1 - (level - i)) * blurred[i] + (level - i) * blurred[i + 1], 0.0)
        for i in range(3)
    )
    return np.moveaxis(mixed + rng.normal(0, config.noise, seen.shape), -1, 0).astype(np.float32)


def lidar_view(
    config: DrivingConfig, made: Street, returned: Bool[Array, "y x"], rng: np.random.Generator
) -> Float[Array, "l y x"]:
    """Return which voxels gave points, the motion of what moves, and where points came back; no classes.

    Why: lidar tells places and sizes well, but what things are badly, and returns thin out with distance.
    """
    filled = (made.occupancy > 0) & returned[None]
    motion = np.zeros((2, *returned.shape))
    cell = 2 * config.range_m / config.cells
    for box in made.boxes:
        column, row = ((box[:2] + config.range_m) / cell).astype(int).clip(0, config.cells - 1)
        motion[:, row, column] = box[7:9] / 5.0
    view = np.concatenate([filled, motion * returned, returned[None]])
    return (view + rng.normal(0, config.noise / 3, view.shape)).astype(np.float32)


def _distance(config: DrivingConfig) -> Float[Array, "y x"]:
    at = (np.arange(config.cells) + 0.5) * 2 * config.range_m / config.cells - config.range_m
    return np.hypot(at[:, None], at[None])


def _resize(values: Float[Array, "k hm wm"], config: DrivingConfig) -> Float[Array, "k y x"]:
    """Bring the map to the views' grid: each cell takes the map cell at its centre, or nothing outside."""
    at = (np.arange(config.cells) + 0.5) * 2 * config.range_m / config.cells - config.range_m
    index = np.floor((at + config.map_range_m) / (2 * config.map_range_m) * config.map_cells).astype(int)
    within = (index >= 0) & (index < config.map_cells)
    index = index.clip(0, config.map_cells - 1)
    return values[:, index][:, :, index] * within[None, :, None] * within[None, None]


def _smooth(values: Float[Array, "y x c"], std: float) -> Float[Array, "y x c"]:
    """Blur by a Gaussian, edges repeated."""
    reach = max(1, int(3 * std))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pads = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
        wide = np.pad(values, pads, mode="edge")
        size = values.shape[axis]
        values = sum(
            (w * np.take(wide, range(i, i + size), axis=axis) for i, w in enumerate(kernel)),
            np.zeros_like(values),
        )
    return values


def frequencies(occupancy: Int[Tensor, "b z y x"], classes: int = NUM_VOXEL_CLASSES) -> Float[Tensor, " k"]:
    """Count the voxels of each class."""
    return torch.bincount(occupancy.flatten(), minlength=classes).float()
