"""A standing or striding person of boxes and a ball, in the six parts that PASCAL-Context's labels have."""

from __future__ import annotations

import numpy as np

from mmzoo.datamodules.world_indoor.classes import PART
from mmzoo.datamodules.world_indoor.solids import Builder, Paint, about_x, about_y

SKIN = ((0.94, 0.78, 0.66), (0.76, 0.55, 0.42), (0.45, 0.3, 0.22))


def add_person(builder: Builder, x: float, z: float) -> None:
    """Put a person of random height, clothes, pose and facing at a place of the floor (metres)."""
    rng = builder.rng
    shirt = builder.begin("person")
    trousers = builder.paint("person")
    tone = np.array(SKIN[int(rng.integers(len(SKIN)))])
    skin: Paint = (tone, tone, 0, 1.0)
    tall = float(rng.uniform(1.45, 1.9))
    facing = about_y(float(rng.uniform(0, 2 * np.pi)))
    foot = np.array([x, 0.0, z])

    def place(right: float, up: float, ahead: float = 0.0) -> np.ndarray:
        return foot + facing @ np.array([right, up, ahead]) * tall

    builder.box(place(0.0, 0.67), np.array([0.23, 0.32, 0.12]) * tall, shirt, facing, PART["torso"])
    builder.box(place(0.0, 0.85), np.array([0.06, 0.06, 0.06]) * tall, skin, facing, PART["torso"])
    builder.ball(place(0.0, 0.93), 0.07 * tall, skin, PART["head"])
    for side in (-1.0, 1.0):
        swing, bend = rng.uniform(-0.9, 0.9), rng.uniform(0.0, 1.4)
        limb = _Limb(builder, facing, tall, foot + facing @ np.array([0.15 * side, 0.81, 0.0]) * tall)
        limb.add(swing, (0.055, 0.19), shirt, PART["upper arm"])
        limb.add(swing - bend, (0.045, 0.22), skin, PART["lower arm"])
        swing, bend = rng.uniform(-0.35, 0.35), rng.uniform(0.0, 0.4)
        limb = _Limb(builder, facing, tall, foot + facing @ np.array([0.06 * side, 0.51, 0.0]) * tall)
        limb.add(swing, (0.09, 0.26), trousers, PART["upper leg"])
        limb.add(swing + bend, (0.075, 0.26), trousers, PART["lower leg"])


class _Limb:
    """A chain of boxes that hangs from a joint; each swings about the body's left-right axis."""

    def __init__(self, builder: Builder, facing: np.ndarray, tall: float, joint: np.ndarray) -> None:
        self.builder, self.facing, self.tall, self.joint = builder, facing, tall, joint

    def add(self, angle: float, size: tuple[float, float], paint: Paint, part: int) -> None:
        """Add a segment of (thickness, length), in heights of the person, hanging at an angle (radians)."""
        thick, length = size[0] * self.tall, size[1] * self.tall
        turn = self.facing @ about_x(angle)
        down = turn @ np.array([0.0, -1.0, 0.0])
        self.builder.box(self.joint + down * length / 2, (thick, length, thick), paint, turn, part)
        self.joint = self.joint + down * length
