"""Motions: what was not seen stays unseen through centring, resampling, augmentation and derived streams."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.joints import LAYOUTS, LayoutName, conversion
from mmzoo.modalities.motion import Facing, Motion, SkeletonPreprocess, bones, resample, rotation, velocity
from mmzoo.schema import parse


def make(**options: object) -> SkeletonPreprocess:
    plain = {"layout": "cmu31", "num_frames": None, "centre": False}
    return SkeletonPreprocess(parse(SkeletonPreprocess.Config, plain | options))


def motion(frames: int = 12, joints: int = 31, entities: int = 1, dims: int = 3) -> torch.Tensor:
    return torch.randn(dims, frames, joints, entities, generator=torch.Generator().manual_seed(8))


def test_plain_motion_passes_unchanged() -> None:
    values = motion()
    item = make()(values)
    assert torch.equal(item.values, values)
    assert item.valid is not None
    assert item.valid.all()
    assert torch.equal(make(scale=0.5)(values.numpy()).values, values / 2)


def test_nan_and_mask_mean_the_same() -> None:
    values = motion()
    hole = values.clone()
    hole[:, 3, 7] = float("nan")
    hole[1, 5, 9] = float("nan")  # one coordinate missing is a joint missing
    mask = torch.ones(12, 31, 1, dtype=torch.bool)
    mask[3, 7] = mask[5, 9] = False
    by_nan, by_mask = make()(hole), make()(Motion(values, mask))
    assert by_nan.valid is not None
    assert torch.equal(by_nan.valid, mask)
    assert torch.equal(by_nan.values, by_mask.values)
    torch.testing.assert_close(by_nan.values, values * mask, rtol=1e-5, atol=1e-6)
    assert not by_nan.values[:, 3, 7].any()


def test_another_layout_is_converted_and_a_joint_is_seen_where_its_sources_are() -> None:
    values = motion()
    hole = values.clone()
    hole[:, 3, LAYOUTS[LayoutName.CMU31].names.index("lowerback")] = float("nan")
    item = make(layout="ntu25")(Motion(hole, layout=LayoutName.CMU31))
    sources = conversion(LayoutName.CMU31, LayoutName.NTU25)
    assert item.values.shape == (3, 12, 25, 2)
    middle = LAYOUTS[LayoutName.NTU25].names.index("spine_mid")  # the mean of lower and upper back
    for joint, given in enumerate(sources):
        expected = torch.stack([values[:, :, g, 0] for g in given]).mean(0)
        if joint == middle:
            expected[:, 3] = 0.0
        torch.testing.assert_close(item.values[:, :, joint, 0], expected)
    assert item.valid is not None
    assert (~item.valid[..., 0]).nonzero().tolist() == [[3, middle]]
    same = make()(Motion(values, layout=LayoutName.CMU31))
    assert torch.equal(same.values, values)
    with pytest.raises(DataError, match=r"joints=31, entities\) for cmu31"):
        make(layout="ntu25")(Motion(motion(joints=25), layout=LayoutName.CMU31))


def test_missing_persons_are_absent_not_zero_people() -> None:
    item = make(layout="ntu25")(motion(joints=25))
    assert item.values.shape == (3, 12, 25, 2)
    assert item.valid is not None
    assert not item.valid[..., 1].any()
    assert item.valid[..., 0].all()


def test_empty_ends_are_dropped_and_holes_inside_stay() -> None:
    values = motion(frames=9)
    values[:, [0, 1, 5, 8]] = float("nan")
    item = make()(values)
    assert item.values.shape[1] == 6
    assert item.valid is not None
    assert item.valid.flatten(1).all(1).tolist() == [True, True, True, False, True, True]


def test_centre_is_the_layouts_joint_where_first_seen() -> None:
    values = motion(frames=5, joints=17, entities=2, dims=2) + 100
    values[:, 0, 11] = float("nan")  # no hips in the first frame of either
    item = make(layout="coco17", centre=True, scale=2.0)(values)
    middle = values[:, 1, [11, 12], 0].mean(1)
    expected = (values - middle[:, None, None, None]) * 2
    torch.testing.assert_close(item.values, torch.nan_to_num(expected), rtol=1e-5, atol=1e-4)


def test_centre_without_its_joint_is_the_first_frames_mean() -> None:
    values = motion(frames=4)
    values[:, :, 0] = float("nan")
    item = make(centre=True)(values)
    middle = values[:, 0, 1:, 0].mean(1)
    torch.testing.assert_close(item.values[:, :, 1:], values[:, :, 1:] - middle[:, None, None, None])
    assert torch.equal(item.values[:, :, 0], torch.zeros(3, 4, 1))


@pytest.mark.parametrize("frames", [5, 12, 31])
def test_resampling_is_linear_interpolation_where_all_is_seen(frames: int) -> None:
    values = motion()
    made, seen = resample(values, torch.ones(12, 31, 1, dtype=torch.bool), frames)
    flat = values.permute(0, 2, 3, 1).flatten(0, 2)[None]
    expected = F.interpolate(flat, size=frames, mode="linear", align_corners=False)
    expected = expected.reshape(3, 31, 1, frames).permute(0, 3, 1, 2)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert seen.all()


def test_resampling_never_mixes_in_what_was_not_seen() -> None:
    values, seen = torch.full((3, 4, 1, 1), 5.0), torch.tensor([True, False, True, True])[:, None, None]
    values[:, 1] = 1000.0
    made, kept = resample(values, seen, 8)
    # places -.25 .25 .75 1.25 1.75 2.25 2.75 3.25: within half a frame of frame 1 nothing is known
    assert kept.flatten().tolist() == [True, True, False, False, True, True, True, True]
    assert torch.equal(made, torch.where(kept, 5.0, 0.0).expand(3, -1, -1, -1))


def test_evaluation_keeps_the_middle() -> None:
    values = motion(frames=20)
    torch.testing.assert_close(make(middle_share=0.5)(values).values, values[:, 5:15], rtol=1e-5, atol=1e-6)


def test_training_crops_by_the_generator_only(generator: torch.Generator) -> None:
    values = torch.arange(40.0)[None, :, None, None].expand(3, 40, 31, 1)
    crop = make(augment={"min_crop": 0.5})
    starts, lengths = set(), set()
    for _ in range(20):
        made = crop(values, generator=generator).values[0, :, 0, 0]
        assert torch.equal(made, made[0] + torch.arange(len(made)))
        starts.add(int(made[0]))
        lengths.add(len(made))
    assert min(lengths) >= 20
    assert len(starts) > 5
    again = [crop(values, generator=torch.Generator().manual_seed(3)).values for _ in range(2)]
    assert torch.equal(*again)
    assert (
        make(augment={"min_crop": 0.5, "min_crop_frames": 64})(values, generator=generator).values.shape[1]
        == 40
    )


def test_turning_keeps_distances_and_the_up_axis(generator: torch.Generator) -> None:
    values = motion()
    turned = make(augment={"yaw_rad": 1.0})(values, generator=generator).values
    assert not torch.allclose(turned, values, atol=0.1)
    torch.testing.assert_close(turned[1], values[1], rtol=0, atol=1e-5)
    root = values[:, :1, :1]
    torch.testing.assert_close((turned - root).norm(dim=0), (values - root).norm(dim=0), rtol=1e-4, atol=1e-4)


def test_rotation_is_rz_ry_rx() -> None:
    seed = torch.Generator().manual_seed(2)
    tilt, yaw = 0.3, 0.5
    turn = rotation(3, yaw, tilt, seed)
    again = torch.Generator().manual_seed(2)
    x, y, z = (float(torch.rand((), generator=again)) * 2 * most - most for most in (tilt, yaw, tilt))
    rx = [[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]]
    ry = [[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]]
    rz = [[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]]
    np.testing.assert_allclose(turn.numpy(), np.array(rz) @ np.array(ry) @ np.array(rx), atol=1e-6)
    flat = rotation(2, 0.0, 1.0, seed)
    torch.testing.assert_close(flat @ flat.T, torch.eye(2))


def test_mirror_exchanges_left_and_right(generator: torch.Generator) -> None:
    values = motion()
    values[:, 4, 3] = float("nan")
    item = make(centre=True, augment={"mirror_prob": 1.0})(values, generator=generator)
    layout = LAYOUTS[LayoutName.CMU31]
    left, right = layout.names.index("lhand"), layout.names.index("rhand")
    centred = values - values[:, :1, :1]
    torch.testing.assert_close(item.values[0, :, left], -centred[0, :, right])
    torch.testing.assert_close(item.values[1:, :, right], centred[1:, :, left])
    assert item.valid is not None
    assert layout.names[3] == "ltibia"
    assert not item.valid[4, layout.names.index("rtibia")].any()
    assert int(item.valid.sum()) == item.valid.numel() - 1


def test_mirror_exchanges_hands(generator: torch.Generator) -> None:
    values = motion(joints=21, entities=2)
    made = make(layout="assembly_hands", centre=True, augment={"mirror_prob": 1.0})(
        values, generator=generator
    ).values
    middle = values[:, :1, 5:6, :1]
    expected = (values - middle).flip(3) * torch.tensor([-1.0, 1, 1])[:, None, None, None]
    torch.testing.assert_close(made, expected)


def test_size_jitter_and_order(generator: torch.Generator) -> None:
    values = motion(joints=25, entities=2)
    values[:, 2, 2] = float("nan")
    scaled = make(layout="ntu25", centre=True, augment={"size_share": 0.2})(values, generator=generator)
    plain = make(layout="ntu25", centre=True)(values)
    assert plain.valid is not None
    factor = (
        scaled.values[plain.valid.expand(3, -1, -1, -1)] / plain.values[plain.valid.expand(3, -1, -1, -1)]
    )
    factor = factor[factor.isfinite()]
    torch.testing.assert_close(factor, factor.median().expand_as(factor), rtol=1e-3, atol=0)
    assert 0.8 <= float(factor.median()) <= 1.2
    noisy = make(layout="ntu25", augment={"jitter_std": 0.1})(values, generator=generator)
    assert not noisy.values[:, 2, 2].any()
    assert float((noisy.values - torch.nan_to_num(values))[:, 3:].std()) == pytest.approx(0.1, rel=0.1)
    shuffle = make(layout="ntu25", augment={"shuffle_entities": True})
    seen = {
        bool(torch.allclose(shuffle(values, generator=generator).values[:, 3:], values[:, 3:], atol=1e-5))
        for _ in range(9)
    }
    assert seen == {True, False}


def test_streams_are_derived_from_what_was_seen() -> None:
    values = motion(joints=25, entities=2)
    values[:, 4, 2, 0] = float("nan")
    item = make(layout="ntu25", streams=["joint", "bone", "velocity"])(values)
    layout, seen = LAYOUTS[LayoutName.NTU25], item.valid
    assert item.values.shape == (9, 12, 25, 2)
    assert make(layout="ntu25", streams=["bone", "velocity"]).config.num_channels == 6
    assert seen is not None
    clean = torch.nan_to_num(values)
    for t in range(12):
        for child, parent in [*layout.bones, (20, 20)]:
            for p in range(2):
                known = bool(seen[t, child, p] and seen[t, parent, p])
                bone = (clean[:, t, child, p] - clean[:, t, parent, p]) * known
                torch.testing.assert_close(item.values[3:6, t, child, p], bone)
                before = bool(t and seen[t, child, p] and seen[t - 1, child, p])
                change = (clean[:, t, child, p] - clean[:, t - 1, child, p]) * before
                torch.testing.assert_close(item.values[6:, t, child, p], change)


def test_objects_hang_on_their_centre() -> None:
    values = motion(frames=2, joints=21, entities=3)
    made = bones(values, torch.ones(2, 21, 3, dtype=torch.bool), LAYOUTS[LayoutName.H2O_HANDS])
    torch.testing.assert_close(made[..., 2], values[..., 2] - values[:, :, :1, 2])
    torch.testing.assert_close(made[:, :, 7, 1], values[:, :, 7, 1] - values[:, :, 6, 1])
    assert torch.equal(
        velocity(values[:, :1], torch.ones(1, 21, 3, dtype=torch.bool)), torch.zeros(3, 1, 21, 3)
    )


def test_decode_reads_npy() -> None:
    file = io.BytesIO()
    values = motion()
    values[:, 0, 0] = float("nan")
    np.save(file, values.numpy())
    read = make().decode(file.getvalue(), "walk.npy")
    np.testing.assert_array_equal(read.values, values.numpy())
    with pytest.raises(DataError, match=r"walk\.npy: unreadable array"):
        make().decode(b"text", "walk.npy")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            torch.zeros(3, 4, 25, 1),
            r"values \(3, 4, 25, 1\); expected \(c=3, frames, joints=31, entities\) for cmu31",
        ),
        (torch.zeros(3, 4, 31), r"values \(3, 4, 31\)"),
        (torch.zeros(3, 4, 31, 2), "2 entities; expected at most 1. Raise num_entities"),
        (Motion(torch.zeros(3, 4, 31, 1), torch.ones(4, 31)), r"mask \(4, 31\) on values \(3, 4, 31, 1\)"),
        (torch.full((3, 4, 31, 1), float("nan")), "no joint seen in any frame; expected at least one"),
    ],
)
def test_raw_motions_are_checked(raw: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()(raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "ntu26"}, "ntu25"),
        ({"num_frames": 0}, "num_entities, num_frames: None, 0"),
        ({"middle_share": 0.0}, r"middle_share, scale: 0\.0, 1\.0"),
        ({"streams": ["joint", "joint"]}, "each stream once"),
        (
            {"layout": "h2o_hands", "augment": {"mirror_prob": 0.5}},
            "a mirror for h2o_hands; expected a layout that",
        ),
        ({"layout": "coco17", "augment": {"yaw_rad": 0.5}}, r"yaw for coco17; expected a three-dimensional"),
        ({"augment": {"min_crop": 0.0}}, "expected shares of 1"),
        ({"augment": {"jitter_std": -1.0}}, "jitter_std, min_crop_frames: .* expected zero or more"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_facing_the_front_undoes_any_turn(generator: torch.Generator):
    layout = LAYOUTS[LayoutName.NTU25]
    values = torch.randn(3, 12, layout.num_joints, 2, generator=generator)
    left, right = layout.hips or (0, 0)
    values[:, :, left, 0] += torch.tensor([3.0, 0.0, 4.0])[:, None]
    prep = SkeletonPreprocess(SkeletonPreprocess.Config(facing=Facing.FRONT, num_frames=None))
    across = (values[:, :, left, 0] - values[:, :, right, 0]).mean(1)
    front = prep(Motion(values)).values
    hips = (front[:, :, left, 0] - front[:, :, right, 0]).mean(1)
    torch.testing.assert_close(hips[0], across[[0, 2]].norm())
    torch.testing.assert_close(hips[1], across[1])
    assert abs(float(hips[2])) < 1e-5
    for degrees in (17.0, 90.0, 200.0):
        a = math.radians(degrees)
        turn = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
        turned = prep(Motion(torch.einsum("dc,ctvp->dtvp", turn, values))).values
        torch.testing.assert_close(turned, front, atol=1e-5, rtol=1e-5)


def test_facing_keeps_the_body_and_needs_both_hips(generator: torch.Generator):
    layout = LAYOUTS[LayoutName.CMU31]
    values = torch.randn(3, 8, layout.num_joints, 1, generator=generator)
    plain = SkeletonPreprocess.Config(layout=LayoutName.CMU31, num_frames=None)
    options = dataclasses.replace(plain, facing=Facing.FRONT)
    front, as_is = (SkeletonPreprocess(o)(Motion(values)).values for o in (options, plain))
    gaps = [
        (x[:, :, :, None, 0] - x[:, :, None, :, 0]).norm(dim=0)  # between every two joints of a frame
        for x in (front, as_is)
    ]
    torch.testing.assert_close(gaps[0], gaps[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(front, as_is, atol=0.1)
    assert layout.hips is not None
    seen = torch.ones(8, layout.num_joints, 1, dtype=torch.bool)
    seen[:, layout.hips[0]] = False
    blind = SkeletonPreprocess(options)(Motion(values, seen)).values
    torch.testing.assert_close(blind, SkeletonPreprocess(plain)(Motion(values, seen)).values)


def test_facing_needs_a_layout_of_bodies():
    with pytest.raises(
        ConfigError, match=r"facing: front for coco17; expected a three-dimensional layout of bodies"
    ):
        SkeletonPreprocess.Config(layout=LayoutName.COCO17, facing=Facing.FRONT)


def test_what_is_no_array_is_told():
    with pytest.raises(DataError, match=r"skeleton: str; expected an array or tensor\. Give numbers"):
        make()("walk")
