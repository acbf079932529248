"""What every teacher is: a frozen model, fed the same raw inputs as the student by its own preprocessing."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from mmzoo import schema
from mmzoo.batch import ModalityInput, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.modalities.taught import View
from mmzoo.models.base import JOINT

Load = Callable[[str], tuple[nn.Module, dict[str, Any]]]
"""From what names a model to the model and what is saved beside it."""


@dataclass(kw_only=True)
class TeacherConfig(schema.Config):
    """What every teacher's options have."""

    view: View = View.SAME
    """what it sees in training: same (the student's augmentation, same random numbers) or clean (none)"""
    inputs: dict[str, str] = field(default_factory=dict[str, str])
    """student's input -> the teacher's that gets the same; not named: that of its name, else of its kind"""


@dataclass(frozen=True)
class Pupil:
    """What a teacher is built for: kinds of the student's inputs, the passes it is asked about, by kind of
    lesson, and how to load a model by name."""

    kinds: Mapping[str, str]
    wanted: Mapping[PredictionKind, tuple[str, ...]]
    load: Load

    @property
    def passes(self) -> tuple[str, ...]:
        """All passes asked about."""
        return tuple(dict.fromkeys(p for own in self.wanted.values() for p in own))


class Teacher(schema.Configurable):
    """Gives, for passes of the student, what its own model makes of the same samples.

    It is no nn.Module: nothing of it is a part of the student, of a checkpoint or of an export. `module` is
    frozen and in evaluation mode. Subclasses set `gives`, make `module` in `build_module`, and give `sources`
    and `features` or `classes`. Random weights are drawn from torch's default generator, which the classroom
    seeds.
    """

    gives: ClassVar[tuple[PredictionKind, ...]]
    module: nn.Module

    def __init__(self, config: Any, *, name: str, pupil: Pupil) -> None:
        """Build the model, freeze it, and find which of its inputs gets which of the student's."""
        self.config, self.name, self.pupil = config, name, pupil
        self.where = f"teachers.{name}"
        for kind in pupil.wanted:
            if kind not in self.gives:
                expected = " or ".join(k.value for k in self.gives)
                raise ConfigError.at(self.where, f"no {kind.value}", expected, "Choose another objective.")
        self.module = self.build_module().eval().requires_grad_(requires_grad=False)
        self.sha256 = sha256_of_weights(self.module)
        self.inputs = self._match()

    def build_module(self) -> nn.Module:
        """Make the model."""
        raise NotImplementedError

    @functools.cached_property
    def sources(self) -> Mapping[str, Any]:
        """Options of the adapters behind its inputs: how each is prepared, what a fake one looks like."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """Say in a few words whose weights these are."""
        raise NotImplementedError

    def features(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Return vectors (k e) for passes; `inputs` go by the student's names, as do `passes`."""
        raise NotImplementedError

    def classes(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Return logits (k classes) for passes, over the classes told to `learn_classes`."""
        raise NotImplementedError

    def learn_classes(self, names: tuple[str, ...]) -> None:
        """Hear the student's class names, in order; raise ConfigError where they are not the teacher's."""
        raise NotImplementedError

    def drop_unused(self) -> None:
        """Drop parts of `module` that no lesson needs; called once the classes are known."""

    def give(
        self, kind: PredictionKind, inputs: Mapping[str, ModalityInput], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Return one kind of lesson for the passes that samples have something of."""
        passes = [p for p in self.pupil.wanted[kind] if any(m in inputs for m in p.split(JOINT))]
        give = self.classes if kind is PredictionKind.CLASSES else self.features
        return give(inputs, passes, ids) if passes else {}

    def width(self, pass_name: str) -> int:
        """Return the width of the vectors of a pass, found by running it once on noise."""
        generator = torch.Generator().manual_seed(0)
        fakes: dict[str, ModalityInput] = {}
        for student in pass_name.split(JOINT):
            options = self.sources[self.inputs[student]]
            owner: Any = type(options).owner
            fakes[student] = owner.fake_input(options, 1, generator)
        with torch.no_grad():
            return self.features(fakes, [pass_name], ("fake",))[pass_name].values.shape[1]

    def num_params(self) -> int:
        """Count its parameters; none of them learns."""
        return sum(p.numel() for p in self.module.parameters())

    def _match(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in self.pupil.passes:
            for student in name.split(JOINT):
                kind = self.pupil.kinds[student]
                alike = [own for own, c in self.sources.items() if type(c).owner.kind == kind]
                own = self.config.inputs.get(student) or (student if student in self.sources else "")
                own = own or next(iter(alike), "")
                if own not in self.sources:
                    expected = f"one of its inputs ({', '.join(self.sources)})"
                    do = "Set passes of the task to what it reads, or take another teacher."
                    raise ConfigError.at(self.where, f"no {own or student} ({kind})", expected, do)
                found[student] = own
        return found


def single(name: str, where: str) -> str:
    """Return the input behind a pass; raise ConfigError where it is a joint one."""
    if JOINT in name:
        found, do = f"no joint pass {name!r}", "Give the task passes of one modality each."
        raise ConfigError.at(where, found, "passes of one input", do)
    return name


def sha256_of_weights(module: nn.Module) -> str:
    """Return a hash of a module's tensors: names, shapes, types and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
