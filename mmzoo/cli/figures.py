"""Counts of every shipped preset: `python -m mmzoo.cli.figures` writes the file that `list` reads.

Models are built on the meta device, so that the largest cost no memory; those whose tokens choose experts
run for real, as one task where tasks part in the trunk: every token passes equally many experts, so the
count does not depend on which. Heads and fMRI subjects come
with tasks and data; what is counted here is the rest. FLOPs are those of one forward pass over one sample as
the modality's `fake_input` makes it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from mmzoo import zoo
from mmzoo.batch import Batch, DataInfo
from mmzoo.cli.catalog import FIGURES
from mmzoo.configs import PACKAGE
from mmzoo.learners.meter import total_flops
from mmzoo.models.base import TaskModel, owner_of
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.routers import TaskTopKRouter

SUBJECTS = {"subject": 1000}
"""Stands in for the scanned subjects that only data can name: one with a round number of voxels."""


def shipped() -> list[str]:
    """Return the names of the presets in the package."""
    folder = PACKAGE / "model"
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def count(name: str) -> dict[str, Any]:
    """Return modalities, parameters by part and FLOPs of a preset: by modality, or by part where a model has
    a body of its own."""
    options = zoo.preset(name)
    owner = owner_of(options)
    options = owner.resolve(options, DataInfo(subjects=SUBJECTS))
    with torch.device("cpu" if _is_routed(options) else "meta"):
        model = owner(options).eval()
    flops = {m: _flops(model, m) for m in model.modalities} if isinstance(model, MultimodalModel) else None
    active = _active(model) if isinstance(model, MultimodalModel) and _is_routed(options) else None
    return {
        "modalities": list(model.modalities),
        "params": model.num_params(),
        "flops": _whole(model) if flops is None else flops,
        **({} if active is None else {"active": active}),
    }


def _is_routed(options: Any) -> bool:
    trunk = getattr(options, "trunk", None)
    return trunk is not None and isinstance(trunk.ffn, MoeFeedForward.Config)


def _active(model: MultimodalModel) -> int:
    """Count the trunk's parameters that a token of one task meets: its chosen experts, its task's gates."""
    count = sum(p.numel() for p in model.trunk.parameters())
    for block in model.trunk.blocks:
        ffn = getattr(block, "ffn", None)
        if not isinstance(ffn, MoeFeedForward):
            continue
        idle = ffn.config.num_experts - getattr(ffn.router.config, "chosen", ffn.config.num_experts)
        count -= idle * sum(p[0].numel() for p in ffn.experts.parameters())
        if isinstance(ffn.router, TaskTopKRouter):
            gates = sum(p.numel() for p in ffn.router.parameters())
            count -= gates - gates // len(ffn.router.tasks)
    return count


def _whole(model: TaskModel) -> dict[str, int]:
    """Count one sample's forward pass by part, in all."""
    batch = model.fake_batch(0).to(model.device)
    return {"total": total_flops(model, lambda: model(batch))}


def _flops(model: MultimodalModel, modality: str) -> int:
    """Count one sample's forward pass through adapter and trunk, on the model's device."""
    adapter = model.adapter(modality)
    with torch.device("cpu"):
        row = adapter.fake_input(model.config.modalities[modality], 1, torch.Generator().manual_seed(0))
    row = dataclasses.replace(row, values=row.values.to(model.device))
    batch = Batch(("0",), {modality: row})
    return total_flops(model, lambda: model.tokens(batch, [modality]))


def main() -> None:
    """Write the file."""
    FIGURES.write_text(
        json.dumps({name: count(name) for name in shipped()}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
