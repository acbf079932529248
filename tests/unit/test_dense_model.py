"""A model with dense tasks: where its feature maps come from, what its heads get, and what it refuses."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, ModalityInput
from mmzoo.datamodules.indoor import Indoor
from mmzoo.decoders.base import DecoderConfig
from mmzoo.decoders.mlore_block import GateOrder, gates_of
from mmzoo.decoders.task_expert import TaskExpertDecoder
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.timm_backbone import TimmPreprocess
from mmzoo.models.multimodal import MultimodalModel

PLAIN: dict[str, Any] = {"layer_scale_init": None, "ffn": {"type": "shared", "hidden_dim": 16}}
IMAGE: dict[str, Any] = {"type": "image", "stem": "conv", "patch_size": 8, "num_bias_tables": 0}
HEADS: dict[str, Any] = {
    "depth": {"head": {"type": "dense", "num_channels": 1}, "passes": ["image"]},
    "kind": {"head": {"type": "dense", "num_channels": 5, "upsample": 2}, "passes": ["image"]},
    "name": {"head": {"type": "linear", "num_classes": 3}, "passes": ["image"]},
}
RESNET: dict[str, Any] = {
    "type": "timm",
    "model": "resnet18",
    "levels": [1, 3],
    "preprocess": {"size": [32, 48]},
    "create": {"channels": [8, 8, 12, 16]},
}


def tree(**changes: Any) -> dict[str, Any]:
    made = {
        "modalities": {"image": {**IMAGE, "preprocess": {"size": [32, 48]}}},
        "trunk": {"dim": 12, "depth": 4, "num_heads": 2, **PLAIN},
        "decoder": {"type": "multi_head", "width": 8},
        "heads": HEADS,
    }
    return {**made, **changes}


def build(**changes: Any) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(schema.parse(MultimodalModel.Config, tree(**changes))).eval()


def batch_of(*images: Tensor, index: tuple[int, ...] = (0, 2)) -> Batch:
    height, width = max(x.shape[1] for x in images), max(x.shape[2] for x in images)
    values = torch.zeros(len(images), 3, height, width)
    for row, x in zip(values, images, strict=True):
        row[:, : x.shape[1], : x.shape[2]] = x
    sizes = torch.tensor([tuple(x.shape) for x in images])
    return Batch(("a", "b", "c"), {"image": ModalityInput(values, torch.tensor(index), sizes)})


@pytest.fixture
def batch(generator: torch.Generator) -> Batch:
    return batch_of(*torch.randn(2, 3, 32, 48, generator=generator))


def test_decoder_reads_the_trunk_after_its_quarters_and_its_final_output(batch: Batch):
    model = build()
    tokens = model.adapter("image")(batch.inputs["image"])
    out = model.trunk([[tokens]], taps=(1, 2, 3))
    wanted = [*(out.taps[n][0][0].tokens for n in (1, 2, 3)), out.groups[0][0].tokens]
    maps = [x[:, 1:].transpose(1, 2).reshape(2, 12, 4, 6) for x in wanted]
    assert model.decoder is not None
    features = model.decoder({"depth": maps, "kind": maps}).features
    found = model(batch).predictions
    assert {t: tuple(p["image"].values.shape) for t, p in found.items()} == {
        "depth": (2, 1, 32, 48),
        "kind": (2, 5, 32, 48),
        "name": (2, 3),
    }
    assert found["kind"]["image"].index.tolist() == [0, 2]
    head = model.heads["kind"]
    x = torch.nn.functional.interpolate(features["kind"], scale_factor=2.0, mode="bilinear")
    x = head.out(torch.nn.functional.gelu(head.norm(head.conv(x))))
    x = torch.nn.functional.interpolate(x, (32, 48), mode="bilinear")
    torch.testing.assert_close(found["kind"]["image"].values, x, atol=1e-5, rtol=1e-5)
    alone = model(batch, ["depth"]).predictions["depth"]["image"].values
    torch.testing.assert_close(alone, found["depth"]["image"].values, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["multi_head", "mlore", "task_expert"])
def test_backbone_of_timm_serves_every_decoder(kind: str, batch: Batch):
    extra = {"mlore": {"ranks": [1, 2], "top_k": 1, "task_rank": 1}}.get(kind, {})
    model = build(
        modalities={"image": RESNET},
        decoder={"type": kind, "width": 8, "source": "backbone", **extra},
        trunk={"dim": 12, "depth": 0, "num_heads": 2},
    )
    decoder = model.decoder
    assert decoder is not None
    assert decoder.dims == (8, 12, 16)
    found = model(batch).predictions["depth"]["image"].values
    assert found.shape == (2, 1, 32, 48)
    sequence = model.adapter("image")(batch.inputs["image"])
    assert [tuple(x.shape) for x in sequence.levels] == [(2, 8, 8, 12), (2, 12, 2, 3), (2, 16, 1, 2)]
    features = decoder({"depth": list(sequence.levels)}).features["depth"]
    assert features.shape == (2, 8, 8, 12)


def test_balance_loss_comes_with_the_outputs_and_names_the_decoder(batch: Batch):
    mlore = {
        "type": "mlore",
        "width": 8,
        "ranks": [1, 2, 3],
        "top_k": 2,
        "task_rank": 1,
        "balance_weight": 0.5,
    }
    output = build(decoder=mlore)(batch)
    variation = output.stats["decoder/image/variation"]
    torch.testing.assert_close(output.aux["decoder/balance"].detach(), 0.5 * variation)
    gates = torch.stack([output.stats[f"decoder/image/route1.0.{task}"] for task in ("depth", "kind")])
    assert gates.shape == (2, 2, 3)
    routes = [
        torch.cat([output.stats[f"decoder/image/route{b}.{i}.{t}"] for t in ("depth", "kind")]).mean(0)
        for b in (1, 2)
        for i in range(4)
    ]
    expected = sum(g.var(unbiased=True) / g.mean() ** 2 for g in routes)
    torch.testing.assert_close(variation, torch.as_tensor(expected))


def test_gates_of_both_orders():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, -1.0]])
    chosen = gates_of(logits, 2, GateOrder.TOP_K_SOFTMAX)
    assert torch.allclose(chosen[0], torch.tensor([1 / (1 + torch.e**-1), 0.0, 1 / (1 + torch.e)]))
    assert torch.allclose(chosen.sum(1), torch.ones(2))
    kept = gates_of(logits, 2, GateOrder.SOFTMAX_TOP_K)
    whole = logits.softmax(1)
    assert torch.equal(
        kept, torch.stack([whole[0] * torch.tensor([1.0, 0, 1]), whole[1] * torch.tensor([1.0, 1, 0])])
    )


def test_router_noise_is_drawn_in_training_from_the_generator_given(batch: Batch):
    mlore = {"type": "mlore", "width": 8, "ranks": [1, 2, 3], "top_k": 3, "task_rank": 1}
    decoder = build(decoder=mlore).train().decoder
    assert decoder is not None
    levels = [torch.randn(2, 12, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def gates(seed: int) -> Tensor:
        found = decoder({"depth": levels}, torch.Generator().manual_seed(seed))
        return found.stats["route1.0.depth"]

    assert torch.equal(gates(1), gates(1))
    assert not torch.equal(gates(1), gates(2))
    decoder.eval()
    assert torch.equal(gates(1), gates(2))


@pytest.mark.parametrize("gate", ["pooled", "token"])
def test_task_expert_equals_its_formulas(gate: str):
    torch.manual_seed(0)
    options = {"width": 8, "num_experts": 3, "gate": gate, "top_k": 2}
    config = schema.parse(TaskExpertDecoder.Config, options)
    decoder = TaskExpertDecoder(config, dims=(6, 6), tasks=("a", "b")).eval()
    levels = [torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = decoder({"a": levels, "b": levels})
    memory = decoder.memories["b"][None, :, None, None].expand(2, 8, 4, 5)
    for i, x in enumerate(levels):
        reader = decoder.readers["b"][i]  # pyright: ignore[reportIndexIssue] a list of modules
        seen = torch.cat([reader.look(x), reader.recall(memory)], 1)
        logits = reader.gate(seen.mean((2, 3), keepdim=True) if gate == "pooled" else seen)
        kept = logits.topk(2, dim=1)
        gates = torch.zeros_like(logits).scatter(1, kept.indices, kept.values.softmax(1))
        parts = [*(expert(x) for expert in decoder.experts[i]), reader.read(memory)]  # pyright: ignore[reportGeneralTypeIssues] a list of modules
        mixed = sum(gates[:, e : e + 1] * part for e, part in enumerate(parts))
        memory = memory + reader.write(torch.nn.functional.gelu(reader.norm(mixed)))
    torch.testing.assert_close(found.features["b"], memory, atol=1e-5, rtol=1e-5)
    assert found.stats["route.1.b"].shape == (2, 4)


def test_images_of_several_sizes_are_refused(generator: torch.Generator):
    images = [torch.randn(3, *size, generator=generator) for size in ((32, 48), (16, 16))]
    with pytest.raises(ShapeError, match=r"images of several sizes \(2 x 2, 4 x 6\); expected one size"):
        build()(batch_of(*images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": None}, "heads.depth: a dense head; expected a model with a decoder"),
        ({"decoder": {"type": "multi_head", "taps": [1, 4]}}, r"decoder.taps: \[1, 4\] of a trunk of 4"),
        ({"decoder": {"type": "multi_head", "source": "backbone"}}, "no adapter with feature maps"),
        ({"modalities": {"image": {**RESNET, "levels": [9]}}}, r"image.levels: levels \[9\] of resnet18"),
    ],
)
def test_models_that_cannot_be_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "multi_head", "width": 0}, "decoder.width: 0; expected a positive width"),
        ({"type": "multi_head", "taps": [2, 1]}, r"decoder.taps: \[2, 1\]; expected ascending"),
        ({"type": "mlore", "width": 6}, "decoder.width: 6; expected a multiple of 4"),
        ({"type": "mlore", "ranks": [1], "top_k": 2}, "decoder.top_k: 2; expected 1 to all"),
        ({"type": "task_expert", "top_k": 9}, "decoder.top_k: 9; expected 0 to 6"),
        ({"type": "task_expert", "num_experts": 0}, "decoder.num_experts: 0; expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        schema.parse(MultimodalModel.Config, {"decoder": options})


def test_taps_default_to_quarters():
    assert DecoderConfig().taps_of(12) == (3, 6, 9)
    assert DecoderConfig().taps_of(24) == (6, 12, 18)
    assert DecoderConfig().taps_of(2) == (1,)
    assert DecoderConfig(taps=[]).taps_of(12) == ()


def test_a_joint_pass_is_decoded_from_its_image_tokens(batch: Batch):
    text = {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 6}}
    head = {"depth": {"head": {"type": "dense", "num_channels": 1}, "passes": ["text+image", "text"]}}
    modalities = {"image": {**IMAGE, "preprocess": {"size": [32, 48]}}, "text": text}
    model = build(modalities=modalities, heads=head)
    words = ModalityInput(torch.ones(2, 4, dtype=torch.int64), torch.tensor([0, 1]), torch.tensor([[4], [3]]))
    joint = Batch(batch.ids, {**batch.inputs, "text": words})
    with pytest.raises(ShapeError, match="pass text without a grid"):
        model(joint)
    model = build(modalities=modalities, heads={"depth": {**head["depth"], "passes": ["text+image"]}})
    found = model(joint).predictions["depth"]["text+image"]
    assert found.values.shape == (2, 1, 32, 48)
    assert found.index.tolist() == [0, 2]


def test_dense_data_come_to_a_timm_backbone_as_to_our_own(tmp_path: pathlib.Path):
    """Augmented with their labels, cut and padded to the backbone's size, by its mean and deviation."""
    shape = {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    plain = schema.parse(ImagePreprocess.Config, shape).build()
    timm = schema.parse(TimmPreprocess.Config, {"model": "resnet18", **shape}).build()
    sources = [Indoor(Indoor.fake(tmp_path), {"image": p}, seed=0).source("train") for p in (plain, timm)]
    first, second = (s.get(1, torch.Generator().manual_seed(3)) for s in sources)
    assert first.inputs["image"].values.shape == (3, 32, 32)
    assert torch.equal(first.inputs["image"].values, second.inputs["image"].values)
    assert all(torch.equal(v, second.targets[k]) for k, v in first.targets.items())


def test_ties_keep_exactly_top_k_experts_at_every_place():
    weights = gates_of(torch.zeros(2, 6, 3, 4), 2, GateOrder.TOP_K_SOFTMAX)
    assert ((weights > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 3, 4))
