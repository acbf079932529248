"""Where a world's arrays are kept: rendered once under MMZOO_HOME, then memory-mapped by everybody.

Each split has a folder of its own, so that evaluation renders its few hundred events and no more. Its name
is a hash of the options and of `VERSION`, and the split. It is rendered into a temporary folder beside it and
renamed when complete; a lock keeps a second process waiting rather than rendering the same again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mmzoo.datamodules.once import make_once
from mmzoo.datamodules.world.events import WorldConfig
from mmzoo.datamodules.world.render import Arrays, shapes
from mmzoo.datamodules.world.worker import OPTIONS, render_share
from mmzoo.errors import DataError
from mmzoo.home import home

log = logging.getLogger(__name__)

VERSION = 2
"""Raise it with every change that makes a world of the same options come out differently."""
SMALL = 512
"""Splits of at most this many events are rendered in the calling process."""
MAX_WORKERS = 8


def world_options(config: WorldConfig) -> dict[str, int | float]:
    """Return the options that decide how a world comes out."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(WorldConfig)}


def world_folder(config: WorldConfig, split: str, root: Path | None = None) -> Path:
    """Return the folder that holds, or will hold, the arrays of a split of these options."""
    text = json.dumps({"version": VERSION, **world_options(config)}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return (root or home() / "five_senses") / f"v{VERSION}-{digest}-{split}"


def open_world(config: WorldConfig, split: str, root: Path | None = None) -> Arrays:
    """Return the arrays of a split, memory-mapped, after rendering them if nobody has."""
    folder = world_folder(config, split, root)
    make_once(folder, lambda unfinished: _render(config, split, unfinished, folder))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes(config, split)}


def _render(config: WorldConfig, split: str, into: Path, folder: Path) -> None:
    started, count = time.monotonic(), config.count(split)
    workers = _workers() if count > SMALL else 1
    log.info("five_senses: rendering %d %s events once, into %s", count, split, folder)
    (into / OPTIONS).write_text(json.dumps({"split": split, "world": world_options(config)}, indent=1))
    for name, (shape, dtype) in shapes(config, split).items():
        np.lib.format.open_memmap(into / f"{name}.npy", "w+", dtype, shape)
    if count > SMALL:
        _run_workers(into, workers)
    else:
        render_share(into, 0, 1)
    log.info("five_senses: rendered in %.0f s with %d processes", time.monotonic() - started, workers)


def _run_workers(folder: Path, workers: int) -> None:
    package = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "mmzoo.datamodules.world.worker", str(folder)]
    running = [
        subprocess.Popen(
            [*command, str(share), str(workers)],
            env={**os.environ, **threads, "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for share in range(workers)
    ]
    try:
        for process in running:
            _, stderr = process.communicate()
            if process.returncode:
                said = (stderr.strip().splitlines() or ["nothing"])[-1]
                found = f"a rendering process ended with {process.returncode} ({said})"
                raise DataError.at(str(folder), found, "all to finish", "See the message; then try again.")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _workers() -> int:
    with contextlib.suppress(AttributeError):
        return min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    return min(MAX_WORKERS, os.cpu_count() or 1)
