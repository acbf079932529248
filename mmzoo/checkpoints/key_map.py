"""Renames weights between two layouts by a two-column table that can be proof-read; knows no model.

A row is (theirs, ours). `{i}` stands for one part of a dotted name and must occur in both columns.
Several names on the left are stacked along the first axis, in order, to make the one on the right (q, k,
v -> qkv); the inverse cuts it into equal parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmzoo.errors import CheckpointError, close_matches

Row = tuple[str | tuple[str, ...], str]
Plan = dict[str, tuple[str, ...]]
"""Our name -> the names of theirs that it is stacked from."""


@dataclass(frozen=True)
class KeyMap:
    """A two-column table and both ways through it. `where` names the layout in error messages."""

    where: str
    rows: Sequence[Row]

    def plan(self, names: Iterable[str]) -> Plan:
        """Say what each of our names is made from; every name must have a row, every stacked row all its
        parts.
        """
        given = dict.fromkeys(names)
        made: Plan = {}
        for left, right in self.rows:
            parts = (left,) if isinstance(left, str) else left
            for fields in _matches(parts[0], given):
                own = tuple(part.format(**fields) for part in parts)
                missing = [name for name in own if name not in given]
                if missing:
                    do = close_matches(missing[0], given)
                    raise CheckpointError.at(self.where, f"no {missing[0]}", f"it beside {own[0]}", do)
                made[right.format(**fields)] = own
        self._check({name for own in made.values() for name in own}, given)
        return made

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename their weights; every key must have a row, every stacked row all its parts."""
        return {ours: stack([state[name] for name in own]) for ours, own in self.plan(state).items()}

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our weights; every key must have a row."""
        made: dict[str, Tensor] = {}
        used: set[str] = set()
        for left, right in self.rows:
            names = (left,) if isinstance(left, str) else left
            for fields in _matches(right, state):
                own = right.format(**fields)
                used.add(own)
                parts = state[own].chunk(len(names)) if len(names) > 1 else [state[own]]
                made.update({name.format(**fields): part for name, part in zip(names, parts, strict=True)})
        self._check(used, state)
        return made

    def _check(self, used: set[str], names: Iterable[str]) -> None:
        unknown = [key for key in names if key not in used]
        if unknown:
            found = f"{len(unknown)} keys without a row, {unknown[0]} first"
            raise CheckpointError.at(
                self.where, found, "none", "Add rows to the table or drop the keys before."
            )


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Join the parts of one tensor along the first axis."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _matches(pattern: str, names: Iterable[str]) -> list[dict[str, str]]:
    expression = re.compile("".join(_part(p) for p in re.split(r"(\{\w+\})", pattern)))
    found = [expression.fullmatch(key) for key in names]
    return [match.groupdict() for match in found if match]


def _part(text: str) -> str:
    return rf"(?P<{text[1:-1]}>[^.]+)" if text.startswith("{") else re.escape(text)
