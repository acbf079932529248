"""The model: adapters, one trunk, heads. Plain PyTorch, usable without Lightning.

Every modality a task asks for is embedded once; all passes of a step (single modalities and joint sequences
alike) go through the trunk in one packed buffer; each head then reads the passes of its task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, ModalityInput, ModelOutput, Prediction, TokenSequence
from mmzoo.errors import ConfigError, close_matches
from mmzoo.heads.base import Head, PairHead
from mmzoo.heads.masked import Hidden, MaskedHead
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.models.base import JOINT, HeadSpec, ModelConfig, Need, Stage, TaskModel, check_tasks
from mmzoo.models.dense import Maps, build_decoder, decode, is_dense
from mmzoo.models.encoding import Encoding
from mmzoo.models.entries import check_single, spread
from mmzoo.models.finetune.graft import donors, graft
from mmzoo.models.finetune.prepare import prepare
from mmzoo.models.finetune.trunk_init import start_trunk
from mmzoo.models.masked import (
    Students,
    compare,
    draw_students,
    facts_of,
    is_masked,
    mask_generator,
    still_passes,
)
from mmzoo.models.views import Views, repeated, view_faults, with_views
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.packing import lay_out
from mmzoo.trunk.routing_stats import join_stats
from mmzoo.trunk.trunk import Trunk, TrunkOutput

RESERVED = frozenset(dir(nn.ModuleDict()))
"""Names that torch does not let a part of a model have."""


@dataclass(frozen=True)
class Encoded:
    """What the trunk gives by pass; where tasks part in the trunk, by task and pass."""

    shared: Mapping[str, Encoding] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Encoding]] = field(default_factory=dict)
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    hidden: Mapping[str, Hidden] = field(default_factory=dict)

    def of(self, task: str) -> Mapping[str, Encoding]:
        """Return what a task sees."""
        return {**self.shared, **self.by_task.get(task, {})}

    def beside(self, still: Encoded) -> Encoded:
        """Add passes that ran apart, without gradient; their auxiliary losses, which have none either, are
        dropped.
        """
        tasks = {**self.by_task, **still.by_task}
        by_task = {t: {**self.by_task.get(t, {}), **still.by_task.get(t, {})} for t in tasks}
        shared, stats = {**self.shared, **still.shared}, join_stats(self.stats, still.stats)
        return dataclasses.replace(self, shared=shared, by_task=by_task, stats=stats)


@dataclass(frozen=True)
class Passes:
    """What the trunk is to run in a step: the sequences of each pass (hidden ones too), whose they are, which
    passes each task reads, and which need no gradient.
    """

    groups: Mapping[str, Sequence[TokenSequence]]
    owners: Mapping[str, Tensor | None]
    reads: Mapping[str, Sequence[str]]
    hidden: Mapping[str, Hidden]
    still: Sequence[str]


class MultimodalModel(TaskModel):
    """Adapters by modality name, one trunk, heads by task name.

    Shape: a Batch in; out, for each task and pass, a Prediction with one row for each sample that has (part
    of) it.
    """

    embeds = True
    task_parts = ("heads.", "decoder.", "views.")

    @dataclass(kw_only=True)
    class Config(ModelConfig):
        """What the model consists of, and how much of it learns."""

        modalities: dict[str, Any] = schema.many("modalities")
        """input name -> adapter"""
        views: dict[str, str] = field(default_factory=dict)
        """further input of a kind (a second picture) -> modality whose adapter, FFN and norm it shares"""
        trunk: Trunk.Config = field(default_factory=Trunk.Config)
        """the shared self-attention trunk"""
        decoder: Any = schema.maybe("decoders")
        """from feature maps of several depths to one for each dense task; null: no dense task"""
        heads: dict[str, HeadSpec] = field(default_factory=dict)
        """task name -> head; a recipe's tasks add theirs"""

        def __post_init__(self) -> None:
            """Check the names, and that every pass is made of modalities that exist."""
            faults = [
                str(ConfigError.at(where, repr(name), "a name without . or + that torch leaves free", do))
                for where, names in (
                    ("modalities", self.modalities),
                    ("views", self.views),
                    ("heads", self.heads),
                )
                for name in names
                if not name or name in RESERVED or set(name) & {".", JOINT}
                for do in ("Rename it.",)
            ]
            faults += [
                str(
                    ConfigError.at(
                        f"heads.{task}.passes",
                        repr(name),
                        "modalities of the model",
                        close_matches(m, self.inputs),
                    )
                )
                for task, spec in self.heads.items()
                for name in (spec.passes if spec else [])
                for m in name.split(JOINT)
                if m not in self.inputs
            ]
            faults += repeated(self.heads, self.views)
            faults += view_faults(self.views, self.modalities)
            if faults:
                raise ConfigError("\n".join(faults))
            donors(self.modalities)

        @property
        def inputs(self) -> dict[str, Any]:
            """Options of the adapter behind every input, views included."""
            return with_views(self.modalities, self.views)

        def for_tasks(self, needs: Mapping[str, Need]) -> MultimodalModel.Config:
            """Return a copy with exactly the heads that tasks need: theirs, else the model's of that name."""
            heads: dict[str, HeadSpec] = {}
            for name, need in needs.items():
                if need.head is not None:
                    heads[name] = HeadSpec(head=need.head, passes=list(need.passes), target=need.target)
                elif name in self.heads:
                    own = {"passes": list(need.passes), "target": need.target}
                    heads[name] = dataclasses.replace(self.heads[name], **own)
            return dataclasses.replace(self, heads=heads)

    def __init__(self, config: Config) -> None:
        """Build every part from its options."""
        super().__init__()
        if not config.modalities:
            raise ConfigError.at(
                "model.modalities", "none", "at least one modality", "Add modalities: {image: {type: image}}."
            )
        self.config = config
        sizes = {"dim": config.trunk.dim, "num_heads": config.trunk.num_heads}
        self.adapters = nn.ModuleDict({m: c.build(name=m, **sizes) for m, c in config.modalities.items()})
        self.views = Views(config.views, config.trunk.dim)
        self.trunk = Trunk(config.trunk, modalities=tuple(config.modalities), tasks=tuple(config.heads))
        self.passes = {task: tuple(spec.passes) or self.modalities for task, spec in config.heads.items()}
        self.dense = tuple(task for task, spec in config.heads.items() if is_dense(spec.head))
        self.decoder = build_decoder(
            config.decoder, {task: self.passes[task] for task in self.dense}, self.adapters, config.trunk
        )
        self.heads = nn.ModuleDict(
            {
                task: spec.head.build(passes=self.passes[task], **self._context_of(task, spec))
                for task, spec in config.heads.items()
            }
        )
        if config.trunk.init_from:
            start_trunk(self.trunk, config.trunk.init_from)
        prepare(self, config)

    @classmethod
    def resolve(cls, config: Config, info: DataInfo) -> Config:
        """Fill what depends on the data (subjects, numbers of classes) in a copy of the options."""
        modalities = {m: _owner(c).resolve(c, info) for m, c in config.modalities.items()}
        heads = {
            task: dataclasses.replace(spec, head=_owner(spec.head).resolve(spec.head, info, spec.target))
            for task, spec in config.heads.items()
        }
        return dataclasses.replace(config, modalities=modalities, heads=heads)

    @classmethod
    def bare(cls, config: Config) -> Config:
        """Return a copy of the options that fetches no published weights: the model's own are loaded next."""
        modalities = {
            m: dataclasses.replace(c, pretrained=False) if getattr(c, "pretrained", False) else c
            for m, c in config.modalities.items()
        }
        trunk = dataclasses.replace(config.trunk, init_from="")
        return dataclasses.replace(config, modalities=modalities, trunk=trunk)

    def start(self) -> None:
        """Copy the feed-forwards that new modalities start from."""
        graft(self.trunk, donors(self.config.modalities))

    def speed_up(self, *, checkpointing: str, compiled: bool) -> None:
        """Set activation checkpointing and compilation of the trunk's blocks."""
        self.trunk.set_checkpointing(checkpointing)
        if compiled:
            self.trunk.compile_blocks()

    def adapter(self, modality: str) -> ModalityAdapter:
        """Return the adapter of an input; an unknown one gets its close matches."""
        modality = self.config.views.get(modality, modality)
        if modality not in self.adapters:
            do = close_matches(modality, self.config.inputs)
            raise ConfigError.at(
                "model", f"no modality {modality!r}", "one that the model was built with", do
            )
        found = self.adapters[modality]
        if not isinstance(found, ModalityAdapter):
            raise ConfigError.at(
                f"modalities.{modality}", type(found).__name__, "a ModalityAdapter", "Mend the table."
            )
        return found

    def stages(self) -> tuple[Stage, ...]:
        """Return adapters, trunk, decoder and heads."""
        middle = () if self.decoder is None else (Stage(("decoder",)),)
        adapters = Stage(tuple(f"adapters.{m}" for m in self.adapters))
        heads = Stage(tuple(f"heads.{t}" for t in self.heads))
        return (adapters, Stage(("trunk",), chain=True), *middle, heads)

    def watch_tokens(self, seen: Callable[[int], None]) -> Any:
        """Tell `seen` how many real tokens each run of the trunk has."""

        def count(module: nn.Module, inputs: Any, output: TrunkOutput) -> None:
            seen(sum(int(sequence.valid.sum()) for group in output.groups for sequence in group))

        return self.trunk.register_forward_hook(count)

    def fake_batch(self, seed: int) -> Batch:
        """Return one sample that has every modality, each drawn from the seed and its place."""
        rows = {
            name: self.adapter(name).fake_input(config, 1, torch.Generator().manual_seed(seed + at))
            for at, (name, config) in enumerate(self.config.modalities.items())
        }
        return Batch(("fake",), rows)

    def forward(
        self, batch: Batch, tasks: Sequence[str] | None = None, ctx: MixerContext | None = None
    ) -> ModelOutput:
        """Run the passes that the named tasks (default all) need, in one packed buffer.

        A pass that no sample has part of is absent from the predictions.
        """
        chosen = list(self.heads) if tasks is None else list(tasks)
        check_tasks(chosen, self.heads)
        for task in chosen:
            if not getattr(self.heads[task], "takes_several", False):
                check_single(batch, self.passes[task], f"heads.{task}")
        masked, reads = self._reads(chosen)
        encoded = self._encode(batch, _united(reads), ctx, reads, masked)
        dense = {task: encoded.of(task) for task in chosen if task in self.dense}
        decoded = self._decode(batch, dense, ctx)
        predictions: dict[str, dict[str, Prediction]] = {}
        for task in chosen:
            if task in masked:
                hidden = encoded.hidden.get(task, {})
                predictions[task] = compare(masked[task], task, hidden, encoded.of(task))
                continue
            seen = decoded.maps[task] if task in dense else {p: e.joined for p, e in encoded.of(task).items()}
            own = {p: seen[p] for p in self.passes[task] if p in seen}
            head = self.heads[task]
            if isinstance(head, PairHead):
                predictions[task] = head.pair({p: s for p, s in own.items() if isinstance(s, TokenSequence)})
            else:
                predictions[task] = {p: head(s, p) for p, s in own.items()}
        stats = {**encoded.stats, **decoded.stats}
        return ModelOutput(predictions, {**encoded.aux, **decoded.aux}, stats)

    def _reads(self, tasks: Sequence[str]) -> tuple[dict[str, MaskedHead], dict[str, Sequence[str]]]:
        """Return the masked heads among these tasks, and the whole passes that each task reads."""
        masked = {t: h for t in tasks if isinstance(h := self.heads[t], MaskedHead)}
        return masked, {t: masked[t].teachers() if t in masked else self.passes[t] for t in tasks}

    def still_share(self, batch: Batch, tasks: Sequence[str] | None = None) -> float:
        """Return the share of the trunk's FLOPs that a training step spends on passes without gradient."""
        masked, reads = self._reads(list(self.heads) if tasks is None else list(tasks))
        with torch.enable_grad():
            ctx = MixerContext(training=self.training)
            plan = self._plan(batch, _united(reads), ctx, reads, masked)
        if not plan.still:
            return 0.0
        costs = [
            self.trunk.flops(lay_out([plan.groups[p] for p in names], self.trunk.modalities)[0].lengths)
            for names in (plan.still, plan.groups)
        ]
        return costs[0] / max(costs[1], 1)

    def _decode(
        self, batch: Batch, dense: Mapping[str, Mapping[str, Encoding]], ctx: MixerContext | None
    ) -> Maps:
        if self.decoder is None or not dense:
            return Maps({}, {}, {})
        seen = {task: {p: own[p] for p in self.passes[task] if p in own} for task, own in dense.items()}
        sizes = {
            m: (x.values.shape[-2], x.values.shape[-1]) for m, x in batch.inputs.items() if x.values.ndim > 2
        }
        return decode(self.decoder, seen, sizes, ctx.generator if ctx else None)

    def _context_of(self, task: str, spec: HeadSpec) -> dict[str, Any]:
        """Return what the head of a task is built for: its width, and what masked heads know of inputs."""
        dim = self.decoder.width if self.decoder is not None and task in self.dense else self.config.trunk.dim
        return {"dim": dim, "inputs": facts_of(self.adapters)} if is_masked(spec.head) else {"dim": dim}

    def _taps(self) -> tuple[int, ...]:
        return () if self.decoder is None else self.decoder.config.taps_of(self.config.trunk.depth)

    def embedded(self, name: str, x: ModalityInput) -> TokenSequence:
        """Return the adapter's tokens of an input; a view's carry its embedding."""
        return self.views.mark(name, self.adapter(name)(x))

    def tokens(
        self, batch: Batch, passes: Sequence[str] | None = None, task: str | None = None
    ) -> dict[str, TokenSequence]:
        """Return the trunk's final tokens of each pass (default: every modality by itself), as `task` sees
        them where the trunk is routed by task (default: the first one).
        """
        names = tuple(passes or self.modalities)
        chosen = task or next(iter(self.heads), None)
        encoded = self._encode(batch, names, None, {chosen: names} if chosen else {})
        return {p: e.joined for p, e in encoded.of(chosen or "").items()}

    def _encode(
        self,
        batch: Batch,
        passes: tuple[str, ...],
        ctx: MixerContext | None,
        tasks: Mapping[str, Sequence[str]],
        masked: Mapping[str, MaskedHead] | None = None,
    ) -> Encoded:
        """Embed each modality once, then run the passes, those that masked heads hide tokens of too."""
        ctx = ctx or MixerContext(training=self.training)
        plan = self._plan(batch, passes, ctx, tasks, masked or {})
        groups = plan.groups
        encoded = self._run({p: g for p, g in groups.items() if p not in plan.still}, ctx, plan)
        with torch.no_grad():
            apart = dataclasses.replace(ctx, stats={})
            calm = self._run({p: groups[p] for p in plan.still}, apart, plan)
        return dataclasses.replace(encoded.beside(calm), hidden=plan.hidden)

    def _plan(
        self,
        batch: Batch,
        passes: tuple[str, ...],
        ctx: MixerContext,
        tasks: Mapping[str, Sequence[str]],
        masked: Mapping[str, MaskedHead],
    ) -> Passes:
        """Embed each modality once, draw what masked heads hide, say what the trunk is to run."""
        needed = dict.fromkeys(m for p in passes for m in p.split(JOINT))
        for name in needed:
            self.adapter(name)
        embedded = {
            m: self.embedded(m, batch.inputs[m]) for m in needed if m in batch.inputs and len(batch.inputs[m])
        }
        present = {p: [embedded[m] for m in p.split(JOINT) if m in embedded] for p in passes}
        spreads = {p: spread(g, p) for p, g in present.items() if g}
        groups: dict[str, Sequence[TokenSequence]] = {p: s.group for p, s in spreads.items()}
        owners = {p: s.owners for p, s in spreads.items()}
        students = Students()
        if masked:
            adapters = {m: self.adapter(m) for m in embedded}
            generator = mask_generator(batch, ctx.generator, training=self.training)
            students = draw_students(masked, adapters, embedded, batch, generator)
        groups |= {key: list(group) for key, group in students.groups.items()}
        whole = {p for task, own in tasks.items() if task not in masked for p in own}
        still = still_passes(groups, whole | set(students.groups), self.adapters, self.trunk)
        reads = {task: [*own, *students.keys(task)] for task, own in tasks.items()}
        return Passes(groups, owners, reads, students.hidden, still)

    def _run(
        self,
        groups: Mapping[str, Sequence[TokenSequence]],
        ctx: MixerContext,
        plan: Passes,
    ) -> Encoded:
        """Run some passes of a plan through the trunk in one packed buffer."""
        if not groups:
            return Encoded(stats=ctx.stats)
        tasks, owners = plan.reads, plan.owners
        places = {p: i for i, p in enumerate(groups)}
        present = {task: found for task, own in tasks.items() if (found := [p for p in own if p in places])}
        reads = {task: [places[p] for p in own] for task, own in present.items()}
        taps = self._taps() if any(task in self.dense for task in tasks) else ()
        out = self.trunk(list(groups.values()), ctx, taps=taps, tasks=reads)
        if not out.tasks:
            return Encoded(_encodings(groups, out, groups, owners), {}, out.aux, ctx.stats)
        views = {task: _encodings(present[task], view, groups, owners) for task, view in out.tasks.items()}
        return Encoded({}, views, out.aux, ctx.stats)

    def embedding_task(self) -> str:
        """Name the head whose outputs are embeddings."""
        for name, head in self.heads.items():
            if getattr(head, "is_embedding", False):
                return name
        found = ", ".join(self.heads) or "no heads"
        raise ConfigError.at(
            "model", found, "a contrastive head", "Give task=NAME, or train one with such a head."
        )

    @torch.no_grad()
    def encode(self, **raw: Any) -> dict[str, Tensor]:
        """Embed raw inputs by modality: one input, or a list of them, for each name; returns pass -> (k, e).

        Inputs are what each modality's Preprocess takes (a PIL image, a sentence, (waveform, rate), …), or
        file paths. The k-th inputs of all modalities are one sample, which matters to joint passes only.
        """
        task = self.embedding_task()
        names = dict.fromkeys(m for p in self.passes[task] for m in p.split(JOINT))
        inputs: dict[str, ModalityInput] = {}
        size = 0
        for modality, value in raw.items():
            self.adapter(modality)
            if modality not in names:
                do = f"It embeds {', '.join(names)}."
                raise ConfigError.at(
                    "model.encode", f"no embedding of {modality!r}", "a pass of the head", do
                )
            prep = self.config.inputs[modality].preprocess.build()
            values = value if isinstance(value, list) else [value]
            items = [prep(prep.open(v)) for v in values]
            inputs[modality] = ModalityInput.stack(items, torch.arange(len(items)))
            size = max(size, len(items))
        batch = Batch(tuple(str(i) for i in range(size)), inputs).to(self.device)
        training = self.training
        self.eval()
        try:
            found = self.embed(batch, task)
        finally:
            self.train(training)
        return {p: prediction.values for p, prediction in found.items()}

    def parts(self) -> dict[str, nn.Module]:
        """Return `modalities.x`, `views`, `trunk`, `decoder` and `heads.y`."""
        parts: dict[str, nn.Module] = {f"modalities.{m}": a for m, a in self.adapters.items()}
        if self.views:
            parts["views"] = self.views
        parts["trunk"] = self.trunk
        if self.decoder is not None:
            parts["decoder"] = self.decoder
        return parts | {f"heads.{t}": h for t, h in self.heads.items()}


def _united(reads: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return every pass that some task reads, once."""
    return tuple(dict.fromkeys(p for own in reads.values() for p in own))


def _encodings(
    passes: Iterable[str],
    out: TrunkOutput,
    given: Mapping[str, Sequence[TokenSequence]],
    owners: Mapping[str, Tensor | None],
) -> dict[str, Encoding]:
    """Put together, for each pass, its final sequences, those of each tap, and the maps that came along."""
    found: dict[str, Encoding] = {}
    for i, p in enumerate(passes):
        maps = next((s.levels for s in given[p] if s.levels), ())
        taps = [groups[i] for groups in out.taps.values()]
        found[p] = Encoding(p, out.groups[i], taps, maps, owners.get(p))
    return found


def _owner(config: Any) -> Any:
    owner = type(config).owner
    if owner is None or not issubclass(owner, ModalityAdapter | Head):
        raise ConfigError.at(
            "model", type(config).__qualname__, "options of an adapter or head", "Mend the table."
        )
    return owner
