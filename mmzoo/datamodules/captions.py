"""Sentences made from a class name, so that a labelled data set has text as well."""

from __future__ import annotations

from collections.abc import Sequence

from mmzoo.datamodules.naming import fields_of
from mmzoo.errors import ConfigError

FIELD = "label"


def check_captions(captions: Sequence[str]) -> None:
    """Raise ConfigError where a sentence has no place, or one that nothing fills."""
    for text in captions:
        if fields_of(text) != {FIELD}:
            raise ConfigError.at(
                "captions", repr(text), "a sentence with {label}", "Put {label} for the class."
            )


def write_captions(captions: Sequence[str], label: str) -> tuple[str, ...]:
    """Fill a class name into each sentence; `_` in it reads as a space."""
    return tuple(text.format(label=label.replace("_", " ")) for text in captions)
