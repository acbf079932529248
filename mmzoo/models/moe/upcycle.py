"""A dense model into one with experts that computes the same at the start (sparse upcycling).

Every expert is a copy of the network it replaces and the weights of the chosen ones sum to 1, so the sum over
them is that network; training then pulls them apart, through their gates and what they are given.
Ref: Komatsuzaki et al. 2022, section 3; here exact at step 0, since weights are renormalised
(with top_k 1 straight_through, which train the router too).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmzoo import registry, schema
from mmzoo.errors import ConfigError, close_matches
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.trunk.block import Block
from mmzoo.trunk.experts import Experts
from mmzoo.trunk.feed_forward import Mlp, MlpConfig, ModalityFeedForward, SharedFeedForward
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.router import GateWeights, TopKConfig

STACKED = {
    "w_in": "w_in.weight",
    "b_in": "w_in.bias",
    "norm_weight": "norm.weight",
    "norm_bias": "norm.bias",
    "w_out": "w_out.weight",
    "b_out": "w_out.bias",
}
"""Weights of the experts -> those of the network that each copies."""


@dataclass(kw_only=True)
class UpcycleConfig(schema.Config):
    """How many experts, and who chooses: `experts=8,top_k=2` on the command line."""

    experts: int = 8
    """copies of each network: of the one FFN, or of each modality's"""
    top_k: int = 2
    """experts a token"""
    every: int = 1
    """blocks from one that gets experts to the next"""
    router: str = ""
    """row of the routers table; empty: modality for modality FFNs (a token only meets copies of its own),
    else topk"""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.top_k <= self.experts or self.every < 1:
            found = f"experts={self.experts}, top_k={self.top_k}, every={self.every}"
            raise ConfigError.at("upcycle", found, "1 <= top_k <= experts, every >= 1", "Change them.")


def parse_options(text: str) -> UpcycleConfig:
    """Read `experts=8,top_k=2`."""
    names = [f.name for f in dataclasses.fields(UpcycleConfig)]
    tree: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in names:
            do = close_matches(name, names)
            raise ConfigError.at("upcycle", repr(part), f"NAME=VALUE, NAME one of {', '.join(names)}", do)
        tree[name] = int(value) if value.isdigit() else value
    return schema.parse(UpcycleConfig, tree, "upcycle")


def upcycle(model: MultimodalModel, config: UpcycleConfig) -> MultimodalModel:
    """Return a copy of `model` with experts, in evaluation mode; its outputs are those of `model`."""
    trunk = model.config.trunk
    if config.every > trunk.depth:
        found, expected = f"{config.every} for a trunk of {trunk.depth} blocks", "at most its depth"
        raise ConfigError.at("upcycle.every", found, expected, "Lower it.")
    ffn = _feed_forward(trunk.ffn, config, model)
    options = dataclasses.replace(model.config, trunk=dataclasses.replace(trunk, ffn=ffn))
    made = MultimodalModel(MultimodalModel.bare(options))
    state = dict(model.state_dict())
    for layer, block in enumerate(_blocks(model)):
        new = _blocks(made)[layer].ffn
        if isinstance(new, MoeFeedForward):
            prefix = f"trunk.blocks.{layer}.ffn."
            state = {k: v for k, v in state.items() if not k.startswith(prefix)}
            own = {f"experts.{k}": v for k, v in _stacked(block, new, model.modalities).items()}
            own |= {f"router.{k}": v for k, v in new.router.state_dict().items()}
            state |= {prefix + k: v for k, v in own.items()}
    fresh = {k: v for k, v in made.state_dict().items() if k.startswith("trunk.task_embedding.")}
    made.load_state_dict({**fresh, **state}, strict=True)
    return made.eval()


def _feed_forward(old: Any, config: UpcycleConfig, model: MultimodalModel) -> MoeFeedForward.Config:
    owner = type(old).owner
    if owner not in (ModalityFeedForward, SharedFeedForward):
        found = registry.name_of("feed_forwards", owner) if owner else type(old).__qualname__
        do = "It is routed already, or has a network of its own kind."
        raise ConfigError.at("upcycle", f"feed-forward {found}", "modality or shared", do)
    by_modality = owner is ModalityFeedForward
    name = config.router or ("modality" if by_modality else "topk")
    if by_modality != (name == "modality") and len(model.modalities) > 1:
        do = "Leave router out."
        expected = "modality for modality FFNs, another one else"
        raise ConfigError.at("upcycle.router", name, expected, do)
    router = registry.find("routers", name, "upcycle.router").Config()
    if not isinstance(router, TopKConfig):
        raise ConfigError.at("upcycle.router", name, "a router with top_k", "Choose topk or task_topk.")
    weights = GateWeights.RENORMALISED if config.top_k > 1 else GateWeights.STRAIGHT_THROUGH
    router = dataclasses.replace(router, top_k=config.top_k, weights=weights)
    network = {f.name: getattr(old, f.name) for f in dataclasses.fields(MlpConfig)}
    count = config.experts * (len(model.modalities) if by_modality else 1)
    return MoeFeedForward.Config(**network, num_experts=count, router=router, every=config.every, dense=old)


def _stacked(block: Block, new: MoeFeedForward, modalities: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the experts' weights: as many copies of each network as make their number."""
    old = block.ffn
    networks = (
        [old.networks[m] for m in modalities] if isinstance(old, ModalityFeedForward) else [old.network]
    )
    states = [network.state_dict() for network in networks if isinstance(network, Mlp)]
    copies = new.config.num_experts // len(states)
    names = dict(Experts.state_dict(new.experts))
    return {
        ours: torch.cat([state[theirs][None].expand(copies, *state[theirs].shape) for state in states])
        for ours, theirs in STACKED.items()
        if ours in names
    }


def _blocks(model: MultimodalModel) -> list[Block]:
    return [block for block in model.trunk.blocks if isinstance(block, Block)]
