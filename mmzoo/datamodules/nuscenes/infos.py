"""What an info pickle says of each key frame: files, calibration, boxes. Every field is checked where it is
read, so that a fault is one line that names sample and field.

Frames: `lidar` is the key frame's top lidar (x right, y forward, z up), in which points, boxes, views and
labels live; metres, radians, seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmzoo.datamodules.nuscenes import plain_pickle
from mmzoo.datamodules.nuscenes.plain_pickle import StoredArray
from mmzoo.errors import DataError

CAMERAS = (
    *("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT"),
    *("CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"),
)
FOLDERS = ("samples", "sweeps")
"""Folders of the data set in which its files lie; what a path says before them is another machine's."""
LOG_MARK = "__LIDAR_TOP__"
"""Ends the name of the drive in a lidar file's name."""
TOLERANCE = 1e-3
"""Of a rotation's entries."""
REWRITE = "Write the info pickle again, or leave the sample out of it."
Array = np.ndarray


@dataclass(frozen=True)
class Sweep:
    """An earlier turn of the lidar: file below the root, its frame to the key frame's, its age (s)."""

    file: str
    to_lidar: Float[Array, "4 4"]
    lag_s: float


@dataclass(frozen=True)
class Camera:
    """A picture: file below the root, pixels from the camera's frame (x right, y down, z forward), and that
    frame to the lidar's."""

    name: str
    file: str
    intrinsics: Float[Array, "3 3"]
    to_lidar: Float[Array, "4 4"]


@dataclass(frozen=True)
class Boxes:
    """The boxes of a key frame: x y z (middle) length width height yaw vx vy (NaN: not known), and how many
    points each holds."""

    values: Float[Array, "n 9"]
    names: tuple[str, ...]
    num_points: Int[Array, " n"]


@dataclass(frozen=True)
class Info:
    """One key frame. `token` is its lidar's, as in label files' names; what it lacks is None or empty."""

    token: str
    scene: str
    lidar_file: str
    sweeps: tuple[Sweep, ...]
    cameras: tuple[Camera, ...]
    boxes: Boxes | None
    location: str
    to_global: Float[Array, "4 4"] | None


def read_infos(path: Path) -> tuple[Info, ...]:
    """Read the key frames of an info pickle: a list, or a mapping with one under `infos`."""
    found = plain_pickle.load(path)
    if isinstance(found, Mapping):
        found = found.get("infos")
    if not isinstance(found, list) or not found:
        shown = "an empty list" if isinstance(found, list) else f"a {type(found).__name__}"
        do = "Is it an info pickle (nuscenes_infos_10sweeps_train.pkl)?"
        raise DataError.at(str(path), shown, "a list of key frames", do)
    infos = tuple(_info(Fields(f"{path.name}, sample {i}", entry)) for i, entry in enumerate(found))
    seen: dict[str, int] = {}
    for number, info in enumerate(infos):
        if info.token in seen:
            shown = f"sample {number} has the lidar_token of sample {seen[info.token]}"
            raise DataError.at(path.name, shown, "each key frame once", REWRITE)
        seen[info.token] = number
    return infos


class Fields:
    """The fields of one entry; `where` names the sample and the way to it in errors."""

    def __init__(self, where: str, entry: Any) -> None:
        """Take a mapping."""
        self.where = where
        if not isinstance(entry, Mapping):
            raise DataError.at(where, f"a {type(entry).__name__}", "a mapping of fields", REWRITE)
        self.entry: Mapping[Any, Any] = entry

    def __contains__(self, name: str) -> bool:
        """Tell whether a field is there and says something."""
        return self.entry.get(name) is not None

    def fault(self, name: str, found: str, expected: str) -> DataError:
        """Return the error of a field."""
        return DataError(str(DataError.at(f"{self.where}, {name}", found, expected, REWRITE)))

    def text(self, *names: str, default: str | None = None) -> str:
        """Return the first of these fields that is there."""
        for name in names:
            if name in self:
                value = self.entry[name]
                if not isinstance(value, str) or not value:
                    raise self.fault(name, f"{str(value)[:40]!r}", "a text")
                return value
        if default is None:
            raise self.fault(names[0], "no such field", "a text")
        return default

    def array(self, name: str, *shape: int | None) -> Float[Array, "*axes"]:
        """Return finite numbers of a shape; None: any size."""
        if name not in self:
            raise self.fault(name, "no such field", _numbers(shape))
        try:
            value = self.entry[name]
            made = np.asarray(value.read() if isinstance(value, StoredArray) else value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.fault(name, f"unreadable ({error})", _numbers(shape)) from error
        if not made.size and None in shape:
            made = made.reshape([0 if n is None else n for n in shape])
        if made.shape != shape and not _fits(made.shape, shape):
            raise self.fault(name, f"shape {made.shape}", _numbers(shape))
        return made

    def matrix(self, name: str) -> Float[Array, "4 4"]:
        """Return a rigid motion."""
        made = self._finite(name, self.array(name, 4, 4))
        self._check_turn(name, made[:3, :3])
        return made

    def motion(self, turn: str, shift: str) -> Float[Array, "4 4"]:
        """Return the motion of a turn (matrix, or quaternion w x y z) followed by a shift."""
        made = np.eye(4)
        made[:3, :3] = self._turn(turn)
        made[:3, 3] = self._finite(shift, self.array(shift, 3))
        return made

    def below(self, name: str) -> Sequence[Any]:
        """Return a list."""
        value = self.entry.get(name, ())
        if not isinstance(value, list | tuple):
            raise self.fault(name, f"a {type(value).__name__}", "a list")
        return value

    def file(self, name: str) -> str:
        """Return a path below the data set's root: what follows a leading part of another machine."""
        parts = self.text(name).replace("\\", "/").removeprefix("./").split("/")
        starts = [i for i, part in enumerate(parts) if part in FOLDERS]
        kept = parts[starts[0] :] if starts else parts
        if ".." in kept or not kept[0] or ":" in kept[0]:
            raise self.fault(name, repr(self.entry[name])[:80], "a path below samples or sweeps")
        return "/".join(kept)

    def _turn(self, name: str) -> Float[Array, "3 3"]:
        if name not in self:
            raise self.fault(name, "no such field", "a matrix (3, 3) or a quaternion (4)")
        value = self.entry[name]
        shape = np.shape(value.read() if isinstance(value, StoredArray) else value)
        if shape == (4,):
            made = rotation(self._finite(name, self.array(name, 4)))
        else:
            made = self._finite(name, self.array(name, 3, 3))
        self._check_turn(name, made)
        return made

    def _finite(self, name: str, values: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        if not np.isfinite(values).all():
            raise self.fault(name, "NaN or infinity", "finite numbers")
        return values

    def _check_turn(self, name: str, made: Float[Array, "3 3"]) -> None:
        if not _is_turn(*made.tolist()):
            raise self.fault(name, "no rotation", "an orthonormal matrix of determinant 1")


def _numbers(shape: tuple[int | None, ...]) -> str:
    return f"numbers of shape ({', '.join('n' if n is None else str(n) for n in shape)})"


def _fits(have: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    return len(have) == len(want) and all(w in (None, h) for h, w in zip(have, want, strict=True))


def _is_turn(x: list[float], y: list[float], z: list[float]) -> bool:
    """Tell whether these are the rows of a rotation: of length 1, and the third the first two's product."""
    (a, b, c), (d, e, f) = x, y
    product = (b * f - c * e, c * d - a * f, a * e - b * d)
    gaps = (
        a * a + b * b + c * c - 1,
        d * d + e * e + f * f - 1,
        *(p - q for p, q in zip(product, z, strict=True)),
    )
    return max(map(abs, gaps)) < TOLERANCE and abs(a * d + b * e + c * f) < TOLERANCE


def rotation(quaternion: Float[Array, " 4"]) -> Float[Array, "3 3"]:
    """Return the matrix of a quaternion w x y z."""
    w, x, y, z = quaternion / max(float(np.linalg.norm(quaternion)), 1e-12)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _info(fields: Fields) -> Info:
    lidar_file = fields.file("lidar_path")
    drive = PurePosixPath(lidar_file).name.partition(LOG_MARK)[0]
    return Info(
        token=_as_name(fields, fields.text("lidar_token", "token")),
        scene=_as_name(fields, fields.text("scene_token", default=drive)),
        lidar_file=lidar_file,
        sweeps=tuple(s for s in _sweeps(fields) if s.file != lidar_file),
        cameras=_cameras(fields),
        boxes=_boxes(fields) if "gt_boxes" in fields else None,
        location=_as_name(fields, fields.text("location", default="unknown")),
        to_global=_to_global(fields),
    )


def _as_name(fields: Fields, text: str) -> str:
    """Return a text that is to be part of a file's name."""
    if text != PurePosixPath(text).name or text.startswith("."):
        raise fields.fault("token", repr(text)[:60], "a name without folders")
    return text


def _sweeps(fields: Fields) -> tuple[Sweep, ...]:
    """Read the earlier turns.

    A drive's first frames have none: there the pickle repeats the key frame, which adds nothing, without a
    motion.
    """
    found: list[Sweep] = []
    for number, entry in enumerate(fields.below("sweeps")):
        one = Fields(f"{fields.where}, sweeps[{number}]", entry)
        still = "transform_matrix" not in one
        motion = np.eye(4) if still else one.matrix("transform_matrix")
        found.append(Sweep(one.file("lidar_path"), motion, float(one.array("time_lag"))))
    return tuple(found)


def _cameras(fields: Fields) -> tuple[Camera, ...]:
    if "cams" not in fields:
        return ()
    found: list[Camera] = []
    every = Fields(f"{fields.where}, cams", fields.entry["cams"])
    for name in CAMERAS:
        if name in every:
            one = Fields(f"{every.where}[{name}]", every.entry[name])
            lens = "camera_intrinsics" if "camera_intrinsics" in one else "cam_intrinsic"
            motion = one.motion("sensor2lidar_rotation", "sensor2lidar_translation")
            found.append(Camera(name, one.file("data_path"), one.array(lens, 3, 3), motion))
    return tuple(found)


def _boxes(fields: Fields) -> Boxes:
    """Read the boxes; a velocity that nobody measured stays NaN."""
    values = fields.array("gt_boxes", None, 9)
    if not np.isfinite(values[:, :7]).all() or np.isinf(values).any() or (values[:, 3:6] <= 0).any():
        raise fields.fault("gt_boxes", "NaN or a side of no length", "finite places and sides above 0")
    given = fields.entry.get("gt_names")
    try:
        names = tuple(str(n) for n in (given.read() if isinstance(given, StoredArray) else given or ()))
    except (TypeError, ValueError) as error:
        raise fields.fault("gt_names", f"unreadable ({error})", "a list of class names") from error
    if len(names) != len(values):
        raise fields.fault("gt_names", f"{len(names)} names of {len(values)} boxes", "one each")
    counts = np.ones(len(values))
    if "num_lidar_pts" in fields:
        counts = fields.array("num_lidar_pts", None)
        if len(counts) != len(values):
            raise fields.fault("num_lidar_pts", f"{len(counts)} of {len(values)} boxes", "one each")
    return Boxes(values.astype(np.float32), names, counts.astype(np.int64))


def _to_global(fields: Fields) -> Float[Array, "4 4"] | None:
    """Return the motion from the lidar's frame to the map's, where the pickle says it."""
    if "global_from_ref" in fields:
        return fields.matrix("global_from_ref")
    if "ref_from_car" in fields and "car_from_global" in fields:
        return np.linalg.inv(fields.matrix("ref_from_car") @ fields.matrix("car_from_global"))
    return None
