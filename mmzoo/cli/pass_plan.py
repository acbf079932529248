"""Which passes a training step runs, what each hides, and which of them need no gradient; for the dry run."""

from __future__ import annotations

from typing import Any

import torch

from mmzoo.batch import Batch
from mmzoo.cli import console
from mmzoo.heads.masked import MaskedHead
from mmzoo.models.denoising import DenoisingHead
from mmzoo.models.masked import draw_students, mask_generator, still_passes
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.recipe import Built
from mmzoo.registry import name_of

JOINT = "+"


def facts(built: Built, batch: Batch) -> list[dict[str, Any]]:
    """Return one entry for each pass of a step that hides tokens; empty where none does."""
    model = built.model
    if not isinstance(model, MultimodalModel):
        return []
    heads = {t: h for t in built.learner.reading if isinstance(h := model.heads[t], MaskedHead)}
    if not heads:
        return []
    needed = {m for h in heads.values() for p in (*h.passes, *h.teachers()) for m in p.split(JOINT)}
    with torch.enable_grad():  # tokens that learn say so
        embedded = {m: model.embedded(m, batch.inputs[m]) for m in batch.inputs if m in needed}
        adapters = {m: model.adapter(m) for m in embedded}
        generator = mask_generator(batch, None, training=False)
        students = draw_students(heads, adapters, embedded, batch, generator)
    others = {p for t in built.learner.reading if t not in heads for p in model.passes[t]}
    found: list[dict[str, Any]] = []
    for task, head in heads.items():
        groups = {p: [embedded[m] for m in p.split(JOINT) if m in embedded] for p in head.teachers()}
        with torch.enable_grad():
            still = still_passes(groups, others, model.adapters, model.trunk)
        for name, parts in students.hidden[task].items():
            teacher = head.teacher_of(name) if isinstance(head, DenoisingHead) else name
            entry = {"task": task, "pass": name, "teacher": teacher, "teacher_learns": teacher not in still}
            hides = {
                m: {
                    "recipe": _recipe(head, name, m),
                    "hidden": int(own.sum()) / len(own),
                    "tokens": int(embedded[m].valid.sum()) / len(own) - embedded[m].num_prefix,
                }
                for m, own in parts.items()
            }
            found.append({**entry, "hides": hides})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return the entries as a table."""
    rows = [
        (
            entry["task"],
            entry["pass"],
            ", ".join(
                f"{m} {part['hidden']:.1f} of {part['tokens']:.1f} ({part['recipe']})"
                for m, part in entry["hides"].items()
            ),
            entry["teacher"] + ("" if entry["teacher_learns"] else ", without gradient"),
        )
        for entry in found
    ]
    return console.table(("task", "pass", "hides, tokens of a sample", "taught by whole"), rows)


def _recipe(head: MaskedHead, name: str, modality: str) -> str:
    if not isinstance(head, DenoisingHead):
        return type(head).__name__
    return name_of("masks", type(head.mask_of(name, modality)))
