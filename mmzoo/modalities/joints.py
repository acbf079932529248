"""Joint layouts by name: what each joint is, which bone it ends, where the centre is, what mirrors into what.

All indices are 0-based. Three-dimensional layouts have y up; images have y down. `CONVERSIONS` says how
motions in one layout are shown to weights trained on another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mmzoo.errors import ConfigError


class LayoutName(str, Enum):
    """The layouts that a skeleton modality may name."""

    NTU25 = "ntu25"
    COCO17 = "coco17"
    H2O_HANDS = "h2o_hands"
    ASSEMBLY_HANDS = "assembly_hands"
    CMU31 = "cmu31"


@dataclass(frozen=True)
class JointLayout:
    """What the axes of a skeleton (c t v p) mean.

    names: one a joint. bones: (child, parent), a tree over all joints. centre: the joints whose mean is the
    body's place. pairs: (left, right) joints. dims: coordinates. entities: what the last axis holds.
    entity_pairs: entities that a mirror exchanges. rigid: entities that are no hand or body, whose points all
    hang on point 0. mirrorable: whether a mirror image is again in the layout. hips: (left, right), which say
    where a body faces; none where the entities are no bodies or depth is not known.
    """

    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    centre: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    dims: int = 3
    entities: tuple[str, ...] = ("person",)
    entity_pairs: tuple[tuple[int, int], ...] = ()
    rigid: tuple[int, ...] = ()
    mirrorable: bool = True
    hips: tuple[int, int] | None = None

    @property
    def num_joints(self) -> int:
        """Return the number of joints."""
        return len(self.names)

    def parents(self) -> list[int]:
        """Return each joint's parent; the root is its own."""
        parents = list(range(self.num_joints))
        for child, parent in self.bones:
            parents[child] = parent
        return parents

    def mirrored_joints(self) -> list[int]:
        """Return, for each joint, the joint whose mirror image takes its place."""
        return _exchange(self.num_joints, self.pairs)

    def mirrored_entities(self, num_entities: int) -> list[int]:
        """Return, for each entity, the entity whose mirror image takes its place."""
        return _exchange(num_entities, self.entity_pairs)


def _exchange(count: int, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    order = list(range(count))
    for left, right in pairs:
        if max(left, right) < count:
            order[left], order[right] = right, left
    return order


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _indices(names: tuple[str, ...], bones: str) -> tuple[tuple[int, int], ...]:
    """Read `child<parent` words."""
    place = {name: i for i, name in enumerate(names)}
    split = (word.split("<") for word in bones.split())
    return tuple((place[child], place[parent]) for child, parent in split)


def _left_right(names: tuple[str, ...], left: str, right: str) -> tuple[tuple[int, int], ...]:
    """Pair the joints whose names differ only in a leading `left` or `right`."""
    place = {name: i for i, name in enumerate(names)}
    rests = [name[len(left) :] for name in names if name.startswith(left)]
    return tuple((place[left + rest], place[right + rest]) for rest in rests if right + rest in place)


_NTU = _words(
    """spine_base spine_mid neck head left_shoulder left_elbow left_wrist left_hand right_shoulder right_elbow
    right_wrist right_hand left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot
    spine_shoulder left_hand_tip left_thumb right_hand_tip right_thumb"""
)
_NTU_BONES = """spine_base<spine_mid spine_mid<spine_shoulder neck<spine_shoulder head<neck
    left_shoulder<spine_shoulder left_elbow<left_shoulder left_wrist<left_elbow left_hand<left_wrist
    right_shoulder<spine_shoulder right_elbow<right_shoulder right_wrist<right_elbow right_hand<right_wrist
    left_hip<spine_base left_knee<left_hip left_ankle<left_knee left_foot<left_ankle
    right_hip<spine_base right_knee<right_hip right_ankle<right_knee right_foot<right_ankle
    left_hand_tip<left_thumb left_thumb<left_hand right_hand_tip<right_thumb right_thumb<right_hand"""

_COCO = _words(
    """nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow
    left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"""
)
_COCO_BONES = """left_eye<nose right_eye<nose left_ear<left_eye right_ear<right_eye left_shoulder<nose
    right_shoulder<nose left_elbow<left_shoulder right_elbow<right_shoulder left_wrist<left_elbow
    right_wrist<right_elbow left_hip<left_shoulder right_hip<right_shoulder left_knee<left_hip
    right_knee<right_hip left_ankle<left_knee right_ankle<right_knee"""

_H2O = (
    "wrist",
    *(f"{finger}_{i}" for finger in ("thumb", "index", "middle", "ring", "pinky") for i in range(1, 5)),
)
_H2O_BONES = tuple((i, 0 if i % 4 == 1 else i - 1) for i in range(1, 21))

_ASSEMBLY = _words(
    """thumb_tip index_tip middle_tip ring_tip pinky_tip wrist thumb_1 thumb_2 index_1 index_2 index_3
    middle_1 middle_2 middle_3 ring_1 ring_2 ring_3 pinky_1 pinky_2 pinky_3 palm"""
)
_ASSEMBLY_BONES = """thumb_1<wrist thumb_2<thumb_1 thumb_tip<thumb_2
    index_1<wrist index_2<index_1 index_3<index_2 index_tip<index_3
    middle_1<wrist middle_2<middle_1 middle_3<middle_2 middle_tip<middle_3
    ring_1<wrist ring_2<ring_1 ring_3<ring_2 ring_tip<ring_3
    pinky_1<wrist pinky_2<pinky_1 pinky_3<pinky_2 pinky_tip<pinky_3 palm<wrist"""

_CMU = _words(
    """root lhipjoint lfemur ltibia lfoot ltoes rhipjoint rfemur rtibia rfoot rtoes lowerback upperback
    thorax lowerneck upperneck head lclavicle lhumerus lradius lwrist lhand lfingers lthumb rclavicle
    rhumerus rradius rwrist rhand rfingers rthumb"""
)
_CMU_BONES = """lhipjoint<root lfemur<lhipjoint ltibia<lfemur lfoot<ltibia ltoes<lfoot
    rhipjoint<root rfemur<rhipjoint rtibia<rfemur rfoot<rtibia rtoes<rfoot
    lowerback<root upperback<lowerback thorax<upperback lowerneck<thorax upperneck<lowerneck head<upperneck
    lclavicle<thorax lhumerus<lclavicle lradius<lhumerus lwrist<lradius lhand<lwrist lfingers<lhand
    lthumb<lwrist rclavicle<thorax rhumerus<rclavicle rradius<rhumerus rwrist<rradius
    rhand<rwrist rfingers<rhand rthumb<rwrist"""

LAYOUTS: dict[LayoutName, JointLayout] = {
    LayoutName.NTU25: JointLayout(
        names=_NTU,
        bones=_indices(_NTU, _NTU_BONES),
        centre=(1,),
        pairs=_left_right(_NTU, "left_", "right_"),
        entities=("person", "person"),
        hips=(_NTU.index("left_hip"), _NTU.index("right_hip")),
    ),
    LayoutName.COCO17: JointLayout(
        names=_COCO,
        bones=_indices(_COCO, _COCO_BONES),
        centre=(11, 12),
        pairs=_left_right(_COCO, "left_", "right_"),
        dims=2,
        entities=("person", "person"),
    ),
    # the object's 21 points (centre, corners, edge middles) follow its pose: mirrored, their order is another
    LayoutName.H2O_HANDS: JointLayout(
        names=_H2O,
        bones=_H2O_BONES,
        centre=(0,),
        entities=("left hand", "right hand", "object"),
        rigid=(2,),
        mirrorable=False,
    ),
    LayoutName.ASSEMBLY_HANDS: JointLayout(
        names=_ASSEMBLY,
        bones=_indices(_ASSEMBLY, _ASSEMBLY_BONES),
        centre=(5,),
        entities=("left hand", "right hand"),
        entity_pairs=((0, 1),),
    ),
    LayoutName.CMU31: JointLayout(
        names=_CMU,
        bones=_indices(_CMU, _CMU_BONES),
        centre=(0,),
        pairs=_left_right(_CMU, "l", "r"),
        hips=(_CMU.index("lhipjoint"), _CMU.index("rhipjoint")),
    ),
}
"""The layouts. NTU-25 has Kinect v2's order; COCO-17 image coordinates and the hips' middle as centre; hands
have the wrist; H2O's hands come in MediaPipe's order, Assembly101's in UmeTrack's."""

_CMU_OF_SPINE = {
    "spine_base": "root lhipjoint rhipjoint",
    "spine_mid": "lowerback upperback",
    "spine_shoulder": "lowerneck",
    "neck": "upperneck",
    "head": "head",
}
_CMU_OF_LIMB = {
    "shoulder": "clavicle",
    "elbow": "humerus",
    "wrist": "radius",
    "hand": "wrist",
    "hand_tip": "fingers",
    "thumb": "thumb",
    "hip": "hipjoint",
    "knee": "femur",
    "ankle": "tibia",
    "foot": "foot",
}
_CMU_OF_NTU = _CMU_OF_SPINE | {
    f"{side}_{limb}": f"{side[0]}{bone}" for side in ("left", "right") for limb, bone in _CMU_OF_LIMB.items()
}

CONVERSIONS: dict[tuple[LayoutName, LayoutName], tuple[tuple[int, ...], ...]] = {
    (LayoutName.CMU31, LayoutName.NTU25): tuple(
        tuple(_CMU.index(name) for name in _CMU_OF_NTU[joint].split()) for joint in _NTU
    ),
}
"""(given, wanted) -> for each wanted joint the given ones whose mean stands for it.

CMU names a point after the bone that ends there (Acclaim's files): `lfemur` is the left knee, `lradius` the
left wrist. Kinect's spine base lies between the hips a little above them, hence the mean with the root.
"""


def conversion(given: LayoutName, wanted: LayoutName) -> tuple[tuple[int, ...], ...]:
    """Return, for each wanted joint, the given ones whose mean stands for it."""
    if given is wanted:
        return tuple((joint,) for joint in range(LAYOUTS[wanted].num_joints))
    if (given, wanted) not in CONVERSIONS:
        known = ", ".join(sorted({a.value for a, b in CONVERSIONS if b is wanted} | {wanted.value}))
        do = f"Use a model of {given.value}, or add the pair to CONVERSIONS."
        raise ConfigError.at("layout", f"joints of {given.value} for {wanted.value}", known, do)
    return CONVERSIONS[given, wanted]
