"""The bodies: kinematics against a plain recursion, and that each action, person, side and place shows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mmzoo.datamodules.world import actions, body
from mmzoo.datamodules.world.cast import PARTNER, PEOPLE
from mmzoo.datamodules.world.events import ACTIONS, CLIP_S, COLOURS, SETTINGS, Event


def event(action="stand", **changes):
    plain = Event(0, 0, 5, ACTIONS.index(action), 0, 0, 0, 1)
    return dataclasses.replace(plain, **changes)


def axis_turn(axis, angle):
    c, s = math.cos(angle), math.sin(angle)
    return np.array(
        {
            "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis]
    )


def test_rotation_is_the_product_of_three_turns():
    for x, y, z in np.random.default_rng(0).normal(size=(10, 3)):
        expected = axis_turn("z", z) @ axis_turn("y", y) @ axis_turn("x", x)
        np.testing.assert_allclose(body.rotation(np.array([x, y, z])), expected, atol=1e-12)


def test_forward_kinematics_is_the_plain_recursion():
    rng = np.random.default_rng(1)
    angles, offsets = rng.normal(size=(2, 3, 2, 25, 3)), rng.normal(size=(2, 2, 25, 3))
    angles[:, :, :, [3, 7]] = 0.0  # joints that no action bends
    yaws = rng.normal(size=(2, 3, 2))
    found = body.forward_kinematics(angles, offsets, yaws)

    def place(n, t, p, joint):
        if joint == 0:
            return np.zeros(3), axis_turn("y", yaws[n, t, p]) @ body.rotation(angles[n, t, p, 0])
        where, turn = place(n, t, p, body.PARENTS[joint])
        return where + turn @ offsets[n, p, joint], turn @ body.rotation(angles[n, t, p, joint])

    expected = [
        [[[place(n, t, p, j)[0] for j in range(25)] for p in range(2)] for t in range(3)] for n in range(2)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_every_parent_comes_before_its_children():
    assert sorted(body.ORDER) == list(range(25))
    for at, joint in enumerate(body.ORDER[1:], start=1):
        assert body.PARENTS[joint] in body.ORDER[:at]


def test_bones_keep_the_lengths_of_the_persons_build():
    clips = body.pose([event("punch", colour=c) for c in range(len(COLOURS))])
    for n, person in enumerate(PEOPLE):
        lengths = np.linalg.norm(body.rest_offsets(person), axis=1)
        for joint, parent in enumerate(body.PARENTS):
            if parent >= 0:
                bone = np.linalg.norm(clips.joints[n, :, 0, joint] - clips.joints[n, :, 0, parent], axis=-1)
                np.testing.assert_allclose(bone, lengths[joint], atol=1e-9)


def test_left_and_right_hands_are_mirror_images_at_rest():
    offsets = body.rest_offsets(PEOPLE[2])
    for left, right in ((4, 8), (7, 11), (22, 24), (15, 19)):
        np.testing.assert_allclose(offsets[right], offsets[left] * (-1, 1, 1))


@pytest.mark.parametrize("side", [0, 1])
def test_the_actor_stands_on_the_named_side_and_acts_with_that_hand(side):
    # `event` leaves the camera's noise as it is: the same for both sides
    joints = body.pose([event("wave", side=side)]).joints[0, :, 0]
    assert (joints[:, 0, 0].mean() < 0) == (side == 0)
    up = joints[:, [7, 11], 1].mean(axis=0)
    assert int(up.argmax()) == side, "left hand is joint 7, right hand 11"


def test_persons_of_a_pair_meet_at_the_actions_distance():
    joints = body.pose([event("handshake", setting=1)]).joints[0]
    gap = np.linalg.norm(joints[:, 0, 0] - joints[:, 1, 0], axis=-1)
    reach = [
        0.78 * who.legs * who.scale * math.cos(who.straddle) + 0.14 * who.scale
        for who in (PEOPLE[0], PARTNER)
    ]
    np.testing.assert_allclose(gap, math.hypot(0.85, reach[0] - reach[1]), atol=1e-6)
    hands = np.linalg.norm(joints[:, 0, 7] - joints[:, 1, 7], axis=-1)
    assert hands.min() < 0.35, "their left hands come close"


def test_fast_events_repeat_four_times_as_often_as_slow_ones():
    heights = body.pose([event("squat", tempo=t) for t in range(3)]).joints[:, :, 0, 0, 1]
    dips = [int(((h[1:-1] < h[:-2]) & (h[1:-1] <= h[2:])).sum()) for h in heights]
    assert dips == [1, 2, 4]


def test_peaks_are_where_the_bump_is_highest():
    for tempo in range(3):
        made = event("punch", tempo=tempo, phase=0.1, rate=1.05)
        clock = actions.clock(made)
        fine = np.linspace(0, CLIP_S, 20_000)
        phi = np.interp(fine, clock.time, clock.phi)
        bump = dataclasses.replace(clock, time=fine, phi=phi).bump(0.5)
        tops = fine[1:-1][(bump[1:-1] > bump[:-2]) & (bump[1:-1] >= bump[2:])]
        times = actions.peak_times(made, 0.5)
        for time in times[times < clock.time[-1]]:
            assert np.abs(tops - time).min() < 1e-3


def test_places_tilt_the_body():
    def trunk(setting):
        made = [event(setting=setting, index=i) for i in range(20)]
        up = body.pose(made).joints[:, 0, 0]
        return np.mean(up[:, 20] - up[:, 0], axis=0)

    lean = {name: trunk(SETTINGS.index(name)) for name in SETTINGS}
    assert lean["stage"][2] > lean["street"][2] > lean["beach"][2], (
        "a camera that looks down tilts towards it"
    )
    assert lean["forest"][0] < lean["street"][0] - 0.05, "the hillside rolls"


def test_recording_adds_jitter_and_leaves_out_who_is_not_there():
    solo, pair = event("kick"), event("hug")
    joints = body.pose([solo, pair]).joints
    alone, both = body.record(solo, joints[0]), body.record(pair, joints[1])
    assert alone.shape == (3, actions.NUM_FRAMES, 25, 2)
    assert np.isnan(alone[..., 1]).all()
    assert not np.isnan(both).any()
    error = both - joints[1].transpose(3, 0, 2, 1)
    assert 0.004 < np.median(np.abs(error)) < 0.012
    np.testing.assert_array_equal(body.record(pair, joints[1]), both)
