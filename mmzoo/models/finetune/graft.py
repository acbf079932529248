"""Grafting: a modality that the pretrained trunk never saw starts from another one's feed-forwards."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmzoo.errors import ConfigError, close_matches
from mmzoo.models.finetune.lora import is_factor
from mmzoo.trunk.routers import ModalityRouter

log = logging.getLogger(__name__)
NEW = "new"
_COPY = re.compile(r"copy\(\s*([^()\s]+)\s*\)")


def donors(modalities: Mapping[str, Any]) -> dict[str, str]:
    """Return modality -> the one whose feed-forwards it starts from, as the options `ffn` say; check them."""
    found: dict[str, str] = {}
    faults: list[str] = []
    for name, options in modalities.items():
        text = getattr(options, "ffn", NEW)
        if text == NEW:
            continue
        match, where = _COPY.fullmatch(text), f"modalities.{name}.ffn"
        if match is None:
            do = close_matches(text, [NEW, *(f"copy({m})" for m in modalities if m != name)])
            faults.append(str(ConfigError.at(where, repr(text), "new or copy(MODALITY)", do)))
        elif match[1] not in modalities:
            do = close_matches(match[1], [m for m in modalities if m != name])
            faults.append(str(ConfigError.at(where, repr(match[1]), "a modality of the model", do)))
        elif match[1] == name or getattr(modalities[match[1]], "ffn", NEW) != NEW:
            expected = "a modality with weights of its own"
            do = f"Set modalities.{match[1]}.ffn=new, or copy another."
            faults.append(str(ConfigError.at(where, repr(text), expected, do)))
        else:
            found[name] = match[1]
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def graft(trunk: nn.Module, pairs: Mapping[str, str]) -> dict[str, list[str]]:
    """Copy all that the trunk keeps for the second modality of each pair into the first one's place.

    That is the feed-forward of every block that has one for each modality, and the final norm; a trunk
    without such a block is refused, and so is one whose router gives experts out by modality.
    Returns the names of the tensors written.
    """
    state, written = trunk.state_dict(), dict[str, list[str]]()
    by_router = any(isinstance(module, ModalityRouter) for module in trunk.modules())
    for new, old in pairs.items():
        names = [n for n in state if old in n.split(".") and not is_factor(n)]
        copies = {_renamed(n, old, new): n for n in names}
        copies = {to: n for to, n in copies.items() if to in state and state[to].shape == state[n].shape}
        if by_router or not any(".ffn." in to for to in copies):
            found = f"the trunk keeps no feed-forward apart for {old!r}"
            found += ", its router gives out experts" if by_router else ""
            do = "Use trunk.ffn.type=modality, or leave ffn=new."
            raise ConfigError.at(f"modalities.{new}.ffn", found, "a feed-forward for each modality", do)
        with torch.no_grad():
            for to, name in copies.items():
                state[to].copy_(state[name])
        written[new] = sorted(copies)
        log.info(
            "graft: feed-forwards and norm of %s start as %s's (%d tensors)",
            new,
            old,
            len(copies),
        )
    return written


def _renamed(name: str, old: str, new: str) -> str:
    return ".".join(new if word == old else word for word in name.split("."))
