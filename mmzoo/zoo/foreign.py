"""Weights in other people's layouts: looked into without being read, and turned into ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo import __version__
from mmzoo.checkpoints.archives import open_archive
from mmzoo.checkpoints.cards import Layout
from mmzoo.checkpoints.download import Check
from mmzoo.errors import CheckpointError
from mmzoo.models.m3vit.edge_moe import EdgeMoeWeights, is_edge_moe, open_edge_moe
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.onepeace import interop
from mmzoo.models.onepeace.weights import OnePeaceWeights, open_onepeace
from mmzoo.zoo import starting

log = logging.getLogger(__name__)
OURS = {interop.Layout.FULL: Layout.ONEPEACE, interop.Layout.VISION: Layout.ONEPEACE_VISION}


def checks(layout: Layout) -> dict[str, Check]:
    """Return the look that a fetched file of a layout must stand before it gets its name."""
    if layout in OURS.values():
        return {"layout": _OnePeace(layout)}
    return {} if layout is Layout.MMZOO else {"tensors": _check_tensors}


def count_onepeace(path: Path, layout: Layout | None = None) -> int:
    """Compare every name and shape with the model that the file describes; return how many there are.

    Nothing is read but the file's table, and the model is built on the meta device.
    """
    weights = open_onepeace(path)
    found = OURS[_layout(weights)]
    if layout not in (None, found):
        do = "Check the address."
        raise CheckpointError.at(str(path), f"the layout {found.value}", f"{layout.value}", do)
    with torch.device("meta"):
        model = MultimodalModel(MultimodalModel.bare(weights.options()))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = {name: weights.shape(name) for name in weights.keys()}  # noqa: SIM118 no mapping
    odd = sorted({name for name, _ in held.items() ^ wanted.items()})
    if odd:
        said = f"{len(odd)} tensors missing, left over or of another shape ({', '.join(odd[:3])})"
        raise CheckpointError.at(str(path), said, "exactly the model's tensors", "Fetch it again.")
    return len(held)


ForeignWeights = OnePeaceWeights | EdgeMoeWeights


def is_folder(path: Path) -> bool:
    """Say whether a folder holds weights of another program."""
    return is_edge_moe(path)


def open_weights(path: Path, *, allow_partial: bool = False) -> ForeignWeights:
    """Open what another program wrote, a file or a folder; refuse what no map knows, and what lacks files
    unless `allow_partial`.
    """
    if not path.is_dir():
        return open_onepeace(path)
    found = open_edge_moe(path)
    if not allow_partial:
        found.require_all()
    return found


def read_folder(path: Path, *, allow_partial: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights of a folder; what it lacks starts anew, from the same numbers each time."""
    weights = open_weights(path, allow_partial=allow_partial)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MultimodalModel(weights.options())
    for line in weights.lines():
        log.warning("%s: %s", path, line)
    starting.start(model, weights, str(path), allow_partial=allow_partial)
    return _config(model.config), model.state_dict()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights, under our names, of a file in another layout; refuse what no map knows."""
    weights = open_onepeace(path)
    return _config(weights.options()), {name: weights.read(name) for name in weights.keys()}  # noqa: SIM118 no mapping


def _config(options: MultimodalModel.Config) -> dict[str, Any]:
    return {
        "architecture": "MultimodalModel",
        "mmzoo_version": __version__,
        "modalities": list(options.modalities),
        "model": options.to_dict(),
        "preprocessing": {m: c.preprocess.to_dict() for m, c in options.modalities.items()},
        "labels": {},
        "subjects": {},
        "recipe": None,
    }


def as_onepeace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's weights with the names, and the buffers, that the reference loads."""
    layout = interop.Layout.FULL
    if not any(name.startswith(("adapters.text.", "adapters.audio.", "trunk.norm.")) for name in state):
        layout = interop.Layout.VISION
    made = interop.to_onepeace(state, layout)
    return {**made, **interop.buffers(made)}


@dataclass(frozen=True)
class _OnePeace:
    layout: Layout

    def __call__(self, path: Path) -> None:
        count_onepeace(path, self.layout)


def _layout(weights: OnePeaceWeights) -> interop.Layout:
    found = interop.layout_of(weights.archive.keys())
    return found or interop.Layout.FULL


def _check_tensors(path: Path) -> None:
    """Let through what can be opened and holds tensors; the model around them is not one of ours."""
    open_archive(path)
