"""From a view to an image and the labels of every pixel, which agree with it and each other exactly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mmzoo.batch import IGNORE
from mmzoo.datamodules.world_indoor.classes import MOVABLE
from mmzoo.datamodules.world_indoor.rays import Camera, Seen, lit, look
from mmzoo.datamodules.world_indoor.rooms import View
from mmzoo.datamodules.world_indoor.solids import Solids

STEP_M = 0.08
"""Difference of depth beyond which two solids of one object are told apart by a boundary (metres)."""
CENTRE = 0.4
"""Standard deviation of the weight that the middle of the picture has for saliency, in its half height."""
LEAST_SHARE = 0.01
"""Of the image that the salient object covers, at least."""
AMBIENT = 0.35

Labelled = dict[str, np.ndarray]
"""image (h w 3) uint8; the others as `cache` lists them."""


def see(view: View, rng: np.random.Generator) -> Labelled:
    """Make the image and its labels; `rng` draws the sensor's noise."""
    solids, camera = view.solids, view.camera
    seen = look(solids, camera)
    parts = solids.part[seen.solid].astype(np.uint8)
    return {
        "image": shade(solids, seen, view.light, rng),
        "semseg": solids.semantic[seen.solid].astype(np.uint8),
        "human_parts": parts if parts.any() else np.full_like(parts, IGNORE),
        "sal": salient(solids, seen).astype(np.uint8),
        "normals": seen.normal @ camera.turn.astype(np.float32),
        "edge": boundaries(solids, seen).astype(np.uint8),
        "depth": seen.depth,
    }


def boundaries(solids: Solids, seen: Seen) -> Bool[np.ndarray, "h w"]:
    """Mark pixels whose right or lower neighbour shows another object, or a solid of the same one behind."""
    number, depth = solids.object[seen.solid], seen.depth
    edge = np.zeros(depth.shape, dtype=bool)
    for axis in (0, 1):
        here = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        there = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        behind = (seen.solid[here] != seen.solid[there]) & (np.abs(depth[here] - depth[there]) > STEP_M)
        edge[here] |= (number[here] != number[there]) | behind
    return edge


def salient(solids: Solids, seen: Seen) -> Bool[np.ndarray, "h w"]:
    """Mark the piece of furniture, ball or person that takes most of the picture's middle, if any does."""
    height, width = seen.depth.shape
    y = (np.arange(height) + 0.5 - height / 2) / (height / 2)
    x = (np.arange(width) + 0.5 - width / 2) / (height / 2)
    weight = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * CENTRE**2))
    number = solids.object[seen.solid]
    movable = np.isin(solids.semantic[seen.solid], MOVABLE)
    score = np.bincount(number[movable], weight[movable], minlength=int(solids.object.max()) + 1)
    chosen = movable & (number == score.argmax())
    return chosen if chosen.mean() >= LEAST_SHARE else np.zeros_like(chosen)


def shade(
    solids: Solids, seen: Seen, light: Float[np.ndarray, " 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour the surfaces: pattern times diffuse light with shadows, gamma and noise."""
    to_light = light - seen.point
    distance = np.linalg.norm(to_light, axis=-1)
    facing = np.maximum((seen.normal * to_light).sum(-1) / distance, 0)
    direct = facing * lit(solids, seen, light.astype(np.float32)) * 2.2 / (1 + 0.25 * distance**2)
    upward = 0.5 + 0.5 * seen.normal[..., 1]
    level = AMBIENT * (0.8 + 0.4 * upward) + direct
    colour = np.clip(paint(solids, seen) * level[..., None], 0, 1) ** (1 / 1.6)
    noisy = 255 * colour + rng.normal(0, 3, colour.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def paint(solids: Solids, seen: Seen) -> Float[np.ndarray, "h w 3"]:
    """Return each point's own colour, from the pattern of its solid in the solid's axes."""
    turn = solids.turn[seen.solid]
    local = np.einsum("hwij,hwi->hwj", turn, seen.point - solids.centre[seen.solid])
    cells = np.floor(local / solids.period[seen.solid][..., None] + 1e-3).astype(np.int64)
    pattern = solids.pattern[seen.solid]
    fine = np.floor(4 * local / solids.period[seen.solid][..., None] + 1e-3).astype(np.int64)
    planks = _hash(cells[..., 0] + cells[..., 1], seen.solid)
    share = np.choose(
        pattern,
        [
            np.zeros(pattern.shape),
            (cells[..., 0] + cells[..., 1]) % 2,
            cells.sum(-1) % 2,
            planks,
            _hash(fine[..., 0] * 7919 + fine[..., 1] * 104729 + fine[..., 2] * 1299709, seen.solid),
        ],
    )[..., None]
    colours = solids.colours[seen.solid]
    return colours[..., 0, :] * (1 - share) + colours[..., 1, :] * share


def points(camera: Camera, depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Return the points that a depth map stands for, in the camera's axes."""
    return camera.directions() * depth[..., None]


def _hash(cells: Int[np.ndarray, "h w"], salt: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Return a number in 0 … 1 for each cell, the same wherever it is asked for."""
    mixed = (
        cells.astype(np.uint64) * np.uint64(2654435761) + salt.astype(np.uint64) * np.uint64(40503)
    ) & np.uint64(0xFFFFFFFF)
    mixed ^= mixed >> np.uint64(15)
    mixed = (mixed * np.uint64(2246822519)) & np.uint64(0xFFFFFFFF)
    return ((mixed >> np.uint64(8)) & np.uint64(0xFFFF)).astype(np.float64) / 65535.0
