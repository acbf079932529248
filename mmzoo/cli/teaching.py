"""Who teaches in a run and what that costs, for the dry run."""

from __future__ import annotations

from typing import Any

import torch

from mmzoo.batch import Batch
from mmzoo.cli import console
from mmzoo.learners.meter import run_flops
from mmzoo.models.teachers.classroom import Classroom
from mmzoo.recipe import Built


def facts(built: Built, batch: Batch) -> dict[str, dict[str, Any]]:
    """Return, by teacher, whose weights it has, its size, what it gives, and its FLOPs in a step."""
    classroom = built.learner.classroom
    if not classroom:
        return {}
    times = built.config.trainer.devices * built.config.trainer.accumulate
    return {
        name: {
            **described,
            "parameters": classroom.teachers[name].num_params(),
            "flops": _flops(classroom, name, batch) * times,
        }
        for name, described in classroom.describe().items()
    }


def num_bytes(built: Built) -> int:
    """Return the bytes of the teachers' weights; they have neither gradients nor an optimiser's averages."""
    classroom = built.learner.classroom
    modules = [t.module for t in classroom.teachers.values()] if classroom else []
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the teachers as a table."""
    rows = [
        (
            name,
            facts["source"],
            "; ".join(f"{kind} of {', '.join(passes)}" for kind, passes in facts["gives"].items()),
            f"{facts['parameters']:,}",
            console.short(facts["flops"], "FLOP"),
        )
        for name, facts in found.items()
    ]
    return console.table(("teacher", "weights", "gives", "frozen", "a step"), rows, right=(3, 4))


def _flops(classroom: Classroom, name: str, batch: Batch) -> int:
    with torch.no_grad():
        return run_flops(lambda: classroom.lessons(name, batch))
