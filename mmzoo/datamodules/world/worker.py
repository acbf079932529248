"""Render a share of a split's chunks into its arrays: `python -m mmzoo.datamodules.world.worker FOLDER
SHARE OF`.

A program of its own, not a forked or spawned function: it neither inherits the parent's threads nor
imports the parent's main file, so it works from scripts and notebooks alike.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mmzoo import schema
from mmzoo.datamodules.world.events import WorldConfig
from mmzoo.datamodules.world.render import Renderer, chunks

OPTIONS = "options.json"
"""File beside the arrays that holds the world's options and the split's name."""


def render_share(folder: Path, share: int, of: int) -> None:
    """Render every chunk whose number leaves the remainder `share` when divided by `of`."""
    options = json.loads((folder / OPTIONS).read_text())
    config = schema.parse(WorldConfig, options["world"])
    renderer = Renderer(config)
    arrays = {path.stem: np.load(path, mmap_mode="r+") for path in folder.glob("*.npy")}
    for number, (row, events) in enumerate(chunks(config, options["split"])):
        if number % of == share:
            for name, values in renderer(events).items():
                arrays[name][row : row + len(events)] = values


if __name__ == "__main__":
    render_share(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
