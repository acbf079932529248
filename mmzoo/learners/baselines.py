"""Figures of single-task models that a run's figures are compared with: their names, checked beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmzoo.errors import ConfigError, close_matches
from mmzoo.learners.tasks import Task

WHERE = "learner.baselines"


def check_baselines(baselines: Iterable[str], tasks: Mapping[str, Task]) -> None:
    """Raise one ConfigError that lists every name of a figure which no validation can give.

    Why: delta_m is computed at the first validation, long after a wrong name could have been said.
    """
    faults: list[str] = []
    for name in baselines:
        task = tasks.get(name.split("/")[0])
        if task is None:
            do = close_matches(name.split("/")[0], tasks)
            faults.append(str(ConfigError.at(WHERE, f"{name!r} is of no task", "task/figure", do)))
        elif not _may_be(name, task):
            do = close_matches(name, _short_names(task))
            faults.append(
                str(ConfigError.at(WHERE, f"no figure {name!r}", f"a loss or a metric of {task.name}", do))
            )
    if faults:
        raise ConfigError("\n".join(faults))


def _may_be(name: str, task: Task) -> bool:
    """Say whether a figure may turn up: what stands between metric and last word, such as a pass, may not be
    in every validation."""
    if name == f"{task.name}/loss" or name.startswith(f"{task.name}/loss/"):
        return True
    last = name.rsplit("/", 1)[-1]
    return any(
        name.startswith(f"{task.prefixes[key]}/") and (not metric.names() or last in metric.names())
        for key, metric in task.metrics.items()
    )


def _short_names(task: Task) -> list[str]:
    found = [f"{task.prefixes[key]}/{last}" for key, m in task.metrics.items() for last in m.names()]
    return [f"{task.name}/loss", *found]
