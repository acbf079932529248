"""What tasks ask of a recipe's teachers, and what does not fit between the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmzoo.errors import ConfigError, close_matches
from mmzoo.heads.base import PairHead
from mmzoo.learners.tasks import TaskConfig
from mmzoo.models.base import JOINT, HeadSpec
from mmzoo.models.teachers.base import Load
from mmzoo.models.teachers.classroom import Classroom, Wish
from mmzoo.objectives.base import Objective


def open_classroom(
    teachers: Mapping[str, Any],
    tasks: Mapping[str, TaskConfig],
    options: Any,
    load: Load,
) -> Classroom:
    """Build the teachers that tasks ask; `options` are the student's, heads included."""
    faults: list[str] = []
    wishes: list[Wish] = []
    for name, task in tasks.items():
        objective: Objective = task.objective.build()
        spec = options.heads.get(task.head_of or name)
        if spec is None:
            continue  # said with what else the heads lack
        own = _faults(name, task, objective, teachers, spec)
        faults += own
        if task.teacher and not own:
            wish = _wish(name, task, objective, spec)
            wishes.append(wish)
            faults += _unknown_inputs(wish, options)
    if faults:
        raise ConfigError("\n".join(faults))
    return Classroom(teachers, wishes, options.inputs, load)


def _wish(name: str, task: TaskConfig, objective: Objective, spec: HeadSpec) -> Wish:
    if objective.lesson is None:
        raise ConfigError.at(f"tasks.{name}", "no lesson", "a distillation", "Drop its teacher.")
    passes = tuple(dict.fromkeys(objective.lessons(tuple(spec.passes)).values()))
    return Wish(name, task.teacher, objective.lesson, passes, task.head_of or name, spec.target)


def _faults(
    name: str, task: TaskConfig, objective: Objective, teachers: Mapping[str, Any], spec: HeadSpec
) -> list[str]:
    where = f"tasks.{name}"
    if objective.lesson is None and task.teacher:
        found, do = f"a teacher ({task.teacher!r}) for an objective without lessons", "Use a distillation."
        return [str(ConfigError.at(f"{where}.objective", found, "…_distillation", do))]
    if objective.lesson is not None and not task.teacher:
        known = ", ".join(teachers) or "none given"
        do = f"Set {where}.teacher, and teachers.NAME if there is none."
        return [str(ConfigError.at(f"{where}.teacher", "none", f"one of the teachers ({known})", do))]
    if task.teacher and task.teacher not in teachers:
        do = close_matches(task.teacher, teachers)
        return [str(ConfigError.at(f"{where}.teacher", repr(task.teacher), "one of the teachers", do))]
    if task.teacher and issubclass(type(spec.head).owner or object, PairHead):
        do = "Distil from a head that reads single passes."
        return [str(ConfigError.at(f"{where}.head", "a head of pairs", "one that reads each pass", do))]
    try:
        objective.lessons(tuple(spec.passes))
    except ConfigError as error:
        return [f"{where}.objective.{error}"]
    return []


def _unknown_inputs(wish: Wish, options: Any) -> list[str]:
    """Return a line for each input of a lesson that the student's model does not have."""
    return [
        str(ConfigError.at(f"tasks.{wish.task}.objective.taught_by", repr(m), "an input of the model", do))
        for m in dict.fromkeys(m for p in wish.passes for m in p.split(JOINT))
        if m not in options.inputs
        for do in (close_matches(m, options.inputs),)
    ]
