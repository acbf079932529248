"""From a recipe's name and command-line overrides to one plain tree: find, merge `base`, override in order,
resolve.

Names are searched in `./configs`, `$MMZOO_CONFIG_DIR` and the package, in groups `recipe`, `model`, `data`,
`trainer`. A recipe's `base: [model/x, data/y, recipe/z]` is merged in order, then the file itself; a group
file's content stands under the group's key. Overrides: `a.b=1` must exist, `+a.b=1` adds, `++a.b=1` sets or
adds, `~a.b` deletes, `data=cifar10` chooses a group file. A schema may have `shorthands`: `balance=x` stands
for `learner.balance=x`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmzoo import schema
from mmzoo.configs import GROUPS, find
from mmzoo.errors import ConfigError, MmzooError, close_matches

SPACELESS = re.compile(r"(?<=[\w\]])\s*:(?=[^\s/])")


def read(path: Path, group: str, seen: tuple[Path, ...] = ()) -> DictConfig:
    """Read one YAML file with its `base` merged beneath it, unresolved."""
    if path in seen:
        chain = " -> ".join(p.stem for p in (*seen, path))
        raise ConfigError.at(str(path), f"base goes in a circle ({chain})", "a tree", "Remove one of them.")
    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise ConfigError.at(str(path), f"not YAML ({line})", "a YAML mapping", "Mend the file.") from error
    if not isinstance(node, DictConfig):
        raise ConfigError.at(str(path), "not a mapping", "a YAML mapping", "Write key: value lines.")
    bases = node.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    merged = OmegaConf.create({})
    for base in bases:
        other, _, name = str(base).partition("/")
        if other not in GROUPS or not name or (group != "recipe" and other != group):
            groups = " or ".join(f"{g}/NAME" for g in (GROUPS if group == "recipe" else (group,)))
            raise ConfigError.at(
                f"{path}: base", repr(base), groups, "Write e.g. base: [model/five_senses_tiny]."
            )
        below = read(find(other, name, f"{path}: base"), other, (*seen, path))
        nested = below if other in ("recipe", group) else OmegaConf.create({other: below})
        merged = _merge(merged, nested)
    return _merge(merged, node)


def compose(cls: type[schema.Config], name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the plain, resolved tree of recipe `name` with overrides applied; `cls` is the schema they must
    fit."""
    return override(cls, read(find("recipe", name), "recipe"), overrides, f"recipe {name}")


def override(
    cls: type[schema.Config], node: Mapping[str, Any] | DictConfig, overrides: Sequence[str], where: str
) -> dict[str, Any]:
    """Return a tree (such as a run's resolved configuration) with overrides applied, plain and resolved."""
    tree = node if isinstance(node, DictConfig) else OmegaConf.create(dict(node))
    faults: list[str] = []
    for text in overrides:
        try:
            _apply(cls, tree, text)
        except MmzooError as error:  # noqa: PERF203 all faults at once
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        plain = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        raise ConfigError.at(
            where, f"cannot resolve: {line}", "known keys in ${…}", "Mend the YAML."
        ) from error
    return {str(k): v for k, v in plain.items()} if isinstance(plain, dict) else {}


def _merge(below: DictConfig, above: DictConfig) -> DictConfig:
    """Merge two trees; where `above` changes a `type`, the options below it belong to another class and
    go."""
    for key in map(str, above):
        if OmegaConf.is_interpolation(above, key) or OmegaConf.is_missing(above, key):
            continue
        old, new = below.get(key) if not OmegaConf.is_interpolation(below, key) else None, above[key]
        if isinstance(old, DictConfig) and isinstance(new, DictConfig):
            if "type" in new and "type" in old and new.type != old.type:
                below[key] = new
            else:
                below[key] = _merge(old, new)
            continue
        below[key] = new
    for key in map(str, above):
        if OmegaConf.is_interpolation(above, key):
            below._set_item_impl(key, above._get_node(key))  # pyright: ignore[reportArgumentType] keeps it unresolved
    return below


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split an override into its mark (`''`, `+`, `++`, `~`), its dotted key and its YAML value."""
    mark = next((m for m in ("++", "+", "~") if text.startswith(m)), "")
    key, equals, value = text[len(mark) :].partition("=")
    key = re.sub(r"\[(\d+)\]", r".\1", key.strip())
    if not key or (not equals and mark != "~"):
        raise ConfigError.at(
            f"override {text!r}", "no key=value", "key=value, +key=value or ~key", "Add what to set."
        )
    if mark == "~":
        return mark, key, None
    if value == "None":
        return mark, key, None
    if value.startswith("{") and "://" not in value and '"' not in value:
        value = SPACELESS.sub(": ", value)
    try:
        return mark, key, OmegaConf.to_container(OmegaConf.create({"v": _yaml(value)}), resolve=False)["v"]  # pyright: ignore
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        line = str(error).splitlines()[0]
        do = "Quote it for your shell."
        raise ConfigError.at(
            f"override {text!r}", f"value is not YAML ({line})", "a YAML value", do
        ) from error


def _yaml(value: str) -> Any:
    if not value.strip() or value.startswith("${"):
        return value
    made = OmegaConf.create(f"v: {value}")
    return made["v"] if isinstance(made, DictConfig) else value


def _apply(cls: type[schema.Config], tree: DictConfig, text: str) -> None:
    mark, key, value = parse_override(text)
    first, dot, rest = key.partition(".")
    if first in cls.shorthands:
        key = cls.shorthands[first] + dot + rest
        value = _as_name(value) if isinstance(value, str) and rest in ("", "type") else value
    keys = key.split(".")
    if key in GROUPS[1:] and isinstance(value, str) and mark != "~":
        tree[key] = read(find(key, value, key), key)
        return
    plain = OmegaConf.to_container(tree, resolve=False)
    if mark == "~":
        _delete(tree, keys, text)
        return
    if mark == "":
        schema.check_path(cls, plain, list(keys))
    above = OmegaConf.select(tree, ".".join(keys[:-1])) if len(keys) > 1 else None
    if isinstance(above, str):  # a choice given by its name alone gets an option
        OmegaConf.update(tree, ".".join(keys[:-1]), {"type": above}, merge=False)
    OmegaConf.update(tree, key, value, merge=False, force_add=True)
    if keys[-1] == "type":
        _prune(cls, tree, keys[:-1])


def _as_name(value: str) -> str:
    """Return a row's name as tables spell it: `Nash-MTL` is `nash_mtl`."""
    return value.lower().replace("-", "_")


def _delete(tree: DictConfig, keys: list[str], text: str) -> None:
    parent = OmegaConf.select(tree, ".".join(keys[:-1])) if len(keys) > 1 else tree
    if not isinstance(parent, DictConfig) or keys[-1] not in parent:
        known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
        do = close_matches(keys[-1], known)
        raise ConfigError.at(
            f"override {text!r}", "nothing there to delete", "a key that the recipe sets", do
        )
    del parent[keys[-1]]


def _prune(cls: type[schema.Config], tree: DictConfig, keys: list[str]) -> None:
    """Drop the options of the class chosen before that the new class does not have."""
    node = OmegaConf.select(tree, ".".join(keys))
    if not isinstance(node, DictConfig):
        return
    for name in [str(k) for k in node if k != "type"]:
        try:
            schema.check_path(cls, OmegaConf.to_container(tree, resolve=False), [*keys, name])
        except ConfigError:  # noqa: PERF203 a handful of keys
            del node[name]
