"""Starting a model from weights: every tensor not taken is listed, and must be expected or allowed."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable

from torch import Tensor

from mmzoo.checkpoints.loading import LoadReport, Weights, load_weights, require_whole
from mmzoo.errors import CheckpointError
from mmzoo.models.base import TaskModel
from mmzoo.models.finetune.lora import is_factor
from mmzoo.models.multimodal import MultimodalModel

log = logging.getLogger(__name__)
SUBJECT = re.compile(r"adapters\.([^.]+)\.subjects\.([^.]+)\.")
"""Before the names of tensors that serve one scanned subject alone."""


def start(
    model: TaskModel,
    weights: Weights,
    where: str,
    *,
    anew: Collection[str] = (),
    allow_partial: bool = False,
) -> LoadReport:
    """Take what fits, tables of other grids resized; say in the log what became of the rest.

    Tensors named in `anew` keep their fresh values. Heads may start anew, LoRA factors and grafted modalities
    do; weights of modalities that the model lacks are dropped. So with people: scanned subjects whom the
    weights do not know, or know with other voxels, start anew, and those of the weights whom the data lack
    are dropped. Anything else that is missing or left over is an error unless `allow_partial`.
    """
    kept = _Without(weights, frozenset(anew) | _of_namesakes(model, weights))
    report = load_weights(model, kept)
    if not report.taken:
        expected, do = "weights of a like model", "Check model=… and init_from=…."
        raise CheckpointError.at(where, "no tensor fits", expected, do)
    log.info("init_from %s: %d of %d tensors taken", where, report.taken, len(model.state_dict()))
    for line in report.lines():
        log.info("init_from: %s", line)
    if not allow_partial:
        surprises = _surprises(model, report, weights, frozenset(anew))
        require_whole(surprises, where, optional=model.task_parts)
    return report


class _Without:
    """Weights without some names."""

    def __init__(self, weights: Weights, names: frozenset[str]) -> None:
        self.weights, self.names = weights, names

    def keys(self) -> list[str]:
        given = self.weights.keys()
        return [name for name in given if name not in self.names]

    def shape(self, name: str, /) -> tuple[int, ...]:
        return self.weights.shape(name)

    def read(self, name: str, /) -> Tensor:
        return self.weights.read(name)


def _surprises(model: TaskModel, report: LoadReport, weights: Weights, anew: frozenset[str]) -> LoadReport:
    """Return the report without what was to be expected."""
    grafted = [m for m, c in model.config.modalities.items() if getattr(c, "ffn", "new") != "new"]
    has = model.adapters if isinstance(model, MultimodalModel) else model.modalities
    absent = {m for name in report.unexpected if (m := _modality_of(name)) and m not in has}
    ours, theirs = _subjects(model.state_dict()), _subjects(weights.keys())
    met = set(ours) & set(theirs) - _changed(model, weights)
    missing = [
        name
        for name in report.missing
        if name not in anew
        and not is_factor(name)
        and _modality_of(name) not in grafted
        and (_subject_of(name) in met or not _subject_of(name))
    ]
    unexpected = [
        name
        for name in report.unexpected
        if _modality_of(name) not in absent and (_subject_of(name) in met or not _subject_of(name))
    ]
    return LoadReport(missing=missing, unexpected=unexpected, reshaped=report.reshaped)


def _of_namesakes(model: TaskModel, weights: Weights) -> frozenset[str]:
    """Return the tensors of subjects who are called as one in the weights but have other voxels."""
    changed = _changed(model, weights)
    return frozenset(name for name in model.state_dict() if _subject_of(name) in changed)


def _changed(model: TaskModel, weights: Weights) -> set[str]:
    given = set(weights.keys())
    return {
        subject
        for name, tensor in model.state_dict().items()
        if (subject := _subject_of(name)) and name in given and weights.shape(name) != tuple(tensor.shape)
    }


def _subjects(names: Iterable[str]) -> dict[str, None]:
    return {subject: None for name in names if (subject := _subject_of(name))}


def _subject_of(name: str) -> str:
    """Return `modality.subject` of a tensor that serves one scanned subject alone, else nothing."""
    match = SUBJECT.match(name)
    return f"{match[1]}.{match[2]}" if match else ""


def _modality_of(name: str) -> str | None:
    """Return the modality that a tensor serves alone, if any."""
    parts = name.split(".")
    if parts[0] == "adapters":
        return parts[1]
    for marker in ("networks", "norms"):
        if parts[0] == "trunk" and marker in parts[:-1]:
            return parts[parts.index(marker) + 1]
    return None
