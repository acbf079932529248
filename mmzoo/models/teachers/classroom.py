"""All teachers of a run: builds them, has their inputs prepared, and puts what they give into each batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmzoo.batch import Batch, ModalityInput, PredictionKind, Target, beside_name, lesson_name
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.heads.projection import ProjectionHead
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.taught import Taught, View, in_step
from mmzoo.models.teachers.base import Load, Pupil, Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What a task asks of a teacher: a kind of lesson for some passes, and the head and label it is for."""

    task: str
    teacher: str
    kind: PredictionKind
    passes: tuple[str, ...]
    head: str
    target: str


class Classroom:
    """Teachers by name, and what tasks ask of them.

    In a batch their inputs are named `image@teacher`; what they give becomes labels (`lesson_name`), with a
    row for each sample that has the pass. A sample that lacks it is thereby left out of the loss.
    """

    def __init__(
        self, configs: Mapping[str, Any], wishes: Sequence[Wish], inputs: Mapping[str, Any], load: Load
    ):
        """Build the teachers that are asked; `inputs` are the options of the student's adapters.

        Torch's random numbers are left as they were, so that the student starts alike with and without them.
        """
        self.wishes, self.options = tuple(wishes), inputs
        self.kinds = {m: getattr(type(c).owner, "kind", "") for m, c in inputs.items()}
        self.teachers: dict[str, Teacher] = {}
        for name in dict.fromkeys(w.teacher for w in wishes):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(getattr(configs[name], "seed", 0))
                pupil = Pupil(self.kinds, self._wanted(name), load)
                teacher: Teacher = configs[name].build(name=name, pupil=pupil)
            say = log.warning if "random weights" in teacher.source else log.info
            say("teacher %s: %s, sha256 %s…", name, teacher.source, teacher.sha256[:12])
            self.teachers[name] = teacher

    def __bool__(self) -> bool:
        """Say whether anybody teaches."""
        return bool(self.teachers)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the student's inputs that teachers read."""
        return tuple(dict.fromkeys(m for t in self.teachers.values() for m in t.inputs))

    def beside(self, own: Mapping[str, Preprocess]) -> dict[str, Preprocess]:
        """Return the student's Preprocess of each input, with those of its teachers beside it."""
        made = dict(own)
        for m in self.inputs:
            readers = {n: t for n, t in self.teachers.items() if m in t.inputs}
            views: dict[str, View] = {n: t.config.view for n, t in readers.items()}
            student = self.options[m].preprocess
            theirs: dict[str, Preprocess] = {}
            for name, teacher in readers.items():
                options = teacher.sources[teacher.inputs[m]].preprocess
                theirs[name] = (in_step(options, student) if views[name] is View.SAME else options).build()
            made[m] = Taught(own.get(m) or student.build(), theirs, views)
        return made

    def fitted(self, options: Any) -> Any:
        """Return the model's options with every projection as wide as what it is compared with."""
        if not self.wishes:
            return options
        heads = dict(options.heads)
        wide = [w for w in self.wishes if isinstance(heads[w.head].head, ProjectionHead.Config)]
        for wish in wide:
            head: ProjectionHead.Config = heads[wish.head].head
            widths = {p: self.teachers[wish.teacher].width(p) for p in wish.passes}
            if len({*widths.values(), *([head.embed_dim] if head.embed_dim else [])}) > 1:
                given = ", ".join(f"{p} {n}" for p, n in widths.items())
                found = f"{head.embed_dim} wide" if head.embed_dim else f"several widths ({given})"
                do = "Leave it at 0, or give each width a task of its own."
                where = f"tasks.{wish.head}.head.embed_dim"
                raise ConfigError.at(where, found, f"the teacher's width ({given})", do)
            fitted = dataclasses.replace(head, embed_dim=next(iter(widths.values())))
            heads[wish.head] = dataclasses.replace(heads[wish.head], head=fitted)
        return dataclasses.replace(options, heads=heads) if wide else options

    def learn_classes(self, labels: Mapping[str, tuple[str, ...]]) -> None:
        """Tell teachers the class names that they are to give logits of; then drop what nobody needs."""
        for name, teacher in self.teachers.items():
            targets = {
                w.target for w in self.wishes if w.teacher == name and w.kind is PredictionKind.CLASSES
            }
            if len(targets) > 1:
                found, do = (
                    f"asked for the classes of {', '.join(sorted(targets))}",
                    "Name it twice, once for each.",
                )
                raise ConfigError.at(f"teachers.{name}", found, "one label", do)
            for target in targets:
                if target not in labels:
                    found = f"asked for classes of {target!r}, which the data do not name"
                    do = "Set the target of the head's task."
                    raise ConfigError.at(f"teachers.{name}", found, "a label with class names", do)
                teacher.learn_classes(labels[target])
            teacher.drop_unused()

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """Return the batch with what the teachers give for it as further labels."""
        given: dict[str, Target] = {}
        for name in self.teachers:
            given |= self.lessons(name, batch)
        return dataclasses.replace(batch, targets={**batch.targets, **given}) if given else batch

    def lessons(self, name: str, batch: Batch) -> dict[str, Target]:
        """Return what one teacher gives for a batch, as labels."""
        teacher, found = self.teachers[name], dict[str, Target]()
        inputs = self._inputs(teacher, batch)
        for kind in teacher.pupil.wanted:
            for pass_name, given in teacher.give(kind, inputs, batch.ids).items():
                values = given.values.detach().float()
                found[lesson_name(name, kind, pass_name)] = Target(values, given.index)
        return found

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return what is recorded beside a run's weights: who teaches, and a hash of their weights."""
        return {
            name: {
                "source": teacher.source,
                "sha256": teacher.sha256,
                "gives": {kind.value: list(passes) for kind, passes in teacher.pupil.wanted.items()},
            }
            for name, teacher in self.teachers.items()
        }

    def check_same(self, saved: Mapping[str, Any]) -> None:
        """Raise CheckpointError where a run resumes with teachers of other weights than it began with."""
        for name, teacher in self.teachers.items():
            before = saved.get(name, {}).get("sha256")
            if before != teacher.sha256:
                found = f"weights {teacher.sha256[:12]}… ({teacher.source})"
                expected = (
                    f"those the run began with ({before[:12]}…)" if before else "a teacher from the start"
                )
                do = "Restore the teacher's weights, or start a new run."
                raise CheckpointError.at(f"teachers.{name}", found, expected, do)

    def _wanted(self, name: str) -> dict[PredictionKind, tuple[str, ...]]:
        mine = [w for w in self.wishes if w.teacher == name]
        return {
            kind: tuple(dict.fromkeys(p for w in mine if w.kind is kind for p in w.passes))
            for kind in dict.fromkeys(w.kind for w in mine)
        }

    def _inputs(self, teacher: Teacher, batch: Batch) -> dict[str, ModalityInput]:
        """Return what a teacher reads, by the student's names, with the teacher on the batch's device."""
        found: dict[str, ModalityInput] = {}
        for m in teacher.inputs:
            name = beside_name(m, teacher.name)
            if name in batch.inputs:
                found[m] = batch.inputs[name]
            elif m in batch.inputs:
                do = "Use data that prepare each input by itself: dense labels and scenes do not."
                raise ConfigError.at(teacher.where, f"{m} without {name} in the batch", "both", do)
        if found:
            device = next(iter(found.values())).values.device
            if next(teacher.module.parameters()).device != device:
                teacher.module.to(device)
        return found
