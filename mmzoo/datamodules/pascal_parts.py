"""PASCAL-Part's annotations of people, in the six parts of the benchmark, and their Matlab files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mmzoo.errors import DataError

HUMAN = 15
"""Number of the class of people."""
GROUPS = {
    1: ("head", "leye", "reye", "lear", "rear", "lebrow", "rebrow", "nose", "mouth", "hair"),
    2: ("torso", "neck"),
    3: ("luarm", "ruarm"),
    4: ("llarm", "lhand", "rlarm", "rhand"),
    5: ("luleg", "ruleg"),
    6: ("llleg", "lfoot", "rlleg", "rfoot"),
}
"""Number of each part in the labels, and what it is called in the annotations."""
PART_OF = {name: number for number, names in GROUPS.items() for name in names}
NAMES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")


def read_mat(path: Path, key: str) -> Any:
    """Return a variable of a Matlab file (before version 7.3)."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        do = "Run `pip install 'mmzoo[dense]'`."
        raise DataError.at(str(path), "scipy is not installed", "it, to read .mat files", do) from error
    content = loadmat(path)
    if key not in content:
        found = ", ".join(k for k in content if not k.startswith("__"))
        raise DataError.at(str(path), f"variables {found}", key, "Is it the right file?")
    return content[key]


def read_parts(path: Path) -> Int[np.ndarray, "h w"] | None:
    """Return the map of parts, 0 where there is nobody; None where the annotation holds no object.

    A person's part lies over those of persons listed before.
    """
    objects = np.atleast_1d(read_mat(path, "anno")[0, 0]["objects"].squeeze())
    if not objects.size:
        return None
    labels = np.zeros(objects[0]["mask"].shape, dtype=np.int64)
    for found in objects:
        if int(np.squeeze(found["class_ind"])) != HUMAN or not found["parts"].size:
            continue
        for part in np.atleast_1d(found["parts"].squeeze()):
            name = str(np.squeeze(part["part_name"]))
            if name not in PART_OF:
                known = f"one of {', '.join(PART_OF)}"
                raise DataError.at(str(path), f"a part named {name!r}", known, "Mend the annotation.")
            labels[part["mask"].astype(bool)] = PART_OF[name]
    return labels
