"""A dense model with experts is the same model at first; one task's part of a routed one answers alike."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from mmzoo import schema, zoo
from mmzoo.batch import Batch, DataInfo, Item, Sample
from mmzoo.cli.main import main
from mmzoo.datamodules.collate import collate
from mmzoo.errors import ConfigError
from mmzoo.models.moe.submodel import extract_submodel, measure_use
from mmzoo.models.moe.upcycle import UpcycleConfig, parse_options, upcycle
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.zoo.convert import Target, convert

TASKS = ("find", "name")


def model(ffn: Any, depth: int = 2) -> MultimodalModel:
    """Build two text-like modalities on one trunk, every weight random."""
    text = {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 16}, "max_positions": 18}
    head = {"type": "linear", "num_classes": 3}
    tree = {
        "modalities": {"text": dict(text), "label": dict(text)},
        "trunk": {"dim": 16, "depth": depth, "num_heads": 2, "ffn": ffn},
        "heads": {task: {"head": dict(head)} for task in TASKS},
    }
    torch.manual_seed(0)
    made = MultimodalModel(schema.parse(MultimodalModel.Config, tree)).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(4):
        inputs = {m: Item(torch.randint(4, 200, (5 + i,), generator=generator)) for m in ("text", "label")}
        samples.append(Sample(str(i), inputs))
    return collate(samples)


def answers(made: MultimodalModel, task: str) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([p.values for p in made(batch(), [task]).predictions[task].values()])


@pytest.mark.parametrize(
    ("ffn", "options"),
    [
        ({"type": "modality", "hidden_dim": 8}, "experts=3,top_k=2"),
        ({"type": "shared", "hidden_dim": 8}, "experts=4,top_k=2,every=2"),
        ({"type": "shared", "hidden_dim": 8, "activation": "gelu"}, "experts=4,top_k=3,router=task_topk"),
        ({"type": "modality", "sub_norm": False}, ""),
        ({"type": "shared", "hidden_dim": 8}, "experts=4,top_k=1"),
        ({"type": "modality", "hidden_dim": 8}, "experts=1,top_k=1"),
    ],
)
def test_step_zero_is_the_dense_model(ffn: dict[str, Any], options: str):
    dense = model(ffn)
    made = upcycle(dense, parse_options(options))
    for task in TASKS:
        torch.testing.assert_close(answers(made, task), answers(dense, task), atol=2e-5, rtol=1e-4)
    routed = [block.ffn for block in made.trunk.blocks if hasattr(block.ffn, "experts")]
    assert len(routed) == (1 if "every=2" in options else 2)
    networks = 2 if ffn["type"] == "modality" else 1
    assert routed[0].config.num_experts == parse_options(options).experts * networks
    loss = made.train()(batch()).predictions["find"]["text"].values.square().sum()
    loss.backward()
    assert routed[0].experts.w_in.grad is not None
    if "top_k=1" in options and "experts=1" not in options:  # else twins of one sum share one weight of 1
        found = routed[0].router.gate.weight.grad
        assert found is not None
        assert float(found.abs().max()) > 1e-3  # p / p would have rounding alone


def test_options_are_read_and_faults_told():
    assert parse_options("experts=16, top_k=1") == UpcycleConfig(experts=16, top_k=1)
    for text, found in (("expert=3", "expert=3"), ("experts", "NAME=VALUE"), ("experts=1", "top_k=2")):
        with pytest.raises(ConfigError, match=found):
            parse_options(text)
    with pytest.raises(ConfigError, match="feed-forward moe"):
        upcycle(model({"type": "moe", "num_experts": 2, "hidden_dim": 4}), UpcycleConfig())
    with pytest.raises(ConfigError, match="router"):
        upcycle(model({"type": "modality", "hidden_dim": 4}), parse_options("router=topk"))
    few = r"upcycle\.every: 3 for a trunk of 2 blocks; expected at most its depth\. Lower it\."
    with pytest.raises(ConfigError, match=few):
        upcycle(model({"type": "shared", "hidden_dim": 4}), parse_options("every=3"))


def test_convert_writes_the_routed_model_and_its_recipe(tmp_path: pathlib.Path):
    dense = model({"type": "shared", "hidden_dim": 8})
    recipe = {"name": "mine", "model": dense.config.to_dict()}
    zoo.export(dense, tmp_path / "dense", zoo.describe(dense, DataInfo(), recipe))
    words = ["convert", str(tmp_path / "dense"), str(tmp_path / "moe"), "--upcycle", "experts=4,top_k=2"]
    assert main(words) == 0
    made, config = zoo.load_with_config(tmp_path / "moe")
    torch.testing.assert_close(answers(made, "find"), answers(dense, "find"), atol=2e-5, rtol=1e-4)
    assert config["recipe"]["model"]["trunk"]["ffn"]["num_experts"] == 4
    assert config["parameters"]["trunk"] == made.num_params()["trunk"] > dense.num_params()["trunk"]


@pytest.mark.parametrize("router", ["topk", "task_topk", "task_embedding"])
def test_one_tasks_part_answers_the_same_with_fewer_experts(router: str):
    chosen = {"type": router, "top_k": 1, "weights": "straight_through"}
    options = {"type": "moe", "num_experts": 12, "hidden_dim": 8, "router": chosen}
    whole = model(options)
    use = measure_use(whole, [batch()], "name")
    made = extract_submodel(whole, "name", use)
    assert list(made.heads) == ["name"]
    assert made.config.trunk.ffn.num_experts < 12
    assert made.num_params()["trunk"] < whole.num_params()["trunk"]
    torch.testing.assert_close(answers(made, "name"), answers(whole, "name"), atol=1e-5, rtol=1e-4)
    small = extract_submodel(whole, "name", use, min_share=1.0)
    assert small.config.trunk.ffn.num_experts == 1
    assert answers(small, "name").shape == answers(whole, "name").shape


def test_what_cannot_be_extracted_is_told():
    dense = model({"type": "shared", "hidden_dim": 4})
    with pytest.raises(ConfigError, match="moe with a router"):
        extract_submodel(dense, "name", {})
    routed = model({"type": "moe", "num_experts": 3, "hidden_dim": 4})
    with pytest.raises(ConfigError, match="nothing of block 0"):
        extract_submodel(routed, "name", {})
    with pytest.raises(ConfigError, match="no head 'nme'"):
        measure_use(routed, [], "nme")
    empty = model({"type": "moe", "num_experts": 3, "hidden_dim": 4}, depth=0)
    with pytest.raises(ConfigError, match=r"model\.trunk: no block with experts; expected one or more\."):
        extract_submodel(empty, "name", {})


def test_models_of_another_kind_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.setattr(zoo, "load_with_config", lambda source: (torch.nn.Linear(1, 1), {}))
    with pytest.raises(ConfigError, match="upcycle some: Linear; expected a model with a trunk"):
        convert("some", tmp_path / "new", Target.MMZOO, UpcycleConfig())
