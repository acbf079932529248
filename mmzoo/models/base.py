"""What every model is: options that say what it reads and predicts, a Batch in, predictions by task and pass
out.

`MultimodalModel` (adapters, trunk, heads) is the default; a model with a body of its own, such as M3Net, is
another row of the `architectures` table. Recipe, learners, zoo and commands ask no more of a model than this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, ModelOutput, Prediction
from mmzoo.errors import ConfigError, close_matches
from mmzoo.modalities.base import Preprocess
from mmzoo.models.finetune.freeze import settle
from mmzoo.models.finetune.prepare import FineTuneConfig
from mmzoo.trunk.base import MixerContext

JOINT = "+"
"""Joins the modalities of a joint pass: `image+text`."""


@dataclass(kw_only=True)
class HeadSpec(schema.Config):
    """One head of the model and what it reads."""

    head: Any = schema.one("heads")
    """the head"""
    passes: list[str] = field(default_factory=list)
    """passes it reads: modality names, or several joined by +; empty: every modality by itself"""
    target: str = ""
    """label whose classes it predicts; empty: none"""


@dataclass(frozen=True)
class Need:
    """What a task of a recipe asks of a model: a head (None: the model's own of that name), the passes that
    it reads and the label that it predicts."""

    head: Any
    passes: tuple[str, ...]
    target: str


@dataclass(kw_only=True)
class ModelConfig(FineTuneConfig):
    """What the options of every model have.

    Each gives `modalities`, `inputs` and `heads`, fields or properties: name -> options. Those of a modality
    or input (inputs are the modalities and further inputs of a kind) have `preprocess`, those of a head are a
    HeadSpec.
    """

    @property
    def default_passes(self) -> tuple[str, ...]:
        """What a task reads that names no passes."""
        return tuple(self.modalities)  # pyright: ignore[reportAttributeAccessIssue] every subclass has it

    def for_tasks(self, needs: Mapping[str, Need]) -> Any:
        """Return a copy with exactly the heads that a recipe's tasks need; a head that is not there is left
        out."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stage:
    """Parts of a model that work side by side, for the count of FLOPs: names of submodules.

    `chain`: what learns within a part also sends gradients through what follows in it.
    """

    parts: tuple[str, ...]
    chain: bool = False


class TaskModel(nn.Module, schema.Configurable, ABC):
    """A plain module. Shape: a Batch in; out, for each task and pass, a Prediction with one row for each
    sample that has what the pass needs.

    `passes` says which passes each task reads. Subclasses nest a Config(ModelConfig), call `prepare` of
    fine-tuning at the end of their constructor, and give what is abstract here.
    """

    config: Any
    passes: Mapping[str, tuple[str, ...]]
    embeds: ClassVar[bool] = False
    """Whether heads of it can give embeddings."""
    task_parts: tuple[str, ...] = ("heads.",)
    """Beginnings of the names of tensors that belong to a task: they may start anew, or go, with its head."""

    @abstractmethod
    def forward(
        self, batch: Batch, tasks: Sequence[str] | None = None, ctx: MixerContext | None = None
    ) -> ModelOutput:
        """Predict the named tasks (default all); a pass that no sample has is absent."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the parts in the order in which data pass them."""

    @abstractmethod
    def watch_tokens(self, seen: Callable[[int], None]) -> Any:
        """Tell `seen` after each run how many real tokens there were; `remove()` of the result ends it."""

    def still_share(self, batch: Batch, tasks: Sequence[str] | None = None) -> float:
        """Return the share of the chain stage's FLOPs that a training step spends on what needs no
        gradient.
        """
        del batch, tasks
        return 0.0

    @abstractmethod
    def fake_batch(self, seed: int) -> Batch:
        """Return one random sample that has every modality, on the CPU."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts whose parameters are counted, by the name that users know."""

    @classmethod
    def resolve(cls, config: Any, info: DataInfo) -> Any:
        """Fill what depends on the data (subjects, numbers of classes) in a copy of the options."""
        del info
        return config

    @classmethod
    def bare(cls, config: Any) -> Any:
        """Return a copy of the options that fetches no published weights: the model's own are loaded next."""
        return config

    def start(self) -> None:
        """Take the start from other parts that the options ask for, once weights are loaded; default none."""

    def speed_up(self, *, checkpointing: str, compiled: bool) -> None:
        """Set activation checkpointing (none, block, ffn) and compilation; default: refuse both."""
        found = ["checkpointing"] * (checkpointing != "none") + ["compile"] * compiled
        if found:
            name = type(self).__name__
            where, do = f"trainer.{found[0]}", "Leave it out."
            raise ConfigError.at(where, f"{name} has no trunk", "a model with a trunk", do)

    def train(self, mode: bool = True) -> TaskModel:  # noqa: FBT001, FBT002 torch's signature
        """Set the mode; parts that learn nothing stay in evaluation mode."""
        super().train(mode)
        if mode:
            settle(self)
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the inputs the model takes."""
        return tuple(self.config.modalities)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def preprocesses(self) -> dict[str, Preprocess]:
        """Build the Preprocess of every input."""
        return {m: c.preprocess.build() for m, c in self.config.inputs.items()}

    def num_params(self, trainable_only: bool = False) -> dict[str, int]:  # noqa: FBT001, FBT002 a filter, not an algorithm
        """Count parameters by part, and in `total`."""
        counts = {
            name: sum(p.numel() for p in part.parameters() if p.requires_grad or not trainable_only)
            for name, part in self.parts().items()
        }
        return {**counts, "total": sum(counts.values())}

    def embedding_task(self) -> str:
        """Name the head whose outputs are embeddings."""
        found = f"{type(self).__name__}, whose heads give none"
        raise ConfigError.at("model", found, "a model that embeds its inputs", "Choose another model.")

    def embed(self, batch: Batch, task: str | None = None) -> dict[str, Prediction]:
        """Return the output vectors of each pass: of the named head, else of the first that embeds."""
        name = task or self.embedding_task()
        return dict(self(batch, [name]).predictions[name])

    def encode(self, **raw: Any) -> dict[str, Tensor]:
        """Embed raw inputs by modality: pass -> (k, e)."""
        del raw
        self.embedding_task()
        raise NotImplementedError


def check_tasks(tasks: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for a task that the model has no head for, with its close matches."""
    names = list(known)
    for task in tasks:
        if task not in names:
            do = close_matches(task, names)
            raise ConfigError.at("model", f"no head {task!r}", "one that the model was built with", do)


def owner_of(options: Any) -> type[TaskModel]:
    """Return the class of models that options belong to."""
    owner = type(options).owner
    if owner is None or not issubclass(owner, TaskModel):
        do = "Mend the architectures table."
        raise ConfigError.at("model", type(options).__qualname__, "options of a model", do)
    return owner
