"""The body: NTU's 25 joints as a kinematic tree, posed for every frame of an event and seen from the
place's camera.

Coordinates of a clip: metres, right-handed; x to the right of the picture, y up, z towards the viewer (so
a point in view has z < 0), the camera at the origin. Slot 0 is the actor, slot 1 the partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mmzoo.datamodules.world import actions
from mmzoo.datamodules.world.cast import PARTNER, PEOPLE, PLACES, Person
from mmzoo.datamodules.world.events import SIDES, Event

PARENTS = (-1, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11)
"""Parent of each joint, 0-based; NTU's order (1-based): 1 spine base, 2 mid, 3 neck, 4 head, 5-12 arms,
13-20 legs, 21 spine-shoulder, 22-25 hand tips and thumbs."""
ORDER = (0, 1, 20, 2, 3, 4, 5, 6, 7, 21, 22, 8, 9, 10, 11, 23, 24, 12, 13, 14, 15, 16, 17, 18, 19)
"""The joints with every parent before its children."""

_OFFSETS = {
    1: (0, 0.26, 0), 20: (0, 0.24, 0), 2: (0, 0.08, 0), 3: (0, 0.15, 0.02),
    4: (0.17, -0.02, 0), 5: (0, -0.27, 0), 6: (0, -0.24, 0), 7: (0, -0.08, 0),
    21: (0, -0.08, 0), 22: (-0.02, -0.04, 0.03),
    12: (0.09, -0.03, 0), 13: (0, -0.40, 0), 14: (0, -0.38, 0), 15: (0, -0.05, 0.12),
}  # fmt: skip
_MIRROR = {4: 8, 5: 9, 6: 10, 7: 11, 21: 23, 22: 24, 12: 16, 13: 17, 14: 18, 15: 19}

FACING_PAIR, FACING_SOLO = 1.2, 0.8
"""How far persons turn from the viewer towards each other, or one alone towards the middle (rad)."""


@dataclass(frozen=True)
class Clips:
    """The bodies of some events: joints [n t 2 25 3] without noise, which slots are real [n 2]."""

    joints: Float[np.ndarray, "n t 2 25 3"]
    present: Bool[np.ndarray, "n 2"]


def rest_offsets(person: Person, scale: float = 1.0) -> Float[np.ndarray, "25 3"]:
    """Return each joint's offset from its parent for a person's build."""
    offsets = np.zeros((actions.NUM_JOINTS, 3))
    for joint, offset in _OFFSETS.items():
        offsets[joint] = offset
    offsets[4, 0] *= person.shoulders
    offsets[12, 0] *= 0.5 + 0.5 * person.shoulders
    offsets[[5, 6]] *= person.arms
    offsets[[13, 14]] *= person.legs
    for left, right in _MIRROR.items():
        offsets[right] = offsets[left] * (-1, 1, 1)
    return offsets * person.scale * scale


def pose(events: Sequence[Event]) -> Clips:
    """Pose all persons of some events: angles one event at a time, the tree for all at once."""
    count, frames = len(events), actions.NUM_FRAMES
    angles = np.zeros((count, frames, 2, actions.NUM_JOINTS, 3))
    roots = np.zeros((count, frames, 2, 3))
    yaws = np.zeros((count, frames, 2))
    offsets = np.zeros((count, 2, actions.NUM_JOINTS, 3))
    for i, event in enumerate(events):
        people = (PEOPLE[event.colour], PARTNER)
        offsets[i] = rest_offsets(people[0]), rest_offsets(people[1], event.partner_scale)
        angles[i], roots[i], yaws[i] = _stage(event, people, offsets[i])
    joints = forward_kinematics(angles, offsets, yaws) + roots[:, :, :, None]
    views = np.stack([camera(e) for e in events])[:, None, None]
    joints = (joints - (0.0, 0.95, 0.0)) @ views.swapaxes(-1, -2)
    joints += np.stack([_camera_place(e) for e in events])[:, None, None, None]
    present = np.array([[True, event.is_pair] for event in events])
    return Clips(joints, present)


def forward_kinematics(
    angles: Float[np.ndarray, "n t p v 3"],
    offsets: Float[np.ndarray, "n p v 3"],
    yaws: Float[np.ndarray, "n t p"],
) -> Float[np.ndarray, "n t p v 3"]:
    """Place the joints around the root at the origin.

    Math: R_j = R_parent Rz(a) Ry(b) Rx(c); p_j = p_parent + R_parent offset_j (metres); the root turned
    by the yaw.
    """
    bent = np.flatnonzero(np.any(angles != 0.0, axis=(0, 1, 2, 4))).tolist()
    turns = dict(zip(bent, np.moveaxis(rotation(angles[..., bent, :]), 3, 0), strict=True))
    heading = np.zeros((*yaws.shape, 3))
    heading[..., 1] = yaws
    places = np.zeros(angles.shape)
    world = {0: rotation(heading) @ turns[0] if 0 in turns else rotation(heading)}
    for joint in ORDER[1:]:
        parent = PARENTS[joint]
        step = world[parent] @ offsets[:, None, :, joint, :, None]
        places[..., joint, :] = places[..., parent, :] + step[..., 0]
        world[joint] = world[parent] @ turns[joint] if joint in turns else world[parent]
    return places


def rotation(angles: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """Return Rz(angles z) Ry(angles y) Rx(angles x) for angles given in the order x, y, z."""
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    out = np.empty((*angles.shape, 3))
    out[..., 0, 0], out[..., 0, 1], out[..., 0, 2] = cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx
    out[..., 1, 0], out[..., 1, 1], out[..., 1, 2] = sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx
    out[..., 2, 0], out[..., 2, 1], out[..., 2, 2] = -sy, cy * sx, cy * cx
    return out


def camera(event: Event) -> Float[np.ndarray, "3 3"]:
    """Return the camera's rotation: the place's pitch and roll, held a little unsteadily."""
    place, rng = PLACES[event.setting], event.rng("motion", 1)
    pitch, yaw, roll = rng.normal((place.pitch, 0.0, place.roll), (0.05, 0.12, 0.04))
    return rotation(np.array([pitch, yaw, roll]))


def record(event: Event, joints: Float[np.ndarray, "t 2 25 3"]) -> Float[np.ndarray, "3 t 25 2"]:
    """Return what a depth sensor would write: smooth jitter of 8 mm, rare spikes; NaN for who is not
    there."""
    rng = event.rng("skeleton")
    noise = rng.normal(0.0, 0.008, joints.shape)
    noise[1:-1] = (noise[:-2] + noise[1:-1] + noise[2:]) / np.sqrt(3.0)
    spikes = rng.random(joints.shape[:3]) < 0.004
    noise[spikes] += rng.normal(0.0, 0.08, (int(spikes.sum()), 3))
    seen = joints + noise
    if not event.is_pair:
        seen[:, 1] = np.nan
    return seen.transpose(3, 0, 2, 1)


def _stage(
    event: Event, people: tuple[Person, Person], offsets: Float[np.ndarray, "2 25 3"]
) -> tuple[Float[np.ndarray, "t 2 25 3"], Float[np.ndarray, "t 2 3"], Float[np.ndarray, "t 2"]]:
    side = SIDES[event.side]
    actor, partner = actions.Figure(side), actions.Figure(side)
    distance = actions.MOVES[event.action](actor, partner, actions.clock(event))
    actor.lean(0.10)
    sign = 1.0 if side == "left" else -1.0
    facing = sign * (FACING_PAIR if event.is_pair else FACING_SOLO)
    apart = sign * (0.5 * (distance + event.distance) if event.is_pair else 0.45)
    headings = (facing, -facing)
    angles, roots, yaws = [], [], []
    for slot, (figure, person) in enumerate(zip((actor, partner), people, strict=True)):
        figure.trunk("torso", "x", person.stoop)
        figure.both("shoulder", "z", person.splay)
        figure.both("hip", "z", person.straddle)
        reach = -offsets[slot, [13, 14], 1].sum() * np.cos(person.straddle)
        root = rotation(np.array([0.0, headings[slot], 0.0])) @ figure.shift.T
        root[0] += -apart if slot == 0 else apart
        root[1] += reach + 0.14 * person.scale
        angles.append(figure.angles)
        roots.append(root.T)
        yaws.append(headings[slot] + figure.turn)
    return np.stack(angles, 1), np.stack(roots, 1), np.stack(yaws, 1)


def _camera_place(event: Event) -> Float[np.ndarray, " 3"]:
    rng = event.rng("motion", 2)
    return np.array([rng.normal(0.0, 0.08), rng.normal(0.0, 0.05), -rng.uniform(3.6, 4.0)])
