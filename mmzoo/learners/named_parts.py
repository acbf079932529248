"""Checks, before any data are read, that the parts of the model which a recipe's options name exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmzoo.batch import DataInfo
from mmzoo.errors import ConfigError, MmzooError, close_matches
from mmzoo.learners.balance.base import GradientBalancer
from mmzoo.learners.tasks import TaskConfig, with_heads
from mmzoo.models.base import HeadSpec, ModelConfig
from mmzoo.models.finetune.freeze import THAW
from mmzoo.models.finetune.lora import LoraConfig
from mmzoo.models.finetune.parts import known_parts, select

SUBJECTS = "subjects"
"""Word before the name of a scanned subject, which only data know."""
SUBJECT = "NAME"
SOME_CLASSES, SOME_VOXELS = 2, 8


def check_parts(model: Any, tasks: Mapping[str, TaskConfig], learner: Any, fresh: Sequence[str] = ()) -> None:
    """Raise one ConfigError that lists every option naming a part that the model will not have.

    Why: a wrong name should not wait for the data to be read. The model is built on the meta device, so that
    the largest costs neither memory nor random numbers; classes and subjects, which data bring, are stood in
    for.
    """
    whole = with_heads(model, tasks)
    named = {**_named(model, learner), "init_fresh": list(fresh)}
    shared = _shared(learner)
    if not any(named.values()) and not model.lora.rank and not shared:
        return
    built, faults = _outline(whole, named)
    faults += [fault for where, parts in named.items() for fault in _missing(built, parts, where)]
    faults += _no_beginnings(built, shared)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _named(model: ModelConfig, learner: Any) -> dict[str, list[str]]:
    """Return option -> the parts it names."""
    optim, unfreeze = getattr(learner, "optim", None), getattr(learner, "unfreeze", None)
    return {
        "model.freeze": [entry.removeprefix(THAW) for entry in model.freeze],
        "learner.optim.lr_scales": list(optim.lr_scales) if optim else [],
        "learner.unfreeze.stages": [p for stage in unfreeze.stages for p in stage] if unfreeze else [],
    }


def _shared(learner: Any) -> list[str]:
    """Return the beginnings of names whose gradients will be compared, if any will."""
    balancer = getattr(type(getattr(learner, "balance", None)), "owner", None)
    compares = isinstance(balancer, type) and issubclass(balancer, GradientBalancer)
    return list(learner.shared) if compares or getattr(learner, "cosine_every", 0) else []


def _outline(whole: Any, named: Mapping[str, Iterable[str]]) -> tuple[nn.Module, list[str]]:
    """Return the model without storage, and what is wrong with the targets of its low-rank factors."""
    words = [part.split(".") for parts in named.values() for part in parts]
    subjects = {w[i + 1]: SOME_VOXELS for w in words for i in range(len(w) - 1) if w[i] == SUBJECTS}
    info = DataInfo(_labels(whole.heads), subjects or {SUBJECT: SOME_VOXELS})
    owner: Any = type(whole).owner
    options = dataclasses.replace(owner.bare(owner.resolve(whole, info)), freeze=[])
    try:
        return _on_meta(options), []
    except MmzooError as error:
        if not options.lora.rank:
            raise
        return _on_meta(dataclasses.replace(options, lora=LoraConfig())), str(error).splitlines()


def _on_meta(options: ModelConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return options.build()


def _labels(heads: Mapping[str, HeadSpec]) -> dict[str, tuple[str, ...]]:
    """Return class names that suit the heads which leave their number to the data."""
    sizes: dict[str, int] = {}
    for spec in heads.values():
        given = getattr(spec.head, "num_classes", 0) or getattr(spec.head, "num_channels", 0)
        sizes[spec.target] = given or sizes.get(spec.target, SOME_CLASSES)
    return {target: tuple(map(str, range(size))) for target, size in sizes.items() if target}


def _missing(model: nn.Module, parts: Iterable[str], where: str) -> list[str]:
    faults: list[str] = []
    for part in parts:
        try:
            select(model, part, where)
        except ConfigError as error:  # noqa: PERF203 all faults at once
            faults.append(str(error))
    return faults


def _no_beginnings(model: nn.Module, prefixes: Iterable[str]) -> list[str]:
    names = [f"{name}." for name, _ in model.named_parameters()]
    known = known_parts(model)
    return [
        str(ConfigError.at("learner.shared", f"no parameter under {prefix!r}", "some", do))
        for prefix in prefixes
        if not any(name.startswith(f"{prefix}.") for name in names)
        for do in (close_matches(prefix, known),)
    ]
