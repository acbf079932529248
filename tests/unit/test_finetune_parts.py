"""Parts of a model by name, freezing, and the modes of what is frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.models.finetune.freeze import learning
from mmzoo.models.finetune.parts import select, summarise
from mmzoo.models.multimodal import MultimodalModel

TREE = {
    "modalities": {
        "image": {"type": "image", "preprocess": {"size": [32, 32]}, "position_grid": 2, "bias_grid": 2},
        "text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 8}, "max_positions": 12},
    },
    "trunk": {"dim": 16, "depth": 3, "num_heads": 2, "drop_path_prob": 0.3, "ffn": {"hidden_dim": 16}},
    "heads": {"align": {"head": {"type": "contrastive"}}},
}


def build(**options: object) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(schema.parse(MultimodalModel.Config, {**TREE, **options}))


def names(model: nn.Module, *words: str) -> set[str]:
    """Return the parameters whose dotted name holds all words."""
    return {n for n, _ in model.named_parameters() if set(words) <= set(n.split("."))}


def test_parts_mean_what_they_say():
    model = build()
    every = {n for n, _ in model.named_parameters()}
    blocks = {i: {n for n in every if n.startswith(f"trunk.blocks.{i}.")} for i in range(3)}
    norms = {n for n in every if ".norm" in n}
    expected = {
        "trunk": {n for n in every if n.startswith("trunk.")},
        "trunk.blocks.0-1": blocks[0] | blocks[1],
        "trunk.blocks.2": blocks[2],
        "modalities.text": {n for n in every if n.startswith("adapters.text.")},
        "adapters.text": {n for n in every if n.startswith("adapters.text.")},
        "heads.align": {n for n in every if n.startswith("heads.")},
        "trunk.ffn.image": names(model, "ffn", "networks", "image"),
        "trunk.blocks.0-1.ffn.image": names(model, "ffn", "image") & (blocks[0] | blocks[1]),
        "trunk.mixer": names(model, "mixer"),
        "trunk.norm.text": {"trunk.norm.norms.text.weight", "trunk.norm.norms.text.bias"},
        "trunk.norms": {n for n in norms if n.startswith("trunk.")},
        "norms": norms,
        "trunk.blocks.1.norms": norms & blocks[1],
        "*.bias": {n for n in every if n.endswith(".bias")},
        "modalities.*.cls_token": {"adapters.image.cls_token", "adapters.text.cls_token"},
        "trunk.blocks.?.mixer.qkv": names(model, "qkv"),
    }
    for part, wanted in expected.items():
        assert wanted, part
        assert set(select(model, part, "x")) == wanted, part


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("trnk", "model.freeze: 'trnk' is no part of the model; expected a part of it. Did you mean 'trunk'"),
        ("trunk.blocks.1-3", "'trunk.blocks.3' is no part"),
        ("trunk.ffn.imag", "Did you mean 'trunk.ffn.image'"),
        ("modalities.imge", "Did you mean 'modalities.image'"),
        ("*.wieght", "is no part of the model"),
    ],
)
def test_a_wrong_part_is_named_with_its_neighbours(part: str, said: str):
    with pytest.raises(ConfigError) as caught:
        build(freeze=[part])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_freezing_in_order_and_thawing():
    model = build(freeze=["trunk", "~trunk.norms", "trunk.norm", "modalities.image"])
    trunk = {n for n, _ in model.named_parameters() if n.startswith("trunk.")}
    inner_norms = {n for n in trunk if ".norm" in n and not n.startswith("trunk.norm.")}
    others = {n for n, _ in model.named_parameters() if n.startswith(("adapters.text", "heads."))}
    assert set(learning(model)) == inner_norms | others
    assert model.num_params(trainable_only=True)["modalities.image"] == 0


def test_frozen_parts_stay_in_evaluation_mode_and_the_rest_trains():
    model = build(freeze=["trunk.blocks.0-1", "modalities.image"]).train()
    assert [block.training for block in model.trunk.blocks] == [False, False, True]
    assert model.trunk.training
    assert not model.adapters["image"].training
    assert model.adapters["text"].training
    assert model.heads["align"].training
    assert not any(m.training for m in model.eval().modules())
    assert all(m.training for m in build().train().modules())


def test_a_summary_is_short():
    model = build()
    every = [n for n, _ in model.named_parameters()]
    assert summarise(model, []) == []
    assert summarise(model, every) == ["modalities", "trunk", "heads"]
    assert summarise(model, select(model, "trunk.blocks.0-1", "x")) == ["trunk.blocks.0", "trunk.blocks.1"]
    assert summarise(model, select(model, "modalities.text", "x")) == ["modalities.text"]
    some = [n for n in every if n.startswith("trunk.blocks.1.") and not n.endswith("weight")]
    total = sum(n.startswith("trunk.blocks.1.") for n in every)
    assert summarise(model, some) == [f"trunk.blocks.1 ({len(some)} of {total} tensors)"]
