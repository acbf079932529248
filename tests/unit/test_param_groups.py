"""Learning rates by layer and by part, weight decay by kind, and timm's groups on the same ViT."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.learners.optim import OptimConfig, build_optimizer
from mmzoo.learners.param_groups import WeightDecayOn, group_parameters, is_decayed, layer_ids
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.vit.interop import to_timm
from mmzoo.trunk.experts import Experts
from mmzoo.trunk.feed_forward import Activation, MlpConfig
from tests.unit.test_finetune_parts import TREE, build
from tests.unit.test_vit_interop import PLAIN

VIT = {**PLAIN, "dim": 192, "num_heads": 3, "depth": 12, "init_from": "timm-random:vit_tiny_patch16_224"}


def scales(model: nn.Module, **options: object) -> dict[str, tuple[float, float]]:
    """Return each parameter's factor on the learning rate and weight decay."""
    groups = group_parameters(model, weight_decay=0.05, **options)  # pyright: ignore[reportArgumentType]
    return {n: (g.lr_scale, g.weight_decay) for g in groups for n, _ in g.parameters}


def test_layers_of_every_modality():
    tables = {
        "text": {**TREE["modalities"]["text"], "num_bias_tables": 3},
        "image": {**TREE["modalities"]["image"], "num_bias_tables": 1},
    }
    model = build(modalities=tables)
    layers, last = layer_ids(model)
    assert last == 4
    assert layers["adapters.image.biases.0.table"] == 0
    assert [layers[f"adapters.text.biases.{i}.table"] for i in range(3)] == [1, 2, 3]
    assert {layers[n] for n in layers if n.startswith("adapters.") and "biases" not in n} == {0}
    assert {layers[n] for n in layers if n.startswith("trunk.blocks.2.")} == {3}
    assert {layers[n] for n in layers if n.startswith(("trunk.norm.", "heads."))} == {4}
    found = scales(model, layer_decay=0.5)
    assert found["adapters.image.cls_token"][0] == 0.5**4
    assert found["adapters.text.biases.1.table"][0] == 0.5**2
    assert found["trunk.blocks.0.ffn.networks.text.w_in.weight"][0] == 0.5**3
    assert found["heads.align.projections.text.weight"][0] == 1.0


def test_rates_and_decay_agree_with_timm_on_its_vit():
    """timm counts the final norm to the last block, ONE-PEACE (and this) to the head."""
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5)
    tree = {"modalities": {"image": TREE["modalities"]["image"]}, "trunk": VIT}
    tree["heads"] = {"c": {"head": {"type": "linear", "num_classes": 5}, "passes": ["image"]}}
    model = MultimodalModel(schema.parse(MultimodalModel.Config, tree))
    skip = vit.no_weight_decay()
    theirs: dict[str, tuple[float, float]] = {}
    named = {id(p): n for n, p in vit.named_parameters()}
    for g in param_groups_layer_decay(vit, 0.05, no_weight_decay_list=skip, layer_decay=0.75):
        theirs |= {named[id(p)]: (g["lr_scale"], g["weight_decay"]) for p in g["params"]}
    ours = scales(model, layer_decay=0.75)
    trunk = {n.removeprefix("trunk."): n for n in ours if n.startswith("trunk.")}
    names = to_timm({n: torch.tensor(i) for i, n in enumerate(trunk)})
    pairs = {timm_name: trunk[list(trunk)[int(i)]] for timm_name, i in names.items()}
    blocks = {t: o for t, o in pairs.items() if t.startswith("blocks.")}
    assert len(blocks) == 12 * 12
    for timm_name, own in blocks.items():
        assert ours[own] == pytest.approx(theirs[timm_name]), own
    for timm_name in ("cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"):
        assert ours["adapters.image.cls_token"][0] == pytest.approx(theirs[timm_name][0])
    assert ours["adapters.image.cls_token"][1] == theirs["cls_token"][1] == 0.0
    assert ours["adapters.image.positions.table"] == pytest.approx(theirs["pos_embed"])
    assert ours["heads.c.layers.1.weight"] == theirs["head.weight"] == (1.0, 0.05)
    assert ours["trunk.norm.weight"][0] == 1.0
    assert theirs["norm.weight"][0] == pytest.approx(0.75)


def test_factors_of_parts_multiply_and_the_longest_name_wins():
    model = build()
    parts = {"trunk": 0.1, "trunk.ffn.text": 3.0, "modalities.image": 0.0}
    found = scales(model, layer_decay=0.5, lr_scales=parts)
    assert found["trunk.blocks.2.norm1.weight"][0] == pytest.approx(0.5 * 0.1)
    assert found["trunk.blocks.1.ffn.networks.text.w_out.weight"][0] == pytest.approx(0.25 * 3.0)
    assert found["adapters.image.cls_token"][0] == 0.0
    assert found["adapters.text.cls_token"][0] == 0.5**4
    with pytest.raises(ConfigError, match=r"learner\.optim\.lr_scales: 'trnk' is no part of the model"):
        scales(model, lr_scales={"trnk": 0.1})


def test_what_decays():
    model = build(
        modalities={"text": TREE["modalities"]["text"], "audio": {"type": "audio"}}, trunk={"dim": 32}
    )
    parameters = dict(model.named_parameters())

    def spared(kind: WeightDecayOn) -> set[str]:
        return {n for n, p in parameters.items() if p.ndim > 1 and not is_decayed(n, p, kind)}

    assert spared(WeightDecayOn.ONEPEACE) == {
        "adapters.text.cls_token",
        "adapters.audio.cls_token",
        "adapters.text.positions",
    }
    assert spared(WeightDecayOn.MATRICES) == {
        "adapters.text.cls_token",
        "adapters.audio.cls_token",
        "adapters.audio.cls_position",
        "adapters.text.positions",
        "adapters.text.biases.0.table",
        "adapters.audio.biases.0.table",
    }
    flat = [n for n, p in parameters.items() if p.ndim <= 1]
    assert not any(is_decayed(n, parameters[n], kind) for n in flat for kind in WeightDecayOn)


@pytest.mark.parametrize(
    ("name", "decays"),
    [
        ("adapters.image.positions.table", False),
        ("adapters.audio.mask_token", True),
        ("adapters.text.cls_token", False),
        ("decoder.text.cls_token", True),
        ("decoder.image.positions.table", True),
        ("decoder.image.cls_token", False),
        ("decoder.text.positions", False),
    ],
)
def test_the_released_list_and_its_missing_comma(name: str, decays: bool):
    assert is_decayed(name, nn.Parameter(torch.zeros(2, 2)), WeightDecayOn.ONEPEACE) is decays


@pytest.mark.parametrize("kind", list(WeightDecayOn))
def test_biases_and_norms_of_experts_never_decay(kind: WeightDecayOn):
    experts = Experts(MlpConfig(hidden_dim=6, activation=Activation.GELU, sub_norm=True), 4, 3)
    decayed = {
        n for n, p in experts.named_parameters() if is_decayed(f"trunk.blocks.0.ffn.experts.{n}", p, kind)
    }
    assert decayed == {"w_in", "w_out"}


@pytest.mark.parametrize("name", ["heads.denoise.mask_tokens.image", "views.image2"])
def test_tokens_kept_by_modality_never_decay(name: str):
    assert not is_decayed(name, nn.Parameter(torch.zeros(1, 1, 4)))


def test_the_optimiser_gets_the_groups_and_keeps_the_ratio_under_a_schedule():
    model = build()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, layer_decay=0.5))
    rates = {round(g["lr"], 6) for g in optimizer.param_groups}
    assert rates == {0.1, 0.05, 0.025, 0.0125, 0.00625}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.1 * 0.5 * group["lr_scale"])
    assert schedule.base_lrs == [0.1 * g["lr_scale"] for g in optimizer.param_groups]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer_decay": 0.0}, "optim.layer_decay: 0.0; expected a factor in (0, 1]"),
        ({"layer_decay": 1.2}, "optim.layer_decay: 1.2"),
        ({"lr_scales": {"trunk": -1.0}}, "optim.lr_scales.trunk: -1.0; expected a factor of 0 or more"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], said: str):
    with pytest.raises(ConfigError) as caught:
        schema.parse(OptimConfig, options)
    assert said in str(caught.value)
