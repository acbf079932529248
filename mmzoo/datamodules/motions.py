"""Skeleton files of three formats as clips: classes are known at once, coordinates read when asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.checkpoints import restricted
from mmzoo.datamodules import ntu
from mmzoo.datamodules.faults import decoding
from mmzoo.errors import ConfigError, DataError, close_matches
from mmzoo.modalities.motion import Motion

AXES = "ntvcp"
"""Letters of the axes of an array of clips: samples, frames, joints, coordinates, persons."""
EXPECTED_KEYPOINT = "keypoint with the axes (M T V C): persons, frames, joints, coordinates"


@dataclass(frozen=True)
class Clip:
    """One motion: id, class, the recording it was cut from, the part the files put it in, how to read it."""

    id: str
    label: str
    trial: str
    read: Callable[[], Motion]
    part: str = ""


@dataclass(frozen=True)
class ArrayKeys:
    """What the arrays of an .npz file are called, and what the axes of the first one are."""

    values: str = "positions"
    labels: str = "label"
    trials: str = "trial"
    axes: str = "ntvc"

    def check(self) -> None:
        """Raise ConfigError where the axes cannot be meant."""
        if len(set(self.axes)) != len(self.axes) or not set("ntvc") <= set(self.axes) <= set(AXES):
            expected = "each of n t v c, and p where there are persons, once"
            raise ConfigError.at("axes", repr(self.axes), expected, "Write axes=ntvc.")


def read_arrays(path: Path, keys: ArrayKeys) -> list[Clip]:
    """Read an .npz file: clips (axes as named), class of each, and the recording it was cut from, if told."""
    with decoding(path.name), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in (keys.values, keys.labels):
        if name not in arrays:
            found = f"no array {name!r}"
            raise DataError.at(str(path), found, "positions and labels", close_matches(name, arrays))
    values, labels = arrays[keys.values], arrays[keys.labels]
    if values.ndim != len(keys.axes):
        found = f"{keys.values} of shape {values.shape}"
        raise DataError.at(str(path), found, f"the axes {keys.axes}", "Set data.axes.")
    order = [keys.axes.index(a) for a in AXES if a in keys.axes]
    values = values.transpose(order)
    values = values if "p" in keys.axes else values[..., None]
    trials = arrays.get(keys.trials, np.array([""] * len(values)))
    for name, array in ((keys.labels, labels), (keys.trials, trials)):
        if array.shape != (len(values),):
            found = f"{name} of shape {array.shape} for {len(values)} clips"
            raise DataError.at(str(path), found, "one for each clip", "Mend the file.")
    numbers: dict[str, int] = {}
    clips: list[Clip] = []
    for i, (label, trial) in enumerate(zip(labels.tolist(), trials.tolist(), strict=True)):
        stem = str(trial) or str(label)
        numbers[stem] = numbers.get(stem, -1) + 1
        read = functools.partial(_read_window, values, i)
        clips.append(Clip(f"{stem}/{numbers[stem]:04d}", str(label), str(trial), read))
    return clips


def _read_window(values: np.ndarray, index: int) -> Motion:
    return Motion(values[index].transpose(2, 0, 1, 3).astype(np.float32))


def read_pyskl(path: Path, threshold: float) -> list[Clip]:
    """Read a pyskl/mmaction2 pickle, running none of its code; a clip in several splits comes once for each.

    keypoint (M T V C) becomes (c t v p). Unseen is, in 2-D, a keypoint_score below `threshold`, in 3-D a
    joint at exactly zero (what the preparation of those files fills in). 2-D coordinates are measured from
    the middle of the picture in half picture heights, y down, where the file tells `img_shape`; else they
    stay pixels.
    """
    found = restricted.load(path, error=DataError)
    if not isinstance(found, Mapping) or not isinstance(found.get("annotations"), Sequence):
        keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else "no keys"
        kind = f"{type(found).__name__} with {keys}"
        raise DataError.at(str(path), kind, "a dict with annotations (and split)", "Is it a pyskl file?")
    parts: dict[str, list[str]] = {}
    for part, names in dict(found.get("split") or {}).items():
        for name in names:
            parts.setdefault(str(name), []).append(str(part))
    clips: list[Clip] = []
    for number, annotation in enumerate(found["annotations"]):
        where = f"{path.name}: annotation {number}"
        keypoint = _checked_keypoint(annotation, where)
        name = str(annotation.get("frame_dir", number))
        read = functools.partial(_read_keypoint, keypoint, annotation, threshold)
        listed = parts.get(name, [""])
        clips += [Clip(name, str(annotation["label"]), _trial_of(name), read, part) for part in listed]
    return clips


def _checked_keypoint(annotation: Any, where: str) -> np.ndarray:
    given = annotation if isinstance(annotation, Mapping) else {}
    missing = [k for k in ("keypoint", "label") if given.get(k) is None]
    if missing:
        raise DataError.at(
            where, f"no {' and no '.join(missing)}", EXPECTED_KEYPOINT, "Drop it from the file."
        )
    keypoint = np.asarray(annotation["keypoint"])
    if keypoint.ndim != 4 or keypoint.shape[-1] not in (2, 3):
        do = "Transpose it when the file is written."
        raise DataError.at(where, f"keypoint of shape {keypoint.shape}", EXPECTED_KEYPOINT, do)
    score = annotation.get("keypoint_score")
    if score is not None and np.shape(score) != keypoint.shape[:3]:
        found = f"keypoint_score of shape {np.shape(score)} for keypoint {keypoint.shape}"
        raise DataError.at(where, found, "the axes (M T V)", "Mend it when the file is written.")
    return keypoint


def _read_keypoint(keypoint: np.ndarray, annotation: Mapping[str, Any], threshold: float) -> Motion:
    values = keypoint.astype(np.float32)
    score = annotation.get("keypoint_score")
    seen = np.asarray(score) >= threshold if score is not None else (values != 0).any(axis=-1)
    if values.shape[-1] == 2 and annotation.get("img_shape") is not None:
        height, width = annotation["img_shape"][:2]
        values = (values - (width / 2, height / 2)).astype(np.float32) / (height / 2)
    return Motion(values.transpose(3, 1, 2, 0), seen.transpose(1, 2, 0))


def _trial_of(name: str) -> str:
    """Return the performer where the name is NTU's, so that validation can be carved by person."""
    found = ntu.NAME.search(name)
    return f"P{ntu.Name.parse(name).performer:03d}" if found else ""


def read_ntu_folder(path: Path, protocol: ntu.Protocol, num_persons: int) -> list[Clip]:
    """List a folder of `.skeleton` files; labels A001…, parts by the protocol, recordings by performer."""
    files = sorted(path.rglob("*.skeleton"))
    if not files:
        raise DataError.at(
            str(path), "no .skeleton file", "files SsssCcccPpppRrrrAaaa.skeleton", "Set data.root."
        )
    clips: list[Clip] = []
    for file in files:
        name = ntu.Name.parse(file.name)
        part = "train" if name.in_train(protocol) else "test"
        trial = f"P{name.performer:03d}"
        read = functools.partial(_read_text, file, num_persons)
        clips.append(Clip(str(name), f"A{name.action:03d}", trial, read, part))
    return clips


def _read_text(file: Path, num_persons: int) -> Motion:
    with decoding(file.name):
        tracks = ntu.parse(file.read_text(), file.name)
    return Motion(ntu.persons(tracks, num_persons))
