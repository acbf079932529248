"""Where images and labels of the indoor world are kept: made once under MMZOO_HOME, then memory-mapped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.datamodules.once import make_once
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.world_indoor.rooms import IndoorWorldConfig, make_view
from mmzoo.datamodules.world_indoor.view import see
from mmzoo.home import home

log = logging.getLogger(__name__)

VERSION = 1
"""Raise it with every change that makes a world of the same options come out differently."""
NOISE = 1000
"""Last part of the random key of an image's noise, apart from what draws its room and view."""
ARRAYS: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "image": ((3,), np.uint8),
    "semseg": ((), np.uint8),
    "human_parts": ((), np.uint8),
    "sal": ((), np.uint8),
    "normals": ((3,), np.float16),
    "edge": ((), np.uint8),
    "depth": ((), np.float32),
}
"""Name -> axes after (n h w), and how it is kept."""


def world_folder(config: IndoorWorldConfig, split: str, root: Path | None = None) -> Path:
    """Return the folder that holds, or will hold, the arrays of a split."""
    options: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(IndoorWorldConfig)
    }
    text = json.dumps({"version": VERSION, **options}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return (root or home() / "indoor") / f"v{VERSION}-{digest}-{split}"


def open_world(config: IndoorWorldConfig, split: str, root: Path | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a split, memory-mapped, after making them if nobody has."""
    folder = make_once(world_folder(config, split, root), lambda into: _render(config, split, into))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}


def _render(config: IndoorWorldConfig, split: str, folder: Path) -> None:
    started, count = time.monotonic(), config.count(split)
    log.info("indoor: rendering %d %s images, once", count, split)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kept, (count, *config.size, *axes))
        for name, (axes, kept) in ARRAYS.items()
    }
    for number in range(count):
        rng = np.random.default_rng([config.world_seed, SPLITS.index(split), number, NOISE])
        for name, values in see(make_view(config, split, number), rng).items():
            arrays[name][number] = values
    log.info("indoor: rendered in %.0f s", time.monotonic() - started)
