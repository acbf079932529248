"""Models by name or by path, in one call: `create_model`, `load`, `list_models`; and their export."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mmzoo import __version__, compose, configs, registry, schema
from mmzoo.batch import DataInfo
from mmzoo.checkpoints import cards, files
from mmzoo.checkpoints.loading import InMemory, LoadReport, load_weights, require_whole
from mmzoo.errors import CheckpointError
from mmzoo.models.base import TaskModel, owner_of
from mmzoo.models.finetune.lora import LoraConfig, merged_state, write_adapter
from mmzoo.models.finetune.parts import select
from mmzoo.models.finetune.prepare import plain
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.onepeace.weights import open_onepeace
from mmzoo.zoo import fetch, foreign, starting, training_only

log = logging.getLogger(__name__)
OWN = ".ckpt"
"""Ending of mmzoo's own checkpoints; any other file is read as another program's."""


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names of the model presets that match a shell pattern; of checkpoints (`arch.tag`) if
    `pretrained`."""
    names = cards.cards() if pretrained else configs.list_configs("model")
    return [name for name in names if fnmatch(name, pattern)]


def create_model(
    name: str, *, pretrained: bool | str | None = None, info: DataInfo | None = None
) -> TaskModel:
    """Build a model in evaluation mode: a preset, a checkpoint `arch.tag`, or one from `hf://org/repo`.

    `pretrained=None` takes weights that are here, shipped or fetched before, and random ones (said in the
    log) elsewhere; True demands weights, fetched if need be, and a tag demands those; False gives random
    ones. `info` fills what depends on data (fMRI subjects, classes).
    """
    if isinstance(pretrained, str):
        return load(cards.find(f"{name}.{pretrained}").name)
    presets = configs.list_configs("model")
    if name not in presets and pretrained is not False and (fetch.is_elsewhere(name) or cards.is_known(name)):
        return load(name)
    if pretrained:
        return load(cards.find(name).name)
    card = cards.find(name) if pretrained is None and cards.is_known(name) else None
    if card is not None and (card.shipped or card.cached.is_file()):
        return load(card.name)
    if pretrained is None:
        log.warning("model %s: no weights of it are here, so these are random", name)
    options = preset(name)
    owner = owner_of(options)
    return owner(owner.resolve(options, info or DataInfo())).eval()


def preset(name: str) -> Any:
    """Return the options of a model preset."""
    tree = OmegaConf.to_container(compose.read(configs.find("model", name), "model"), resolve=True)
    return model_options(tree, f"model {name}")


def model_options(tree: Any, where: str = "model") -> Any:
    """Return the options of a model from a plain tree; one without `type` is a MultimodalModel's."""
    return schema.parse_choice("architectures", tree, where, "multimodal")


def load(source: str | Path) -> TaskModel:
    """Load a model in evaluation mode from a run, an export folder, a .ckpt file, a checkpoint's name or
    `hf://org/repo`."""
    return load_with_config(source)[0]


def load_with_config(source: str | Path) -> tuple[TaskModel, dict[str, Any]]:
    """Like `load`, with the config saved beside the weights (model, recipe, labels, subjects, versions)."""
    path = fetch.local(source)
    if path.is_file() and path.suffix != OWN:
        return _load_onepeace(path)
    config, state = read_source(source)
    options = model_options(config["model"])
    owner = owner_of(options)
    model = owner(owner.bare(options))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        names = ", ".join([*missing, *unexpected][:4])
        found = f"{len(missing)} missing and {len(unexpected)} unexpected tensors ({names}…)"
        raise CheckpointError.at(
            str(source), found, "exactly the model's tensors", "Load it with the version that wrote it."
        )
    return model.eval(), config


def _load_onepeace(path: Path) -> tuple[TaskModel, dict[str, Any]]:
    """Build the model that another program's file holds, tensor by tensor."""
    foreign = open_onepeace(path)
    model = MultimodalModel(foreign.options())
    for line in foreign.lines():
        log.info("%s: left out, %s", path, line)
    require_whole(load_weights(model, foreign), str(path))
    return model.eval(), describe(model, DataInfo())


def read_source(
    source: str | Path, *, allow_partial: bool = False
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return config and weights of whatever `source` names: a run, an export folder, a .ckpt file, a
    checkpoint by name or address, another program's file or folder (of which files may be missing if
    `allow_partial`)."""
    config, state = _read(source, allow_partial=allow_partial)
    if not isinstance(config.get("model"), dict):
        expected = "the options that the model was built with"
        raise CheckpointError.at(str(source), "weights without a model", expected, "Export it with mmzoo.")
    return config, state


def _read(source: str | Path, *, allow_partial: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = fetch.local(source)
    if foreign.is_folder(path):
        return foreign.read_folder(path, allow_partial=allow_partial)
    if not path.is_dir():
        return _from_checkpoint(path) if path.suffix == ".ckpt" else foreign.read(path)
    found = _weights_in(path)
    return _from_checkpoint(found) if found.suffix == OWN else files.read_export(found.parent)


def check_source(source: str | Path) -> None:
    """Raise where a source names nothing, or a folder without weights; fetches and reads nothing."""
    path = fetch.here(source)
    if path is not None and path.is_dir() and not foreign.is_folder(path):
        _weights_in(path)


def _weights_in(path: Path) -> Path:
    """Return the file that holds the weights of a run or an export: the exported ones, else a checkpoint."""
    folder = path / "export" if (path / "export").is_dir() else path
    checkpoints = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    for file in (folder / files.WEIGHTS, *checkpoints):
        if file.is_file():
            return file
    expected = "export/model.safetensors or checkpoints/*.ckpt"
    raise CheckpointError.at(str(path), "a folder without weights", expected, "Finish or resume the run.")


def _from_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    checkpoint = files.read_checkpoint(path)
    state = {
        k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
    }
    return training_only.without(checkpoint["mmzoo"], state)


def describe(model: TaskModel, info: DataInfo, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what is saved beside the weights: everything needed to build, feed and read the model again."""
    options = {"type": registry.name_of("architectures", type(model)), **model.config.to_dict()}
    return {
        "architecture": type(model).__name__,
        "mmzoo_version": __version__,
        "modalities": list(model.modalities),
        "model": options,
        "preprocessing": {m: c.preprocess.to_dict() for m, c in model.config.modalities.items()},
        "labels": {k: list(v) for k, v in info.labels.items()},
        "subjects": dict(info.subjects),
        "parameters": model.num_params(),
        "recipe": recipe,
    }


def export(model: TaskModel, folder: str | Path, config: dict[str, Any]) -> Path:
    """Write `model.safetensors` and `config.json`: a plain model, whatever fine-tuning made of it.

    LoRA factors are folded into the weights; they are also written to `adapter/` in PEFT's format. Heads that
    only training needs are left out.
    """
    lora = model.config.lora
    if lora.rank:
        write_adapter(model, lora, Path(folder) / "adapter")
    kept, state = training_only.without(config, merged_state(model.state_dict(), lora.scale))
    return files.write_export(Path(folder), state, plain(kept))


def start_from(
    model: TaskModel,
    source: str | Path,
    *,
    fresh: Sequence[str] = (),
    allow_partial: bool = False,
) -> LoadReport:
    """Load into `model` the tensors of `source`; return what became of each, and say it in the log.

    Relative tables and positions of another grid are resized, one table serves every layer that wants one.
    Heads may start anew (other classes, another task); anything else that is missing, left over or of another
    shape is an error unless `allow_partial`. LoRA factors in a checkpoint are folded into its weights first.
    Parts named in `fresh` keep their fresh values (see model.freeze for names).
    """
    anew = {name for part in fresh for name in select(model, part, "init_fresh")}
    path = fetch.local(source)
    if foreign.is_folder(path) or (path.is_file() and path.suffix != OWN):
        if not isinstance(model, MultimodalModel):
            found, do = "another program's file", "Give a run, an export or a .ckpt of mmzoo."
            raise CheckpointError.at(str(source), found, f"weights of {type(model).__name__}", do)
        weights = foreign.open_weights(path, allow_partial=allow_partial).for_model(model)
        for line in weights.lines():
            log.info("init_from %s: left out, %s", source, line)
        return starting.start(model, weights, str(source), anew=anew, allow_partial=allow_partial)
    saved, state = read_source(source)
    state = merged_state(state, schema.parse(LoraConfig, saved["model"].get("lora", {}), "model.lora").scale)
    return starting.start(model, InMemory(state), str(source), anew=anew, allow_partial=allow_partial)
