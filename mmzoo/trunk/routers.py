"""The rows of the routers table: who chooses experts by what. Axis letters as in router.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError, ShapeError, close_matches
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.router import Gate, Router, Routing, TopKConfig, decide, route


class TopKRouter(Router):
    """The experts of largest softmax probability, by the token alone. Weights: `gate.weight` (e, d).

    Ref: Shazeer et al. 2017; Fedus et al. 2021 (Switch).
    """

    @dataclass(kw_only=True)
    class Config(TopKConfig):
        """How experts are chosen."""

    def make(self) -> None:
        """Make the gate."""
        self.gate = Gate(self.dim, self.num_experts, self.config)

    def forward(self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext) -> Routing:
        """Decide by the token."""
        del seq
        return self.gate(x, ctx)


class TaskTopKRouter(Router):
    """One gate a task over shared experts. Weights: `gates.<task>.weight` (e, d).

    Ref: M3ViT section 3.2 (multi-gate); Mod-Squad section 3.
    """

    task_dependent = True

    @dataclass(kw_only=True)
    class Config(TopKConfig):
        """How experts are chosen."""

    def make(self) -> None:
        """Make a gate for each task."""
        _need_tasks("task_topk", self.tasks)
        self.gates = nn.ModuleDict(
            {task: Gate(self.dim, self.num_experts, self.config) for task in self.tasks}
        )

    def forward(self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext) -> Routing:
        """Decide by the token, each task's copies with its own gate."""
        logits: list[Tensor] = []
        stds: list[Tensor | None] = []
        for task, rows in task_rows(x, seq, ctx):
            gate = self.gates[task]
            if not isinstance(gate, Gate):
                raise ConfigError.at("router", type(gate).__name__, "a Gate", "Mend gates.")
            logits.append(gate.logits(rows))
            stds.append(gate.noise_std(rows) if ctx.training else None)
        known = [std for std in stds if std is not None]
        return decide(torch.cat(logits), torch.cat(known) if known else None, self.config, ctx)


class TaskEmbeddingRouter(Router):
    """One gate for all tasks reads the token and a vector of the task. Weights: `gate.weight` (e, d + m).

    The vectors, LN(W2 gelu(W1 onehot(task))), are the trunk's, made once a forward for all its blocks.
    Ref: M3ViT section 3.2 (task-conditioned gate).
    """

    task_dependent = True

    @dataclass(kw_only=True)
    class Config(TopKConfig):
        """How experts are chosen."""

        task_dim: int = 64
        """width m of a task's vector; the same in all blocks"""

        def __post_init__(self) -> None:
            """Check the width."""
            super().__post_init__()
            if self.task_dim < 1:
                raise ConfigError.at("router.task_dim", str(self.task_dim), "at least 1", "Raise it.")

    def make(self) -> None:
        """Make the gate."""
        _need_tasks("task_embedding", self.tasks)
        self.task_dim = self.config.task_dim
        self.gate = Gate(self.dim + self.task_dim, self.num_experts, self.config)

    def forward(self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext) -> Routing:
        """Decide by the token and the vector of its task."""
        parts: list[Tensor] = []
        for task, rows in task_rows(x, seq, ctx):
            if task not in ctx.task_vectors:
                do = close_matches(task, ctx.task_vectors)
                raise ConfigError.at("router", f"no vector of task {task!r}", "one from the trunk", do)
            vector = ctx.task_vectors[task].to(rows.dtype)
            parts.append(torch.cat([rows, vector.expand(rows.shape[0], -1)], dim=1))
        return self.gate(torch.cat(parts), ctx)


class ModalityRouter(Router):
    """Top-k among the experts that a token's modality may use. Weights: `gate.weight` (e, d).

    Why: with as many experts as modalities and top_k 1 this is the modality FFN; more experts can belong to
    one modality, or be shared between some. Ref: VLMo and ONE-PEACE for the first case.
    """

    @dataclass(kw_only=True)
    class Config(TopKConfig):
        """How experts are chosen."""

        experts: dict[str, list[int]] = field(default_factory=dict)
        """modality -> experts it may use; a modality left out has an equal share of its own, and all share
        what is left over"""

    def make(self) -> None:
        """Make the gate and say who may use what."""
        if not self.modalities:
            do = "Choose topk, task_topk or task_embedding."
            raise ConfigError.at("router modality", "a mixer", "a feed-forward", do)
        self.gate = Gate(self.dim, self.num_experts, self.config)
        self.allowed = self._allowed()
        self._forbidden: dict[torch.device, Tensor] = {}

    def _allowed(self) -> dict[str, tuple[int, ...]]:
        for name in self.config.experts:
            if name not in self.modalities:
                do = close_matches(name, self.modalities)
                raise ConfigError.at(f"router.experts.{name}", "no such modality", "one of the model's", do)
        each = self.num_experts // len(self.modalities)
        shared = range(each * len(self.modalities), self.num_experts)
        allowed: dict[str, tuple[int, ...]] = {}
        for i, name in enumerate(self.modalities):
            if not each and name not in self.config.experts:
                found = f"no share of {self.num_experts} experts for {len(self.modalities)} modalities"
                expected = "experts of its own, or a list of those it may use"
                do = f"Raise num_experts, or set router.experts.{name}."
                raise ConfigError.at(f"router.experts.{name}", found, expected, do)
            own = self.config.experts.get(name, [*range(i * each, (i + 1) * each), *shared])
            if len(set(own)) < self.config.chosen or not set(own) <= set(range(self.num_experts)):
                found = f"{own} of {self.num_experts} experts, top_k {self.config.chosen}"
                expected = f"at least {self.config.chosen} of 0 to {self.num_experts - 1}"
                do = "Give more experts, or lower router.top_k."
                raise ConfigError.at(f"router.experts.{name}", found, expected, do)
            allowed[name] = tuple(sorted(set(own)))
        return allowed

    def forward(self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext) -> Routing:
        """Decide by the token, among its modality's experts."""
        mask = self._mask(x.device)
        rows = [mask[self.modalities.index(m)].expand(b - a, -1) for m, (a, b) in seq.modality_slices.items()]
        logits = self.gate.logits(x).masked_fill(torch.cat(rows), -torch.inf)
        return decide(logits, self.gate.noise_std(x) if ctx.training else None, self.config, ctx)

    @property
    def num_choices(self) -> int:
        """Return the largest number of experts that a modality may use."""
        return max(map(len, self.allowed.values()))

    def _mask(self, device: torch.device) -> Bool[Tensor, "m e"]:
        """Return True where a modality may not use an expert."""
        if device not in self._forbidden:
            own = [[e not in self.allowed[m] for e in range(self.num_experts)] for m in self.modalities]
            self._forbidden[device] = torch.tensor(own, device=device)
        return self._forbidden[device]


class SoftRouter(Router):
    """Every expert for every token, weighted by softmax: nothing is left out, every expert costs.

    Weights: `gate.weight` (e, d). Ref: Jacobs et al. 1991.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """It has no options."""

    def make(self) -> None:
        """Make the gate."""
        self.choice = TopKConfig(top_k=self.num_experts)
        self.gate = Gate(self.dim, self.num_experts, self.choice)

    def forward(self, x: Float[Tensor, "t d"], *, seq: SeqInfo, ctx: MixerContext) -> Routing:
        """Weight all experts by the token."""
        del seq, ctx
        return route(self.gate.logits(x), self.choice)


class TaskEmbedding(nn.Module):
    """A vector a task: LN(W2 gelu(W1 onehot(task) + b1) + b2).

    Weights: `fc1.*` (m, tasks), `fc2.*` (m, m), `norm.*`.
    Ref: M3ViT section 3.2; the LayerNorm's epsilon is 1e-6 in its code.
    """

    def __init__(self, tasks: tuple[str, ...], width: int) -> None:
        """Make the two layers."""
        super().__init__()
        self.tasks = tasks
        self.fc1 = nn.Linear(len(tasks), width)
        self.fc2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self) -> dict[str, Float[Tensor, " m"]]:
        """Return the vector of every task."""
        h = nn.functional.gelu(self.fc1.weight.t() + self.fc1.bias)
        return dict(zip(self.tasks, self.norm(self.fc2(h)).unbind(0), strict=True))


def task_rows(
    x: Float[Tensor, "t d"], seq: SeqInfo, ctx: MixerContext
) -> list[tuple[str, Float[Tensor, "r d"]]]:
    """Cut the rows by task, in order: the plan says whose they are, or the context's task has them all."""
    if seq.task_spans:
        return [(task, x[start:end]) for task, start, end in seq.task_spans]
    if ctx.task is None:
        do = "Run it inside a trunk with tasks=…, or set ctx.task."
        raise ShapeError.at("router", "tokens that belong to no task", "a plan with task_spans", do)
    return [(ctx.task, x)]


def _need_tasks(router: str, tasks: tuple[str, ...]) -> None:
    if not tasks:
        do = "Give the model tasks (heads), or choose router topk."
        raise ConfigError.at("trunk.ffn.router", f"{router} in a model without tasks", "tasks", do)
