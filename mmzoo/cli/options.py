"""A component's options, defaults and the lines under them, read from its source without importing it.

Why: importing a component imports torch (seconds); its Config stands in plain sight, so parsing is enough.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Option:
    """One field of a Config: its type, its default and its choices as written, and the line under it."""

    name: str
    type: str
    default: str
    doc: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Component:
    """A class as its source shows it: docstring, options, and the flags it sets."""

    doc: str
    options: tuple[Option, ...]
    flags: dict[str, str]


def describe(target: str) -> Component | None:
    """Return what the source of `module:Class` says, or None where the source cannot be found."""
    module, _, name = target.partition(":")
    found = _find_class(module, name)
    if found is None:
        return None
    home, node = found
    options: dict[str, Option] = {}
    for config_module, config in _configs(home, node):
        for option in _fields(config_module, config):
            options[option.name] = option
    return Component(ast.get_docstring(node) or "", tuple(options.values()), _flags(home, node))


@functools.cache
def _parse(module: str) -> ast.Module | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """Find a class (dotted for a nested one) in a module, or in the module that it was imported from."""
    source = _parse(module)
    if source is None:
        return None
    first, _, rest = name.partition(".")
    for node in source.body:
        if isinstance(node, ast.ClassDef) and node.name == first:
            return (module, node) if not rest else _nested(module, node, rest)
        if isinstance(node, ast.ImportFrom) and node.module and _is_near(node.module, module):
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    return _find_imported(node.module, alias.name, rest)
    return None


def _is_near(module: str, home: str) -> bool:
    """Only the component's own package is read: what torch or timm declare is no option."""
    return module.partition(".")[0] in (home.partition(".")[0], "mmzoo")


def _find_imported(module: str, name: str, rest: str) -> tuple[str, ast.ClassDef] | None:
    """Follow `from module import name`: a class there, or a submodule that holds the class."""
    dotted = f"{name}.{rest}" if rest else name
    return _find_class(module, dotted) or (_find_class(f"{module}.{name}", rest) if rest else None)


def _nested(module: str, node: ast.ClassDef, rest: str) -> tuple[str, ast.ClassDef] | None:
    first, _, deeper = rest.partition(".")
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == first:
            return (module, inner) if not deeper else _nested(module, inner, deeper)
        if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == first and not deeper:
            return _find_class(module, ast.unparse(inner.value))
    for base in node.bases:
        found = _find_class(module, ast.unparse(base))
        if found and (inside := _nested(found[0], found[1], rest)):
            return inside
    return None


def _configs(module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the component's Config after the Configs that it inherits fields from."""
    own = _nested(module, node, "Config")
    if own is None:
        return
    yield from _ancestry(*own)


def _ancestry(module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    for base in node.bases:
        name = ast.unparse(base)
        found = None if name in ("schema.Config", "Config") else _find_class(module, name)
        if found is not None:
            yield from _ancestry(*found)
    yield module, node


def _fields(module: str, node: ast.ClassDef) -> Iterator[Option]:
    for statement, follower in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        kind = ast.unparse(statement.annotation)
        if kind.startswith("ClassVar"):
            continue
        doc = ""
        if isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant):
            doc = " ".join(str(follower.value.value).split())
        choices = _choices(module, kind)
        shown, default = _default(statement.value, kind)
        default = _constant(module, default)
        if choices and "." in default:
            default = dict(choices).get(default.rsplit(".", 1)[1], default)
        yield Option(statement.target.id, shown, default, doc, tuple(value for _, value in choices))


def _choices(module: str, kind: str) -> list[tuple[str, str]]:
    """Return (member, value) of an Enum named in an annotation."""
    found = _find_class(module, kind.replace(" | None", "")) if kind[:1].isupper() else None
    if found is None or not any(ast.unparse(b).endswith("Enum") for b in found[1].bases):
        return []
    return [
        (s.targets[0].id, str(s.value.value))
        for s in found[1].body
        if isinstance(s, ast.Assign)
        and isinstance(s.targets[0], ast.Name)
        and isinstance(s.value, ast.Constant)
    ]


def _default(value: ast.expr | None, kind: str) -> tuple[str, str]:
    """Return the type to show and the default, seeing through field(), one() and their like."""
    if value is None:
        return kind, "required"
    if not isinstance(value, ast.Call):
        return kind, ast.unparse(value)
    function = ast.unparse(value.func).rsplit(".", 1)[-1]
    if function in ("one", "maybe", "many", "several"):
        words = [str(a.value) for a in value.args if isinstance(a, ast.Constant)]
        shown = {"one": "one of", "maybe": "one of, or null:", "many": "names ->", "several": "list of"}[
            function
        ]
        empty = {"one": "required", "maybe": "null", "many": "{}", "several": "[]"}[function]
        return f"{shown} {words[0] if words else '?'}", words[1] if len(words) > 1 else empty
    if function == "field":
        for keyword in value.keywords:
            if keyword.arg == "default":
                return kind, ast.unparse(keyword.value)
            if keyword.arg == "default_factory":
                return kind, _factory(keyword.value)
    return kind, ast.unparse(value)


def _constant(module: str, name: str) -> str:
    """Return the value of a default that is written as a constant's name."""
    source = _parse(module) if name.isupper() else None
    for node in source.body if source else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.unparse(node.value)
        if isinstance(node, ast.ImportFrom) and node.module and _is_near(node.module, module):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _constant(node.module, alias.name)
    return name


def _factory(value: ast.expr) -> str:
    if isinstance(value, ast.Lambda):
        return ast.unparse(value.body)
    name = ast.unparse(value)
    return {"dict": "{}", "list": "[]"}.get(name, "its defaults")


def _flags(module: str, node: ast.ClassDef) -> dict[str, str]:
    """Return the class variables with plain values, inherited ones included (a mixer's capabilities)."""
    flags: dict[str, str] = {}
    for base in node.bases:
        found = _find_class(module, ast.unparse(base))
        if found is not None:
            flags |= _flags(*found)
    for statement in node.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            if ast.unparse(statement.annotation).startswith("ClassVar"):
                flags[statement.target.id] = ast.unparse(statement.value)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            flags[statement.targets[0].id] = ast.unparse(statement.value)
    return {k: v for k, v in flags.items() if not k.startswith("_") and k.islower()}
