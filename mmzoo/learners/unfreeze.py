"""Gradual unfreezing: heads learn at once, the trunk's blocks one after another from the last one down."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.param_groups import layer_ids
from mmzoo.models.finetune.freeze import learning
from mmzoo.models.finetune.parts import select, summarise

log = logging.getLogger(__name__)


class Unit(str, Enum):
    """What `every` counts."""

    STEPS = "steps"
    EPOCHS = "epochs"


@dataclass(kw_only=True)
class UnfreezeConfig(schema.Config):
    """When which part begins to learn."""

    every: int = 0
    """steps (or epochs) until the next part begins to learn; 0: all learn at once"""
    unit: Unit = Unit.STEPS
    """what `every` counts: optimiser steps or epochs"""
    stages: list[list[str]] = field(default_factory=list)
    """parts that begin to learn at every, 2 every, …; what none names learns at once. Empty: the blocks from
    the last to the first, then the adapters"""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.every < 0:
            raise ConfigError.at("unfreeze.every", str(self.every), "0 (off) or more", "Try 100.")
        if self.stages and not self.every:
            do = "Set learner.unfreeze.every=100."
            raise ConfigError.at("unfreeze.stages", "stages, but every is 0", "when they begin", do)


class Unfreezing:
    """The parameters that wait, and when their turn comes. Parts frozen by `model.freeze` stay frozen.

    Why: a fresh head sends noise into a pretrained trunk at first. The optimiser holds all parameters from
    the start and skips those without a gradient; only `requires_grad` changes, so a resumed run finds
    its stage from its step.
    Ref: Howard and Ruder 2018 (ULMFiT), section 3.3.
    """

    def __init__(self, config: UnfreezeConfig, model: nn.Module) -> None:
        """List the stages of the parameters that learn."""
        self.config, self.model = config, model
        self.stages: list[list[str]] = []
        self.open: int | None = None
        if not config.every:
            return
        able = learning(model)
        if config.stages:
            where = "learner.unfreeze.stages"
            chosen = [[n for part in stage for n in select(model, part, where)] for stage in config.stages]
        else:
            layers, last = layer_ids(model)
            chosen = [[n for n in able if layers[n] == layer] for layer in reversed(range(last))]
        seen: set[str] = set()
        for names in chosen:
            fresh = [n for n in dict.fromkeys(names) if n in able and n not in seen]
            seen |= set(fresh)
            if fresh:
                self.stages.append(fresh)

    def num_open(self, step: int, epoch: int) -> int:
        """Return how many stages have begun to learn."""
        if not self.config.every:
            return len(self.stages)
        count = step if self.config.unit is Unit.STEPS else epoch
        return min(len(self.stages), count // self.config.every)

    def update(self, step: int, epoch: int) -> bool:
        """Bring the parameters to where they must be at a step; say whether anything changed."""
        now = self.num_open(step, epoch)
        if not self.stages or now == self.open:
            return False
        parameters = dict(self.model.named_parameters())
        for at, names in enumerate(self.stages):
            for name in names:
                parameters[name].requires_grad_(at < now)
        fresh = self.stages[max(0, now - 1) : now]
        said = ", ".join(summarise(self.model, fresh[0])) if fresh else "heads and final norms"
        log.info("unfreezing: step %d, stage %d of %d: %s", step, now, len(self.stages), said)
        self.open = now
        return True

    def plan(self) -> list[tuple[int, list[str]]]:
        """Return when (in `unit`) which parts begin to learn."""
        every = self.config.every
        return [((at + 1) * every, summarise(self.model, names)) for at, names in enumerate(self.stages)]
