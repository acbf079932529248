"""The sixteen actions as joint angles over time.

Each action bends an actor and, where there is one, a partner; both in the person's own frame (x to his
left, y up, z forward; metres and radians), the sixteen motions of the skeleton simulator the project
specifies. A motion repeats once, twice or four times in a clip, by tempo; everything is a function of
`phi`, the number of repetitions so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmzoo.datamodules.world.events import CLIP_S, Event

NUM_FRAMES = 32
NUM_JOINTS = 25
REPETITIONS = (1.0, 2.0, 4.0)
"""Repetitions of the motion in a clip, by tempo."""

_LIMBS = {
    "left": {"shoulder": 4, "elbow": 5, "wrist": 6, "hip": 12, "knee": 13, "ankle": 14},
    "right": {"shoulder": 8, "elbow": 9, "wrist": 10, "hip": 16, "knee": 17, "ankle": 18},
}
_TRUNK = {"pelvis": 0, "torso": 1, "neck": 2, "chest": 20}
_AXES = {"x": 0, "y": 1, "z": 2}
_OTHER = {"left": "right", "right": "left"}

Curve = Float[np.ndarray, " t"]


class Figure:
    """One person's angles [t 25 3] (order of application Rz Ry Rx) and root shift [t 3], to which an
    action adds."""

    def __init__(self, side: str) -> None:
        """Start at rest; `side` is the acting side."""
        self.side = side
        self.angles = np.zeros((NUM_FRAMES, NUM_JOINTS, 3))
        self.shift = np.zeros((NUM_FRAMES, 3))
        self.turn = np.zeros(NUM_FRAMES)

    def trunk(self, joint: str, axis: str, value: Curve | float) -> None:
        """Bend the pelvis, torso, chest or neck."""
        self.angles[:, _TRUNK[joint], _AXES[axis]] += value

    def acting(self, joint: str, axis: str, value: Curve | float) -> None:
        """Bend a joint of the acting side; y and z are positive outwards."""
        self._bend(self.side, joint, axis, value)

    def resting(self, joint: str, axis: str, value: Curve | float) -> None:
        """Bend a joint of the other side."""
        self._bend(_OTHER[self.side], joint, axis, value)

    def both(self, joint: str, axis: str, value: Curve | float) -> None:
        """Bend a joint on both sides."""
        self.acting(joint, axis, value)
        self.resting(joint, axis, value)

    def lean(self, value: Curve | float) -> None:
        """Lean the trunk sideways, positive to the acting side."""
        self.trunk("torso", "z", -value if self.side == "left" else value)

    def gait(self, s: Curve, reach: float = 0.6) -> None:
        """Step: hips and knees by turns, arms against them; `s` runs from -1 to 1."""
        for bend, phase in ((self.acting, s), (self.resting, -s)):
            up = np.maximum(phase, 0.0)
            bend("hip", "x", -reach * up + 0.4 * reach * np.maximum(-phase, 0.0))
            bend("knee", "x", 1.0 * up)
            bend("shoulder", "x", 0.5 * phase)
            bend("elbow", "x", -0.3)
        self.shift[:, 1] += 0.02 * np.abs(s)

    def _bend(self, side: str, joint: str, axis: str, value: Curve | float) -> None:
        mirrored = -1.0 if side == "right" and axis != "x" else 1.0
        self.angles[:, _LIMBS[side][joint], _AXES[axis]] += mirrored * value


@dataclass(frozen=True)
class Motion:
    """The clock of an event: time (s), repetitions so far, and the curves made of them."""

    time: Curve
    phi: Curve
    amplitude: float

    @property
    def s(self) -> Curve:
        """Return the oscillation, -1 … 1, at its top in the middle of each repetition's first half."""
        return np.sin(2 * np.pi * self.phi)

    @property
    def q(self) -> Curve:
        """Return the raised cosine, 0 at the start of each repetition and 1 in its middle."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * self.phi)

    def bump(self, at: float = 0.5, width: float = 0.13) -> Curve:
        """Return a Gaussian bump a repetition, around `at` cycles."""
        away = (self.phi - at + 0.5) % 1.0 - 0.5
        return self.amplitude * np.exp(-(away**2) / (2 * width**2))

    def ramp(self) -> Curve:
        """Return 0 … 1 over the clip."""
        return self.time / CLIP_S


def clock(event: Event) -> Motion:
    """Return the clock of an event at the frames."""
    time = np.arange(NUM_FRAMES) * (CLIP_S / NUM_FRAMES)
    return Motion(time, cycles(event) * time / CLIP_S + event.phase, event.amplitude)


def cycles(event: Event) -> float:
    """Return the repetitions in a clip."""
    return REPETITIONS[event.tempo] * event.rate


def peak_times(event: Event, at: float = 0.5) -> Float[np.ndarray, " k"]:
    """Return the times (s) inside the clip at which a repetition is `at` cycles old: where its impact
    falls."""
    k = np.arange(-1, 8)
    times = (k + at - event.phase) / cycles(event) * CLIP_S
    return times[(times > 0.0) & (times < CLIP_S - 0.02)]


def _stand(a: Figure, p: Figure, m: Motion) -> float:
    a.lean(0.16 * m.amplitude * m.s)
    a.shift[:, 0] += 0.04 * m.s
    return 0.0


def _wave(a: Figure, p: Figure, m: Motion) -> float:
    a.acting("shoulder", "z", 2.3)
    a.acting("elbow", "z", 0.35 + 0.6 * m.amplitude * m.s)
    return 0.0


def _clap(a: Figure, p: Figure, m: Motion) -> float:
    a.both("shoulder", "x", -1.1)
    a.both("elbow", "z", 0.45 - 1.0 * m.q * m.amplitude)
    a.acting("shoulder", "x", -0.35)
    return 0.0


def _kick(a: Figure, p: Figure, m: Motion) -> float:
    a.acting("hip", "x", -1.4 * m.bump())
    a.acting("knee", "x", 0.9 * m.bump(0.36))
    a.resting("shoulder", "x", -0.5 * m.bump())
    a.trunk("torso", "x", -0.2 * m.bump())
    return 0.0


def _squat(a: Figure, p: Figure, m: Motion) -> float:
    depth = np.clip(m.amplitude * m.q, 0.0, 1.1)
    a.both("hip", "x", -1.25 * depth)
    a.both("knee", "x", 1.95 * depth)
    a.both("ankle", "x", -0.7 * depth)
    a.both("shoulder", "x", -1.2 * depth)
    a.lean(0.12)
    a.shift[:, 1] -= 0.42 * depth
    return 0.0


def _walk(a: Figure, p: Figure, m: Motion) -> float:
    a.gait(m.amplitude * m.s, reach=0.7)
    return 0.0


def _handshake(a: Figure, p: Figure, m: Motion) -> float:
    for f in (a, p):
        f.acting("shoulder", "x", -(0.75 + 0.2 * m.s))
        f.acting("shoulder", "y", -0.3)
        f.acting("elbow", "x", -0.55)
    return 0.85


def _push(a: Figure, p: Figure, m: Motion) -> float:
    b = m.bump()
    a.both("shoulder", "x", -1.35 * b - 0.5)
    a.both("elbow", "x", -1.3 * (1.0 - np.minimum(b, 1.0)))
    a.trunk("torso", "x", 0.25 * b)
    p.trunk("torso", "x", -0.35 * m.bump(0.56))
    p.shift[:, 2] -= 0.3 * m.bump(0.6, 0.16)
    return 0.72


def _hug(a: Figure, p: Figure, m: Motion) -> float:
    for f in (a, p):
        f.both("shoulder", "x", -1.2)
        f.both("shoulder", "y", -0.35)
        f.both("elbow", "x", -0.5)
        f.trunk("torso", "x", 0.12)
    a.acting("elbow", "x", -0.35 * m.amplitude * m.q)
    a.lean(0.12 * m.s)
    p.lean(-0.12 * m.s)
    return 0.36


def _high_five(a: Figure, p: Figure, m: Motion) -> float:
    for f in (a, p):
        f.acting("shoulder", "x", -0.3 - 2.1 * m.bump())
        f.acting("shoulder", "y", -0.25)
        f.acting("elbow", "x", -0.3)
    return 0.80


def _kick_partner(a: Figure, p: Figure, m: Motion) -> float:
    _kick(a, p, m)
    p.trunk("torso", "x", 0.45 * m.bump(0.56))
    p.both("shoulder", "x", -0.6 * m.bump(0.56))
    p.shift[:, 2] -= 0.2 * m.bump(0.6, 0.16)
    return 0.92


def _point(a: Figure, p: Figure, m: Motion) -> float:
    a.acting("shoulder", "x", -1.25 - 0.3 * m.amplitude * m.q)
    p.trunk("neck", "y", 0.6)
    p.resting("shoulder", "x", -0.3 * m.q)
    p.resting("elbow", "x", -1.6)
    return 1.25


def _approach(a: Figure, p: Figure, m: Motion) -> float:
    a.gait(m.amplitude * m.s)
    a.shift[:, 2] += _stride(m) * (m.ramp() - 0.5)
    return 1.3


def _depart(a: Figure, p: Figure, m: Motion) -> float:
    a.gait(m.amplitude * m.s)
    a.turn += np.pi
    a.shift[:, 2] -= _stride(m) * (m.ramp() - 0.5)
    p.acting("shoulder", "z", 2.2)
    return 1.3


def _punch(a: Figure, p: Figure, m: Motion) -> float:
    b = np.minimum(m.bump(), 1.0)
    a.acting("shoulder", "x", -1.4 * b + 0.5 * (1.0 - b))
    a.acting("elbow", "x", -1.9 * (1.0 - b))
    a.resting("shoulder", "x", -0.5)
    a.resting("elbow", "x", -1.7)
    a.trunk("torso", "x", 0.2 * b)
    p.trunk("torso", "x", -0.4 * m.bump(0.56))
    p.trunk("neck", "x", -0.5 * m.bump(0.56))
    return 0.80


def _hand_over(a: Figure, p: Figure, m: Motion) -> float:
    a.both("shoulder", "x", -0.35 - 0.65 * m.bump(0.44, 0.18))
    a.both("elbow", "x", -0.8 + 0.6 * m.bump(0.44, 0.18))
    p.both("shoulder", "x", -0.35 - 0.65 * m.bump(0.56, 0.18))
    p.both("elbow", "x", -0.8 + 0.6 * m.bump(0.56, 0.18))
    return 1.0


def _stride(m: Motion) -> float:
    speed = (m.phi[-1] - m.phi[0]) / 4.0
    return 0.35 + 0.75 * float(np.sqrt(speed))


MOVES: tuple[Callable[[Figure, Figure, Motion], float], ...] = (
    _stand, _wave, _clap, _kick, _squat, _walk, _handshake, _push,
    _hug, _high_five, _kick_partner, _point, _approach, _depart, _punch, _hand_over,
)  # fmt: skip
"""In the order of `events.ACTIONS`; each bends the actor and the partner and returns their distance (m)."""
