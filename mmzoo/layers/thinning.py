"""Thins binary pictures to lines one pixel wide that keep their shape and stay connected."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""The eight neighbours (rows, columns) from the right one anticlockwise: x1 … x8 of the papers."""


def thin(pictures: Bool[np.ndarray, "... h w"]) -> Bool[np.ndarray, "... h w"]:
    """Return each picture thinned until nothing changes.

    Math: a pixel goes if (G1) exactly one run of its ring is set, (G2) it has two or three neighbours
    counted in pairs, so that it is no end of a line, and (G3) it lies on the side whose turn it is; the two
    sides take turns, each looking at all pixels at once.
    Ref: Lam, Lee, Suen, "Thinning methodologies" (PAMI 1992), p. 879: what Matlab's bwmorph(…, 'thin', Inf)
    does. Only pixels beside one that went are looked at again.
    """
    height, width = pictures.shape[-2:]
    padded = np.pad(pictures.reshape(-1, height, width), ((0, 0), (1, 1), (1, 1)))
    flat = padded.reshape(-1)
    steps = np.array([row * (width + 2) + col for row, col in RING])
    todo = [np.flatnonzero(flat)] * 2
    side = 0
    while len(todo[0]) or len(todo[1]):
        here = todo[side][flat[todo[side]]]
        todo[side] = here[:0]
        gone = here[REMOVED[side][_codes(flat, here, steps)]]
        flat[gone] = False
        if len(gone):
            near = (gone[:, None] + steps).ravel()
            near = near[flat[near]]
            todo = [np.unique(np.concatenate([those, near])) for those in todo]
        side = 1 - side
    return padded[:, 1:-1, 1:-1].reshape(pictures.shape)


def _codes(
    flat: Bool[np.ndarray, " n"], here: Int[np.ndarray, " k"], steps: Int[np.ndarray, " 8"]
) -> Int[np.ndarray, " k"]:
    code = np.zeros(len(here), dtype=np.int64)
    for bit, step in enumerate(steps):
        code |= flat[here + step].astype(np.int64) << bit
    return code


def _removed(side: int) -> Bool[np.ndarray, " 256"]:
    """Tabulate, for each state of the ring, whether the pixel inside it goes."""
    codes = np.arange(256)
    x = [(codes >> (k % 8)) & 1 for k in range(9)]  # x[k] is x_{k+1}; the ring closes: x[8] is x1
    runs = sum((1 - x[k]) & (x[k + 1] | x[k + 2]) for k in (0, 2, 4, 6))
    pairs = np.minimum(
        sum(x[k] | x[k + 1] for k in (0, 2, 4, 6)), sum(x[k + 1] | x[k + 2] for k in (0, 2, 4, 6))
    )
    inside = (
        (x[1] | x[2] | (1 - x[7])) & x[0],
        (x[5] | x[6] | (1 - x[3])) & x[4],
    )[side]
    return (runs == 1) & (pairs >= 2) & (pairs <= 3) & (inside == 0)


REMOVED = (_removed(0), _removed(1))
"""By side and state of the ring: whether the pixel goes."""
