"""The doors to open_clip: names, tags, a model's options, its towers with published or random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmzoo import schema
from mmzoo.errors import CheckpointError, ConfigError, close_matches
from mmzoo.modalities.timm_zoo import no_vain_retries

OTHER_VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
OTHER_TEXT = {"context_length": 4, "vocab_size": 8, "layers": 1, "width": 64, "heads": 1}
"""Stands for the tower that is thrown away, where no weights are to be loaded into it."""


@dataclass(kw_only=True)
class OpenClipModel(schema.Config):
    """Which model of open_clip, and with which weights."""

    model: str = "ViT-S-32"
    "open_clip's name of the model (open_clip.list_models()), or hf-hub:ORG/REPO."
    tag: str = ""
    "Tag of published weights (open_clip.list_pretrained()); empty = the model's first."
    pretrained: bool = False
    "Whether to start from the published weights (fetched once, then cached)."
    create: dict[str, Any] = field(default_factory=dict)
    "Arguments of open_clip.create_model that replace the model's own, such as vision_cfg or text_cfg."


def check_name(name: str, tag: str, where: str) -> None:
    """Raise ConfigError where open_clip has no such model or weights; `hf-hub:…` is left to open_clip."""
    clip = open_clip(where)
    if ":" in name:
        return
    known = clip.list_models()
    if name not in known:
        found, do = f"{name!r} is unknown to open_clip", close_matches(name, known)
        raise ConfigError.at(f"{where}.model", found, "a row of open_clip.list_models()", do)
    tags = clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        found, do = f"{name} has no weights tagged {tag!r}", close_matches(tag, tags)
        raise ConfigError.at(f"{where}.tag", found, "a tag of open_clip.list_pretrained()", do)


def model_config(name: str, create: dict[str, Any]) -> dict[str, Any]:
    """Return the options that open_clip builds a model with."""
    return {**(open_clip("model").get_model_config(name) or {}), **create}


def preprocess_config(name: str, tag: str, create: dict[str, Any]) -> dict[str, Any]:
    """Return what a model's weights expect of a picture: size, mean, std, interpolation, resize_mode."""
    clip = open_clip("preprocess")
    size = model_config(name, create).get("vision_cfg", {}).get("image_size", 224)
    record = clip.get_pretrained_cfg(name, first_tag(name, tag)) or {} if ":" not in name else {}
    given = {k: record[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in record}
    base = {"mean": clip.OPENAI_DATASET_MEAN, "std": clip.OPENAI_DATASET_STD}
    return {**base, "interpolation": "bicubic", "resize_mode": "shortest", **given, "size": size}


def first_tag(name: str, tag: str) -> str:
    """Return the tag, or the first of the model's where none is given."""
    tags = open_clip("tag").list_pretrained_tags_by_model(name) if not tag else []
    return tag or (tags[0] if tags else "")


def create_tower(config: OpenClipModel, side: str, where: str) -> nn.Module:
    """Build a model as the options say and return its tower `visual` or `text`."""
    stand_in = {"text_cfg": OTHER_TEXT} if side == "visual" else {"vision_cfg": OTHER_VISION}
    replaceable = not config.pretrained and ":" not in config.model
    if not replaceable or "multimodal_cfg" in model_config(config.model, {}):
        stand_in = {}
    return getattr(create_whole(config, where, stand_in), side)


def create_whole(config: OpenClipModel, where: str, stand_in: dict[str, Any] | None = None) -> nn.Module:
    """Build a model with both towers; `stand_in` are arguments that the options may replace."""
    clip = open_clip(where)
    options = {**(stand_in or {}), **config.create}
    tag = first_tag(config.model, config.tag) if config.pretrained else None
    try:
        with no_vain_retries(wanted=config.pretrained):
            return clip.create_model(
                config.model,
                pretrained=tag,
                load_weights=config.pretrained,
                pretrained_text=config.pretrained,
                force_custom_text=True,
                **options,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not config.pretrained:
            found = f"open_clip cannot build {config.model} ({reason})"
            do = "Install what it needs, mend create, or choose another model."
            raise ConfigError.at(where, found, "a model that open_clip builds", do) from error
        found = f"no weights of {config.model} ({reason})"
        do = "Set pretrained=false, or fetch them once where there is a network."
        raise CheckpointError.at(f"{where}.pretrained", found, "a network or a cached copy", do) from error


def open_clip(where: str) -> Any:
    """Import open_clip, or say what is missing."""
    try:
        import open_clip as package
    except ImportError as error:
        do = "Run: pip install open_clip_torch."
        raise ConfigError.at(where, f"{error}", "the package open_clip", do) from error
    return package
