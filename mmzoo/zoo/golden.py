"""What a model makes of a fixed input, kept beside its weights: proof that they mean what they meant.

The input is each modality's `fake_input` of one sample, drawn from the seed; the model sees all of them in
one batch, in evaluation mode, in float32. Kept are all numbers of every head's every pass, or evenly spaced
ones where there are more than `MOST`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo.batch import Batch
from mmzoo.checkpoints.disk import write_atomic
from mmzoo.errors import CheckpointError
from mmzoo.models.base import TaskModel

FILE = "golden.json"
MOST = 256
TOLERANCE = 1e-4
"""Largest difference allowed between machines; of outputs above 1, as a share of the largest number."""


@dataclass(frozen=True)
class Golden:
    """The numbers of each output, named `task/pass`, and what they come from."""

    seed: int
    tolerance: float
    outputs: Mapping[str, list[float]]


def fixed_input(model: TaskModel, seed: int) -> Batch:
    """Return one sample that has every modality, drawn from the seed."""
    return dataclasses.replace(model.fake_batch(seed), ids=("golden",))


@torch.no_grad()
def outputs(model: TaskModel, seed: int = 0) -> dict[str, Float[Tensor, " n"]]:
    """Run the model on the fixed input; return at most `MOST` numbers of each output."""
    model = model.eval()
    made = model(fixed_input(model, seed).to(model.device)).predictions
    return {
        f"{task}/{name}": _spaced(prediction.values.float().cpu().flatten())
        for task, passes in made.items()
        for name, prediction in passes.items()
    }


def write(model: TaskModel, folder: Path, seed: int = 0) -> Path:
    """Keep what the model makes of the fixed input in `folder`."""
    found = outputs(model, seed).items()
    numbers = {name: [float(f"{v:.7g}") for v in values.tolist()] for name, values in found}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in numbers.items())
    text = f'{{\n  "seed": {seed},\n  "tolerance": {TOLERANCE},\n  "outputs": {{\n{lines}\n  }}\n}}\n'
    write_atomic(folder / FILE, text.encode())
    return folder / FILE


def read(folder: Path) -> Golden | None:
    """Return what is kept in a folder, or None."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
        return Golden(int(kept["seed"]), float(kept["tolerance"]), dict(kept["outputs"]))
    except (ValueError, KeyError, TypeError) as error:
        do = "Fetch it again."
        raise CheckpointError.at(str(path), f"unreadable ({error})", "golden outputs", do) from error


def errors(model: TaskModel, golden: Golden) -> dict[str, float]:
    """Return the largest difference of each output, over its largest number where that is above 1."""
    found = outputs(model, golden.seed)
    if found.keys() != golden.outputs.keys():
        odd = sorted(found.keys() ^ golden.outputs.keys())
        do = "Check that the weights are the card's."
        raise CheckpointError.at("golden output", f"other outputs ({', '.join(odd)})", "the same", do)
    return {name: _error(found[name], torch.tensor(values)) for name, values in golden.outputs.items()}


def _error(found: Float[Tensor, " n"], wanted: Float[Tensor, " m"]) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    scale = max(1.0, float(wanted.abs().max()))
    worst = float((found - wanted).abs().max()) / scale
    return worst if worst == worst else float("inf")  # a NaN is no match


def _spaced(values: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
    if len(values) <= MOST:
        return values
    return values[torch.linspace(0, len(values) - 1, MOST).round().long()]
