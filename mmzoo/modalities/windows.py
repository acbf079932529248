"""Spatiotemporal-entity windows: a motion cut into (frames x joints x entities) blocks, one token each.

Axis letters: k rows, c channels, t frames, v joints, p entities, a frames of a window, b joints x entities of
a window, u windows.
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Shaped
from torch import Tensor


class WindowMode(str, Enum):
    """Which elements share a window: neighbours, or every (size / window)-th one."""

    STRIDED = "strided"
    CONTIGUOUS = "contiguous"


def num_windows(size: int, window: int) -> int:
    """Return how many windows an axis of `size` elements gives."""
    return -(-size // window)


def partition(
    x: Shaped[Tensor, "k c t v p"], window: tuple[int, int, int], mode: WindowMode
) -> Shaped[Tensor, "k c a b u"]:
    """Cut into windows; axes that the window does not divide repeat their last element.

    Math: windows are ordered (frame, joint, entity) row-major, b is ordered (joint, entity). With n windows
    along an axis, element i of window j is x[i * n + j] (strided) or x[j * window + i] (contiguous).
    Ref: ISTA-Net section 3.1 describes contiguous windows; its released code cuts strided ones.
    """
    for axis, size in enumerate(window, start=2):
        x = _repeat_last(x, axis, -x.shape[axis] % size)
    return _cut(x, window, mode)


def any_real(
    seen: Bool[Tensor, "k t v p"], window: tuple[int, int, int], mode: WindowMode
) -> Bool[Tensor, "k u"]:
    """Say which windows hold an element that was seen; the copies that `partition` pads with do not count."""
    short = [-size % wide for size, wide in zip(seen.shape[1:], window, strict=True)]
    padded = F.pad(seen, (0, short[2], 0, short[1], 0, short[0]), value=False)
    return _cut(padded[:, None], window, mode).flatten(1, 3).any(1)


def _cut(x: Tensor, window: tuple[int, int, int], mode: WindowMode) -> Tensor:
    for axis, size in zip((4, 3, 2), reversed(window), strict=True):
        count = x.shape[axis] // size
        x = x.unflatten(axis, (size, count) if mode is WindowMode.STRIDED else (count, size))
    inner, outer = ((2, 4, 6), (3, 5, 7)) if mode is WindowMode.STRIDED else ((3, 5, 7), (2, 4, 6))
    return x.permute(0, 1, *inner, *outer).flatten(5, 7).flatten(3, 4)


def _repeat_last(x: Tensor, axis: int, times: int) -> Tensor:
    if not times:
        return x
    last = x.narrow(axis, x.shape[axis] - 1, 1)
    return torch.cat([x, *[last] * times], dim=axis)
