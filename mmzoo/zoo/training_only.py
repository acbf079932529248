"""Leaves out of saved weights what only training needs: heads that serve a distillation alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmzoo import registry


def without(
    config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights without the heads that no one but their objective reads, and their tasks."""
    heads = (config.get("model") or {}).get("heads") or {}
    gone = [task for task, spec in heads.items() if _is_training_only(spec)]
    if not gone:
        return dict(config), dict(state)
    starts = tuple(f"heads.{task}." for task in gone)
    made = {**config, "model": _model(config["model"], gone)}
    counts = config.get("parameters")
    if isinstance(counts, Mapping):
        left = {name: n for name, n in counts.items() if f"{name}." not in starts}
        made["parameters"] = {**left, "total": sum(n for name, n in left.items() if name != "total")}
    if isinstance(config.get("recipe"), Mapping):
        made["recipe"] = _recipe(config["recipe"], gone)
    return made, {name: tensor for name, tensor in state.items() if not name.startswith(starts)}


def _is_training_only(spec: Any) -> bool:
    options = spec.get("head") if isinstance(spec, Mapping) else None
    kind = options.get("type") if isinstance(options, Mapping) else options
    known = isinstance(kind, str) and kind in registry.table("heads")
    return known and getattr(registry.find("heads", str(kind)), "training_only", False)


def _model(options: Mapping[str, Any], gone: list[str]) -> dict[str, Any]:
    return {**options, "heads": {t: s for t, s in options["heads"].items() if t not in gone}}


def _recipe(tree: Mapping[str, Any], gone: list[str]) -> dict[str, Any]:
    tasks = {
        name: task
        for name, task in (tree.get("tasks") or {}).items()
        if name not in gone and (task or {}).get("head_of") not in gone
    }
    made = {**tree, "tasks": tasks, "only": [name for name in tree.get("only") or [] if name in tasks]}
    if isinstance(tree.get("model"), Mapping) and isinstance(tree["model"].get("heads"), Mapping):
        made["model"] = _model(tree["model"], gone)
    return made
