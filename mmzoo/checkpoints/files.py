"""Published weights: `model.safetensors` + `config.json`, never a pickle; and Lightning checkpoints, read
weights-only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmzoo.checkpoints.disk import sha256_of, write_atomic
from mmzoo.checkpoints.restricted import load_torch
from mmzoo.errors import CheckpointError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
KEY_VERSION = 1
"""Raised whenever parameter names change, so that old files can be mapped."""


def write_export(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write weights and config to `folder`, weights first, so that a config never names weights that are not
    there."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}.{os.getpid()}"
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        sha256 = sha256_of(temporary)
        temporary.replace(folder / WEIGHTS)
    except SafetensorError as error:  # the library's word for whatever the disk says
        found, do = f"cannot write ({error})", "Make room, or choose another path."
        raise CheckpointError.at(str(folder / WEIGHTS), found, "a disk with room for it", do) from error
    finally:
        temporary.unlink(missing_ok=True)
    whole = {**config, "key_version": KEY_VERSION, "sha256": sha256}
    write_atomic(folder / CONFIG, (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
    return folder


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config and weights of an export; a hash that does not match is an error."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            do = "Give the export folder of a run."
            raise CheckpointError.at(str(folder), f"no {name}", f"{WEIGHTS} and {CONFIG}", do)
    config = read_config(folder)
    found = sha256_of(folder / WEIGHTS)
    if config.get("sha256") not in (None, found):
        expected = f"sha256 {config['sha256'][:12]}… of config.json"
        do = "Export or download it again."
        raise CheckpointError.at(str(folder / WEIGHTS), f"sha256 {found[:12]}…", expected, do)
    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        do = "Export or download it again."
        raise CheckpointError.at(str(folder / WEIGHTS), f"unreadable ({error})", "safetensors", do) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config beside the weights of an export."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        do = "Export the run again."
        raise CheckpointError.at(str(folder / CONFIG), f"not JSON ({error})", "a JSON object", do) from error
    if not isinstance(config, dict):
        found, do = type(config).__name__, "Export the run again."
        raise CheckpointError.at(str(folder / CONFIG), found, "a JSON object", do)
    return config


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint without running anything that it holds."""
    checkpoint: Any = load_torch(path)
    if not isinstance(checkpoint, dict) or "mmzoo" not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError.at(str(path), "no mmzoo entry", "a checkpoint of mmzoo", "Convert it first.")
    return checkpoint


def fit_state(
    state: Mapping[str, Tensor], model: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return the tensors that fit the model, and the names that are missing, unexpected or of another
    shape."""
    fitting = {k: v for k, v in state.items() if k in model and model[k].shape == v.shape}
    report = {
        "missing": sorted(k for k in model if k not in state),
        "unexpected": sorted(k for k in state if k not in model),
        "reshaped": sorted(k for k in state if k in model and model[k].shape != state[k].shape),
    }
    return fitting, report
