"""List models, recipes and every building block: name, size, licence, one line each."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from typing import Any

from mmzoo.cli import catalog, console
from mmzoo.cli.catalog import Entry
from mmzoo.errors import ConfigError, close_matches

EXAMPLES = [
    ("mmzoo list", "everything"),
    ("mmzoo list 'five*'", "names by pattern"),
    ("mmzoo list --kind models --modality audio --sort params", "models that hear, small ones first"),
    ("mmzoo list 'onepeace*' --modality audio --task retrieval", "checkpoints that were trained for it"),
    ("mmzoo list --kind recipes --task retrieval --json", "for a script"),
]
NEXT = "mmzoo info NAME"
SORTS = ("name", "params", "size")
TITLES = {"data": "data configs", "trainers": "trainer configs", "mixers": "token mixers"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "pattern", nargs="*", metavar="PATTERN", help="a name, part of one, or a pattern with *"
    )
    parser.add_argument("--kind", help="models, recipes, data, modalities, heads, mixers, metrics, …")
    parser.add_argument("--modality", help="only what takes this modality (models, checkpoints and recipes)")
    parser.add_argument(
        "--task", help="only recipes and checkpoints of this kind: retrieval, classification, …"
    )
    parser.add_argument("--sort", default="name", choices=SORTS, help="order of the models (default: name)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    found = select(args.pattern, args.kind, args.modality, args.task)
    order = {"name": _by_name, "params": _by_params, "size": _by_params}[args.sort]
    found = sorted(found, key=order)
    if args.json:
        console.dump([entry.to_dict() for entry in found])
        return 0
    for kind in catalog.kinds():
        rows = [entry for entry in found if entry.kind == kind]
        if rows:
            console.say(console.style(TITLES.get(kind, kind.replace("_", "-")), "bold"))
            console.say(_table(kind, rows) + "\n")
    console.note("next: mmzoo info NAME")
    return 0


def select(patterns: Sequence[str], kind: str | None, modality: str | None, task: str | None) -> list[Entry]:
    """Return the entries that pass every filter; none at all is an error with close matches."""
    everything = catalog.entries(catalog.kind_of(kind) if kind else None)
    found = [e for e in everything if all(_fits(e.name, p) for p in patterns)]
    if modality:
        found = [e for e in found if modality in e.facts.get("modalities", ())]
        _known("--modality", modality, everything, "modalities")
    if task:
        found = [e for e in found if task in e.facts.get("tasks", ())]
        _known("--task", task, everything, "tasks")
    if not found and patterns:
        do = close_matches(patterns[0], [e.name for e in everything], listing="mmzoo list")
        raise ConfigError.at("mmzoo list", f"nothing like {' '.join(patterns)!r}", "a name or pattern", do)
    return found


def _known(option: str, value: str, everything: Sequence[Entry], fact: str) -> None:
    known = {v for e in everything for v in e.facts.get(fact, ())}
    if value not in known:
        raise ConfigError.at(
            option, f"nothing has {value!r}", f"one of the {fact}", close_matches(value, known)
        )


def _fits(name: str, pattern: str) -> bool:
    return (
        fnmatch.fnmatch(name, pattern)
        if any(c in pattern for c in "*?[")
        else pattern.lower() in name.lower()
    )


def _by_name(entry: Entry) -> tuple[Any, ...]:
    return (entry.name,)


def _by_params(entry: Entry) -> tuple[Any, ...]:
    return (entry.facts.get("params") is None, entry.facts.get("params") or 0, entry.name)


def _table(kind: str, rows: Sequence[Entry]) -> str:
    if kind == "models":
        head = ("name", "params", "size", "licence", "modalities", "what it is")
        return console.table(head, [_model_row(e) for e in rows], right=(1, 2))
    if kind == "checkpoints":
        head = ("name", "size", "licence", "here", "tasks", "modalities", "what it is")
        return console.table(head, [_checkpoint_row(e) for e in rows], right=(1,))
    if kind == "recipes":
        head = ("name", "tasks", "model", "modalities", "what it does")
        return console.table(head, [_recipe_row(e) for e in rows])
    return console.table(("name", "what it is"), [(e.name, e.summary) for e in rows])


def _model_row(entry: Entry) -> tuple[str, ...]:
    facts = entry.facts
    size = facts.get("size_mb")
    return (
        entry.name,
        console.short(facts.get("params")),
        "–" if size is None else f"{size:.1f} MB",
        str(facts.get("licence", "Apache-2.0")),
        _some(facts.get("modalities", [])),
        entry.summary,
    )


def _checkpoint_row(entry: Entry) -> tuple[str, ...]:
    facts = entry.facts
    size = facts.get("size_mb")
    return (
        entry.name,
        "–" if size is None else f"{size:.1f} MB",
        str(facts.get("licence", "")),
        str(facts.get("here", "")),
        ", ".join(facts.get("tasks", [])) or "–",
        _some(facts.get("modalities", [])),
        entry.summary,
    )


def _recipe_row(entry: Entry) -> tuple[str, ...]:
    facts = entry.facts
    tasks = ", ".join(facts.get("tasks", []))
    return (
        entry.name,
        tasks,
        str(facts.get("model") or "–"),
        _some(facts.get("modalities", [])),
        entry.summary,
    )


def _some(names: Sequence[str]) -> str:
    return " ".join(names) or "–"
