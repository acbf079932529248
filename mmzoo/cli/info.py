"""Explain one thing by name: a recipe, a model, or a component with its options and defaults."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from mmzoo import registry
from mmzoo.checkpoints import cards
from mmzoo.cli import catalog, console
from mmzoo.cli.catalog import Entry
from mmzoo.errors import ConfigError, close_matches

EXAMPLES = [
    ("mmzoo info five_senses", "a recipe: what it trains, on what"),
    ("mmzoo info model/five_senses_tiny", "a model: parameters by part"),
    ("mmzoo info retrieval", "a component: its options and defaults"),
    ("mmzoo info mixers/attention --json", "for a script"),
]
NEXT = "mmzoo config RECIPE, mmzoo train RECIPE --dry-run"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "name", metavar="NAME", help="a name as `mmzoo list` shows it; KIND/NAME where several share it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what is known of the thing."""
    found = lookup(args.name)
    facts = explain(found[0])
    if args.json:
        console.dump(facts)
        return 0
    _print(found[0], facts)
    others = [f"{e.kind}/{e.name}" for e in found[1:]]
    if others:
        console.note(f"also: {', '.join(others)}")
    return 0


def lookup(name: str) -> list[Entry]:
    """Return the entries of that name, the likeliest first; an unknown name gets its close matches."""
    kind, _, rest = name.partition("/")
    if rest:
        try:
            found = [e for e in catalog.entries(catalog.kind_of(kind)) if e.name == rest]
        except ConfigError:
            found = []
        if found:
            return found
    everything = catalog.entries()
    found = [e for e in everything if e.name == name]
    if not found and cards.is_known(name):  # an architecture, or a former name
        card = cards.find(name)
        found = [e for e in everything if e.name == card.name]
    if not found:
        known = [e.name for e in everything] + [f"{e.kind}/{e.name}" for e in everything if "/" in name]
        raise ConfigError.at(
            "mmzoo info",
            f"{name!r} is unknown",
            "a name that `mmzoo list` shows",
            close_matches(name, known, listing="mmzoo list"),
        )
    return found


def explain(entry: Entry) -> dict[str, Any]:
    """Return everything known of an entry as plain data."""
    if entry.kind in registry.ROOMS:
        return _component(entry)
    if entry.kind == catalog.CHECKPOINTS:
        return {**entry.to_dict(), **cards.find(entry.name).to_dict()}
    group = next(g for g, k in catalog.GROUP_KINDS.items() if k == entry.kind)
    path = catalog.configs.find(group, entry.name)
    facts = {**entry.to_dict(), "base": catalog.bases(path)}
    if group == "model":
        counted = dict(catalog.figures().get(entry.name, {}))
        facts |= {"parameters": counted.pop("params", {}), **counted, "used_by": _used_by(entry.name)}
        return {**facts, "checkpoints": [c.name for c in cards.cards().values() if c.arch == entry.name]}
    if group == "recipe":
        return {**facts, **_recipe(catalog.tree(group, path))}
    return {**facts, "options": catalog.tree(group, path)}


def _component(entry: Entry) -> dict[str, Any]:
    from mmzoo.cli import options

    facts = entry.to_dict()
    found = options.describe(entry.source)
    if found is None:
        return {**facts, "doc": "", "options": []}
    listed = [
        {"name": o.name, "type": o.type, "default": o.default, "doc": o.doc, "choices": list(o.choices)}
        for o in found.options
    ]
    return {**facts, "doc": found.doc, "options": listed, "flags": found.flags}


def _used_by(model: str) -> list[str]:
    return [e.name for e in catalog.entries("recipes") if e.facts.get("model") == model]


def _recipe(tree: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {name: _task(t) for name, t in (tree.get("tasks") or {}).items() if isinstance(t, Mapping)}
    return {
        "tasks": tasks,
        "data_options": {k: v for k, v in (tree.get("data") or {}).items() if k != "type"},
        "trainer": tree.get("trainer") or {},
        "learner": tree.get("learner") or {},
    }


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": catalog.task_kind(task),
        "head": _type(task.get("head")) or "the model's",
        "objective": _type(task.get("objective")),
        "metrics": [_type(m) for m in task.get("metrics") or []],
        "passes": task.get("passes") or [],
        "target": task.get("target") or "",
        "weight": task.get("weight", 1.0),
    }


def _type(node: Any) -> str:
    return str(node.get("type", "")) if isinstance(node, Mapping) else str(node or "")


def _print(entry: Entry, facts: Mapping[str, Any]) -> None:
    console.say(f"{console.style(f'{entry.kind}/{entry.name}', 'bold')}  {entry.summary}")
    console.say(console.style(entry.source, "dim") + "\n")
    if entry.kind in registry.ROOMS:
        _print_component(facts)
    elif entry.kind == catalog.CHECKPOINTS:
        _print_checkpoint(entry.name, facts)
    elif entry.kind == "models":
        _print_model(entry.name, facts)
    elif entry.kind == "recipes":
        _print_recipe(entry.name, facts)
    else:
        _print_tree(facts.get("options", {}))


def _print_component(facts: Mapping[str, Any]) -> None:
    if facts["doc"]:
        console.say(facts["doc"] + "\n")
    rows = []
    for option in facts["options"]:
        doc = option["doc"] + (f" [{' | '.join(option['choices'])}]" if option["choices"] else "")
        rows.append((option["name"], option["type"], option["default"], doc))
    if rows:
        console.say(console.table(("option", "type", "default", "meaning"), rows))
    flags = {
        k: v
        for k, v in facts.get("flags", {}).items()
        if k.startswith(("supports_", "needs_", "static", "init"))
    }
    if flags:
        console.say("\n" + console.pairs(flags))


def _print_model(name: str, facts: Mapping[str, Any]) -> None:
    params, flops = facts.get("parameters"), facts.get("flops", {})
    if params:
        rows = [
            (part, f"{count:,}", console.short(flops.get(part.removeprefix("modalities."))))
            for part, count in params.items()
        ]
        console.say(console.table(("part", "parameters", "FLOPs/sample"), rows, right=(1, 2)))
        if facts.get("active"):
            met = f"{facts['active']:,} of the trunk's parameters"
            console.say(f"\nrouted: a token meets {met}; FLOPs and these are those of one task")
    else:
        console.say("Its parameters have not been counted: train --dry-run of a recipe that uses it does.")
    if facts.get("checkpoints"):
        console.say(f"\nweights: {', '.join(facts['checkpoints'])}")
    users = facts.get("used_by") or []
    if users:
        console.say(f"\nrecipes that train it: {', '.join(users)}")
    console.note(
        f"next: mmzoo train {users[0] if users else 'RECIPE'} --dry-run" + ("" if users else f" model={name}")
    )


def _print_checkpoint(name: str, facts: Mapping[str, Any]) -> None:
    card = cards.find(name)
    known = {
        "licence": card.licence,
        "origin": " ".join(filter(None, (card.origin, card.paper))),
        "layout": card.layout.value,
        "modalities": ", ".join(card.modalities),
        "tasks": ", ".join(card.tasks) or "none",
        "bytes": "not published" if card.bytes is None else f"{card.bytes:,}",
        "sha256": card.sha256 or "not published: the layout is what is verified",
        "here": str(card.shipped or (card.cached if card.cached.is_file() else "no")),
    }
    console.say(console.pairs(known))
    if card.metrics:
        rows = [(m.data, m.metric, f"{m.value:g}", m.protocol) for m in card.metrics]
        console.say("\n" + console.table(("data", "figure", "value", "protocol"), rows, right=(2,)))
    if card.fine_tune:
        advice = {f"model={name}, {m} alone": " ".join(options) for m, options in card.fine_tune.items()}
        console.say("\n" + console.pairs(advice))
    commands = card.training.get("commands", [])
    if commands:
        console.say("\n" + "\n".join(f"$ {command}" for command in commands))
    console.note(f"next: mmzoo {'verify' if facts['here'] != 'to fetch' else 'download'} {name}")


def _print_recipe(name: str, facts: Mapping[str, Any]) -> None:
    console.say(
        console.pairs(
            {
                "base": " <- ".join(facts["base"]) or "none",
                "model": facts.get("model") or "its own",
                "data": facts.get("data") or "none",
                "modalities": ", ".join(facts.get("modalities", [])) or "none",
            }
        )
    )
    rows = [
        (
            task,
            t["kind"],
            t["objective"],
            t["head"],
            ", ".join(t["passes"]) or "all",
            t["target"] or "–",
            ", ".join(t["metrics"]),
        )
        for task, t in facts["tasks"].items()
    ]
    console.say(
        "\n" + console.table(("task", "kind", "objective", "head", "passes", "label", "metrics"), rows)
    )
    if facts["trainer"]:
        console.say("\n" + console.pairs({f"trainer.{k}": v for k, v in facts["trainer"].items()}))
    console.note(f"next: mmzoo train {name} --dry-run")


def _print_tree(options: Any) -> None:
    import yaml

    console.say(yaml.safe_dump(options, sort_keys=False, allow_unicode=True).rstrip())
