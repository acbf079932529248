"""One raw input prepared several times: as the student reads it, and as each of its teachers does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_augment import ImageAugment


class View(str, Enum):
    """What a teacher sees in training where the student sees an augmented input."""

    SAME = "same"
    """the same augmentation, drawn with the same random numbers"""
    CLEAN = "clean"
    """the whole input, as in evaluation"""


class Taught(Preprocess):
    """The student's Preprocess, with what teachers want made of the same raw input put `beside` its Item.

    Why: a teacher's weights expect a size, filter and normalisation of their own, and what it says must be
    about what the student sees. Each teacher with `View.SAME` draws from a generator in the state that the
    student's Preprocess found; the student's own inputs are the same with and without teachers.
    """

    def __init__(
        self, student: Preprocess, teachers: Mapping[str, Preprocess], views: Mapping[str, View]
    ) -> None:
        """Keep the Preprocess of the student and those of its teachers, by name."""
        self.student, self.teachers, self.views = student, dict(teachers), dict(views)
        self.reads_paths = student.reads_paths  # pyright: ignore[reportAttributeAccessIssue] of the instance

    @property
    def core(self) -> Preprocess:
        """The student's own."""
        return self.student.core

    def decode(self, data: bytes, name: str) -> Any:
        """Read a file once, for all."""
        return self.student.decode(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Prepare the student's Item and those beside it."""
        state = generator.get_state() if generator is not None else None
        item = self.student(raw, generator=generator)
        beside: dict[str, Item] = {}
        for name, preprocess in self.teachers.items():
            own = None
            if state is not None and self.views[name] is View.SAME:
                own = torch.Generator()
                own.set_state(state)
            beside[name] = preprocess(raw, generator=own)
        return dataclasses.replace(item, beside=beside)

    def check_boxes(self) -> None:
        """Raise ConfigError where boxes cannot follow what happens to the student's input."""
        self.student.check_boxes()

    def place_boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
        """Return where boxes lie in the student's input."""
        return self.student.place_boxes(boxes, size)


def in_step(teacher: schema.Config, student: schema.Config) -> schema.Config:
    """Return a teacher's options of preprocessing with the student's augmentation in place of its own.

    Parts cut out, flips and changes of colour are then the same for both. Shifts (`pad_crop`) are scaled to
    the teacher's size; where the sizes differ, so do the shifts. Nothing is erased of what the teacher sees.
    """
    mine, theirs = getattr(teacher, "augment", None), getattr(student, "augment", None)
    if mine is None or type(mine) is not type(theirs):
        return teacher
    if isinstance(theirs, ImageAugment):
        pad = round(theirs.pad_crop * _side(teacher) / _side(student)) if theirs.pad_crop else 0
        theirs = dataclasses.replace(theirs, pad_crop=pad, erase_prob=0.0)
    return dataclasses.replace(teacher, augment=theirs)  # pyright: ignore[reportCallIssue] it has the field


def _side(options: Any) -> int:
    """Return the height that pictures get (pixels), read from the weights' record where it is left open."""
    return (options.filled() if hasattr(options, "filled") else options).size[0]
