"""Views: further inputs of a modality (a second picture) that share its adapter, feed-forward and norm.

What sets a view apart is one learned vector, added to all its tokens; it starts at zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError, close_matches
from mmzoo.models.base import JOINT, HeadSpec


class Views(nn.ParameterDict):
    """The vector of each view, by its name. Shape: tokens b n d in, b n d out."""

    def __init__(self, names: Mapping[str, str], dim: int) -> None:
        """Start every view of `names` (view -> modality) as its modality is."""
        super().__init__({view: nn.Parameter(torch.zeros(1, 1, dim)) for view in names})

    def mark(self, name: str, sequence: TokenSequence) -> TokenSequence:
        """Return the tokens of an input with the vector of its view, where it is one."""
        if name not in self:
            return sequence
        return dataclasses.replace(sequence, tokens=sequence.tokens + self[name])


def with_views(modalities: Mapping[str, Any], views: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of the adapter behind every input: of modalities, then of their views."""
    return {**modalities, **{view: modalities.get(m) for view, m in views.items()}}


def view_faults(views: Mapping[str, str], modalities: Mapping[str, Any]) -> list[str]:
    """Return a line for each view of what is no modality, or of a modality's own name."""
    return [
        str(ConfigError.at(f"views.{view}", repr(m), "another modality of the model", do))
        for view, m in views.items()
        if m not in modalities or view in modalities
        for do in (close_matches(m, modalities),)
    ]


def repeated(heads: Mapping[str, HeadSpec], views: Mapping[str, str]) -> list[str]:
    """Return a line for each pass that joins a modality with itself or with a view of it."""
    faults: list[str] = []
    for task, spec in heads.items():
        for name in spec.passes if spec else []:
            words = name.split(JOINT)
            if len({views.get(m, m) for m in words}) < len(words):
                where, do = f"heads.{task}.passes", f"Make them passes of their own: [{', '.join(words)}]."
                faults.append(
                    str(ConfigError.at(where, repr(name), "each modality once, views included", do))
                )
    return faults
