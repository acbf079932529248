"""Config dataclasses: the only home of defaults, and the walk that turns plain YAML into a typed tree.

A component `Thing(Configurable)` nests `@dataclass(kw_only=True) class Config(schema.Config)`;
`config.build(...)` makes the `Thing`. A field declared with `one(table)` / `many(table)` holds the Config
of whichever class the `type:` key chooses. `parse` collects every fault of a tree before it raises, so that
a user mends them in one go.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mmzoo import registry
from mmzoo.errors import ConfigError, MmzooError, close_matches

DEPTH, PROPOSED = 4, 3
"""How far down an unknown option is looked for, and how many places are proposed."""


@dataclass(kw_only=True)
class Config:
    """Base of all component options: keyword-only fields with defaults, a line under each to say what it
    means."""

    owner: ClassVar[type | None] = None
    shorthands: ClassVar[Mapping[str, str]] = {}
    """first word of an override -> the dotted path it stands for"""

    def build(self, *args: Any, **context: Any) -> Any:
        """Construct the component that these options belong to."""
        owner = type(self).owner
        if owner is None:
            raise ConfigError.at(
                type(self).__qualname__, "no owner", "a Config nested in a Configurable", "Nest it."
            )
        return owner(self, *args, **context)

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain YAML values, each choice with its `type`."""
        return {f.name: _plain(getattr(self, f.name), f) for f in dataclasses.fields(self)}


class Configurable:
    """A component whose options are its nested `Config`; subclassing ties the two together."""

    Config: type[Config] = Config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let `cls.Config` know what it builds."""
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__:
            cls.Config.owner = cls


def one(table: str, default: str | None = None, **options: Any) -> Any:
    """Declare a field that holds the Config of one row of `table`; `default` names the row taken when YAML
    is silent."""
    metadata = {"table": table, "shape": "one", "default": default}
    if default is None:
        return field(metadata=metadata)
    return field(metadata=metadata, default_factory=lambda: registry.find(table, default).Config(**options))


def maybe(table: str) -> Any:
    """Declare a field that holds the Config of one row of `table`, or None (the default)."""
    return field(metadata={"table": table, "shape": "maybe"}, default=None)


def many(table: str) -> Any:
    """Declare a field that holds a mapping from names to the Configs of rows of `table`; default empty."""
    return field(metadata={"table": table, "shape": "many"}, default_factory=dict)


def several(table: str) -> Any:
    """Declare a field that holds a list of Configs of rows of `table`; default empty."""
    return field(metadata={"table": table, "shape": "several"}, default_factory=list)


def parse(cls: type[Config], node: Mapping[str, Any], where: str = "") -> Any:
    """Turn a plain tree into `cls`; raise one ConfigError that lists every fault found."""
    faults: list[str] = []
    made = _parse_config(cls, node, where, faults)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return made


def parse_choice(table: str, node: Any, where: str, default: str | None = None) -> Any:
    """Turn a plain tree into the Config of the row of `table` that its `type` names, else of `default`."""
    faults: list[str] = []
    made = _parse_choice(table, node, where, faults, default)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return made


def check_path(cls: type[Config], node: Any, keys: list[str]) -> None:
    """Raise ConfigError, with close matches, where the dotted path `keys` names nothing in the tree of `cls`.

    `node` is the plain tree given so far: its `type` keys decide which options exist below a choice, its
    keys and lengths which entries a mapping or list has.
    """
    _Walker(cls, node, keys).walk()


@dataclass
class _Walker:
    """One walk down a path: `cls` and `node` are where it stands, `done` the keys already followed."""

    cls: Any
    node: Any
    keys: list[str]
    done: list[str] = field(default_factory=list)

    def walk(self) -> None:
        while self.keys and isinstance(self.cls, type) and issubclass(self.cls, Config):
            self._step()

    def _next(self) -> str:
        self.done.append(self.keys.pop(0))
        return self.done[-1]

    def _child(self, key: str) -> Any:
        if isinstance(self.node, Mapping):
            return self.node.get(key)
        if isinstance(self.node, list | tuple) and key.isdigit() and int(key) < len(self.node):
            return self.node[int(key)]
        return None

    def _unknown(self, key: str, known: Iterable[str], kind: str) -> ConfigError:
        path = ".".join(self.done)
        return ConfigError(_line(path, f"unknown key {key!r}", kind, close_matches(key, known)))

    def _step(self) -> None:
        key = self._next()
        fields = {f.name: f for f in dataclasses.fields(self.cls)}
        if key == "type" and (self.cls.owner is not None or self.cls is Config):
            self.cls = None
            return
        if self.cls is Config:
            above = ".".join(self.done[:-1])
            raise ConfigError(
                _line(".".join(self.done), f"nothing is chosen at {above}", f"{above}.type first", "Do so.")
            )
        if key not in fields:
            raise self._no_option(key, fields)
        hint, spec, node = typing.get_type_hints(self.cls)[key], fields[key], self._child(key)
        self.node = node
        table, shape = spec.metadata.get("table"), spec.metadata.get("shape")
        if table and shape in ("many", "several"):
            self.cls = self._entry(table, shape)
        elif table:
            self.cls = self._chosen(table, spec.metadata.get("default"))
        else:
            self.cls = self._plain(hint)

    def _no_option(self, key: str, known: Iterable[str]) -> ConfigError:
        """Return the error of an option that is not here; those of that name further down are proposed."""
        error = self._unknown(key, known, f"an option of {self.cls.__qualname__}")
        places = list(itertools.islice(_places(self.cls, self.node, key, DEPTH), PROPOSED))
        if not places:
            return error
        paths = [".".join([*self.done[:-1], place, *self.keys]) for place in places]
        line, _, _ = str(error).rpartition(". ")
        return ConfigError(f"{line}. Did you mean {' or '.join(paths)}?")

    def _entry(self, table: str, shape: str) -> Any:
        if not self.keys:
            return None
        key = self._next()
        known = (
            list(self.node)
            if isinstance(self.node, Mapping)
            else [str(i) for i in range(len(self.node or []))]
        )
        if key not in known:
            raise self._unknown(
                key, known, f"one of the {table} given (write +{'.'.join(self.done)}=… to add one)"
            )
        self.node = self._child(key)
        return self._chosen(table, None)

    def _chosen(self, table: str, default: str | None) -> Any:
        node = self.node
        key = (
            node
            if isinstance(node, str)
            else node.get("type", default)
            if isinstance(node, Mapping)
            else default
        )
        return registry.find(table, key, ".".join(self.done)).Config if key else Config

    def _plain(self, hint: Any) -> Any:
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        if typing.get_origin(hint) in (typing.Union, types.UnionType) and len(options) == 1:
            hint = options[0]
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (dict, list, tuple) and self.keys:
            key = self._next()
            known = (
                list(self.node)
                if isinstance(self.node, Mapping)
                else [str(i) for i in range(len(self.node or ()))]
            )
            if key not in known:
                raise self._unknown(key, known, f"an entry given (write +{'.'.join(self.done)}=… to add one)")
            self.node = self._child(key)
            hint = args[-1] if args else None
        if self.keys and not (isinstance(hint, type) and issubclass(hint, Config)):
            key = self._next()
            raise self._unknown(key, [], f"nothing below {'.'.join(self.done[:-1])}")
        return hint


def _places(cls: type[Config], node: Any, key: str, depth: int) -> Iterator[str]:
    """Yield the dotted paths below a Config at which an option is called `key`, the nearest first."""
    below = list(_children(cls, node))
    for path, child, _ in below:
        if key in {f.name for f in dataclasses.fields(child)}:
            yield f"{path}.{key}"
    for path, child, own in below if depth > 1 else ():
        yield from (f"{path}.{place}" for place in _places(child, own, key, depth - 1))


def _children(cls: type[Config], node: Any) -> Iterator[tuple[str, type[Config], Any]]:
    """Yield the Configs that a tree holds right below one: path, class, plain tree."""
    hints, given = typing.get_type_hints(cls), node if isinstance(node, Mapping) else {}
    for spec in dataclasses.fields(cls):
        table, own, hint = spec.metadata.get("table"), given.get(spec.name), hints[spec.name]
        values = own.items() if isinstance(own, Mapping) else enumerate(own if isinstance(own, list) else ())
        args = [a for a in typing.get_args(hint) if isinstance(a, type) and issubclass(a, Config)]
        if table and spec.metadata["shape"] in ("many", "several"):
            yield from ((f"{spec.name}.{k}", c, v) for k, v in values if (c := _class_of(table, v, None)))
        elif table:
            if child := _class_of(table, own, spec.metadata.get("default")):
                yield spec.name, child, own
        elif isinstance(hint, type) and issubclass(hint, Config):
            yield spec.name, hint, own
        elif args and typing.get_origin(hint) is dict:
            yield from ((f"{spec.name}.{k}", args[-1], v) for k, v in values)


def _class_of(table: str, node: Any, default: str | None) -> type[Config] | None:
    """Return the Config class that a plain tree chooses, None where it chooses none that there is."""
    key = (
        node if isinstance(node, str) else node.get("type", default) if isinstance(node, Mapping) else default
    )
    return registry.find(table, key).Config if key in registry.table(table) else None


def _parse_config(cls: type[Config], node: Any, where: str, faults: list[str]) -> Any:
    if isinstance(node, cls):
        return node
    if not isinstance(node, Mapping):
        faults.append(
            _line(where or cls.__qualname__, _show(node), "a mapping of options", "Write key: value pairs.")
        )
        return None
    before = len(faults)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in node:
        if key not in fields:
            do = close_matches(str(key), fields)
            faults.append(_line(_join(where, key), "unknown key", f"an option of {cls.__qualname__}", do))
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        path = _join(where, name)
        if name in node:
            values[name] = _parse_field(spec, hints[name], node[name], path, faults)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            faults.append(_line(path, "missing", f"{_type_name(hints[name], spec)}", f"Set {path}=…."))
    if len(faults) > before:
        return None
    try:
        return cls(**values)
    except MmzooError as error:
        faults.extend(
            f"{where}: {line}" if where and not line.startswith(where) else line
            for line in str(error).splitlines()
        )
        return None


def _parse_field(spec: dataclasses.Field[Any], hint: Any, node: Any, path: str, faults: list[str]) -> Any:
    table = spec.metadata.get("table")
    if table is None:
        return _parse_value(hint, node, path, faults)
    shape = spec.metadata["shape"]
    if shape == "one":
        return _parse_choice(table, node, path, faults, spec.metadata.get("default"))
    if shape == "maybe":
        return None if node is None else _parse_choice(table, node, path, faults)
    if shape == "many":
        if not isinstance(node, Mapping):
            faults.append(
                _line(path, _show(node), f"a mapping of names to {table}", "Write name: {type: …}.")
            )
            return {}
        return {
            str(k): _parse_choice(table, v, _join(path, k), faults) for k, v in node.items() if v is not None
        }
    if not isinstance(node, list | tuple):
        faults.append(_line(path, _show(node), f"a list of {table}", "Write [{type: …}]."))
        return []
    return [_parse_choice(table, v, _join(path, i), faults) for i, v in enumerate(node)]


def _parse_choice(table: str, node: Any, path: str, faults: list[str], default: str | None = None) -> Any:
    if isinstance(node, Config):
        return node
    if isinstance(node, str):
        node = {"type": node}
    if not isinstance(node, Mapping) or not isinstance(node.get("type", default), str):
        do = f"Set {path}.type to one of: {', '.join(sorted(registry.table(table)))}."
        faults.append(_line(path, _show(node), f"a mapping with type: a row of the {table} table", do))
        return None
    try:
        cls = registry.find(table, node.get("type", default), f"{path}.type")
    except ConfigError as error:
        faults.append(str(error))
        return None
    return _parse_config(cls.Config, {k: v for k, v in node.items() if k != "type"}, path, faults)


def _parse_value(hint: Any, node: Any, path: str, faults: list[str]) -> Any:  # noqa: C901 one branch a type
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return node
    if origin in (typing.Union, types.UnionType):
        if node is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        for option in inner:
            trial: list[str] = []
            made = _parse_value(option, node, path, trial)
            if not trial:
                return made
        return _parse_value(inner[0], node, path, faults)
    if origin in (list, tuple):
        return _parse_list(hint, node, path, faults)
    if origin is dict or hint is dict:
        if not isinstance(node, Mapping):
            faults.append(_line(path, _show(node), "a mapping", "Write {name: value}."))
            return {}
        value_type = args[1] if args else Any
        return {k: _parse_value(value_type, v, _join(path, k), faults) for k, v in node.items()}
    if isinstance(hint, type) and issubclass(hint, Config):
        return _parse_config(hint, node, path, faults)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        names = [str(m.value) for m in hint]
        if isinstance(node, bool):  # YAML reads on and off as true and false
            node = "on" if node else "off"
        if str(node) not in names:
            faults.append(
                _line(path, _show(node), f"one of {', '.join(names)}", close_matches(str(node), names))
            )
            return None
        return hint(str(node))
    return _parse_scalar(hint, node, path, faults)


def _parse_list(hint: Any, node: Any, path: str, faults: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(node, list | tuple):
        faults.append(_line(path, _show(node), "a list", "Write [a, b]."))
        return origin()
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(node) != len(args):
            faults.append(_line(path, _show(node), f"{len(args)} values", "Give each of them."))
            return ()
        return tuple(
            _parse_value(a, v, _join(path, i), faults)
            for i, (a, v) in enumerate(zip(args, node, strict=True))
        )
    item = args[0] if args else Any
    return origin(_parse_value(item, v, _join(path, i), faults) for i, v in enumerate(node))


def _parse_scalar(hint: Any, node: Any, path: str, faults: list[str]) -> Any:
    if hint is float and isinstance(node, int) and not isinstance(node, bool):
        return float(node)
    if hint is int and isinstance(node, float) and node.is_integer():
        return int(node)
    if isinstance(node, hint) and not (isinstance(node, bool) and hint is not bool):
        return node
    if hint is str and isinstance(node, int | float) and not isinstance(node, bool):
        return str(node)
    faults.append(_line(path, _show(node), f"{hint.__name__}", f"Give {_an_example(hint)}."))
    return None


def _plain(value: Any, spec: dataclasses.Field[Any] | None = None) -> Any:
    if isinstance(value, Config):
        head: dict[str, Any] = {}
        table = spec.metadata.get("table") if spec else None
        owner = type(value).owner
        if table and owner is not None:
            head["type"] = registry.name_of(table, owner)
        return {**head, **value.to_dict()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {k: _plain(v, spec) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, spec) for v in value]
    return value


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _line(where: str, found: str, expected: str, do: str) -> str:
    return str(ConfigError.at(where, found, expected, do))


def _show(node: Any) -> str:
    text = repr(node)
    return f"{type(node).__name__} {text}" if len(text) < 60 else f"{type(node).__name__} {text[:57]}…"


def _an_example(hint: Any) -> str:
    examples = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return examples.get(hint, f"a {hint.__name__}")


def _type_name(hint: Any, spec: dataclasses.Field[Any]) -> str:
    table = spec.metadata.get("table")
    return f"a row of the {table} table" if table else getattr(hint, "__name__", str(hint))
