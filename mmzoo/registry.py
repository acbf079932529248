"""Explicit tables from a name to the class behind it, imported only when it is asked for.

Each room's `__init__` holds its tables as `Row("module:Class", "one line")` strings, so that listing them
imports neither torch nor the class. Other packages add rows through entry points of the group
`mmzoo.<table>`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import NamedTuple

from mmzoo.errors import ConfigError, close_matches

log = logging.getLogger(__name__)

ROOMS = {
    "architectures": "mmzoo.models:TABLE",
    "modalities": "mmzoo.modalities:TABLE",
    "tokenizers": "mmzoo.modalities:TOKENIZERS",
    "mixers": "mmzoo.trunk:MIXERS",
    "feed_forwards": "mmzoo.trunk:FEED_FORWARDS",
    "routers": "mmzoo.trunk:ROUTERS",
    "decoders": "mmzoo.decoders:TABLE",
    "heads": "mmzoo.heads:TABLE",
    "teachers": "mmzoo.models.teachers:TABLE",
    "objectives": "mmzoo.objectives:TABLE",
    "metrics": "mmzoo.metrics:TABLE",
    "datamodules": "mmzoo.datamodules:TABLE",
    "learners": "mmzoo.learners:TABLE",
    "balancers": "mmzoo.learners:BALANCERS",
    "masks": "mmzoo.layers:MASKS",
}
"""Where each table is kept: `module:attribute` of a `dict[str, Row]`."""


class Row(NamedTuple):
    """One line of a table: where the class is, and what it is, in one line."""

    target: str
    summary: str


@functools.cache
def table(name: str) -> dict[str, Row]:
    """Return the rows of a table, those of installed plug-ins included."""
    module, _, attribute = ROOMS[name].partition(":")
    rows: dict[str, Row] = dict(getattr(importlib.import_module(module), attribute))
    for key, value in _plugins().get(f"mmzoo.{name}", ()):
        if key in rows:
            log.warning("plug-in row %s/%s from %s hides nothing: the name is taken", name, key, value)
            continue
        rows[key] = Row(value, f"plug-in ({value})")
    return rows


@functools.cache
def _plugins() -> dict[str, list[tuple[str, str]]]:
    """Read the entry points of all installed packages once: group -> (name, target) pairs."""
    from importlib import metadata  # costs more than the rest of this module together

    groups: dict[str, list[tuple[str, str]]] = {}
    found = metadata.entry_points()
    for group in found.groups:
        if group.startswith("mmzoo."):
            groups[group] = [(point.name, point.value) for point in found.select(group=group)]
    return groups


def find(name: str, key: str, where: str = "") -> type:
    """Import and return the class behind `key` in table `name`; an unknown key gets its close matches."""
    rows = table(name)
    if key not in rows:
        place = where or name
        known, do = f"a row of the {name} table", close_matches(key, rows, listing="mmzoo list")
        raise ConfigError.at(place, f"{key!r} is unknown", known, do)
    module, _, attribute = rows[key].target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        do = f"Install what it needs ({error})."
        raise ConfigError.at(
            where or name, f"{key!r} cannot be imported", "its packages to be installed", do
        ) from error


def name_of(name: str, cls: type) -> str:
    """Return the key under which a class stands in table `name`."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    for key, row in table(name).items():
        if row.target == target:
            return key
    raise ConfigError.at(
        name, f"{target} has no row", "a registered class", "Add one line to the room's table."
    )
