"""NTU RGB+D `.skeleton` text files: reading, cleaning, writing, and the data set's own splits.

Layout: the number of frames; for each frame the number of bodies; for each body an info line of ten fields
(the first is its id), the number of joints, and for each joint twelve numbers, of which the first three are
x y z in metres, y up. The name `SsssCcccPpppRrrrAaaa` says setup, camera, performer, replication and action.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mmzoo.errors import DataError

NUM_JOINTS = 25
NUMBERS_PER_JOINT = 12
INFO_FIELDS = 10
NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")
XSUB_60 = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
"""Training performers of NTU-60 X-Sub (spec: its evaluation protocol)."""
XSUB_120 = (
    *XSUB_60,
    *(45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89),
    *(91, 92, 93, 94, 95, 97, 98, 100, 103),
)
"""Training performers of NTU-120 X-Sub."""
XVIEW_CAMERAS = (2, 3)
MUTUAL_ACTIONS = (*range(50, 61), *range(106, 121))
"""The 26 two-person actions, 1-based as in the names (labels 0..25 in this order)."""
SHORT_TRACK = 11
"""A track of at most that many frames is noise where there is another (CTR-GCN's preparation)."""
SPREAD = 0.8
"""A body wider than that times its height in a frame is not a person …"""
SPREAD_SHARE = 0.69754
"""… if it is so in at least that share of its frames."""


class Protocol(str, enum.Enum):
    """The published train/test splits."""

    XSUB = "xsub"
    XSET = "xset"
    XVIEW = "xview"


@dataclass(frozen=True)
class Name:
    """What a file name says, numbers as written (1-based)."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int

    @staticmethod
    def parse(text: str) -> Name:
        """Find `SsssCcccPpppRrrrAaaa` in a file name."""
        found = NAME.search(text)
        if found is None:
            raise DataError.at(
                text, "not an NTU name", "SsssCcccPpppRrrrAaaa, digits for letters", "Rename it."
            )
        return Name(*(int(n) for n in found.groups()))

    def __str__(self) -> str:
        """Write the name again."""
        parts = zip(
            "SCPRA", (self.setup, self.camera, self.performer, self.replication, self.action), strict=True
        )
        return "".join(f"{letter}{number:03d}" for letter, number in parts)

    def in_train(self, protocol: Protocol) -> bool:
        """Tell whether the clip belongs to the training part (X-Sub by the list of NTU-120)."""
        if protocol is Protocol.XSUB:
            return self.performer in XSUB_120
        if protocol is Protocol.XSET:
            return self.setup % 2 == 0
        return self.camera in XVIEW_CAMERAS


@dataclass(frozen=True)
class Track:
    """One body id through a clip: where it was seen, and where its joints were (NaN elsewhere)."""

    body: str
    seen: Bool[np.ndarray, " t"]
    joints: Float[np.ndarray, "t v 3"]

    def motion(self) -> float:
        """Return the summed variance of the coordinates, in square metres."""
        return float(np.nanvar(self.joints[self.seen].reshape(-1, 3), axis=0).sum())

    def is_spread(self) -> bool:
        """Tell whether the track is wider than high in most of its frames (furniture, reflections)."""
        real = self.joints[self.seen]
        width, height = np.ptp(real[..., 0], axis=1), np.ptp(real[..., 1], axis=1)
        return bool((width > SPREAD * height).mean() >= SPREAD_SHARE)


def parse(text: str, where: str) -> list[Track]:
    """Read a `.skeleton` file into its tracks, by appearance; frames without a body keep their place.

    Raises DataError naming the line where the text stops making sense.
    """
    lines = _Lines(text.splitlines(), where)
    frames = lines.count("the number of frames")
    tracks: dict[str, Track] = {}
    for t in range(frames):
        for _ in range(lines.count("the number of bodies")):
            info = lines.next("a body's info line").split()
            joints = lines.count("the number of joints")
            if joints != NUM_JOINTS:
                raise lines.fault(f"{joints} joints", str(NUM_JOINTS))
            body = info[0] if info else ""
            if body not in tracks:
                empty = np.full((frames, NUM_JOINTS, 3), np.nan, np.float32)
                tracks[body] = Track(body, np.zeros(frames, bool), empty)
            tracks[body].joints[t] = lines.joints()
            tracks[body].seen[t] = True
    return list(tracks.values())


class _Lines:
    """The lines of a file, one after the other, with a fault that names the line."""

    def __init__(self, lines: list[str], where: str) -> None:
        self.lines, self.where, self.at = lines, where, 0

    def fault(self, found: str, expected: str) -> Exception:
        return DataError.at(f"{self.where}, line {self.at}", found, expected, "Fetch the file again.")

    def next(self, expected: str) -> str:
        self.at += 1
        if self.at > len(self.lines):
            raise self.fault("the end of the file", expected)
        return self.lines[self.at - 1]

    def count(self, expected: str) -> int:
        line = self.next(expected).strip()
        if not line.isdigit():
            raise self.fault(repr(line[:40]), expected)
        return int(line)

    def joints(self) -> np.ndarray:
        rows: list[list[float]] = []
        for _ in range(NUM_JOINTS):
            fields = self.next("a joint's twelve numbers").split()
            try:
                rows.append([float(f) for f in fields[:3]])
            except ValueError as error:
                raise self.fault(repr(" ".join(fields)[:40]), "a joint's twelve numbers") from error
            if len(fields) != NUMBERS_PER_JOINT:
                raise self.fault(f"{len(fields)} numbers", "a joint's twelve numbers")
        return np.asarray(rows, np.float32)


def persons(tracks: Sequence[Track], count: int = 2) -> Float[np.ndarray, "3 t v p"]:
    """Turn tracks into `count` person slots, NaN where nobody was seen; frames without anybody are dropped.

    Why: the sensor gives a person a new id whenever it loses sight of them, and takes chairs for persons.
    With several tracks, short and spread ones are dropped, the others enter the slots in order of motion,
    each into the first slot that is free for all of its frames (CTR-GCN's preparation). Nobody is duplicated
    or filled with zeros.
    """
    kept = [t for t in tracks if t.seen.any()]
    if not kept:
        return np.full((3, 0, NUM_JOINTS, count), np.nan, np.float32)
    if len(kept) > 1:
        long = [t for t in kept if t.seen.sum() > SHORT_TRACK] or kept
        kept = [t for t in long if not t.is_spread()] or long
    kept = sorted(kept, key=lambda t: -t.motion())
    slots = np.full((count, *kept[0].joints.shape), np.nan, np.float32)
    taken = np.zeros((count, len(kept[0].seen)), bool)
    for track in kept:
        free = [p for p in range(count) if not (taken[p] & track.seen).any()]
        if free:
            slots[free[0], track.seen] = track.joints[track.seen]
            taken[free[0]] |= track.seen
    return np.ascontiguousarray(slots[:, taken.any(axis=0)].transpose(3, 1, 2, 0))


def write(values: Float[np.ndarray, "3 t v p"]) -> str:
    """Write person slots as `.skeleton` text; a person whose joints are NaN in a frame is left out."""
    _, frames, joints, count = values.shape
    if joints != NUM_JOINTS:
        raise DataError.at("a .skeleton file", f"{joints} joints", str(NUM_JOINTS), "Use layout ntu25.")
    lines = [str(frames)]
    for t in range(frames):
        present = [p for p in range(count) if np.isfinite(values[:, t, :, p]).all()]
        lines.append(str(len(present)))
        for p in present:
            lines += [" ".join([str(72057594037900000 + p), *["0"] * (INFO_FIELDS - 1)]), str(NUM_JOINTS)]
            for x, y, z in values[:, t, :, p].T:
                lines.append(" ".join([f"{x:.6g}", f"{y:.6g}", f"{z:.6g}", *["0"] * 8, "2"]))
    return "\n".join(lines) + "\n"
