"""The model as a whole: passes of a batch, joint ones too, equal the same passes computed by themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmzoo import registry, schema
from mmzoo.batch import Batch, DataInfo, Item, ModalityInput
from mmzoo.errors import ConfigError
from mmzoo.models.multimodal import MultimodalModel

INFO = DataInfo(labels={"what": ("ant", "bee", "cat")}, subjects={"s1": 7, "s2": 5}, modalities=("image",))
TREE: dict[str, Any] = {
    "modalities": {
        "image": {"type": "image", "patch_size": 16, "preprocess": {"size": [32, 32]}},
        "text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 12}},
        "fmri": {"type": "fmri", "hidden_dim": 8, "num_tokens": 2},
    },
    "trunk": {"dim": 16, "depth": 2, "num_heads": 2, "ffn": {"type": "modality", "hidden_dim": 16}},
    "heads": {
        "align": {"head": {"type": "contrastive"}, "passes": ["text", "image+text", "image", "fmri"]},
        "name": {"head": {"type": "linear"}, "passes": ["image"], "target": "what"},
    },
}


def options(**changes: Any) -> MultimodalModel.Config:
    return schema.parse(MultimodalModel.Config, {**TREE, **changes})


@pytest.fixture
def model() -> MultimodalModel:
    torch.manual_seed(0)
    made = MultimodalModel(MultimodalModel.resolve(options(), INFO)).eval()
    for name, parameter in made.named_parameters():  # so that nothing cancels by being zero or one
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
        assert parameter.isfinite().all(), name
    return made


def rows(model: MultimodalModel, generator: torch.Generator, index: dict[str, list[int]]) -> Batch:
    inputs: dict[str, ModalityInput] = {}
    for name, samples in index.items():
        adapter, config = registry.find("modalities", name), model.config.modalities[name]
        fake = adapter.fake_input(config, len(samples), generator)
        inputs[name] = dataclasses.replace(fake, index=torch.tensor(samples))
    return Batch(tuple("abcde"), inputs)


def only(batch: Batch, sample: int, modalities: tuple[str, ...]) -> Batch:
    """Return one sample alone, without the others' padding, with some of its modalities."""
    inputs: dict[str, ModalityInput] = {}
    for name in modalities:
        part = batch.inputs[name]
        found = torch.nonzero(part.index == sample).flatten().tolist()
        if found:
            row = found[0]
            extent = tuple(slice(int(n)) for n in part.sizes[row])
            subject = part.subjects[row] if part.subjects else None
            item = Item(part.values[row][extent], subject=subject)
            inputs[name] = ModalityInput.stack([item], torch.tensor([0]))
    return Batch(("x",), inputs)


INDEX = {"image": [0, 2, 3], "text": [1, 2, 3, 4], "fmri": [0, 4]}


def test_every_pass_equals_its_samples_alone_whatever_modalities_they_lack(
    model: MultimodalModel, generator: torch.Generator
):
    batch = rows(model, generator, INDEX)
    with torch.no_grad():
        found = model(batch, ["align"]).predictions["align"]
        assert list(found) == ["text", "image+text", "image", "fmri"]
        assert found["image+text"].index.tolist() == [0, 1, 2, 3, 4]
        assert found["fmri"].index.tolist() == [0, 4]
        for name, prediction in found.items():
            for value, sample in zip(prediction.values, prediction.index.tolist(), strict=True):
                alone = model(only(batch, sample, tuple(name.split("+"))), ["align"]).predictions["align"]
                assert torch.allclose(alone[name].values[0], value, atol=2e-6), (name, sample)


def test_the_order_of_passes_and_of_modalities_in_a_joint_pass_is_kept(
    model: MultimodalModel, generator: torch.Generator
):
    batch = rows(model, generator, {"image": [0], "text": [0]})
    with torch.no_grad():
        tokens = model.tokens(batch, ["text+image", "image+text"])
    text, image = (int(s.valid.sum()) for s in model.tokens(batch, ["text", "image"]).values())
    first, second = tokens["text+image"].tokens[0], tokens["image+text"].tokens[0]
    assert len(first) == text + image
    assert torch.allclose(first[text:], second[:image], atol=2e-6)
    assert torch.allclose(first[:text], second[image:], atol=2e-6)
    assert not torch.allclose(second[:image], model.tokens(batch, ["image"])["image"].tokens[0], atol=1e-3)


def test_a_batch_without_any_of_a_heads_modalities_gives_no_prediction(
    model: MultimodalModel, generator: torch.Generator
):
    found = model(rows(model, generator, {"text": [1]})).predictions
    assert found["name"] == {}
    assert list(found["align"]) == ["text", "image+text"]
    assert model(Batch(("a",)), ["name"]).predictions == {"name": {}}


def test_resolve_fills_classes_and_subjects_in_a_copy():
    config = options()
    made = MultimodalModel.resolve(config, INFO)
    assert made.heads["name"].head.num_classes == 3
    assert made.modalities["fmri"].subjects == {"s1": 7, "s2": 5}
    assert config.heads["name"].head.num_classes == 0
    assert config.modalities["fmri"].subjects == {}
    assert schema.parse(MultimodalModel.Config, made.to_dict()) == made


def test_parameters_are_counted_by_part(model: MultimodalModel):
    counts = model.num_params()
    assert counts["heads.name"] == 16 * 3 + 3
    assert counts["heads.align"] == 4 * (16 * 16 + 16) + 1
    assert counts["trunk"] == sum(p.numel() for n, p in model.named_parameters() if n.startswith("trunk."))
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    model.trunk.requires_grad_(requires_grad=False)
    learning = model.num_params(trainable_only=True)
    assert learning["trunk"] == 0
    assert learning["total"] == counts["total"] - counts["trunk"]


def test_encode_equals_embedding_the_preprocessed_batch(model: MultimodalModel):
    picture = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    words = ["a bee", "two ants run"]
    prepare = {m: c.preprocess.build() for m, c in model.config.modalities.items()}
    inputs = {
        "image": ModalityInput.stack([prepare["image"](picture)], torch.tensor([0])),
        "text": ModalityInput.stack([prepare["text"](w) for w in words], torch.tensor([0, 1])),
    }
    model.train()
    with torch.no_grad():
        expected = model.eval().embed(Batch(("0", "1"), inputs))
    model.train()
    found = model.encode(image=picture, text=words)
    assert model.training
    assert set(found) == {"text", "image", "image+text"}
    for name, values in found.items():
        assert torch.equal(values, expected[name].values)
        assert torch.allclose(values.norm(dim=1), torch.ones(len(values)), atol=1e-5)
    assert found["image+text"].shape == (2, 16)
    assert not values.requires_grad


def test_encode_reads_files(model: MultimodalModel, tmp_path: Any):
    from PIL import Image

    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    by_path = model.encode(image=[str(tmp_path / "x.png"), tmp_path / "x.png"])["image"]
    assert torch.equal(by_path[0], by_path[1])
    assert torch.allclose(by_path[:1], model.encode(image=picture)["image"], atol=1e-6)


def message(run: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(*args, **kwargs)
    return str(caught.value)


def test_what_is_wrong_is_said_in_a_line(model: MultimodalModel, generator: torch.Generator):
    assert "no modality 'imag'" in message(model.encode, imag=1)
    assert "Did you mean 'image'?" in message(model.encode, imag=1)
    batch = rows(model, generator, {"image": [0]})
    assert "no head 'nam'; expected one that" in message(model, batch, ["nam"])
    assert "no modality 'sound'" in message(model.tokens, batch, ["image+sound"])
    del model.heads["align"]
    assert "name; expected a contrastive head" in message(model.encode, image=1)


def test_encode_refuses_a_modality_that_no_pass_reads():
    heads = {"align": {"head": {"type": "contrastive"}, "passes": ["image", "text"]}}
    made = MultimodalModel(MultimodalModel.resolve(options(heads=heads), INFO))
    assert "no embedding of 'fmri'" in message(made.encode, fmri=np.zeros(7))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modalities": {"a.b": {"type": "text"}}, "heads": {}}, "modalities: 'a.b'"),
        ({"modalities": {"a+b": {"type": "text"}}, "heads": {}}, "modalities: 'a+b'"),
        ({"modalities": {"values": {"type": "text"}}, "heads": {}}, "modalities: 'values'"),
        ({"heads": {"train": {"head": {"type": "contrastive"}}}}, "heads: 'train'"),
        (
            {"heads": {"x": {"head": {"type": "contrastive"}, "passes": ["image+txt"]}}},
            "Did you mean 'text'?",
        ),
    ],
)
def test_names_that_cannot_be_are_refused(changes: dict[str, Any], expected: str):
    assert expected in message(options, **changes)


def test_a_model_needs_a_modality():
    assert "model.modalities: none" in message(MultimodalModel, MultimodalModel.Config())


def test_gradients_reach_every_parameter_that_a_batch_uses(
    model: MultimodalModel, generator: torch.Generator
):
    batch = rows(model, generator, {"image": [0, 1], "text": [1, 2], "fmri": [0, 1, 2, 3]})
    model.train()
    found = model(batch).predictions
    terms: list[Tensor] = []
    for predictions in found.values():
        for p in predictions.values():
            weights = torch.randn(p.values.shape, generator=generator)
            terms.append((p.values * weights).sum() * (1 if p.scale is None else p.scale))
    torch.stack(terms).sum().backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None]
    assert not lost
