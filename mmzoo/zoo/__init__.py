"""Models by name or by path, in one call: `create_model`, `load`, `list_models`; and their export."""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mmzoo import __version__, compose, configs, schema
from mmzoo.batch import DataInfo
from mmzoo.checkpoints import cards, files
from mmzoo.errors import CheckpointError
from mmzoo.models.finetune.lora import LoraConfig, merged_state, write_adapter
from mmzoo.models.finetune.prepare import plain
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.zoo import fetch

log = logging.getLogger(__name__)


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names of the model presets that match a shell pattern; of checkpoints (`arch.tag`) if
    `pretrained`."""
    names = cards.cards() if pretrained else configs.list_configs("model")
    return [name for name in names if fnmatch(name, pattern)]


def create_model(
    name: str, *, pretrained: bool | str | None = None, info: DataInfo | None = None
) -> MultimodalModel:
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
    return MultimodalModel(MultimodalModel.resolve(preset(name), info or DataInfo())).eval()


def preset(name: str) -> MultimodalModel.Config:
    """Return the options of a model preset."""
    tree = OmegaConf.to_container(compose.read(configs.find("model", name), "model"), resolve=True)
    return schema.parse(MultimodalModel.Config, tree if isinstance(tree, dict) else {}, f"model {name}")  # pyright: ignore[reportArgumentType] keys are text


def load(source: str | Path) -> MultimodalModel:
    """Load a model in evaluation mode from a run, an export folder, a .ckpt file, a checkpoint's name or
    `hf://org/repo`."""
    return load_with_config(source)[0]


def load_with_config(source: str | Path) -> tuple[MultimodalModel, dict[str, Any]]:
    """Like `load`, with the config saved beside the weights (model, recipe, labels, subjects, versions)."""
    config, state = read_source(source)
    options = schema.parse(MultimodalModel.Config, config["model"], "model")
    model = MultimodalModel(MultimodalModel.bare(options))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        names = ", ".join([*missing, *unexpected][:4])
        found = f"{len(missing)} missing and {len(unexpected)} unexpected tensors ({names}…)"
        raise CheckpointError.at(
            str(source), found, "exactly the model's tensors", "Load it with the version that wrote it."
        )
    return model.eval(), config


def read_source(source: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return config and weights of whatever `source` names: a run, an export folder, a .ckpt file, a
    checkpoint by name or address."""
    config, state = _read(source)
    if not isinstance(config.get("model"), dict):
        expected = "the options that the model was built with"
        raise CheckpointError.at(str(source), "weights without a model", expected, "Export it with mmzoo.")
    return config, state


def _read(source: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = fetch.local(source)
    if not path.is_dir():
        return _from_checkpoint(path)
    folder = path / "export" if (path / "export").is_dir() else path
    if (folder / files.WEIGHTS).is_file():
        return files.read_export(folder)
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return _from_checkpoint(path / "checkpoints" / name)
    expected = "export/model.safetensors or checkpoints/*.ckpt"
    raise CheckpointError.at(str(source), "a folder without weights", expected, "Finish or resume the run.")


def _from_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    checkpoint = files.read_checkpoint(path)
    state = {
        k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
    }
    return checkpoint["mmzoo"], state


def describe(model: MultimodalModel, info: DataInfo, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what is saved beside the weights: everything needed to build, feed and read the model again."""
    options = model.config.to_dict()
    return {
        "architecture": "MultimodalModel",
        "mmzoo_version": __version__,
        "modalities": list(model.modalities),
        "model": options,
        "preprocessing": {m: c.preprocess.to_dict() for m, c in model.config.modalities.items()},
        "labels": {k: list(v) for k, v in info.labels.items()},
        "subjects": dict(info.subjects),
        "parameters": model.num_params(),
        "recipe": recipe,
    }


def export(model: MultimodalModel, folder: str | Path, config: dict[str, Any]) -> Path:
    """Write `model.safetensors` and `config.json`: a plain model, whatever fine-tuning made of it.

    LoRA factors are folded into the weights; they are also written to `adapter/` in PEFT's format.
    """
    lora = model.config.lora
    if lora.rank:
        write_adapter(model, lora, Path(folder) / "adapter")
    return files.write_export(Path(folder), merged_state(model.state_dict(), lora.scale), plain(config))


def start_from(model: MultimodalModel, source: str | Path) -> dict[str, list[str]]:
    """Load into `model` every tensor of `source` that fits; return what did not, and say it in the log.

    Tensors of another shape (a head with other classes) keep their fresh values. LoRA factors in a checkpoint
    are folded into its weights first.
    """
    saved, state = read_source(source)
    state = merged_state(state, schema.parse(LoraConfig, saved["model"].get("lora", {}), "model.lora").scale)
    fitting, report = files.fit_state(state, model.state_dict())
    if not fitting:
        raise CheckpointError.at(
            str(source), "no tensor fits", "weights of a like model", "Check model=… and init_from=…."
        )
    model.load_state_dict(fitting, strict=False)
    log.info("init_from %s: %d of %d tensors taken", source, len(fitting), len(model.state_dict()))
    for kind, names in report.items():
        if names:
            log.info(
                "init_from: %s (%d): %s",
                kind,
                len(names),
                ", ".join(names[:12]) + (" …" if len(names) > 12 else ""),
            )
    return report
