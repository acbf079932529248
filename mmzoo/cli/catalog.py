"""What exists, found without importing any of it: registry tables, YAML files, figures of the presets.

Why: `mmzoo list` and `mmzoo info` must be instant, so they read strings, never classes.
A config's summary is the first comment line of its YAML; lines `# licence: …` below it are facts.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmzoo import configs, registry
from mmzoo.checkpoints import cards
from mmzoo.errors import ConfigError, close_matches

FIGURES = Path(__file__).parent.parent / "models" / "figures.json"
GROUP_KINDS = {"recipe": "recipes", "model": "models", "data": "data", "trainer": "trainers"}
CHECKPOINTS = "checkpoints"
CONTRAST = ("infonce", "siglip")
DENOISING = ("denoising_contrast",)
SCENE = ("m3net_boxes", "m3net_map", "m3net_occupancy")
DENSE = ("dense_cross_entropy", "balanced_saliency", "normals_l1", "balanced_edge", "depth_l1")
FACT = re.compile(r"#\s*(\w+):\s+(.+)")
BYTES_PER_PARAM = 4
"""Exported weights are float32."""


@dataclass(frozen=True)
class Entry:
    """One thing with a name: its kind (a table or config group), one line, where it is, and facts."""

    kind: str
    name: str
    summary: str
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it flat, for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
            **self.facts,
        }


def kinds() -> list[str]:
    """Return the kinds, configs first."""
    return [*GROUP_KINDS.values(), CHECKPOINTS, *registry.ROOMS]


def kind_of(text: str) -> str:
    """Return the kind meant by `text`: its name, or its singular."""
    known = kinds()
    for kind in known:
        if text in (kind, kind.removesuffix("s"), kind.removesuffix("ies") + "y", kind.replace("_", "-")):
            return kind
    raise ConfigError.at("--kind", f"{text!r} is unknown", "a kind of thing", close_matches(text, known))


def entries(kind: str | None = None) -> list[Entry]:
    """Return everything of one kind, or everything there is, by name within its kind."""
    wanted = [kind] if kind else kinds()
    return [entry for one in wanted for entry in _of_kind(one)]


def _of_kind(kind: str) -> Iterator[Entry]:
    for group, name in GROUP_KINDS.items():
        if kind == name:
            for config, path in configs.list_configs(group).items():
                yield _config_entry(group, config, path)
            return
    if kind == CHECKPOINTS:
        yield from (_checkpoint(card) for card in cards.cards().values())
        return
    for name, row in sorted(registry.table(kind).items()):
        yield Entry(kind, name, row.summary, row.target)


def _config_entry(group: str, name: str, path: Path) -> Entry:
    summary, facts = header(path)
    if group == "model":
        facts |= _model_facts(name)
    elif group == "recipe":
        facts |= _recipe_facts(path)
    elif group == "data":
        facts["type"] = str(tree("data", path).get("type", ""))
    return Entry(GROUP_KINDS[group], name, summary, str(path), facts)


def _checkpoint(card: cards.Card) -> Entry:
    here = "shipped" if card.shipped else "fetched" if card.cached.is_file() else "to fetch"
    facts = {
        "modalities": card.modalities,
        "tasks": card.tasks,
        "licence": card.licence,
        "size_mb": None if card.bytes is None else round(card.bytes / 1e6, 1),
        "here": here,
    }
    source = str(cards.FOLDER / f"{card.name}.yaml")
    return Entry(CHECKPOINTS, card.name, card.summary, source, facts)


def header(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the summary and the facts in the leading comment of a YAML file."""
    summary, facts = "", {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            fact = FACT.match(line)
            if fact and summary:
                facts[fact.group(1)] = fact.group(2).strip()
            elif not summary:
                summary = line.lstrip("# ").strip()
    return summary, facts


@functools.cache
def figures() -> dict[str, dict[str, Any]]:
    """Return what was counted of every shipped preset (parameters by part, FLOPs by modality)."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}


def bases(path: Path) -> list[str]:
    """Return the `base` list of a YAML file."""
    found = load(path).get("base", [])
    return [found] if isinstance(found, str) else [str(b) for b in found]


@functools.cache
def load(path: Path) -> dict[str, Any]:
    """Read one YAML file, unresolved; a broken one is empty (the command that uses it says why)."""
    try:
        node = yaml.load(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return node if isinstance(node, dict) else {}


def tree(group: str, path: Path, depth: int = 8) -> dict[str, Any]:
    """Return a config with its bases merged beneath it, interpolations left as they stand."""
    merged: dict[str, Any] = {}
    for base in bases(path) if depth else []:
        other, _, name = base.partition("/")
        found = configs.list_configs(other).get(name) if other in configs.GROUPS else None
        if found is not None:
            below = tree(other, found, depth - 1)
            merged = _over(merged, below if other in ("recipe", group) else {other: below})
    return _over(merged, {k: v for k, v in load(path).items() if k != "base"})


def _over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "type" in above and below.get("type", above["type"]) != above["type"]:
        return above
    return {**below, **{k: _over(below[k], v) if k in below else v for k, v in above.items()}}


def _model_facts(name: str) -> dict[str, Any]:
    counted = figures().get(name, {})
    params = counted.get("params", {}).get("total")
    size = (
        {"params": params, "size_mb": round(params * BYTES_PER_PARAM / 1e6, 1)} if params is not None else {}
    )
    return {"modalities": counted.get("modalities", []), **size}


def _recipe_facts(path: Path) -> dict[str, Any]:
    merged = tree("recipe", path)
    tasks = {k: v for k, v in (merged.get("tasks") or {}).items() if isinstance(v, dict)}
    model, data = merged.get("model") or {}, merged.get("data") or {}
    base = _base_name(path, "model")
    own = sorted(m for m, v in (model.get("modalities") or {}).items() if v is not None)
    return {
        "modalities": own or _model_facts(base)["modalities"],
        "model": base,
        "data": str(data.get("type", "")),
        "tasks": sorted({task_kind(t) for t in tasks.values()}),
        "task_names": sorted(tasks),
    }


def task_kind(task: Mapping[str, Any]) -> str:
    """Name what a task is about, by its objective: retrieval, denoising, dense (every pixel), scene (around
    a vehicle) or classification."""
    objective = task.get("objective") or ""
    kind = objective.get("type", "") if isinstance(objective, dict) else str(objective)
    if kind in DENOISING:
        return "denoising"
    if kind in DENSE:
        return "dense"
    if kind in SCENE:
        return "scene"
    return "retrieval" if kind in CONTRAST else "classification"


def _base_name(path: Path, group: str, depth: int = 8) -> str:
    for base in reversed(bases(path) if depth else []):
        other, _, name = base.partition("/")
        if other == group:
            return name
        found = configs.list_configs(other).get(name) if other in configs.GROUPS else None
        if other == "recipe" and found is not None and (deeper := _base_name(found, group, depth - 1)):
            return deeper
    return ""
