"""Joint layouts: every one a tree with consistent mirrors; CMU-31's bones are rigid in real motion."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from mmzoo.errors import ConfigError
from mmzoo.modalities.joints import LAYOUTS, JointLayout, LayoutName, conversion

EACH = pytest.mark.parametrize("name", list(LayoutName))


def by_name(layout: JointLayout, bones: tuple[tuple[int, int], ...]) -> set[tuple[str, str]]:
    return {(layout.names[a], layout.names[b]) for a, b in bones}


@EACH
def test_bones_are_a_tree(name: LayoutName) -> None:
    layout = LAYOUTS[name]
    parents = layout.parents()
    roots = [joint for joint, parent in enumerate(parents) if joint == parent]
    assert len(roots) == 1
    assert len(layout.bones) == layout.num_joints - 1
    for joint in range(layout.num_joints):
        for _ in range(layout.num_joints):
            joint = parents[joint]
        assert joint == roots[0]


@EACH
def test_mirrors_undo_themselves_and_keep_bones(name: LayoutName) -> None:
    layout = LAYOUTS[name]
    mirror = layout.mirrored_joints()
    assert [mirror[j] for j in mirror] == list(range(layout.num_joints))
    assert {(mirror[c], mirror[p]) for c, p in layout.bones} == set(layout.bones)
    if layout.mirrorable:  # what the words say is left or right is what the mirror exchanges
        for joint, other in enumerate(mirror):
            sides = {layout.names[joint].startswith(s) for s in ("left", "right")}
            assert not any(sides) or joint != other
    entities = layout.mirrored_entities(len(layout.entities))
    assert [entities[e] for e in entities] == list(range(len(entities)))
    assert layout.mirrored_entities(1) == [0]


@pytest.mark.parametrize(
    ("name", "joints"), [("ntu25", 25), ("coco17", 17), ("h2o_hands", 21), ("cmu31", 31)]
)
def test_sizes(name: str, joints: int) -> None:
    layout = LAYOUTS[LayoutName(name)]
    assert layout.num_joints == len(set(layout.names)) == joints
    assert layout.dims == (2 if name == "coco17" else 3)


def test_ntu_bones_are_the_published_pairs() -> None:
    published = """1,2 2,21 3,21 4,3 5,21 6,5 7,6 8,7 9,21 10,9 11,10 12,11 13,1 14,13 15,14 16,15 17,1 18,17
    19,18 20,19 22,23 23,8 24,25 25,12"""
    pairs = {(int(a) - 1, int(b) - 1) for a, b in (p.split(",") for p in published.split())}
    assert set(LAYOUTS[LayoutName.NTU25].bones) == pairs


def test_coco_bones_are_the_published_pairs() -> None:
    published = "15,13 13,11 16,14 14,12 11,5 12,6 9,7 7,5 10,8 8,6 5,0 6,0 1,0 3,1 2,0 4,2"
    pairs = {(int(a), int(b)) for a, b in (p.split(",") for p in published.split())}
    assert set(LAYOUTS[LayoutName.COCO17].bones) == pairs


def test_assembly_fingers_end_in_tips() -> None:
    layout = LAYOUTS[LayoutName.ASSEMBLY_HANDS]
    chains = {
        (0, 7),
        (7, 6),
        (6, 5),
        (1, 10),
        (10, 9),
        (9, 8),
        (8, 5),
        (4, 19),
        (19, 18),
        (18, 17),
        (17, 5),
        (20, 5),
    }
    assert chains <= set(layout.bones)
    assert ("index_tip", "index_3") in by_name(layout, layout.bones)


def test_cmu_bones_keep_their_length_in_real_motion(shared: pathlib.Path) -> None:
    windows = np.load(shared / "data" / "cmu_mocap" / "windows.npz")
    layout = LAYOUTS[LayoutName.CMU31]
    assert tuple(windows["joint_names"]) == layout.names
    one = windows["trial"] == windows["trial"][0]
    positions = windows["positions"][one].astype(np.float32)
    for child, parent in layout.bones:
        lengths = np.linalg.norm(positions[:, :, child] - positions[:, :, parent], axis=-1)
        assert lengths.std() < 2e-3, (layout.names[child], layout.names[parent])


def test_cmu_joints_stand_for_ntu_joints_at_their_places_in_real_motion(shared: pathlib.Path) -> None:
    windows = np.load(shared / "data" / "cmu_mocap" / "windows.npz")
    walking = windows["positions"][windows["label"] == "walk"].astype(np.float64)
    sources = conversion(LayoutName.CMU31, LayoutName.NTU25)
    body = np.stack([walking[:, :, list(joints)].mean(axis=2) for joints in sources], axis=2)
    place = {name: body[:, :, i] for i, name in enumerate(LAYOUTS[LayoutName.NTU25].names)}

    def height(name: str) -> float:
        return float(place[name][..., 1].mean())

    spine = ("spine_base", "spine_mid", "spine_shoulder", "neck", "head")
    assert [height(name) for name in spine] == sorted(height(name) for name in spine)
    for side in ("left", "right"):
        leg = [height(f"{side}_{name}") for name in ("foot", "ankle", "knee", "hip")]
        assert leg == sorted(leg)
        knee = (height(f"{side}_knee") - leg[1]) / (leg[3] - leg[1])
        assert 0.4 < knee < 0.6  # halfway: the femur's end, not its start
        assert abs(height(f"{side}_shoulder") - height("spine_shoulder")) < 0.1
        for bone in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
            ends = [place[f"{side}_{name}"] for name in bone]
            lengths = np.linalg.norm(ends[0] - ends[1], axis=-1)
            assert 0.15 < lengths.min() <= lengths.max() < 0.55, bone
            assert lengths.std(axis=1).max() < 2e-3, bone  # rigid: both ends belong to one limb


def test_a_layout_converts_to_itself_and_unknown_pairs_name_the_known() -> None:
    assert conversion(LayoutName.COCO17, LayoutName.COCO17) == tuple((i,) for i in range(17))
    with pytest.raises(ConfigError, match="joints of coco17 for ntu25; expected cmu31, ntu25"):
        conversion(LayoutName.COCO17, LayoutName.NTU25)
