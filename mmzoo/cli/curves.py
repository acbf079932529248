"""Which curves a run's history holds, ready to draw: one panel for each group of figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Points = tuple[tuple[float, float], ...]
SMOOTHING = 0.05
"""Share of a noisy curve that its moving average looks back over."""
MOST_CURVES = 8
"""Curves in one panel; more cannot be told apart."""
MOST_PLACES = 4
"""Routed blocks with a panel of their own."""
EXPERT = re.compile(r"train/routing/.+/expert\d+")
MAX_LOAD = re.compile(r"train/routing/(.+)/max_load")


@dataclass(frozen=True)
class Panel:
    """One picture of curves over steps: name -> points; `faint` names those drawn thin behind the others."""

    name: str
    title: str
    curves: Mapping[str, Points]
    faint: tuple[str, ...] = ()
    percent: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


def panels(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return the panels that the history has points for: loss, metrics by task, learning rate, speed."""
    parts = _metrics(history), _experts(history)
    found = [_loss(history), *parts[0], *parts[1], _max_load(history), _rate(history), _speed(history)]
    return [panel for panel in found if any(len(points) > 1 for points in panel.curves.values())]


def series(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Return (step, value) of one figure."""
    return tuple((float(line["step"]), float(line[key])) for line in history if line.get(key) is not None)


def smoothed(points: Points) -> Points:
    """Return the moving average over the last few points (a share of all of them)."""
    width = max(1, round(SMOOTHING * len(points)))
    values = [y for _, y in points]
    means = [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]
    return tuple((x, m) for (x, _), m in zip(points, means, strict=True))


def _loss(history: Sequence[Mapping[str, Any]]) -> Panel:
    raw = series(history, "train/loss")
    curves = {"train": raw, "train, smoothed": smoothed(raw), "validation": series(history, "val/loss")}
    return Panel("loss", "loss", {k: v for k, v in curves.items() if v}, faint=("train",))


def _metrics(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    keys = dict.fromkeys(k for line in history for k in line if k.startswith("val/"))
    shown = [k.removeprefix("val/") for k in keys if "loss" not in k and "->" not in k]
    found: list[Panel] = []
    for task in dict.fromkeys(k.split("/", 1)[0] for k in shown):
        own = [k for k in shown if k.split("/", 1)[0] == task]
        curves = {k.split("/", 1)[-1]: series(history, f"val/{k}") for k in own}
        shares = {k: c for k, c in curves.items() if c and all(0 <= y <= 1 for _, y in c)}
        if shares:
            chosen = dict(list(shares.items())[:MOST_CURVES])
            found.append(Panel(f"metrics_{task}", f"{task}: validation", chosen, percent=True))
    return found


def _experts(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return, for the first routed parts of the trunk, the share of choices on each expert."""
    keys = dict.fromkeys(k for line in history for k in line if EXPERT.fullmatch(k))
    places = list(dict.fromkeys(k.rpartition("/")[0] for k in keys))[:MOST_PLACES]
    found: list[Panel] = []
    for place in places:
        own = [k for k in keys if k.rpartition("/")[0] == place][:MOST_CURVES]
        name = place.removeprefix("train/routing/")
        curves = {k.rpartition("/")[2].replace("expert", "expert "): series(history, k) for k in own}
        stem = f"experts_{name.replace('/', '_')}"
        found.append(Panel(stem, f"block {name}: share of choices on each expert", curves, percent=True))
    return found


def _max_load(history: Sequence[Mapping[str, Any]]) -> Panel:
    """Return how far the fullest expert of each routed part is above an even share, on a scale of its own."""
    keys = dict.fromkeys(k for line in history for k in line)
    places = [match for k in keys if (match := MAX_LOAD.fullmatch(k))][:MOST_CURVES]
    curves = {f"block {match[1]}": series(history, match[0]) for match in places}
    return Panel("max_load", "largest share of an expert x their number (1: even)", curves)


def _rate(history: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel("learning_rate", "learning rate", {"lr": series(history, "lr")})


def _speed(history: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel("speed", "model FLOPs utilisation", {"MFU": series(history, "mfu")}, percent=True)
