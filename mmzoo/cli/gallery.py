"""The picture of retrieval: what is given in one sense, and the nearest held-out samples in every other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mmzoo.batch import Sample
from mmzoo.cli.thumbnails import INK, PAPER, SIZE, font, thumbnail
from mmzoo.datamodules.collate import collate
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.models.base import TaskModel
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.recipe import Built

log = logging.getLogger(__name__)
NEAREST = 3
QUERIES = 5
POOL = 512
"""Held-out samples that are searched, at most."""
CHUNK = 64
GAP, EDGE, HEAD = 6, 4, 24
RIGHT, WRONG = (22, 163, 74), (203, 213, 225)


@dataclass(frozen=True)
class Pool:
    """Samples and their vectors: `vectors[sense][id]`."""

    samples: Mapping[str, Sample]
    vectors: Mapping[str, Mapping[str, Tensor]]


def draw(built: Built, split: str, path: Path) -> bool:
    """Draw the picture to `path`; False where the model embeds fewer than two senses."""
    model = built.model
    if not isinstance(model, MultimodalModel):
        return False
    try:
        task = model.embedding_task()
    except ConfigError:  # a model without embeddings has no such picture
        return False
    senses = [p for p in model.passes[task] if p in model.adapters]
    if len(senses) < 2:
        return False
    pool = read_pool(built, split, task)
    queries = pick(pool, senses)
    if not queries:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(built, pool, queries, senses).save(path)
    return True


@torch.no_grad()
def read_pool(built: Built, split: str, task: str) -> Pool:
    """Embed the first samples of a split."""
    source = built.datamodule.source(split)
    samples: dict[str, Sample] = {}
    for index in range(min(len(source), POOL)):
        try:
            sample = source.get(index, None)
        except (DataError, ShapeError):  # counted and named when the split was evaluated
            continue
        samples[sample.id] = sample
    vectors: dict[str, dict[str, Tensor]] = {}
    every = list(samples.values())
    for start in range(0, len(every), CHUNK):
        part = every[start : start + CHUNK]
        with built.trainer.precision_plugin.forward_context():
            found = built.model.embed(collate(part).to(built.model.device), task)
        for sense, prediction in found.items():
            rows = prediction.values.float().cpu()
            own = vectors.setdefault(sense, {})
            for i, row in zip(prediction.index.tolist(), rows, strict=True):
                own.setdefault(part[i].id, row)  # of several entries the first
    return Pool(samples, vectors)


def pick(pool: Pool, senses: Sequence[str]) -> list[tuple[str, str]]:
    """Return (id, sense given) spread evenly over the samples that have all; never chosen by result."""
    whole = [i for i in pool.samples if all(i in pool.vectors.get(s, {}) for s in senses)]
    if not whole:
        return []
    count = min(QUERIES, len(whole))
    return [(whole[(n * len(whole)) // count], senses[n % len(senses)]) for n in range(count)]


def nearest(pool: Pool, query: str, given: str, wanted: str) -> list[str]:
    """Return the ids of the nearest samples of another sense (cosine: the vectors have length one)."""
    ids = list(pool.vectors[wanted])
    matrix = torch.stack([pool.vectors[wanted][i] for i in ids])
    order = (matrix @ pool.vectors[given][query]).argsort(descending=True, stable=True)
    return [ids[i] for i in order[:NEAREST].tolist()]


def sheet(built: Built, pool: Pool, queries: Sequence[tuple[str, str]], senses: Sequence[str]) -> Image.Image:
    """Lay the rows out: what is given, then the nearest in each other sense, the right one framed green."""
    cell, row = SIZE + 2 * EDGE + GAP, HEAD + SIZE + 2 * EDGE + GAP
    width = GAP * 3 + cell + (len(senses) - 1) * (NEAREST * cell + 2 * GAP)
    canvas = Image.new("RGB", (width, GAP + row * len(queries)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (query, given) in enumerate(queries):
        top = GAP + number * row
        pen.text((GAP, top), f"given: {given}", fill=INK, font=font(15))
        canvas.paste(_framed(built.model, pool.samples[query], given, INK), (GAP, top + HEAD))
        left = GAP * 3 + cell
        for wanted in (s for s in senses if s != given):
            pen.text((left, top), wanted, fill=INK, font=font(15))
            for place, found in enumerate(nearest(pool, query, given, wanted)):
                frame = RIGHT if found == query else WRONG
                picture = _framed(built.model, pool.samples[found], wanted, frame)
                canvas.paste(picture, (left + place * cell, top + HEAD))
            left += NEAREST * cell + 2 * GAP
    return canvas


def _framed(model: TaskModel, sample: Sample, sense: str, colour: tuple[int, int, int]) -> Image.Image:
    options = model.config.modalities[sense]
    small = thumbnail(sample.entries(sense)[0], type(options).owner.kind, options.preprocess.build())
    framed = Image.new("RGB", (SIZE + 2 * EDGE, SIZE + 2 * EDGE), colour)
    framed.paste(small, (EDGE, EDGE))
    return framed
