"""Pictures as a bird's-eye view: the colours that the lidar's points have in them, averaged in each cell.

Why: where no trained network of pictures is at hand, the lidar's depth says exactly where a pixel lies. The
view is sparse (one pixel a point), knows no hidden surfaces, and is raw input: users who have views of a
trained network give those instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mmzoo.datamodules.nuscenes.infos import Camera
from mmzoo.datamodules.nuscenes.points import Space
from mmzoo.errors import DataError
from mmzoo.layers.lift import lift

MIN_DEPTH_M = 1.0
"""Points nearer to the camera's plane are not looked up."""
COLOURS = ("red", "green", "blue")
Array = np.ndarray


def channels(bands: int) -> tuple[str, ...]:
    """Return what `camera_view` gives, in order."""
    return tuple(f"{what}_of_band_{band}" for band in range(bands) for what in (*COLOURS, "seen"))


def camera_view(
    root: Path,
    cameras: Sequence[Camera],
    xyz: Float[Array, "n 3"],
    space: Space,
    bands: int,
    patch: int,
) -> Float[Array, "c y x"]:
    """Return the mean colour (-1 … 1) of the points above each cell, and 1 where one was seen, for each of
    `bands` equal spans of height.

    Math: a pixel's colour is the mean of its patch of `patch` x `patch` pixels; a point that two cameras see
    counts twice.
    """
    seen = [_colours(root, camera, xyz, patch) for camera in cameras]
    places = np.concatenate([xyz[inside] for inside, _ in seen]) if seen else np.zeros((0, 3))
    colours = np.concatenate([rgb for _, rgb in seen]) if seen else np.zeros((0, 3))
    share = (places[:, 2] - space.bottom_m) / (space.top_m - space.bottom_m)
    band = np.floor(share * bands)
    views = [_mean(places[band == k], colours[band == k], space) for k in range(bands)]
    return np.concatenate(views).astype(np.float32)


def project(camera: Camera, xyz: Float[Array, "n 3"]) -> tuple[Float[Array, "n 2"], Float[Array, " n"]]:
    """Return where points of the lidar's frame lie in a picture (u right, v down, pixels), and their depths.

    Math: p = R^T (x - t) for the motion (R, t) from camera to lidar; (u, v) = K p / p_z. Undefined at depth 0
    and below, where u and v are 0.
    """
    here = (xyz - camera.to_lidar[:3, 3]) @ camera.to_lidar[:3, :3]
    depth = here[:, 2]
    ahead = depth > 0
    flat = here @ camera.intrinsics.T
    return np.where(ahead[:, None], flat[:, :2] / np.where(ahead, flat[:, 2], 1)[:, None], 0.0), depth


def read_picture(path: Path, patch: int) -> tuple[UInt8[Array, "h w 3"], tuple[int, int]]:
    """Read a picture scaled down by `patch`, and its whole width and height."""
    from PIL import Image

    if not path.is_file():
        do = "Is data.root the folder of samples and sweeps?"
        raise DataError.at(str(path), "no such file", "a camera's picture", do)
    with Image.open(path) as picture:
        width, height = picture.size
        small = (max(1, width // patch), max(1, height // patch))
        picture.draft("RGB", small)  # a JPEG is decoded at that size, which is much faster
        scaled = picture.convert("RGB").resize(small, Image.Resampling.BOX)
        return np.array(scaled), (width, height)


def _colours(
    root: Path, camera: Camera, xyz: Float[Array, "n 3"], patch: int
) -> tuple[Bool[Array, " n"], Float[Array, "m 3"]]:
    pixels, (width, height) = read_picture(root / camera.file, patch)
    place, depth = project(camera, xyz)
    scale = np.array([pixels.shape[1] / width, pixels.shape[0] / height])
    column, row = np.floor(place * scale).T
    inside = (depth > MIN_DEPTH_M) & (column >= 0) & (column < pixels.shape[1])
    inside &= (row >= 0) & (row < pixels.shape[0])
    return inside, pixels[row[inside].astype(int), column[inside].astype(int)] / 127.5 - 1


def _mean(places: Float[Array, "n 3"], colours: Float[Array, "n 3"], space: Space) -> Float[Array, "4 y x"]:
    """Lift colours to the cells they lie above: each point is a ray of one known depth."""
    values = torch.from_numpy(np.concatenate([colours, np.ones((len(colours), 1))], axis=1)).float()
    rays, points = values.T[None, :, None], torch.from_numpy(places).float()[None, None, None]
    sure = torch.ones(1, 1, 1, len(places))
    total = lift(rays, sure, points, (space.cells, space.cells), space.range_m)[0].numpy()
    return np.concatenate([total[:3] / np.maximum(total[3:], 1), total[3:] > 0])
