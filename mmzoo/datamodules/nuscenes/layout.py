"""How views and labels lie: the model's grids in the lidar's frame, and how many channels each view has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from mmzoo.datamodules.nuscenes.points import STATISTICS, Space
from mmzoo.datamodules.scene import CAMERA, LIDAR, channels_of, grid_of
from mmzoo.errors import ConfigError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.bev import VoxelConfig

LIDAR_HEIGHT_M = 1.84
"""The lidar above the ground."""
BANDS = 2
"""Spans of height of the camera view where the model does not say how many channels it takes."""


class HeightFrom(str, Enum):
    """Where z is 0."""

    GROUND = "ground"
    LIDAR = "lidar"


@dataclass(frozen=True)
class Layout:
    """Grids in the lidar's frame and the channels of both views, as the model wants them."""

    space: Space
    map_cells: int
    map_range_m: float
    raise_m: float
    statistics: int
    bands: int

    @staticmethod
    def of(preprocesses: Mapping[str, Preprocess], height_from: HeightFrom, *, made: bool) -> Layout:
        """Take them from the model's options; views that are not `made` here may have any channels."""
        wanted = grid_of(preprocesses) or VoxelConfig()
        grid, up = wanted.grid, LIDAR_HEIGHT_M if height_from is HeightFrom.GROUND else 0.0
        space = Space(grid.cells, grid.range_m, wanted.levels, grid.bottom_m - up, grid.top_m - up)
        if not space.bottom_m < -LIDAR_HEIGHT_M < space.top_m:
            found = f"voxels from {grid.bottom_m:g} to {grid.top_m:g} m"
            expected = f"the ground, at {up - LIDAR_HEIGHT_M:g} m, among them"
            raise ConfigError.at("data", found, expected, "Change data.height_from or model.grid.")
        lidar, camera = (channels_of(preprocesses, name) for name in (LIDAR, CAMERA))
        statistics = lidar - space.levels if lidar else len(STATISTICS)
        if made and not 0 < statistics <= len(STATISTICS):
            expected = f"one for each of {space.levels} levels and 1 … {len(STATISTICS)} more"
            do = f"Set model.lidar_channels={space.levels + len(STATISTICS)}."
            raise ConfigError.at("data", f"a model that reads {lidar} lidar channels", expected, do)
        if made and camera % 4:
            expected, do = "a multiple of 4 (three colours and seen)", "Set model.camera_channels=8."
            raise ConfigError.at("data", f"a model that reads {camera} camera channels", expected, do)
        return Layout(space, grid.map_cells, grid.map_range_m, up, statistics, camera // 4 or BANDS)
