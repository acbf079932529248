"""Who sent what to which expert, as figures for the log and matrices for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmzoo.trunk.moh import MixtureOfHeads
from mmzoo.trunk.router import Router
from mmzoo.trunk.routing_stats import RoutingUse, merge_use, routing_use, whole
from mmzoo.trunk.soft_moe import SoftMoeFeedForward

PREFIX = "routing"
MATRIX = "experts"


def is_routed(model: nn.Module) -> bool:
    """Return whether some part of the model chooses experts or heads."""
    return any(isinstance(part, Router | MixtureOfHeads | SoftMoeFeedForward) for part in model.modules())


class RoutingTracker:
    """Sums of a pass through a split, merged over batches and ranks."""

    def __init__(self) -> None:
        """Start empty."""
        self.use: RoutingUse = {}

    def update(self, stats: Mapping[str, Any]) -> None:
        """Add what a forward left in its stats."""
        self.use = merge_use(self.use, routing_use(stats))

    def merged(self) -> RoutingUse:
        """Return the sums of all ranks; every rank must call it."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self.use
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.use)
        total: RoutingUse = {}
        for part in parts:
            total = merge_use(total, part)
        return total


def figures(use: RoutingUse) -> dict[str, float]:
    """Return `routing/<block>/load_entropy`, `…/entropy`, `…/max_load`, `…/used` (see ExpertUse.figures)."""
    return {
        f"{PREFIX}/{place}/{name}": value
        for place, own in use.items()
        for name, value in whole(own).figures().items()
    }


def step_figures(stats: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of one step, and `routing/<block>/expert<i>`, the share of choices that fell on it;
    where tasks or modalities differ, the entropy of the load of each too.
    """
    use = routing_use(stats)
    found = figures(use)
    for place, own in use.items():
        head = f"{PREFIX}/{place}"
        found |= {f"{head}/expert{i}": share for i, share in enumerate(whole(own).share.tolist())}
        if len(own) > 1:
            found |= {
                f"{head}/{source(*key)}/load_entropy": part.figures()["load_entropy"]
                for key, part in own.items()
            }
    return found


def matrices(use: RoutingUse) -> dict[str, np.ndarray]:
    """Return `routing/<block>/experts`: for each task and modality (rows) the share on each expert."""
    return {
        f"{PREFIX}/{place}/{MATRIX}": torch.stack([part.share for part in own.values()]).numpy()
        for place, own in use.items()
    }


def row_names(use: RoutingUse) -> dict[str, tuple[str, ...]]:
    """Return the names of the rows of each matrix."""
    return {f"{PREFIX}/{place}/{MATRIX}": tuple(source(*key) for key in own) for place, own in use.items()}


def source(task: str, modality: str) -> str:
    """Name where tokens come from: `task/modality`, or the modality where tasks share them."""
    return f"{task}/{modality}" if task else modality
