"""Exports <-> other people's layouts, whole files or none.

The layout of the source is read off the source: a run, an export or a checkpoint of mmzoo, or a file of
another program. `TARGETS` holds what can be written; a target is one function and one line.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmzoo import zoo
from mmzoo.checkpoints import files
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.models.moe.upcycle import UpcycleConfig, upcycle
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.zoo import foreign

State = Mapping[str, Tensor]
SUFFIXES = (".safetensors", ".pt", ".pth")


class Target(str, Enum):
    """What to write."""

    MMZOO = "mmzoo"
    """an export folder: model.safetensors and config.json"""
    ONEPEACE = "onepeace"
    """one file with ONE-PEACE's names: .safetensors, or .pt with the weights under `model`"""


def convert(
    source: str,
    target: Path,
    to: Target,
    experts: UpcycleConfig | None = None,
    *,
    allow_partial: bool = False,
) -> Path:
    """Write `source` in the layout `to`; an existing target is refused, a half-written one never left.

    `experts` makes a dense model routed, see mmzoo.models.moe.upcycle. `allow_partial`: a folder of another
    program may lack files; what they would hold is written with random numbers.
    """
    check_target(target)
    if experts is None:
        config, state = zoo.read_source(source, allow_partial=allow_partial)
    else:
        config, state = _with_experts(source, experts)
    return write(config, state, target, to)


def check_target(target: Path) -> None:
    """Raise where something is already there."""
    if target.exists():
        do = "Remove it, or choose another."
        raise CheckpointError.at(str(target), "something is there", "a new path", do)


def write(config: Mapping[str, Any], state: State, target: Path, to: Target) -> Path:
    """Write config and weights in the layout `to`."""
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return TARGETS[to](state, config, target)


def _with_experts(source: str, experts: UpcycleConfig) -> tuple[dict[str, Any], State]:
    """Return config and weights of the routed model; the recipe kept beside them becomes routed too."""
    model, config = zoo.load_with_config(source)
    if not isinstance(model, MultimodalModel):
        do = "Only models of adapters, trunk and heads can be upcycled."
        raise ConfigError.at(f"upcycle {source}", type(model).__name__, "a model with a trunk", do)
    made = upcycle(model, experts)
    options = made.config.to_dict()
    config = {**config, "model": options, "parameters": made.num_params()}
    recipe: Any = config.get("recipe")
    if recipe and "model" in recipe:
        trunk = {**recipe["model"].get("trunk", {}), "ffn": options["trunk"]["ffn"]}
        config["recipe"] = {**recipe, "model": {**recipe["model"], "trunk": trunk}}
    return config, made.state_dict()


def write_mmzoo(state: State, config: Mapping[str, Any], target: Path) -> Path:
    """Write an export folder."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        files.write_export(scratch, state, config)
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def write_onepeace(state: State, config: Mapping[str, Any], target: Path) -> Path:
    """Write one file as the reference loads it, buffers included."""
    del config
    if target.suffix not in SUFFIXES:
        expected = f"a name in {', '.join(SUFFIXES)}"
        raise CheckpointError.at(str(target), "one file", expected, "Choose such a name.")
    try:
        made = foreign.as_onepeace(state)
    except CheckpointError as error:
        found = f"this model has parts that ONE-PEACE has not ({str(error).partition(';')[0]})"
        expected, do = "a model of an onepeace_… preset", "Write it with --to mmzoo."
        raise CheckpointError.at("mmzoo convert --to onepeace", found, expected, do) from error
    tensors = {name: t.detach().contiguous().clone() for name, t in made.items()}
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if target.suffix == ".safetensors":
            save_file(tensors, scratch, metadata={"format": "pt", "layout": Target.ONEPEACE.value})
        else:
            torch.save({"model": tensors, "cfg": None}, scratch)
        scratch.chmod(0o644)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


TARGETS: dict[Target, Callable[[State, Mapping[str, Any], Path], Path]] = {
    Target.MMZOO: write_mmzoo,
    Target.ONEPEACE: write_onepeace,
}
