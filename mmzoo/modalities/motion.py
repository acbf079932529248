"""Motion: from raw joint coordinates to centred, resampled, augmented ones, and which joints were seen.

Axis letters: c coordinates, t frames, v joints, p entities (persons, hands, objects). A joint not seen is
zero and False in the mask from the first step to the last; nothing is put in its place.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.arrays import read_npy
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.joints import LAYOUTS, JointLayout, LayoutName, conversion


@dataclass(frozen=True)
class Motion:
    """Raw skeleton: values (c t v p), NaN or False in `valid` (t v p) where a joint was not seen.

    `layout` says what the joints are, where that may not be what the weights expect.
    """

    values: Any
    valid: Any = None
    layout: LayoutName | None = None


class Stream(str, Enum):
    """What the channels hold: coordinates, child minus parent joint, or the change since the last frame."""

    JOINT = "joint"
    BONE = "bone"
    VELOCITY = "velocity"


class Facing(str, Enum):
    """Where bodies face: as recorded, or the first entity to the front (+z, its left towards +x)."""

    AS_RECORDED = "as_recorded"
    FRONT = "front"


@dataclass(kw_only=True)
class MotionAugment(schema.Config):
    """What training does to a motion; a generator decides everything. Evaluation does none of it."""

    min_crop: float = 1.0
    "Keep a random stretch of at least this share of the frames; 1 is off."
    min_crop_frames: int = 1
    "Never cut below this many frames (nor below what there is)."
    yaw_rad: float = 0.0
    "Turn about the up axis by up to this angle either way (three-dimensional layouts)."
    tilt_rad: float = 0.0
    "Turn about the other axes, or in the picture's plane, by up to this angle either way."
    mirror_prob: float = 0.0
    "Probability of the mirror image (left and right joints change names)."
    size_share: float = 0.0
    "Scale by a factor drawn from 1 +- this share."
    jitter_std: float = 0.0
    "Noise on each coordinate (after `scale`)."
    shuffle_entities: bool = False
    "Give the entities a random order."

    def __post_init__(self) -> None:
        """Check shares and probabilities."""
        if not 0 < self.min_crop <= 1 or not 0 <= self.mirror_prob <= 1 or not 0 <= self.size_share < 1:
            found = f"{self.min_crop}, {self.mirror_prob}, {self.size_share}"
            names = "min_crop, mirror_prob, size_share"
            raise ConfigError.at(names, found, "shares of 1", "Use 1, 0, 0 to switch off.")
        if min(self.yaw_rad, self.tilt_rad, self.jitter_std) < 0 or self.min_crop_frames < 1:
            found = f"{self.yaw_rad}, {self.tilt_rad}, {self.jitter_std}, {self.min_crop_frames}"
            names = "yaw_rad, tilt_rad, jitter_std, min_crop_frames"
            raise ConfigError.at(names, found, "zero or more, frames one or more", "Use 0 to switch off.")


class SkeletonPreprocess(Preprocess):
    """From raw joint coordinates to the channels (c t v p) and the mask (t v p) that the weights expect.

    Joints of another layout are first brought to this one (`joints.CONVERSIONS`).
    Order: drop empty frames at both ends, cut (training: random stretch, evaluation: the middle), face the
    front, [training: mirror, turn, resize about the centre], centre, scale, [jitter], resample to
    `num_frames`, [shuffle entities], streams.
    Ref: ISTA-Net and its code (crop, bilinear resampling, random rotation, entity order), pyskl (streams).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; they belong to the weights."""

        layout: LayoutName = LayoutName.NTU25
        "What the joints are."
        num_entities: int | None = None
        "Persons (or hands, objects) a motion has room for; null takes the layout's number."
        num_frames: int | None = 64
        "Resample to this many frames; null keeps each motion's own length."
        centre: bool = True
        "Put the centre joint, where it is first seen, at the origin."
        facing: Facing = Facing.AS_RECORDED
        "front: turn about the up axis until the first entity faces +z, on average over the frames."
        scale: float = 1.0
        "Factor on all coordinates (0.001 turns millimetres into metres)."
        middle_share: float = 1.0
        "Evaluation keeps this share of the frames, from the middle."
        streams: list[Stream] = field(default_factory=lambda: [Stream.JOINT])
        "Channels, in this order: joint, bone, velocity."
        augment: MotionAugment = field(default_factory=MotionAugment)
        "What training does."

        def __post_init__(self) -> None:
            """Check sizes, and that the layout can do what is asked."""
            if any(n is not None and n < 1 for n in (self.num_entities, self.num_frames)):
                found = f"{self.num_entities}, {self.num_frames}"
                raise ConfigError.at("num_entities, num_frames", found, "one or more, or null", "Raise them.")
            if not 0 < self.middle_share <= 1 or self.scale == 0:
                found = f"{self.middle_share}, {self.scale}"
                raise ConfigError.at(
                    "middle_share, scale", found, "a share of 1, not zero", "Use 1 for both."
                )
            if not self.streams or len(set(self.streams)) < len(self.streams):
                found = f"{[s.value for s in self.streams]}"
                raise ConfigError.at(
                    "streams", found, "each stream once, at least one", "Write [joint, velocity]."
                )
            if self.augment.mirror_prob and not LAYOUTS[self.layout].mirrorable:
                found = f"a mirror for {self.layout.value}"
                expected = "a layout that mirrors into itself"
                raise ConfigError.at("augment.mirror_prob", found, expected, "Set it to 0.")
            if self.augment.yaw_rad and LAYOUTS[self.layout].dims < 3:
                found = f"yaw for {self.layout.value}"
                raise ConfigError.at("augment.yaw_rad", found, "a three-dimensional layout", "Use tilt_rad.")
            if self.facing is Facing.FRONT and LAYOUTS[self.layout].hips is None:
                found = f"front for {self.layout.value}"
                expected = "a three-dimensional layout of bodies"
                raise ConfigError.at("facing", found, expected, "Leave facing=as_recorded.")

        @property
        def joints(self) -> JointLayout:
            """Return the layout."""
            return LAYOUTS[self.layout]

        @property
        def entities(self) -> int:
            """Return the number of entities a motion has room for."""
            return self.num_entities or len(self.joints.entities)

        @property
        def num_channels(self) -> int:
            """Return the number of channels."""
            return self.joints.dims * len(self.streams)

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def decode(self, data: bytes, name: str) -> Motion:
        """Read a .npy array (c t v p), NaN where a joint was not seen."""
        return Motion(read_npy(data, name))

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Return the channels and the mask."""
        options: SkeletonPreprocess.Config = self.config
        values, seen = self._checked(raw)
        values, seen = self._cut(values, seen, generator)
        hips = options.joints.hips if options.facing is Facing.FRONT else None
        turned = options.centre or generator is not None or hips is not None
        middle = _centre(values, seen, options.joints.centre) if turned else torch.zeros(())
        values = values - middle
        if hips is not None:
            values = to_front(values, seen, hips)
        if generator is not None:
            values, seen = self._moved(values, seen, generator)
        values = (values if options.centre else values + middle) * options.scale
        if generator is not None and options.augment.jitter_std:
            values = values + options.augment.jitter_std * torch.randn(values.shape, generator=generator)
        values = values * seen
        if options.num_frames is not None:
            values, seen = resample(values, seen, options.num_frames)
        if generator is not None and options.augment.shuffle_entities:
            order = torch.randperm(values.shape[3], generator=generator)
            values, seen = values[..., order], seen[..., order]
        return Item(self._streams(values, seen), seen)

    def _checked(self, raw: Any) -> tuple[Float[Tensor, "c t v p"], Bool[Tensor, "t v p"]]:
        motion = raw if isinstance(raw, Motion) else Motion(raw)
        name: LayoutName = motion.layout or self.config.layout
        layout, most = LAYOUTS[name], self.config.entities
        try:
            values = torch.as_tensor(motion.values).float()
        except (RuntimeError, TypeError, ValueError) as error:
            found, do = type(motion.values).__name__, "Give numbers of the axes (c t v p)."
            raise DataError.at("skeleton", found, "an array or tensor", do) from error
        if values.ndim != 4 or values.shape[0] != layout.dims or values.shape[2] != layout.num_joints:
            axes = f"(c={layout.dims}, frames, joints={layout.num_joints}, entities)"
            expected = f"{axes} for {name.value}"
            do = "Transpose to (c t v p) or choose another layout."
            raise DataError.at("skeleton", f"values {tuple(values.shape)}", expected, do)
        if values.shape[3] > most:
            do = "Raise num_entities or choose whom to keep."
            raise DataError.at("skeleton", f"{values.shape[3]} entities", f"at most {most}", do)
        seen = values.isfinite().all(0)
        if motion.valid is not None:
            given = torch.as_tensor(motion.valid).bool()
            if given.shape != seen.shape:
                found = f"mask {tuple(given.shape)} on values {tuple(values.shape)}"
                raise DataError.at("skeleton", found, f"{tuple(seen.shape)}", "Give it as (t v p).")
            seen = seen & given
        if not bool(seen.any()):
            raise DataError.at("skeleton", "no joint seen in any frame", "at least one", "Drop the sample.")
        values = values.masked_fill(~seen, 0.0)
        if name is not self.config.layout:
            values, seen = convert(values, seen, name, self.config.layout)
        room = most - values.shape[3]
        return F.pad(values, (0, room)), F.pad(seen, (0, room), value=False)

    def _cut(self, values: Tensor, seen: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        values, seen = _trimmed(values, seen)
        total = len(seen)
        augment: MotionAugment = self.config.augment
        if generator is None:
            keep = max(1, round(total * self.config.middle_share))
            start = (total - keep) // 2
        else:
            share = _uniform(augment.min_crop, 1.0, generator)
            keep = min(total, max(math.ceil(total * share), augment.min_crop_frames))
            start = int(torch.randint(0, total - keep + 1, (), generator=generator))
        kept = slice(start, start + keep)
        if not bool(seen[kept].any()):  # a stretch in which nothing is seen is no sample: keep everything
            return values, seen
        return _trimmed(values[:, kept], seen[kept])

    def _moved(self, values: Tensor, seen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mirror, turn and resize about the origin."""
        augment, layout = self.config.augment, self.config.joints
        if augment.mirror_prob and _uniform(0.0, 1.0, generator) < augment.mirror_prob:
            joints, entities = layout.mirrored_joints(), layout.mirrored_entities(values.shape[3])
            values, seen = values[:, :, joints][..., entities].clone(), seen[:, joints][..., entities]
            values[0] = -values[0]
        if augment.yaw_rad or augment.tilt_rad:
            turn = rotation(layout.dims, augment.yaw_rad, augment.tilt_rad, generator)
            values = torch.einsum("dc,ctvp->dtvp", turn, values)
        if augment.size_share:
            values = values * _uniform(1 - augment.size_share, 1 + augment.size_share, generator)
        return values, seen

    def _streams(self, values: Tensor, seen: Tensor) -> Float[Tensor, "c t v p"]:
        made = {
            Stream.JOINT: lambda: values,
            Stream.BONE: lambda: bones(values, seen, self.config.joints),
            Stream.VELOCITY: lambda: velocity(values, seen),
        }
        return torch.cat([made[stream]() for stream in self.config.streams]).contiguous()


def convert(
    values: Float[Tensor, "c t v p"], seen: Bool[Tensor, "t v p"], given: LayoutName, wanted: LayoutName
) -> tuple[Float[Tensor, "c t w p"], Bool[Tensor, "t w p"]]:
    """Bring joints of one layout to another: each is the mean of its sources, seen where all of them are."""
    shares = _shares(given, wanted)
    known = torch.einsum("wv,tvp->twp", shares, (~seen).float()) == 0
    return torch.einsum("wv,ctvp->ctwp", shares, values) * known, known


@functools.cache
def _shares(given: LayoutName, wanted: LayoutName) -> Float[Tensor, "w v"]:
    """Return what each given joint contributes to each wanted one."""
    sources = conversion(given, wanted)
    shares = torch.zeros(len(sources), LAYOUTS[given].num_joints)
    for joint, parts in enumerate(sources):
        shares[joint, list(parts)] = 1 / len(parts)
    return shares


def resample(
    values: Float[Tensor, "c t v p"], seen: Bool[Tensor, "t v p"], num_frames: int
) -> tuple[Float[Tensor, "c n v p"], Bool[Tensor, "n v p"]]:
    """Resample along time, linearly between frames that were seen.

    Math: frame i lies at (i + 1/2) T / n - 1/2 (half-pixel centres, clamped). The weights of unseen
    neighbours are zero and the rest is renormalised; the result is seen where half of the weight was.
    """
    total = values.shape[1]
    place = ((torch.arange(num_frames) + 0.5) * total / num_frames - 0.5).clamp(0, total - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=total - 1)
    share = (place - low)[:, None, None]
    before, after = (1 - share) * seen[low], share * seen[high]
    weight = before + after
    mixed = (before * values[:, low] + after * values[:, high]) / weight.clamp(min=1e-12)
    kept = weight >= 0.5
    return mixed * kept, kept


def bones(
    values: Float[Tensor, "c t v p"], seen: Bool[Tensor, "t v p"], layout: JointLayout
) -> Float[Tensor, "c t v p"]:
    """Return child minus parent for each joint; zero for the root and where either was not seen."""
    parents = torch.tensor(layout.parents())
    parents = parents[:, None].expand(-1, values.shape[3]).clone()
    parents[:, [e for e in layout.rigid if e < values.shape[3]]] = 0
    index = parents.expand(values.shape)
    known = seen & seen.gather(1, parents.expand(seen.shape))
    return (values - values.gather(2, index)) * known


def velocity(values: Float[Tensor, "c t v p"], seen: Bool[Tensor, "t v p"]) -> Float[Tensor, "c t v p"]:
    """Return the change since the last frame; zero for the first frame and where either was not seen."""
    change = F.pad(values[:, 1:] - values[:, :-1], (0, 0, 0, 0, 1, 0))
    return change * F.pad(seen[1:] & seen[:-1], (0, 0, 0, 0, 1, 0), value=False)


def rotation(dims: int, yaw: float, tilt: float, generator: torch.Generator) -> Float[Tensor, "c c"]:
    """Draw a rotation: R_z R_y R_x with angles up to +- (tilt, yaw, tilt); in the plane up to +- tilt."""
    if dims == 2:
        return _turn(_uniform(-tilt, tilt, generator), 0, 1, 2)
    x, y, z = (_uniform(-most, most, generator) for most in (tilt, yaw, tilt))
    return _turn(z, 0, 1, 3) @ _turn(y, 2, 0, 3) @ _turn(x, 1, 2, 3)


def to_front(
    values: Float[Tensor, "3 t v p"], seen: Bool[Tensor, "t v p"], hips: tuple[int, int]
) -> Float[Tensor, "3 t v p"]:
    """Turn about the up axis (y) so that entity 0 faces +z; without both hips in a frame, return as is.

    Math: a = atan2(z, x) of the mean over frames of (left hip - right hip); all points turn by the angle that
    takes this direction to +x, so motion and the places of the entities to each other are kept.
    """
    left, right = hips
    both = seen[:, left, 0] & seen[:, right, 0]
    if not bool(both.any()):
        return values
    across = (values[:, both, left, 0] - values[:, both, right, 0]).mean(1)
    angle = math.atan2(float(across[2]), float(across[0]))
    return torch.einsum("dc,ctvp->dtvp", _turn(-angle, 0, 2, 3), values)


def _turn(angle: float, first: int, second: int, dims: int) -> Tensor:
    """Return the rotation that turns axis `first` towards axis `second`."""
    turn = torch.eye(dims)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[second, first], turn[first, second] = math.sin(angle), -math.sin(angle)
    return turn


def _trimmed(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the frames at both ends in which nothing is seen."""
    shown = seen.flatten(1).any(1).nonzero()[:, 0]
    kept = slice(int(shown[0]), int(shown[-1]) + 1)
    return values[:, kept], seen[kept]


def _centre(values: Tensor, seen: Tensor, joints: tuple[int, ...]) -> Float[Tensor, "c 1 1 1"]:
    """Return the centre joints' mean where they are first seen together, else the first frame's mean."""
    whole = seen[:, list(joints)].all(1).nonzero()
    if len(whole):
        frame, entity = whole[0].tolist()
        return values[:, frame, list(joints), entity].mean(1)[:, None, None, None]
    first = values[:, 0] * seen[0]
    return (first.flatten(1).sum(1) / seen[0].sum())[:, None, None, None]


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
