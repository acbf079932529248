"""Embeds class names as sentences, so that a contrastive model can classify without having been trained
to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmzoo.batch import Batch, DataInfo, ModalityInput
from mmzoo.errors import ConfigError
from mmzoo.learners.tasks import Task
from mmzoo.models.base import TaskModel
from mmzoo.models.multimodal import MultimodalModel


def class_vectors(
    model: TaskModel, tasks: Mapping[str, Task], info: DataInfo
) -> dict[str, dict[str, Tensor]]:
    """Return task -> target -> embeddings (classes, prompts, e) for every metric that compares with class
    names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, task in tasks.items():
        for target, templates in _wanted(task):
            if target not in info.labels:
                known = ", ".join(info.labels) or "none"
                raise ConfigError.at(
                    f"tasks.{name}", f"no class names of {target!r}", f"one of {known}", "Name a label."
                )
            vectors = embed_prompts(model, task.head, info.labels[target], templates)
            found.setdefault(name, {})[target] = vectors
    return found


def _wanted(task: Task) -> Iterator[tuple[str, Sequence[str]]]:
    for metric in task.metrics.values():
        if metric.needs_class_vectors:
            options = getattr(metric, "config", None)
            target = getattr(options, "target", "") or task.config.target
            yield target, getattr(options, "templates", None) or ("{}",)


@torch.no_grad()
def embed_prompts(model: TaskModel, task: str, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return unit vectors (classes, prompts, e) of every template filled with every class name."""
    modality = _text_of(model, task)
    if modality is None:
        expected = "a head that reads a text modality"
        raise ConfigError.at(
            f"tasks.{task}", "no text pass", expected, "Add text, or drop the zero_shot metric."
        )
    prepare = model.config.modalities[modality].preprocess.build()
    sentences = [t.format(c.replace("_", " ")) for c in classes for t in templates]
    vectors: list[Tensor] = []
    for start in range(0, len(sentences), 256):
        items = [prepare(s) for s in sentences[start : start + 256]]
        rows = ModalityInput.stack(items, torch.arange(len(items)))
        batch = Batch(tuple(str(i) for i in range(len(items))), {modality: rows}).to(model.device)
        vectors.append(model(batch, [task]).predictions[task][modality].values.float().cpu())
    return torch.cat(vectors).reshape(len(classes), len(templates), -1)


def _text_of(model: TaskModel, task: str) -> str | None:
    """Name the text modality that a task reads by itself, if there is one."""
    if not isinstance(model, MultimodalModel):
        return None
    alone = [m for m in model.passes[task] if m in model.adapters]
    return next((m for m in alone if model.adapter(m).kind == "text"), None)
