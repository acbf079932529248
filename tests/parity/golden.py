"""The nouns of a comparison: a golden file, one tensor compared, what a family of files must offer."""

from __future__ import annotations

import importlib
import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

FAMILIES: dict[str, str] = {
    "attn_moh": "tests.parity.families.attn_moh",
    "m3net": "tests.parity.families.m3net",
    "m3vit": "tests.parity.families.m3vit",
    "modsquad": "tests.parity.families.modsquad",
    "mlore": "tests.parity.families.mlore",
    "onepeace": "tests.parity.families.onepeace",
}
"""How a file's name begins -> the module that builds its model. The longest beginning that fits counts."""


class GoldenError(Exception):
    """A golden file that cannot be run, in one line."""


@dataclass(frozen=True)
class Golden:
    """A reference's weights, inputs and outputs, and how it was configured."""

    path: pathlib.Path
    tensors: dict[str, Tensor]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the file's name without its ending."""
        return self.path.stem

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name begins with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Row:
    """One output: ours, the reference's, and how far apart they may be."""

    name: str
    found: Tensor
    expected: Tensor
    tolerance: float
    relative: bool = False
    """error divided by the largest expected magnitude"""

    @property
    def error(self) -> float:
        """Return the worst entry's difference; infinite if shapes differ or a value is not a number."""
        if self.found.shape != self.expected.shape:
            return float("inf")
        found, expected = self.found.detach().double(), self.expected.double()
        both = (found == expected) | (found.isnan() & expected.isnan())  # equal infinities count as equal
        gap = torch.where(both, 0.0, (found - expected).abs())
        if not gap.numel():
            return 0.0
        worst = gap.max()
        if self.relative:
            worst = worst / expected.abs().max().clamp(min=1e-30)
        return float(worst.nan_to_num(nan=float("inf")))

    @property
    def passed(self) -> bool:
        """Return whether the error is within the tolerance."""
        return self.error <= self.tolerance


class Family(Protocol):
    """A module that knows one family of golden files."""

    def rows(self, golden: Golden) -> Iterator[Row]:
        """Build the model from record and weights, run it, yield every output of the file."""
        ...

    def outputs(self, golden: Golden) -> set[str]:
        """Return the names of all outputs in the file: each must come as a row."""
        ...


def family_of(path: pathlib.Path) -> Family:
    """Return the module of a file's family, told by its name."""
    fits = [prefix for prefix in FAMILIES if path.name == prefix or path.name.startswith(f"{prefix}_")]
    if not fits:
        raise GoldenError(
            f"{path.name}: unknown family; expected a name beginning with {', '.join(sorted(FAMILIES))}."
        )
    module: Any = importlib.import_module(FAMILIES[max(fits, key=len)])
    return module


def read(path: pathlib.Path) -> Golden:
    """Read a golden file and the json beside it."""
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise GoldenError(f"{file}: no such file; expected FILE.safetensors with FILE.json beside it.")
    return Golden(path, load_file(path), json.loads(beside.read_text()))


def compare(path: pathlib.Path) -> list[Row]:
    """Run a golden file; an output that no row names comes as a row that fails."""
    family, golden = family_of(path), read(path)
    rows = list(family.rows(golden))
    missed = family.outputs(golden) - {row.name for row in rows}
    nothing = torch.full((), torch.nan)
    return rows + [
        Row(f"{name} (not compared)", nothing, golden.tensors.get(name, torch.zeros(())), 0.0)
        for name in sorted(missed)
    ]
