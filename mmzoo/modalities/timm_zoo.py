"""The doors to timm: names, records of what weights expect, and backbones without their classifier."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmzoo.errors import CheckpointError, ConfigError, close_matches

_HEAD_PARTS = ("head", "head_dist", "attn_pool", "fc_norm", "norm_head", "pre_logits", "fc", "classifier")
"""Children of timm models that only their classifier uses."""


def check_name(name: str, where: str) -> None:
    """Raise ConfigError where timm has no such model; a name of another hub (`hf-hub:…`) is left to timm."""
    timm = _timm(where)
    architecture = name.split(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        found = f"{name!r} is unknown to timm {timm.__version__}"
        do = close_matches(architecture, timm.list_models())
        raise ConfigError.at(where, found, "a row of timm.list_models()", do)
    tag = name.partition(".")[2]
    if ":" not in name and tag:
        tags = {full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")}
        if tag not in tags:
            found = f"{architecture} has no weights tagged {tag!r}"
            raise ConfigError.at(where, found, "a tag of timm.list_pretrained()", close_matches(tag, tags))


def data_config(name: str | None) -> dict[str, Any]:
    """Return timm's record of a model: input_size (c, h, w), mean, std, interpolation, crop_pct."""
    timm = _timm("preprocess.model")
    record = None
    if name is not None and ":" not in name:
        check_name(name, "preprocess.model")
        record = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return timm.data.resolve_data_config(pretrained_cfg=record.to_dict() if record else {})


def create_backbone(config: Any, *, keep_head: bool, where: str) -> tuple[Any, int]:
    """Build the backbone of a TimmAdapter.Config without classifier; return it and its output's width."""
    timm = _timm(where)
    options = {**config.create, **({"drop_path_rate": config.drop_path} if config.drop_path else {})}
    try:
        with no_vain_retries(wanted=config.pretrained):
            model = timm.create_model(config.model, pretrained=config.pretrained, num_classes=0, **options)
    except TypeError as error:
        found = f"{config.model} refuses its arguments ({error})"
        raise ConfigError.at(
            f"{where}.create", found, "arguments of that model", "Drop or rename them."
        ) from error
    except Exception as error:
        if not config.pretrained:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = f"no weights of {config.model} ({reason})"
        do = "Set pretrained=false, or fetch them once where there is a network."
        raise CheckpointError.at(f"{where}.pretrained", found, "a network or a cached copy", do) from error
    if keep_head:
        return model, int(getattr(model, "head_hidden_size", None) or model.num_features)
    _drop_head(model)
    return model, int(model.num_features)


def _drop_head(model: Any) -> None:
    """Replace what only the classifier uses, so that every parameter left gets a gradient."""
    parts: list[str] = list(_HEAD_PARTS)
    if getattr(model, "head_hidden_size", model.num_features) != model.num_features:
        parts.append("conv_head")
    for part in parts:
        child = getattr(model, part, None)
        if isinstance(child, nn.Module) and any(True for _ in child.parameters()):
            setattr(model, part, nn.Identity())


@contextmanager
def no_vain_retries(*, wanted: bool) -> Generator[None]:
    """Look only into the cache where the hub cannot be reached; its client would retry for a minute."""
    if not wanted or _hub_answers():
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    from huggingface_hub import constants

    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies():
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=5.0).close()
    except OSError:
        return False
    return True


def _timm(where: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError.at(where, f"{error}", "the package timm", "Run: pip install timm.") from error
    return timm
