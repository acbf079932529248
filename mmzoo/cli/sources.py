"""What the words RECIPE, RUN, CHECKPOINT and MODEL stand for, and a built model to go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mmzoo import recipe, run_folder, zoo
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.learners.tasks import as_trained
from mmzoo.recipe import Built, RecipeConfig
from mmzoo.run_folder import RunFolder

DEFAULT_RECIPE = "five_senses"


@dataclass(frozen=True)
class Trained:
    """A trained model with its data: what was built, where from, and the run it belongs to, if any."""

    built: Built
    source: str
    folder: RunFolder | None


def recipe_config(name: str, overrides: Sequence[str]) -> RecipeConfig:
    """Return the options of a recipe given by name, by YAML file or by a run folder that used it."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            do = f"Name a recipe and point it at the folder, e.g. `mmzoo train cifar10 data.root={name}`."
            raise ConfigError.at(
                "recipe", f"{name!r} is a folder without config.yaml", "a recipe or a run", do
            )
        return saved_config(RunFolder(path), overrides, run_dir="")
    return recipe.load(name, overrides)


def saved_config(folder: RunFolder, overrides: Sequence[str], **changes: Any) -> RecipeConfig:
    """Return the options that a run was made with, to be run again."""
    tree = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    once = {"resume": "never", "overwrite": False, "init_from": ""}
    return recipe.from_dict({**tree, **once, **changes}, overrides)


def trained(source: str, overrides: Sequence[str]) -> Trained:
    """Build the recipe behind a run, checkpoint, export or model name, and load its weights."""
    folder = _run_of(source)
    where = str(folder.path) if folder else source
    saved, state = zoo.read_source(where)
    tree = saved.get("recipe")
    if not isinstance(tree, dict):
        do = "Evaluate a run or a checkpoint that mmzoo trained."
        raise CheckpointError.at(source, "weights without a recipe", "a recipe beside the weights", do)
    alone = {"init_from": "", "teachers": {}, "trainer": _one_device(tree["trainer"])}
    config = recipe.from_dict({**tree, **alone}, overrides)
    config = dataclasses.replace(config, tasks=as_trained(config.tasks, config.model.heads))
    built = recipe.build(config, fetch=False, teach=False)
    load_weights(built, state, where)
    return Trained(built, where, folder)


def model_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the model's tensors in a training checkpoint, under the model's own names."""
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def load_weights(built: Built, state: dict[str, torch.Tensor], source: str) -> None:
    """Put weights into a built model, move it to its device; raise where tensors do not match."""
    missing, unexpected = built.model.load_state_dict(state, strict=False)
    if missing or unexpected:
        found = f"{len(missing)} tensors missing, {len(unexpected)} left over ({[*missing, *unexpected][:3]})"
        do = "Drop overrides that change the model or its tasks."
        raise CheckpointError.at(source, found, "the tensors of the model", do)
    built.model.eval()
    built.learner.to(built.trainer.strategy.root_device)


def _one_device(trainer: dict[str, Any]) -> dict[str, Any]:
    return {**trainer, "devices": 1, "strategy": "auto", "compile": False}


def _run_of(source: str) -> RunFolder | None:
    path = Path(source)
    if path.is_dir() and (path / "config.yaml").is_file():
        return RunFolder(path)
    if path.is_file() and path.suffix == ".ckpt" and (path.parent.parent / "config.yaml").is_file():
        return None
    if not path.exists() and (found := run_folder.newest(Path("runs") / source)) is not None:
        return found
    return None


def describe(built: Built) -> dict[str, Any]:
    """Return what is trained, in a few words for tables and reports."""
    params = built.model.num_params()
    return {
        "modalities": list(built.model.modalities),
        "parameters": params,
        "samples": dict(built.info.counts),
        "labels": {k: len(v) for k, v in built.info.labels.items()},
        "subjects": dict(built.info.subjects),
        "teachers": built.learner.meta.get("teachers", {}),
    }
