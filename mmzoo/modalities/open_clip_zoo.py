"""The doors to open_clip: names, tags, a model's options, its towers with published or random weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmzoo.errors import CheckpointError, ConfigError, close_matches
from mmzoo.modalities.timm_zoo import no_vain_retries

OTHER_VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
OTHER_TEXT = {"context_length": 4, "vocab_size": 8, "layers": 1, "width": 64, "heads": 1}
"""Stands for the tower that is thrown away, where no weights are to be loaded into it."""


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


def create_tower(config: Any, side: str, where: str) -> nn.Module:
    """Build a model as the options say and return its tower `visual` or `text`."""
    clip = open_clip(where)
    options = dict(config.create)
    if not config.pretrained and ":" not in config.model:
        other = {"text_cfg": OTHER_TEXT} if side == "visual" else {"vision_cfg": OTHER_VISION}
        options = {**other, **options} if "multimodal_cfg" not in model_config(config.model, {}) else options
    tag = first_tag(config.model, config.tag) if config.pretrained else None
    try:
        with no_vain_retries(wanted=config.pretrained):
            model = clip.create_model(
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
    return getattr(model, side)


def open_clip(where: str) -> Any:
    """Import open_clip, or say what is missing."""
    try:
        import open_clip as package
    except ImportError as error:
        do = "Run: pip install open_clip_torch."
        raise ConfigError.at(where, f"{error}", "the package open_clip", do) from error
    return package
