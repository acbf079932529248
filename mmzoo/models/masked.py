"""Passes with hidden tokens beside whole ones: what a masked head wants run, and what needs no gradient.

Every modality is embedded once a step. A hidden pass takes the visible tokens of those embeddings, with their
positions and biases; whole passes that only teach, and passes in which nothing learns, run without gradient.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from mmzoo import schema
from mmzoo.batch import Batch, Prediction, TokenSequence
from mmzoo.heads.masked import Hidden, InputFacts, MaskedHead
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.models.encoding import Encoding

JOINT = "+"


@dataclass(frozen=True)
class Students:
    """The hidden passes of a step: what each task hides, and the visible tokens by `key_of`(task, pass)."""

    hidden: Mapping[str, Hidden] = field(default_factory=dict)
    groups: Mapping[str, Sequence[TokenSequence]] = field(default_factory=dict)

    def keys(self, task: str) -> list[str]:
        """Name a task's hidden passes."""
        return [key_of(task, p) for p in self.hidden.get(task, {})]


def key_of(task: str, pass_name: str) -> str:
    """Name a pass as a task hides it."""
    return f"{task}:{pass_name}"


def is_masked(head: schema.Config) -> bool:
    """Say whether options are those of a masked head."""
    owner = type(head).owner
    return owner is not None and issubclass(owner, MaskedHead)


def facts_of(adapters: nn.ModuleDict) -> dict[str, InputFacts]:
    """Return what masked heads know of the modalities."""
    found = {m: a for m, a in adapters.items() if isinstance(a, ModalityAdapter)}
    return {m: InputFacts(a.kind, a.extent) for m, a in found.items()}


def mask_generator(batch: Batch, given: torch.Generator | None, *, training: bool) -> torch.Generator:
    """Return the generator that masks are drawn from, on the host.

    In training it is seeded from `given`, else from torch's default generator, which the learner seeds for
    each batch; in evaluation from the samples' ids, so that a batch is always hidden alike.
    """
    if not training:
        return torch.Generator().manual_seed(zlib.crc32("\n".join(batch.ids).encode()))
    place = given.device if given is not None else torch.device("cpu")
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=given, device=place)))


def draw_students(
    heads: Mapping[str, MaskedHead],
    adapters: Mapping[str, ModalityAdapter],
    embedded: Mapping[str, TokenSequence],
    batch: Batch,
    generator: torch.Generator,
) -> Students:
    """Draw what every masked head hides, and take the visible tokens."""
    what = {m: adapters[m].maskable(batch.inputs[m], s) for m, s in embedded.items()}
    hidden = {task: head.draw(what, generator) for task, head in heads.items()}
    return Students(
        hidden,
        {
            key_of(task, p): [adapters[m].hide(embedded[m], own) for m, own in parts.items()]
            for task, passes in hidden.items()
            for p, parts in passes.items()
        },
    )


def compare(
    head: MaskedHead, task: str, hidden: Hidden, seen: Mapping[str, Encoding]
) -> dict[str, Prediction]:
    """Hand the trunk's tokens of hidden and whole passes to a masked head."""
    students = {p: seen[key_of(task, p)].sequences for p in hidden}
    teachers = {p: seen[p].sequences for p in head.teachers() if p in seen}
    return head.compare(students, teachers, hidden)


def still_passes(
    groups: Mapping[str, Sequence[TokenSequence]],
    wanted: Iterable[str],
    adapters: nn.ModuleDict,
    trunk: nn.Module,
) -> list[str]:
    """Return the passes of `groups` that need no gradient: not among the `wanted`, or nothing in them learns.

    Why: one buffer with and without gradient would compute the gradient of all of it.
    """
    if not torch.is_grad_enabled():
        return []
    keep = set(wanted)
    return [name for name, own in groups.items() if name not in keep or not _learns(own, adapters, trunk)]


def _learns(group: Sequence[TokenSequence], adapters: nn.ModuleDict, trunk: nn.Module) -> bool:
    """Say whether a pass meets a parameter that learns; it never meets what other modalities own.

    A view goes by the modality whose parts it shares; its own embedding shows in its tokens.
    """
    own = {s.modality for s in group}
    others = set(adapters) - own
    if any(s.tokens.requires_grad for s in group):
        return True
    if any(p.requires_grad for m in own if m in adapters for p in adapters[m].parameters()):
        return True
    return any(p.requires_grad and not others & set(n.split(".")) for n, p in trunk.named_parameters())
