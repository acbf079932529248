"""Figures of single-task models that a run's figures are compared with: their names, checked beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmzoo.errors import ConfigError, close_matches
from mmzoo.learners.tasks import Task

WHERE = "learner.baselines"


def check_baselines(
    baselines: Iterable[str], tasks: Mapping[str, Task], passes: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise one ConfigError that lists every name of a figure which no validation can give; `passes` are
    those that each task sees.

    Why: delta_m is computed at the first validation, long after a wrong name could have been said.
    """
    faults: list[str] = []
    for name in baselines:
        task = tasks.get(name.split("/")[0])
        if task is None:
            do = close_matches(name.split("/")[0], tasks)
            faults.append(str(ConfigError.at(WHERE, f"{name!r} is of no task", "task/figure", do)))
        elif not _may_be(name, task, passes.get(task.name, ())):
            do = close_matches(name, _known(task, passes.get(task.name, ())))
            faults.append(
                str(ConfigError.at(WHERE, f"no figure {name!r}", f"a loss or a metric of {task.name}", do))
            )
    if faults:
        raise ConfigError("\n".join(faults))


def _may_be(name: str, task: Task, passes: tuple[str, ...]) -> bool:
    """Say whether a figure may turn up; which parts a loss has is not known beforehand, nor what a metric
    reports whose figures are named after the data's classes."""
    open_ended = [f"{task.prefixes[key]}/" for key, metric in task.metrics.items() if not metric.names()]
    return name in _known(task, passes) or name.startswith((f"{task.name}/loss/", *open_ended))


def _known(task: Task, passes: tuple[str, ...]) -> list[str]:
    """Return the names that are known beforehand."""
    metrics = [(task.prefixes[key], metric) for key, metric in task.metrics.items()]
    return [
        f"{task.name}/loss",
        *(f"{start}/{name}" for start, m in metrics for name in m.figure_names(passes)),
    ]
