"""Solids: boxes and balls with a place, a class and a pattern; what a room is made of."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from mmzoo.datamodules.world_indoor.classes import ANY_TONE, CLASS, HUES, TONES

PATTERNS = 5
"""Plain, stripes, checks, planks, speckles."""
Paint = tuple[np.ndarray, np.ndarray, int, float]
"""Two colours, the pattern's number and its period (metres)."""


@dataclass(frozen=True)
class Solids:
    """All solids of a room, axis letter s.

    Shape: centre (s 3) and half (s 3) in metres; turn (s 3 3), whose columns are the box's axes in the room;
    ball (s): a ball of radius half[0]; object, semantic, part (s) numbers; colours (s 2 3) in 0 … 1; pattern
    (s); period (s) in metres. The first six are the room's faces.
    """

    centre: Float[np.ndarray, "s 3"]
    half: Float[np.ndarray, "s 3"]
    turn: Float[np.ndarray, "s 3 3"]
    ball: Bool[np.ndarray, " s"]
    object: Int[np.ndarray, " s"]
    semantic: Int[np.ndarray, " s"]
    part: Int[np.ndarray, " s"]
    colours: Float[np.ndarray, "s 2 3"]
    pattern: Int[np.ndarray, " s"]
    period: Float[np.ndarray, " s"]


@dataclass
class Builder:
    """Collects solids; `begin` starts a new object, whose solids share its number."""

    rng: np.random.Generator
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, bool, int, int, int]] = field(default_factory=list)
    paints: list[Paint] = field(default_factory=list)
    objects: int = -1
    semantic: int = 0

    def begin(self, name: str) -> Paint:
        """Start an object of a class; return a paint drawn for it."""
        self.objects += 1
        self.semantic = CLASS[name]
        return self.paint(name)

    def paint(self, name: str) -> Paint:
        """Draw two colours, a pattern and its period for a class."""
        low, high = HUES[name]
        s0, s1, v0, v1 = TONES.get(name, ANY_TONE)
        hue, saturation, value = self.rng.uniform((low, s0, v0), (high, s1, v1))
        first = np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
        second = np.clip(first * self.rng.uniform(0.55, 0.9) + self.rng.uniform(-0.05, 0.05, 3), 0, 1)
        return first, second, int(self.rng.integers(PATTERNS)), float(self.rng.uniform(0.08, 0.4))

    def box(
        self, centre: object, size: object, paint: Paint, turn: np.ndarray | None = None, part: int = 0
    ) -> None:
        """Add a box of full `size` (metres)."""
        rotation = np.eye(3) if turn is None else turn
        half = np.asarray(size, dtype=float) / 2
        self._add(np.asarray(centre, dtype=float), half, rotation, False, part)  # noqa: FBT003 a row's column
        self.paints.append(paint)

    def ball(self, centre: object, radius: float, paint: Paint, part: int = 0) -> None:
        """Add a ball."""
        self._add(np.asarray(centre, dtype=float), np.full(3, radius), np.eye(3), True, part)  # noqa: FBT003
        self.paints.append(paint)

    def _add(self, centre: np.ndarray, half: np.ndarray, turn: np.ndarray, ball: bool, part: int) -> None:  # noqa: FBT001
        self.rows.append((centre, half, turn, ball, self.objects, self.semantic, part))

    def done(self) -> Solids:
        """Return the arrays."""
        centre, half, turn, ball, number, semantic, part = zip(*self.rows, strict=True)
        first, second, pattern, period = zip(*self.paints, strict=True)
        return Solids(
            np.stack(centre).astype(np.float32),
            np.stack(half).astype(np.float32),
            np.stack(turn).astype(np.float32),
            np.array(ball),
            np.array(number),
            np.array(semantic),
            np.array(part),
            np.stack([np.stack(first), np.stack(second)], axis=1).astype(np.float32),
            np.array(pattern),
            np.array(period, dtype=np.float32),
        )


def about_y(angle: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation by an angle (radians) about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def about_x(angle: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation by an angle (radians) about the first axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
