"""The picture of dense tasks: held-out images, and for each task the truth beside the prediction."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mmzoo.batch import Batch
from mmzoo.cli.dense_panels import Panel, image_pixels, side_by_side
from mmzoo.cli.pick import evenly, predict
from mmzoo.datamodules.collate import collate
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.recipe import Built

SHOWN = 6
"""Images, evenly spread over the split; never chosen by result."""
IMAGE = "image"


def draw(built: Built, split: str, path: Path) -> bool:
    """Draw the picture to `path`; False where the run has no dense task on images."""
    kinds = {
        name: built.info.dense[task.config.target]
        for name, task in built.learner.tasks.items()
        if task.config.target in built.info.dense
    }
    prepare = built.datamodule.preprocesses.get(IMAGE)
    if not kinds or not isinstance(prepare, ImagePreprocess):
        return False
    batch = _pick(built, split)
    if batch is None:
        return False
    found = {t: p.values for t, p in predict(built, batch, list(kinds)).items() if p is not None}
    images = [image_pixels(x, prepare.scale, prepare.shift) for x in batch.inputs[IMAGE].values]
    rows: list[dict[str, Panel]] = []
    for sample in range(len(batch)):
        row: dict[str, Panel] = {}
        for name, kind in kinds.items():
            labels = batch.targets.get(built.learner.tasks[name].config.target)
            own = labels.index.tolist() if labels is not None else []
            true = labels.values[own.index(sample)] if labels is not None and sample in own else None
            if name in found:
                row[name] = Panel(kind, found[name][sample], true)
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(side_by_side(images, rows)).save(path)
    return True


def _pick(built: Built, split: str) -> Batch | None:
    samples = [s for s in evenly(built, split, SHOWN) if IMAGE in s.inputs]
    return collate(samples) if samples else None
