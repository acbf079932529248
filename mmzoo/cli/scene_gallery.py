"""The picture of scenes around a vehicle: held-out scenes from above, the truth beside what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmzoo.batch import Batch, Prediction, SceneKind
from mmzoo.cli.pick import evenly, predict
from mmzoo.cli.scene_panels import Frame, View, sheet
from mmzoo.datamodules.collate import collate
from mmzoo.datamodules.scene import grid_of
from mmzoo.recipe import Built

SHOWN = 4
"""Scenes, evenly spread over the split; never chosen by result."""
LEAST_SCORE = 0.15
"""Boxes found with less are not drawn."""


def draw(built: Built, split: str, path: Path) -> bool:
    """Draw the picture to `path`; False where the run has no task about scenes."""
    kinds = {
        name: built.info.scene[task.config.target]
        for name, task in built.learner.tasks.items()
        if task.config.target in built.info.scene
    }
    wanted = grid_of(built.datamodule.preprocesses)
    batch = _pick(built, split) if kinds and wanted is not None else None
    if batch is None or wanted is None:
        return False
    targets = {kind: built.learner.tasks[name].config.target for name, kind in kinds.items()}
    labels = {WORDS[kind]: built.info.labels.get(target, ()) for kind, target in targets.items()}
    frame = Frame(wanted.grid.range_m, wanted.grid.map_range_m, labels)
    found = predict(built, batch, list(kinds))
    by_kind = {kind: found[name] for name, kind in kinds.items()}
    pairs = [(_true(batch, targets, i), _found(by_kind, i)) for i in range(len(batch))]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(pairs, frame).save(path)
    return True


WORDS = {SceneKind.BOXES_3D: "boxes", SceneKind.GROUND_MAP: "map", SceneKind.VOXELS: "occupancy"}


def _pick(built: Built, split: str) -> Batch | None:
    samples = evenly(built, split, SHOWN)
    return collate(samples) if samples else None


def _true(batch: Batch, targets: dict[SceneKind, str], sample: int) -> View:
    rows: dict[SceneKind, np.ndarray] = {}
    for kind, target in targets.items():
        label = batch.targets.get(target)
        own = label.index.tolist() if label is not None else []
        if label is not None and sample in own:
            rows[kind] = label.rows()[own.index(sample)].numpy()
    boxes = rows.get(SceneKind.BOXES_3D)
    ground = rows.get(SceneKind.GROUND_MAP)
    return View(
        ground > 0.5 if ground is not None else None,
        None if boxes is None else boxes[:, [0, 1, 3, 4, 6, 9]].astype(np.float64),
        rows.get(SceneKind.VOXELS),
    )


def _found(predictions: dict[SceneKind, Prediction | None], sample: int) -> View:
    rows: dict[SceneKind, torch.Tensor] = {}
    for kind, prediction in predictions.items():
        own = prediction.index.tolist() if prediction is not None else []
        if prediction is not None and sample in own:
            rows[kind] = prediction.values[own.index(sample)]
    boxes, ground, voxels = (rows.get(kind) for kind in WORDS)
    if boxes is not None:
        boxes = boxes[boxes[:, 9] >= LEAST_SCORE]
    return View(
        None if ground is None else (ground > 0).numpy(),
        None if boxes is None else boxes[:, [0, 1, 3, 4, 6, 10]].double().numpy(),
        None if voxels is None else voxels.argmax(dim=0).numpy(),
    )
