"""Boxes as rotated rectangles with a height: overlap in the plane and in space. NumPy, exact."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def corners(boxes: Float[Array, "n 9"]) -> Float[Array, "n 4 2"]:
    """Return the corners seen from above, counter-clockwise, in metres.

    Shape: boxes hold x y z, length, width, height (m), yaw (rad), velocity x y (m/s).
    """
    half = boxes[:, None, 3:5] / 2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=np.float64)
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    turn = np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=-2)
    return half @ turn + boxes[:, None, :2]


def clip(polygon: Float[Array, "p 2"], by: Float[Array, "q 2"]) -> Float[Array, "r 2"]:
    """Return the part of a convex polygon within another, both counter-clockwise.

    Ref: Sutherland & Hodgman 1974.
    """
    found = polygon
    for start, end in zip(by, np.roll(by, -1, axis=0), strict=True):
        if not len(found):
            break
        edge = end - start
        away = found - start
        side = edge[0] * away[:, 1] - edge[1] * away[:, 0]
        kept: list[Array] = []
        for i in range(len(found)):
            j = (i + 1) % len(found)
            if side[i] >= 0:
                kept.append(found[i])
            if side[i] * side[j] < 0:
                kept.append(found[i] + side[i] / (side[i] - side[j]) * (found[j] - found[i]))
        found = np.array(kept).reshape(-1, 2)
    return found


def area(polygon: Float[Array, "p 2"]) -> float:
    """Return the area of a polygon (Math: the shoelace sum)."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def iou_3d(a: Float[Array, "n 9"], b: Float[Array, "m 9"]) -> Float[Array, "n m"]:
    """Return intersection over union of the volumes; z is a box's middle."""
    found = np.zeros((len(a), len(b)))
    if not found.size:
        return found
    ca, cb = corners(a), corners(b)
    reach = np.linalg.norm(a[:, 3:5], axis=1)[:, None] / 2 + np.linalg.norm(b[:, 3:5], axis=1)[None] / 2
    near = np.linalg.norm(a[:, None, :2] - b[None, :, :2], axis=-1) < reach
    top = np.minimum((a[:, 2] + a[:, 5] / 2)[:, None], (b[:, 2] + b[:, 5] / 2)[None])
    bottom = np.maximum((a[:, 2] - a[:, 5] / 2)[:, None], (b[:, 2] - b[:, 5] / 2)[None])
    height = np.clip(top - bottom, 0, None)
    for i, j in zip(*np.nonzero(near & (height > 0)), strict=True):
        both = area(clip(ca[i], cb[j])) * height[i, j]
        whole = np.prod(a[i, 3:6]) + np.prod(b[j, 3:6]) - both
        found[i, j] = both / max(float(whole), 1e-9)
    return found
