"""Puts furniture into a room: each kind has its size, its place and its solids (metres, y up)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmzoo.datamodules.world_indoor.person import add_person
from mmzoo.datamodules.world_indoor.solids import Builder, about_y

THIN = 0.02
"""Thickness of what hangs on a wall or lies on the floor."""
TRIES = 25


@dataclass
class Room:
    """An empty room and what stands where: `taken` are the footprints (x, z, half width, half depth)."""

    builder: Builder
    size: tuple[float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def free(self, x: float, z: float, half_x: float, half_z: float, gap: float = 0.05) -> bool:
        """Say whether a footprint is inside and touches no other."""
        wide, _, deep = self.size
        inside = half_x <= x <= wide - half_x and half_z <= z <= deep - half_z
        return inside and all(
            abs(x - a) >= half_x + c + gap or abs(z - b) >= half_z + d + gap for a, b, c, d in self.taken
        )

    def somewhere(self, half_x: float, half_z: float) -> tuple[float, float] | None:
        """Draw and take a free place; None where none was found."""
        rng, (wide, _, deep) = self.builder.rng, self.size
        for _ in range(TRIES):
            x, z = rng.uniform((half_x, half_z), (wide - half_x, deep - half_z))
            if self.free(x, z, half_x, half_z):
                self.taken.append((x, z, half_x, half_z))
                return float(x), float(z)
        return None

    def at_wall(self, along: float, out: float) -> tuple[float, float, float, float] | None:
        """Draw and take a free place at a wall; return x, z and the sizes along x and z."""
        rng, (wide, _, deep) = self.builder.rng, self.size
        for _ in range(TRIES):
            side = int(rng.integers(4))
            size_x, size_z = (along, out) if side < 2 else (out, along)
            x = rng.uniform(size_x / 2, wide - size_x / 2)
            z = rng.uniform(size_z / 2, deep - size_z / 2)
            x, z = (
                (x, size_z / 2),
                (x, deep - size_z / 2),
                (size_x / 2, z),
                (wide - size_x / 2, z),
            )[side]
            if self.free(x, z, size_x / 2, size_z / 2, gap=0.0):
                self.taken.append((float(x), float(z), size_x / 2, size_z / 2))
                return float(x), float(z), size_x, size_z
        return None

    def on_wall(self, name: str, size: tuple[float, float], up: float) -> None:
        """Hang a thin box of (width, height) on a random wall, its middle at a height."""
        builder, (wide, _, deep) = self.builder, self.size
        paint, side = builder.begin(name), int(builder.rng.integers(4))
        length = wide if side < 2 else deep
        along = float(builder.rng.uniform(size[0] / 2, length - size[0] / 2))
        centre = ((along, up, 0.0), (along, up, deep), (0.0, up, along), (wide, up, along))[side]
        extent = (size[0], size[1], 2 * THIN) if side < 2 else (2 * THIN, size[1], size[0])
        builder.box(centre, extent, paint)


def table(room: Room) -> None:
    """Stand a table of a top and four legs."""
    rng = room.builder.rng
    wide, high, deep = rng.uniform((0.8, 0.65, 0.6), (1.6, 0.8, 0.9))
    if (place := room.somewhere(wide / 2, deep / 2)) is None:
        return
    x, z = place
    paint = room.builder.begin("table")
    room.builder.box((x, high - 0.02, z), (wide, 0.04, deep), paint)
    for a in (-1, 1):
        for b in (-1, 1):
            leg = (x + a * (wide / 2 - 0.04), high / 2 - 0.02, z + b * (deep / 2 - 0.04))
            room.builder.box(leg, (0.06, high - 0.04, 0.06), paint)


def chair(room: Room) -> None:
    """Stand a chair of a seat, a back and four legs, turned any way."""
    rng = room.builder.rng
    if (place := room.somewhere(0.32, 0.32)) is None:
        return
    turn = about_y(float(rng.uniform(0, 2 * np.pi)))
    paint, seat = room.builder.begin("chair"), float(rng.uniform(0.4, 0.5))

    def at(x: float, y: float, z: float) -> np.ndarray:
        return np.array([place[0], 0.0, place[1]]) + turn @ np.array([x, y, z])

    room.builder.box(at(0.0, seat, 0.0), (0.42, 0.05, 0.42), paint, turn)
    room.builder.box(at(0.0, seat + 0.25, -0.19), (0.42, 0.5, 0.04), paint, turn)
    for a in (-0.18, 0.18):
        for b in (-0.18, 0.18):
            room.builder.box(at(a, seat / 2, b), (0.04, seat, 0.04), paint, turn)


def cabinet(room: Room) -> None:
    """Stand a cabinet against a wall."""
    wide, high, deep = room.builder.rng.uniform((0.6, 0.7, 0.35), (1.4, 2.0, 0.6))
    if (place := room.at_wall(float(wide), float(deep))) is None:
        return
    x, z, size_x, size_z = place
    room.builder.box((x, high / 2, z), (size_x, high, size_z), room.builder.begin("cabinet"))


def bed(room: Room) -> None:
    """Stand a bed against a wall: a frame, a mattress and a pillow."""
    rng = room.builder.rng
    wide, high, long = rng.uniform((0.9, 0.3, 1.8), (1.6, 0.45, 2.0))
    if (place := room.at_wall(float(wide), float(long))) is None:
        return
    x, z, size_x, size_z = place
    frame, sheet, pillow = room.builder.begin("bed"), room.builder.paint("bed"), room.builder.paint("ceiling")
    room.builder.box((x, high / 2, z), (size_x, high, size_z), frame)
    room.builder.box((x, high + 0.08, z), (size_x - 0.06, 0.16, size_z - 0.06), sheet)
    shift = 0.32 * (size_z if size_z > size_x else size_x) * (1 if rng.random() < 0.5 else -1)
    centre = (x, high + 0.21, z + shift) if size_z > size_x else (x + shift, high + 0.21, z)
    room.builder.box(centre, (0.4, 0.1, 0.4), pillow)


def lamp(room: Room) -> None:
    """Stand a floor lamp: a foot, a pole and a ball."""
    if (place := room.somewhere(0.2, 0.2)) is None:
        return
    x, z = place
    high, paint = float(room.builder.rng.uniform(1.2, 1.7)), room.builder.begin("lamp")
    room.builder.box((x, 0.02, z), (0.3, 0.04, 0.3), paint)
    room.builder.box((x, high / 2, z), (0.04, high, 0.04), paint)
    room.builder.ball((x, high, z), 0.18, paint)


def ball(room: Room) -> None:
    """Lay a ball on the floor."""
    radius = float(room.builder.rng.uniform(0.12, 0.35))
    if (place := room.somewhere(radius, radius)) is not None:
        room.builder.ball((place[0], radius, place[1]), radius, room.builder.begin("ball"))


def person(room: Room) -> None:
    """Let a person stand in the room."""
    if (place := room.somewhere(0.35, 0.35)) is not None:
        add_person(room.builder, *place)


def rug(room: Room) -> None:
    """Lay a rug; furniture may stand on it."""
    rng, (wide, _, deep) = room.builder.rng, room.size
    size_x, size_z = rng.uniform((1.0, 1.0), (min(2.4, wide - 0.4), min(2.4, deep - 0.4)))
    x, z = rng.uniform((size_x / 2, size_z / 2), (wide - size_x / 2, deep - size_z / 2))
    room.builder.box((x, 0.0, z), (size_x, 2 * THIN, size_z), room.builder.begin("rug"))


def picture(room: Room) -> None:
    """Hang one to three pictures."""
    for _ in range(int(room.builder.rng.integers(1, 4))):
        wide, high = room.builder.rng.uniform((0.4, 0.4), (1.1, 0.8))
        room.on_wall("picture", (float(wide), float(high)), 1.6)


def window(room: Room) -> None:
    """Set a window into a wall."""
    wide = float(room.builder.rng.uniform(0.9, 1.8))
    room.on_wall("window", (wide, 1.1), 1.5)


def door(room: Room) -> None:
    """Set a door into a wall."""
    room.on_wall("door", (0.85, 2.0), 1.0)


PUT: dict[str, Callable[[Room], None]] = {
    "bed": bed,
    "cabinet": cabinet,
    "table": table,
    "chair": chair,
    "lamp": lamp,
    "ball": ball,
    "person": person,
    "rug": rug,
    "picture": picture,
    "window": window,
    "door": door,
}
"""How each kind is put into a room, the large ones first."""
