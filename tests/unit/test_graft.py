"""Grafting a modality onto a trained trunk, and starting a trunk from a timm ViT."""

from __future__ import annotations

import copy
import logging
import pathlib
from typing import Any

import pytest
import timm
import torch

from mmzoo import recipe, schema, zoo
from mmzoo.batch import DataInfo, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.models.finetune.graft import donors, graft
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.vit.interop import from_timm
from tests.unit.test_finetune_parts import TREE, build

EEG = {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 8}, "max_positions": 12}


def test_a_graft_copies_exactly_and_nothing_else():
    modalities = {**TREE["modalities"], "eeg": {**EEG, "ffn": "copy(image)"}}
    model = build(modalities=modalities)
    before = copy.deepcopy(model.state_dict())
    written = graft(model.trunk, donors(model.config.modalities))
    after = model.state_dict()
    for i in range(3):
        mine, theirs = (model.trunk.blocks[i].ffn.networks[m].state_dict() for m in ("eeg", "image"))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed <= {f"trunk.{n}" for n in written["eeg"]}
    assert "norm.norms.eeg.weight" in written["eeg"]
    assert all(".eeg." in n for n in written["eeg"])
    assert any("w_in" in k for k in changed)
    mine, theirs = model.trunk.blocks[0].ffn.networks["eeg"], model.trunk.blocks[0].ffn.networks["image"]
    assert mine.w_in.weight.data_ptr() != theirs.w_in.weight.data_ptr()


def test_fine_tuning_by_override_grafts_what_was_trained(
    tmp_path: pathlib.Path, small: list[str], caplog: pytest.LogCaptureFixture
):
    built = recipe.build(recipe.load("five_senses", small))
    with torch.no_grad():
        for p in built.model.trunk.parameters():
            p.add_(0.1)
    zoo.export(built.model, tmp_path, built.learner.meta)
    option = "+model.modalities.eeg={type: text, preprocess: {tokenizer: bytes}, ffn: copy(audio)}"
    tasks = "tasks.align.passes=[image,audio]"
    with caplog.at_level(logging.INFO):
        tuned = recipe.build(recipe.load("five_senses", [*small, option, tasks, f"init_from={tmp_path}"]))
    assert "graft: feed-forwards and norm of eeg start as audio's" in caplog.text
    for i in range(2):
        new = tuned.model.trunk.blocks[i].ffn.networks["eeg"].w_out.weight
        assert torch.equal(new, built.model.trunk.blocks[i].ffn.networks["audio"].w_out.weight)
    again = tmp_path / "again"
    zoo.export(tuned.model, again, tuned.learner.meta)
    assert zoo.load(again).config.modalities["eeg"].ffn == "new"


@pytest.mark.parametrize(
    ("ffn", "said"),
    [
        ("copy(imge)", "modalities.eeg.ffn: 'imge'; expected a modality of the model. Did you mean 'image'?"),
        (
            "cpy(image)",
            "modalities.eeg.ffn: 'cpy(image)'; expected new or copy(MODALITY). Did you",
        ),
        ("copy(eeg)", "modalities.eeg.ffn: 'copy(eeg)'; expected a modality with weights of its own."),
    ],
)
def test_a_wrong_donor_is_told(ffn: str, said: str):
    with pytest.raises(ConfigError) as caught:
        build(modalities={**TREE["modalities"], "eeg": {**EEG, "ffn": ffn}})
    assert said in str(caught.value)


MOE = {"type": "moe", "num_experts": 4, "hidden_dim": 8}


@pytest.mark.parametrize(
    ("ffn", "final_norm", "more"),
    [
        ({"type": "shared"}, "shared", ""),
        ({"type": "shared"}, "per_modality", ""),
        ({**MOE, "router": "topk"}, "per_modality", ""),
        ({**MOE, "router": "modality"}, "per_modality", ", its router gives out experts"),
        ({**MOE, "router": "modality", "every": 2}, "per_modality", ", its router gives out experts"),
    ],
)
def test_a_trunk_without_feed_forwards_apart_has_nothing_to_copy(
    ffn: dict[str, Any], final_norm: str, more: str
):
    trunk = {"dim": 16, "depth": 2, "num_heads": 2, "ffn": ffn, "final_norm": final_norm}
    modalities = {**TREE["modalities"], "eeg": {**EEG, "ffn": "copy(image)"}}
    model = build(modalities=modalities, trunk=trunk)
    said = rf"modalities\.eeg\.ffn: the trunk keeps no feed-forward apart for 'image'{more}; expected"
    with pytest.raises(ConfigError, match=said):
        graft(model.trunk, donors(model.config.modalities))


VIT: dict[str, Any] = {
    "dim": 192,
    "depth": 12,
    "num_heads": 3,
    "mixer": {"type": "attention", "qkv_bias": "all", "sub_norm": False},
    "ffn": {"activation": "gelu", "sub_norm": False},
    "norm_eps": 1e-6,
    "layer_scale_init": None,
    "init_from": "timm-random:vit_tiny_patch16_224",
}


def test_a_trunk_starts_from_a_timm_vit_in_every_modality(monkeypatch: pytest.MonkeyPatch):
    kept: list[Any] = []
    real = timm.create_model

    def spy(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.02 * torch.randn_like(p))
        kept.append(made.eval())
        return made

    monkeypatch.setattr(timm, "create_model", spy)
    model = build(trunk=VIT).eval()
    (vit,) = kept
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 192, generator=generator)
    valid = torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        expected = vit.norm(vit.blocks(tokens))
        for modality in ("image", "text"):
            found = model.trunk([[TokenSequence(tokens, valid, torch.arange(2), modality)]]).groups[0][0]
            torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in model.trunk.parameters())
    shallow = build(trunk={**VIT, "depth": 2})
    state = from_timm(kept[1].state_dict())
    assert torch.equal(shallow.trunk.blocks[1].mixer.qkv.weight, state["blocks.1.mixer.qkv.weight"])


def test_rebuilding_asks_for_no_vit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    model = build(trunk={**VIT, "depth": 1})
    zoo.export(model, tmp_path, zoo.describe(model, DataInfo()))
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("asked timm"))
    again = zoo.load(tmp_path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(
    ("trunk", "said"),
    [
        (
            {"dim": 128, "num_heads": 4},
            "Set model.trunk.dim=192 model.trunk.num_heads=3 model.trunk.f",
        ),
        ({"ffn": {}}, "Set model.trunk.ffn.activation=gelu model.trunk.ffn.sub_norm=false."),
        ({"depth": 13}, "model.trunk.init_from: depth 13; expected the options of vit_tiny_patch16_224. Set"),
        ({"layer_scale_init": 0.1}, "Set model.trunk.layer_scale_init=null."),
        ({"init_from": "timm:vit_tny_patch16_224"}, "Did you mean 'vit_tiny_patch16_224'"),
        (
            {"init_from": "tim:vit_tiny_patch16_224"},
            "expected timm:NAME or timm-random:NAME. Did you",
        ),
        ({"init_from": "timm-random:resnet18"}, "resnet18 is no plain pre-norm VisionTransformer"),
    ],
)
def test_options_that_differ_are_all_named(trunk: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        MultimodalModel(schema.parse(MultimodalModel.Config, {**TREE, "trunk": {**VIT, **trunk}}))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
