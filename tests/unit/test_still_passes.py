"""Passes without gradient (teachers of masked heads): their routing counts, their FLOPs count once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, ModalityInput
from mmzoo.learners import meter
from mmzoo.learners.routing import is_routed
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.trunk.packing import lay_out
from mmzoo.trunk.routing_stats import RoutingRecords, join_stats, routing_use, whole

FFNS: dict[str, dict[str, Any]] = {
    "dense": {"type": "modality", "hidden_dim": 24},
    "moe": {"type": "moe", "num_experts": 4, "hidden_dim": 8},
    "soft_moe": {"type": "soft_moe", "num_experts": 3, "hidden_dim": 8},
}


def build(ffn: str, *, teachers: bool = True) -> MultimodalModel:
    tree: dict[str, Any] = {
        "modalities": {
            "image": {"type": "image", "patch_size": 8, "preprocess": {"size": [32, 32]}},
            "text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 20}},
        },
        "trunk": {"dim": 16, "depth": 2, "num_heads": 2, "ffn": FFNS[ffn]},
        "heads": {"align": {"head": "contrastive", "passes": ["image", "text"]}},
    }
    if teachers:
        head = {"type": "denoise", "decoder": {"dim": 8, "depth": 1, "num_heads": 2}}
        tree["heads"]["denoise"] = {"head": head, "passes": ["image", "text", "text+image"]}
        tree["heads"]["align"]["passes"] = ["text"]
    torch.manual_seed(0)
    return MultimodalModel(MultimodalModel.resolve(schema.parse(MultimodalModel.Config, tree), DataInfo()))


def batch(model: MultimodalModel) -> Batch:
    """Make four samples, three of them with a picture."""
    adapter = model.adapter("image")
    options = model.config.modalities["image"]
    pictures = adapter.fake_input(options, 3, torch.Generator().manual_seed(0))
    words = [model.preprocesses()["text"](line) for line in ("a red ball", "rain", "two dogs run", "x y")]
    return Batch(
        tuple("abcd"),
        {
            "image": dataclasses.replace(pictures, index=torch.tensor([0, 1, 3])),
            "text": ModalityInput.stack(words, torch.arange(4)),
        },
    )


def runs_of(model: MultimodalModel, given: Batch) -> dict[bool, list[int]]:
    """Return the lengths that a step runs through the trunk, with gradient (True) and without."""
    found: dict[bool, list[int]] = {}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        found[torch.is_grad_enabled()] = lay_out(inputs[0], model.trunk.modalities)[0].lengths

    hook = model.trunk.register_forward_hook(keep)
    model(given)
    hook.remove()
    return found


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("teachers", [True, False])
def test_the_trunk_costs_three_times_with_gradient_and_once_without(ffn: str, *, teachers: bool):
    model = build(ffn, teachers=teachers).eval()
    given = batch(model)
    runs = runs_of(model, given)
    assert set(runs) == ({True, False} if teachers else {True})
    parts = meter.forward_flops(model, lambda: model(given))
    total = model.trunk.flops([n for own in runs.values() for n in own])
    share = model.trunk.flops(runs.get(False, [])) / total
    assert model.still_share(given) == pytest.approx(share)
    once = parts["trunk"] * share
    adapters = 2 * sum(flops for name, flops in parts.items() if name.startswith("adapters."))
    heads = 3 * sum(flops for name, flops in parts.items() if name.startswith("heads."))
    found, tokens = meter.step_cost(model, given)
    assert found == pytest.approx(adapters + heads + 3 * (parts["trunk"] - once) + once)
    assert tokens == sum(sum(own) for own in runs.values())
    assert (once > 0) == teachers


def test_the_share_is_exact_for_a_dense_trunk():
    model = build("dense").eval()
    given = batch(model)
    runs = runs_of(model, given)
    parts = meter.forward_flops(model, lambda: model(given))
    assert parts["trunk"] == model.trunk.flops(runs[True]) + model.trunk.flops(runs[False])


@pytest.mark.parametrize("ffn", ["moe", "soft_moe"])
def test_choices_of_both_kinds_of_passes_are_in_the_figures(ffn: str):
    model = build(ffn).eval()
    given = batch(model)
    assert is_routed(model)
    runs = runs_of(model, given)
    output = model(given)
    use = routing_use(output.stats)
    assert set(use) == {"0", "1"}
    for own in use.values():
        assert whole(own).tokens == sum(sum(lengths) for lengths in runs.values())


def test_other_stats_keep_the_first():
    model = build("moe").eval()
    record = model(batch(model)).stats["0/routing"]
    assert isinstance(record, RoutingRecords)
    joined = join_stats({"a": 1, "0/routing": record}, {"a": 2, "b": 3, "0/routing": record.parts[0]})
    assert (joined["a"], joined["b"]) == (1, 3)
    assert len(joined["0/routing"].parts) == 3
