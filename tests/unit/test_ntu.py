"""NTU `.skeleton` text: hand-written files, cleaning against hand-made cases, and the published splits."""

from __future__ import annotations

import numpy as np
import pytest

from mmzoo.datamodules import ntu
from mmzoo.errors import DataError


def body(rng: np.random.Generator, frames: int, scale: float = 0.1) -> np.ndarray:
    """A standing body (frames, 25, 3), 1.7 m high and 0.4 m wide, that moves by `scale` metres."""
    rest = rng.random((25, 3)) * [0.4, 0.0, 0.2] + np.linspace(0, 1.7, 25)[:, None] * [0, 1, 0]
    return (rest + rng.standard_normal((frames, 1, 3)) * scale).astype(np.float32)


def track(joints: np.ndarray, seen: list[int], frames: int, name: str = "1") -> ntu.Track:
    values, mask = np.full((frames, 25, 3), np.nan, np.float32), np.zeros(frames, bool)
    values[seen], mask[seen] = joints[: len(seen)], True
    return ntu.Track(name, mask, values)


def test_a_file_written_by_hand_is_read() -> None:
    joint = "{i} 1.5 -2e-1 200.5 100.25 900 500 0.1 0.2 0.3 0.4 2"
    one = ["7205 0 1 1 0 0 0 0.1 -0.2 2", "25", *[joint.format(i=i) for i in range(25)]]
    two = ["99 0 1 1 0 0 0 0.1 -0.2 2", "25", *[joint.format(i=-i) for i in range(25)]]
    tracks = ntu.parse("\r\n".join(["3", "1", *one, "0", "2", *two, *one]), "x")
    assert [t.body for t in tracks] == ["7205", "99"]
    assert tracks[0].seen.tolist() == [True, False, True]
    assert tracks[1].seen.tolist() == [False, False, True]
    np.testing.assert_array_equal(tracks[0].joints[0], [[i, 1.5, np.float32(-0.2)] for i in range(25)])
    np.testing.assert_array_equal(tracks[1].joints[2], [[-i, 1.5, np.float32(-0.2)] for i in range(25)])
    assert np.isnan(tracks[0].joints[1]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x, line 1: the end of the file; expected the number of frames"),
        ("many", r"x, line 1: 'many'; expected the number of frames"),
        ("1\n1\n7 0\n20", r"x, line 4: 20 joints; expected 25"),
        ("1\n1\n7 0\n25\n1 2 3", r"x, line 5: 3 numbers; expected a joint's twelve numbers"),
        ("1\n1\n7 0\n25\na 2 3 0 0 0 0 0 0 0 0 0", r"x, line 5: 'a 2 3 .*; expected a joint's"),
        ("2\n0", r"x, line 3: the end of the file; expected the number of bodies"),
    ],
)
def test_a_damaged_file_names_the_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ntu.parse(text, "x")


def test_what_is_written_is_read_again() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([body(rng, 20, 0.3), body(rng, 20, 0.1)], axis=-1).transpose(2, 0, 1, 3)
    values[:, 4:9, :, 1] = np.nan
    again = ntu.persons(ntu.parse(ntu.write(values), "x"))
    np.testing.assert_allclose(again, values, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match=r"a \.skeleton file: 31 joints; expected 25"):
        ntu.write(np.zeros((3, 2, 31, 1), np.float32))


def test_slots_go_by_motion_and_free_frames() -> None:
    rng = np.random.default_rng(1)
    calm, lively, later = body(rng, 30, 0.01), body(rng, 20, 0.5), body(rng, 20, 0.2)
    tracks = [
        track(calm, list(range(2, 32)), 40, "calm"),
        track(lively, list(range(20)), 40, "lively"),
        track(later, list(range(20, 36)), 40, "later"),
    ]
    found = ntu.persons(tracks)
    assert found.shape == (3, 36, 25, 2)  # frames 36..39 show nobody
    np.testing.assert_array_equal(found[:, :20, :, 0].transpose(1, 2, 0), lively)
    np.testing.assert_array_equal(found[:, 20:36, :, 0].transpose(1, 2, 0), later[:16])
    np.testing.assert_array_equal(found[:, 2:32, :, 1].transpose(1, 2, 0), calm)
    assert np.isnan(found[:, :2, :, 1]).all()


def test_short_and_spread_tracks_are_noise_only_beside_others() -> None:
    rng = np.random.default_rng(2)
    real, short = body(rng, 30), body(rng, 11)
    chair = body(rng, 30)[..., [1, 0, 2]]
    tracks = [
        track(real, list(range(30)), 30),
        track(short, list(range(11)), 30, "s"),
        track(chair, list(range(30)), 30, "c"),
    ]
    found = ntu.persons(tracks)
    np.testing.assert_array_equal(found[..., 0].transpose(1, 2, 0), real)
    assert np.isnan(found[..., 1]).all()
    np.testing.assert_array_equal(ntu.persons(tracks[1:2])[..., 0].transpose(1, 2, 0), short)
    np.testing.assert_array_equal(ntu.persons(tracks[2:])[..., 0].transpose(1, 2, 0), chair)
    assert ntu.persons([]).shape == (3, 0, 25, 2)


def test_names_and_splits() -> None:
    name = ntu.Name.parse("/data/S017C003P009R002A060.skeleton")
    assert name == ntu.Name(17, 3, 9, 2, 60)
    assert str(name) == "S017C003P009R002A060"
    assert name.in_train(ntu.Protocol.XSUB)
    assert not name.in_train(ntu.Protocol.XSET)
    assert name.in_train(ntu.Protocol.XVIEW)
    other = ntu.Name.parse("S018C001P003R001A001")
    assert [other.in_train(p) for p in ntu.Protocol] == [False, True, False]
    assert len(ntu.XSUB_60) == 20
    assert len(set(ntu.XSUB_120)) == len(ntu.XSUB_120) == 53
    assert len(ntu.MUTUAL_ACTIONS) == 26
    with pytest.raises(DataError, match=r"clip7\.skeleton: not an NTU name; expected SsssCcccPpppRrrrAaaa"):
        ntu.Name.parse("clip7.skeleton")
