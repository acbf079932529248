"""The part of a routed model that one task uses: its head, its gates, and the experts its tokens choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmzoo.batch import Batch
from mmzoo.errors import ConfigError, close_matches
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.block import Block
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.router import TopKConfig
from mmzoo.trunk.routers import ModalityRouter
from mmzoo.trunk.routing_stats import RoutingUse, merge_use, routing_use, whole


@torch.no_grad()
def measure_use(model: MultimodalModel, batches: Iterable[Batch], task: str) -> RoutingUse:
    """Return how often the tokens of a task choose each expert over some batches, in evaluation mode."""
    if task not in model.heads:
        raise ConfigError.at(
            "task", f"no head {task!r}", "one of the model's", close_matches(task, model.heads)
        )
    training, use = model.training, RoutingUse()
    model.eval()
    try:
        for batch in batches:
            context = MixerContext()
            model(batch.to(model.device), [task], context)
            use = merge_use(use, routing_use(context.stats))
    finally:
        model.train(training)
    return use


def extract_submodel(
    model: MultimodalModel, task: str, use: RoutingUse, *, min_share: float = 0.0
) -> MultimodalModel:
    """Return the model of one task, in evaluation mode: experts that less than `min_share` of its choices
    fall on are left out, but never so many that top_k of them are missing.

    Math: with min_share 0 only experts never chosen go; outputs on the batches that `use` was measured on
    then stay (weights `full` divide by experts that are gone: use `renormalised`, or `straight_through`).
    All blocks keep as many experts as the block that needs most, since they share their options.
    Ref: Mod-Squad, section 3.4 (pruning to one task).
    """
    kept = kept_experts(model, use, min_share)
    count = len(next(iter(kept.values())))
    heads = {task: model.config.heads[task]}
    ffn = dataclasses.replace(model.config.trunk.ffn, num_experts=count)
    trunk = dataclasses.replace(model.config.trunk, ffn=ffn)
    options = dataclasses.replace(model.config, trunk=trunk, heads=heads)
    made = MultimodalModel(MultimodalModel.bare(options))
    state = _cut(model.state_dict(), kept)
    if "trunk.task_embedding.fc1.weight" in state:
        place = list(model.heads).index(task)
        state["trunk.task_embedding.fc1.weight"] = state["trunk.task_embedding.fc1.weight"][
            :, place : place + 1
        ]
    names = set(made.state_dict())
    made.load_state_dict({k: v for k, v in state.items() if k in names}, strict=True)
    return made.eval()


def kept_experts(model: MultimodalModel, use: RoutingUse, min_share: float = 0.0) -> dict[int, list[int]]:
    """Return for each routed block the experts that `extract_submodel` keeps, ascending; all blocks keep
    equally many.
    """
    config = model.config.trunk.ffn
    if not isinstance(config, MoeFeedForward.Config) or not isinstance(config.router, TopKConfig):
        found = type(config).__qualname__
        raise ConfigError.at(
            "model.trunk.ffn", found, "moe with a router that has top_k", "Nothing to leave out."
        )
    if isinstance(config.router, ModalityRouter.Config):
        do = "Choose topk, task_topk or task_embedding."
        raise ConfigError.at("model.trunk.ffn.router", "modality", "a router without fixed experts", do)
    shares: dict[int, Tensor] = {}
    for layer, block in enumerate(model.trunk.blocks):
        if isinstance(block, Block) and isinstance(block.ffn, MoeFeedForward):
            if str(layer) not in use:
                do = "Measure it with measure_use on this model."
                raise ConfigError.at("use", f"nothing of block {layer}", "the use of every routed block", do)
            shares[layer] = whole(use[str(layer)]).share
    if not shares:
        raise ConfigError.at("model.trunk", "no block with experts", "one or more", "Nothing to leave out.")
    wanted = [int(((s >= min_share) & (s > 0)).sum()) for s in shares.values()]
    count = max(config.router.chosen, *wanted)
    return {layer: sorted(s.topk(count).indices.tolist()) for layer, s in shares.items()}


def _cut(state: Mapping[str, Any], kept: Mapping[int, list[int]]) -> dict[str, Tensor]:
    made = dict(state)
    for layer, experts in kept.items():
        index = torch.tensor(experts)
        for part in ("experts.", "router."):
            prefix = f"trunk.blocks.{layer}.ffn.{part}"
            for name in [k for k in made if k.startswith(prefix)]:
                made[name] = made[name].index_select(0, index.to(made[name].device))
    return made
