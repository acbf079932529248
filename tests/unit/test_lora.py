"""LoRA: an old model at first, the same whether merged or not, PEFT's names, plain exports."""

from __future__ import annotations

import copy
import json
import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mmzoo import zoo
from mmzoo.batch import Batch, DataInfo, ModalityInput
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.layers.low_rank import LoraLinear
from mmzoo.models.finetune import lora
from mmzoo.models.finetune.lora import LoraConfig
from mmzoo.models.multimodal import MultimodalModel
from tests.unit.test_dense_model import batch_of
from tests.unit.test_dense_model import build as dense
from tests.unit.test_finetune_parts import build

TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}
"""Merged against unmerged, float32: one rounding of the weight."""


def batch(generator: torch.Generator) -> Batch:
    rows = torch.arange(3)
    images = ModalityInput(
        torch.randn(3, 3, 32, 32, generator=generator), rows, torch.tensor([[3, 32, 32]] * 3)
    )
    ids = torch.randint(3, 250, (3, 6), generator=generator)
    texts = ModalityInput(ids, rows, torch.tensor([[6], [4], [5]]))
    return Batch(("a", "b", "c"), {"image": images, "text": texts})


def outputs(model: MultimodalModel, given: Batch) -> Tensor:
    with torch.no_grad():
        found = model(given).predictions["align"]
    return torch.cat([found[p].values for p in ("image", "text")])


def away(model: MultimodalModel) -> MultimodalModel:
    """Move the factors off their start, where their product is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if lora.is_factor(name):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def test_the_layer_against_its_formula(generator: torch.Generator):
    base = nn.Linear(5, 7)
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    x = torch.randn(4, 5, generator=generator)
    layer = LoraLinear(copy.deepcopy(base), rank=2, scale=1.5)
    assert torch.equal(layer(x), base(x))
    bound = 1 / math.sqrt(5)
    assert float(layer.lora_A.weight.detach().abs().max()) <= bound
    nn.init.normal_(layer.lora_B.weight, generator=generator)
    low = x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), x @ weight.T + bias + 1.5 * low, **TOLERANCE)
    torch.testing.assert_close(F.linear(x, layer.weight, bias), layer(x), **TOLERANCE)
    assert set(layer.state_dict()) == {"weight", "bias", "lora_A.weight", "lora_B.weight"}
    assert torch.equal(layer.state_dict()["weight"], weight)


def test_merge_and_unmerge(generator: torch.Generator):
    layer = LoraLinear(nn.Linear(6, 6), rank=3, scale=0.5).eval()
    nn.init.normal_(layer.lora_B.weight, generator=generator)
    x = torch.randn(4, 6, generator=generator)
    before, state = layer(x), {k: v.clone() for k, v in layer.state_dict().items()}
    layer.merge()
    torch.testing.assert_close(layer(x), before, **TOLERANCE)
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
    layer.unmerge()
    assert torch.equal(layer(x), before)
    layer.merge()
    layer.train()
    nn.init.zeros_(layer.lora_B.weight)
    assert torch.equal(layer(x), F.linear(x, layer.base_weight, layer.bias))


def test_dropout_is_drawn_in_training_only(generator: torch.Generator):
    layer = LoraLinear(nn.Linear(6, 6), rank=3, scale=1.0, dropout_prob=0.5)
    nn.init.normal_(layer.lora_B.weight, generator=generator)
    x = torch.randn(4, 6, generator=generator)
    assert not torch.equal(layer(x), layer(x))
    with pytest.raises(ConfigError, match=r"lora\.dropout_prob: 0\.5 on a layer whose weight is read"):
        _ = layer.weight
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("targets", [["qkv"], ["qkv", "out", "ffn"], ["modalities.text", "w_in"]])
def test_only_factors_and_heads_learn_and_the_start_is_the_old_model(
    targets: list[str], generator: torch.Generator
):
    old = build(modalities=TEXT_WIDENED).eval()
    model = build(modalities=TEXT_WIDENED, lora={"rank": 2, "targets": targets})
    missing, unexpected = model.load_state_dict(old.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(lora.is_factor(n) for n in missing)
    given = batch(generator)
    assert torch.equal(outputs(model.eval(), given), outputs(old, given))
    sum(v.values.square().sum() for v in model.train()(given).predictions["align"].values()).backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learned == {n for n, p in model.named_parameters() if p.requires_grad and "log_scale" not in n}
    assert all(lora.is_factor(n) or n.startswith("heads.") for n in learned)
    assert any(lora.is_factor(n) for n in learned)


TEXT_WIDENED = {
    "image": {"type": "image", "preprocess": {"size": [32, 32]}, "position_grid": 2, "bias_grid": 2},
    "text": {
        "type": "text",
        "preprocess": {"tokenizer": "bytes", "max_tokens": 8},
        "max_positions": 12,
        "embedding_dim": 8,
    },
}


def test_targets_in_the_trunk_and_below_a_part():
    model = build(modalities=TEXT_WIDENED, lora={"rank": 2, "targets": ["ffn", "modalities.text"]})
    found = set(lora.lora_layers(model))
    every = {f"trunk.blocks.{i}.ffn.networks.{m}.{w}" for i in range(3) for m in ("image", "text")
             for w in ("w_in", "w_out")}  # fmt: skip
    assert found == every | {"adapters.text.widen"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 2, "targets": ["qvk"]}, "model.lora.targets: 'qvk' names no linear map"),
        ({"rank": 2, "targets": ["qvk"]}, "Did you mean 'qkv'?"),
        ({"rank": 2, "targets": ["modalities.imge"]}, "Did you mean 'modalities.image'"),
        ({"rank": 2, "targets": ["trunk.norms"]}, "'trunk.norms' names no linear map"),
        ({"rank": -1}, "lora.rank: -1; expected 0 (off) or more"),
        ({"rank": 2, "alpha": 0.0}, "lora.alpha: 0.0; expected a positive number"),
        ({"rank": 2, "dropout_prob": 1.0}, "lora.dropout_prob: 1.0; expected 0 <= p < 1"),
        ({"rank": 2, "targets": []}, "lora.targets: none"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, object], said: str):
    with pytest.raises(ConfigError) as caught:
        build(lora=options)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_freeze_leaves_factors_alone_and_thaws_more():
    model = build(lora={"rank": 2}, freeze=["trunk", "~trunk.norms", "heads"])
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    norms = {n for n, _ in model.named_parameters() if n.startswith("trunk.") and ".norm" in n}
    assert learned == norms | {n for n, _ in model.named_parameters() if lora.is_factor(n)}


def test_an_export_is_a_plain_model_with_the_adapter_beside_it(
    tmp_path: pathlib.Path, generator: torch.Generator
):
    options = {"rank": 2, "alpha": 6.0, "targets": ["qkv", "ffn"]}
    model = away(build(lora=options, freeze=["heads"])).eval()
    given = batch(generator)
    expected = outputs(model, given)
    meta = zoo.describe(model, DataInfo(), {"model": model.config.to_dict()})
    zoo.export(model, tmp_path, meta)
    again = zoo.load(tmp_path)
    assert not lora.lora_layers(again)
    assert again.config.lora.rank == 0
    assert again.config.freeze == []
    assert all(p.requires_grad for p in again.parameters())
    torch.testing.assert_close(outputs(again, given), expected, **TOLERANCE)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "lora" not in config["model"]
    assert "lora" not in config["recipe"]["model"]
    assert lora.merge(model) == 15
    torch.testing.assert_close(outputs(model, given), expected, **TOLERANCE)
    assert lora.unmerge(model) == 15
    assert torch.equal(outputs(model, given), expected)


def test_adapter_files_have_pefts_names_and_load_onto_the_base(
    tmp_path: pathlib.Path, generator: torch.Generator
):
    model = away(build(lora={"rank": 2, "alpha": 6.0})).eval()
    lora.write_adapter(model, model.config.lora, tmp_path, base="five_senses_tiny")
    options = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (options["peft_type"], options["r"], options["lora_alpha"]) == ("LORA", 2, 6.0)
    assert options["base_model_name_or_path"] == "five_senses_tiny"
    assert options["target_modules"] == [
        f"trunk.blocks.{i}.mixer.{n}" for i in range(3) for n in ("qkv", "out")
    ]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.trunk.blocks.1.mixer.qkv.lora_{}.weight"
    assert tensors[key.format("A")].shape == (2, 16)
    assert tensors[key.format("B")].shape == (48, 2)
    rest = {k for k in tensors if "lora_" not in k}
    assert rest
    assert all(k.startswith("base_model.model.heads.align.") for k in rest)
    for name in rest:
        owner = name.removeprefix("base_model.model.").rpartition(".")[0]
        assert owner in options["modules_to_save"]
    base = build()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if not lora.is_factor(k)})
    with torch.no_grad():
        for p in base.heads.parameters():
            p.zero_()
    found = lora.load_adapter(base, tmp_path)
    assert (found.rank, found.scale) == (2, 3.0)
    given = batch(generator)
    assert torch.equal(outputs(base.eval(), given), outputs(model, given))
    with pytest.raises(CheckpointError, match="expected an adapter of this model"):
        lora.load_adapter(build(trunk={"dim": 8, "depth": 3, "num_heads": 2}), tmp_path)
    with pytest.raises(CheckpointError, match="adapter_config"):
        lora.load_adapter(build(), tmp_path / "none")


def test_adapter_files_hold_the_statistics_of_the_norms_that_learned(
    tmp_path: pathlib.Path, generator: torch.Generator
):
    model = away(dense(lora={"rank": 2})).train()
    given = batch_of(*torch.randn(2, 3, 32, 48, generator=generator))
    for _ in range(3):
        model(given)
    lora.write_adapter(model.eval(), model.config.lora, tmp_path)
    again = dense()
    lora.load_adapter(again, tmp_path)
    with torch.no_grad():
        found, expected = (m.eval()(given).predictions["depth"]["image"].values for m in (again, model))
    assert torch.equal(found, expected)


def test_what_peft_says_of_scale_and_dropout_is_heard(tmp_path: pathlib.Path):
    model = away(build(lora={"rank": 4, "alpha": 6.0, "dropout_prob": 0.1}))
    lora.write_adapter(model, model.config.lora, tmp_path)
    assert lora.load_adapter(build(), tmp_path).dropout_prob == 0.1
    path = tmp_path / "adapter_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "use_rslora": True}))
    base = build()
    assert lora.load_adapter(base, tmp_path).scale == 6.0 / 2.0
    assert {layer.scale for layer in lora.lora_layers(base).values()} == {3.0}
    path.write_text(json.dumps({**options, "target_modules": "all-linear"}))
    with pytest.raises(ConfigError, match="target_modules: 'all-linear'; expected a list of names"):
        lora.load_adapter(build(), tmp_path)
    path.write_text(json.dumps({k: v for k, v in options.items() if k != "r"}))
    with pytest.raises(CheckpointError, match="no option 'r'; expected PEFT's options of LoRA"):
        lora.load_adapter(build(), tmp_path)


def test_a_checkpoint_with_factors_starts_a_plain_model(tmp_path: pathlib.Path, generator: torch.Generator):
    model = away(build(lora={"rank": 2, "alpha": 1.0})).eval()
    meta = zoo.describe(model, DataInfo())
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "mmzoo": meta}, tmp_path / "last.ckpt")
    plain = build()
    zoo.start_from(plain, tmp_path / "last.ckpt")
    given = batch(generator)
    torch.testing.assert_close(outputs(plain.eval(), given), outputs(model, given), **TOLERANCE)
    loaded = zoo.load(tmp_path / "last.ckpt")
    assert torch.equal(outputs(loaded, given), outputs(model, given))


def test_scale_is_alpha_over_rank():
    assert LoraConfig(rank=8).scale == 1.0
    assert LoraConfig(rank=8, alpha=16.0).scale == 2.0


EXPERTS = {"type": "moe", "num_experts": 2, "hidden_dim": 8}


@pytest.mark.parametrize("kind", ["moe", "soft_moe"])
def test_experts_take_no_factors_and_it_is_said(kind: str, caplog: pytest.LogCaptureFixture):
    trunk = {"dim": 16, "depth": 2, "num_heads": 2, "ffn": {**EXPERTS, "type": kind, "every": 2}}
    model = build(trunk=trunk)
    assert lora.add_lora(model, LoraConfig(rank=2, targets=["ffn"]))
    assert "lora: experts take no factors, 1 stay frozen (trunk.blocks.1.ffn.experts first)" in caplog.text
    assert not any("blocks.1" in name for name in lora.lora_layers(model))
    caplog.clear()
    lora.add_lora(build(trunk=trunk), LoraConfig(rank=2, targets=["qkv"]))
    assert caplog.text == ""
    everywhere = build(trunk={**trunk, "ffn": {**EXPERTS, "type": kind}})
    with pytest.raises(ConfigError) as caught:
        lora.add_lora(everywhere, LoraConfig(rank=2, targets=["ffn"]))
    said = "model.lora.targets: 'ffn' names no linear map (experts take no LoRA); expected names of"
    assert said in str(caught.value)
    assert str(caught.value).endswith("Choose one of: out, qkv.")
    assert len(str(caught.value).splitlines()) == 1
