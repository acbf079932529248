"""Puts weights into a module tensor by tensor, and says what became of every one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmzoo.errors import CheckpointError
from mmzoo.layers.positions import GridPositions, RelativeBias2d, resize_grid, resize_relative_table

TABLE_OF_LAYER = re.compile(r"((?:.+\.)?biases)\.(\d+)\.table")
"""One relative table a layer; where weights hold a single one, it serves every layer."""
SHOWN = 12
"""Names listed of each kind before the line is cut short."""


@runtime_checkable
class Weights(Protocol):
    """Tensors by name, read when asked for."""

    def keys(self) -> list[str]:
        """Return the names."""
        ...

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        ...

    def read(self, name: str, /) -> Tensor:
        """Read a tensor."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A state dict as `Weights`."""

    state: Mapping[str, Tensor]

    def keys(self) -> list[str]:
        """Return the names."""
        return list(self.state)

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self.state[name].shape)

    def read(self, name: str, /) -> Tensor:
        """Return a tensor."""
        return self.state[name]


@dataclass
class LoadReport:
    """What became of every tensor of the module and of the weights, by its name in the module."""

    loaded: list[str] = field(default_factory=list)
    """taken as they are"""
    resized: dict[str, str] = field(default_factory=dict)
    """tables brought to another grid: name -> from and to"""
    copied: dict[str, str] = field(default_factory=dict)
    """taken from another tensor: name -> that one's"""
    reshaped: dict[str, str] = field(default_factory=dict)
    """not taken, since their shape differs: name -> found and wanted; they keep their fresh values"""
    missing: list[str] = field(default_factory=list)
    """of the module but not among the weights; they keep their fresh values"""
    unexpected: list[str] = field(default_factory=list)
    """among the weights but not of the module"""

    @property
    def taken(self) -> int:
        """Return how many of the module's tensors got a value."""
        return len(self.loaded) + len(self.resized) + len(self.copied)

    def lines(self) -> list[str]:
        """Return one line for each kind that occurred; the last three were not taken."""
        kinds: dict[str, list[str]] = {
            "resized": [f"{k} {v}" for k, v in self.resized.items()],
            "copied": [f"{k} from {v}" for k, v in self.copied.items()],
            "reshaped": [f"{k} {v}" for k, v in self.reshaped.items()],
            "missing": self.missing,
            "unexpected": self.unexpected,
        }
        return [f"{kind} ({len(names)}): {_short(sorted(names))}" for kind, names in kinds.items() if names]


def load_weights(module: nn.Module, weights: Weights) -> LoadReport:
    """Copy into the module, in place, every tensor that fits; resize tables of other grids; raise nothing.

    Why: one tensor at a time is in memory beside the module. Parameters on the meta device are given memory.
    """
    report = LoadReport()
    given = dict.fromkeys(weights.keys())
    resizers = _resizers(module)
    used: set[str] = set()
    for name, target in module.state_dict(keep_vars=True).items():
        source = name if name in given else _table_of_all_layers(name, given)
        if source is None:
            report.missing.append(name)
            continue
        used.add(source)
        shape, wanted = weights.shape(source), tuple(target.shape)
        change = f"{_by(shape)} -> {_by(wanted)}"
        if shape != wanted and (name not in resizers or shape[1:] != wanted[1:]):
            report.reshaped[name] = change
            continue
        tensor = weights.read(source)
        _write(target, tensor if shape == wanted else resizers[name](tensor))
        if shape != wanted:
            report.resized[name] = change
        elif source != name:
            report.copied[name] = source
        else:
            report.loaded.append(name)
    report.unexpected.extend(name for name in given if name not in used)
    return report


def require_whole(report: LoadReport, where: str, *, optional: tuple[str, ...] = ()) -> None:
    """Raise CheckpointError where tensors of the module stay fresh or weights go unused, those whose names
    begin with one of `optional` aside.
    """
    fresh = [n for n in (*report.missing, *report.reshaped) if not n.startswith(optional)]
    loose = [n for n in report.unexpected if not n.startswith(optional)]
    if not fresh and not loose:
        return
    parts = [f"{len(fresh)} tensors it does not give ({_short(fresh, 3)})"] if fresh else []
    parts += [f"{len(loose)} that the model has no place for ({_short(loose, 3)})"] if loose else []
    do = "Add allow_partial=true to take what fits, or check model=… and the file."
    raise CheckpointError.at(where, " and ".join(parts), "every tensor of the model", do)


def _write(target: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        target.copy_(value)


def _resizers(module: nn.Module) -> dict[str, _Resizer]:
    """Return, for the tables of grids, how to bring another grid's to theirs."""
    found: dict[str, _Resizer] = {}
    for name, part in module.named_modules():
        if isinstance(part, RelativeBias2d):
            found[f"{name}.table"] = _Resizer(part.size, relative=True)
        elif isinstance(part, GridPositions):
            found[f"{name}.table"] = _Resizer(part.size, relative=False)
    return found


@dataclass(frozen=True)
class _Resizer:
    size: int
    relative: bool

    def __call__(self, table: Tensor) -> Tensor:
        if self.relative:
            return resize_relative_table(table, self.size)
        return resize_grid(table, self.size, self.size)


def _table_of_all_layers(name: str, given: Mapping[str, None]) -> str | None:
    match = TABLE_OF_LAYER.fullmatch(name)
    only = f"{match[1]}.0.table" if match else ""
    alone = match is not None and f"{match[1]}.1.table" not in given
    return only if alone and only in given else None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape) or "scalar"


def _short(names: list[str], most: int = SHOWN) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
