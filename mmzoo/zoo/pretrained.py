"""`model=ARCH.TAG`: a preset with a checkpoint's weights; and which frozen weights nobody has trained."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from mmzoo import configs
from mmzoo.checkpoints import cards
from mmzoo.checkpoints.loading import LoadReport
from mmzoo.compose import parse_override
from mmzoo.errors import ConfigError
from mmzoo.models.base import TaskModel
from mmzoo.models.finetune.freeze import THAW
from mmzoo.models.finetune.graft import donors
from mmzoo.models.finetune.lora import is_factor
from mmzoo.models.finetune.parts import select, summarise
from mmzoo.models.multimodal import MultimodalModel

log = logging.getLogger(__name__)
KEY = "model"
SHOWN = 4
"""Frozen parts named before the rest is counted."""


def expand(overrides: Sequence[str]) -> tuple[list[str], cards.Card | None]:
    """Write out `model=ARCH.TAG` as its preset and where its weights are; return its card, None without one.

    Both stand first, so that every other override has the last word. A bare preset keeps random weights.
    """
    rest: list[str] = []
    card: cards.Card | None = None
    for text in overrides:
        mark, key, value = parse_override(text)
        named = _card_of(value) if key == KEY and not mark and isinstance(value, str) else None
        card = named or card
        if named is None:
            rest.append(text)
    return ([f"{KEY}={card.arch}", f"init_from={card.name}", *rest] if card else rest), card


def advised(overrides: Sequence[str], card: cards.Card, used: Sequence[str]) -> list[str]:
    """Add what a card recommends to recipes that read one modality alone, behind what `expand` put first."""
    advice = card.fine_tune.get(used[0], []) if len(used) == 1 else []
    if advice:
        log.info("%s recommends for %s: %s", card.name, used[0], " ".join(advice))
    return [*overrides[:2], *advice, *overrides[2:]]


def _card_of(value: str) -> cards.Card | None:
    """Return the checkpoint that a value of `model` names, None where it names a preset or a file."""
    arch, dot, _ = value.partition(".")
    presets = configs.list_configs("model")
    if not dot or value in presets or value.endswith((".yaml", ".yml")):
        return None
    if arch not in {card.arch for card in cards.cards().values()} and not cards.is_known(value):
        return None
    card = cards.find(value)
    if card.arch not in presets:
        do = f"Choose a model=PRESET that it fits, and init_from={card.name}."
        raise ConfigError.at(KEY, f"{card.name}, of whose architecture there is no preset", "another", do)
    return card


def used_only(config: MultimodalModel.Config, used: Sequence[str]) -> MultimodalModel.Config:
    """Return a model's options without the modalities that no task reads, by themselves or through a view."""
    views = {view: modality for view, modality in config.views.items() if view in used}
    modalities = {m: c for m, c in config.modalities.items() if m in used or m in views.values()}
    return dataclasses.replace(config, modalities=modalities, views=views, heads={})


def anew(model: TaskModel, started: LoadReport | None) -> list[str]:
    """Name the parts of a model that weights were given for, but not for these."""
    if started is None:
        return []
    able = {name for name, _ in model.named_parameters()}
    fresh = {name for name in {*started.missing, *started.reshaped} & able if not is_factor(name)}
    copied = set(donors(model.config.modalities))
    return summarise(model, [n for n in fresh if not (n.startswith("trunk.") and copied & set(n.split(".")))])


def untrained(model: TaskModel, started: LoadReport | None) -> list[str]:
    """Name the parts that `model.freeze` or LoRA keeps at the random weights which they were born with."""
    config = model.config
    taken = {*started.loaded, *started.resized, *started.copied} if started else set[str]()
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    if not config.lora.rank:
        entries = [entry for entry in config.freeze if not entry.startswith(THAW)]
        names &= {name for entry in entries for name in select(model, entry, "model.freeze")}
    born = [m for m, c in config.modalities.items() if getattr(c, "pretrained", False)]
    trunk_from = getattr(getattr(config, "trunk", None), "init_from", "")
    published = tuple(f"adapters.{m}." for m in born) + (("trunk.",) if trunk_from else ())
    copied = set(donors(config.modalities))
    return summarise(
        model,
        [n for n in names - taken if not n.startswith(published) and not copied & set(n.split("."))],
    )


def warn(model: TaskModel, started: LoadReport | None) -> None:
    """Say in one line where frozen parts hold random weights, and what to write for trained ones."""
    if parts := untrained(model, started):
        shipped = [card.name for card in cards.cards().values() if card.shipped]
        example = f", such as model={shipped[0]}" if shipped else ""
        cure = f"start from weights with init_from=RUN or model=ARCH.TAG{example}"
        more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
        frozen = ", ".join(parts[:SHOWN]) + more
        log.warning("model.freeze: random weights that never learn (%s); %s", frozen, cure)
