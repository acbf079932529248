"""open_clip's towers as adapters: the same features, pictures and ids as open_clip's own, random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import ModalityInput
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.open_clip_image import OpenClipImageAdapter, OpenClipImagePreprocess
from mmzoo.modalities.open_clip_text import OpenClipTextAdapter, OpenClipTextPreprocess

VISION = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
TIMM = {"image_size": 64, "timm_model_name": "regnetx_002", "timm_pool": "avg", "timm_proj": "linear"}
TEXT = {"context_length": 16, "vocab_size": 49408, "layers": 2, "width": 32, "heads": 2}
BIDIRECTIONAL = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def pair(side: str, cfg: dict[str, Any], out: str, **options: Any) -> tuple[Any, Any]:
    """Return an adapter, and open_clip's own model with the adapter's weights in that tower."""
    create = {"embed_dim": 24, f"{side}_cfg": cfg}
    cls = OpenClipImageAdapter if side == "vision" else OpenClipTextAdapter
    torch.manual_seed(0)
    config = schema.parse(cls.Config, {"create": create, "out": out, **options})
    adapter = cls(config, name="x", dim=16, num_heads=2).eval()
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.02 * torch.randn_like(p))
    other = {"vision_cfg": VISION, "text_cfg": TEXT}
    whole = open_clip.create_model("ViT-S-32", force_custom_text=True, **{**other, **create}).eval()
    tower = whole.visual if side == "vision" else whole.text
    missing, unexpected = tower.load_state_dict(adapter.tower.state_dict(), strict=False)
    assert not unexpected
    assert out == "tokens" or not missing
    return adapter, whole


def pictures(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=generator)


@pytest.mark.parametrize("cfg", [VISION, RESNET, TIMM], ids=["vit", "resnet", "timm"])
def test_an_image_embedding_is_open_clips(cfg: dict[str, Any], generator: torch.Generator):
    adapter, whole = pair("vision", cfg, "pooled")
    images = pictures(generator)
    with torch.no_grad():
        expected = whole.encode_image(images)
        torch.testing.assert_close(adapter.features(images)[:, 0], expected, **TOLERANCE)
        sizes = torch.tensor([[3, 64, 64]] * 2)
        sequence = adapter(ModalityInput(images, torch.arange(2), sizes))
        torch.testing.assert_close(sequence.tokens[:, 1], adapter.proj(expected), **TOLERANCE)
    assert sequence.tokens.shape == (2, 2, 16)


@pytest.mark.parametrize(
    ("cfg", "cells"), [(VISION, 4), (RESNET, 2), (TIMM, 2)], ids=["vit", "resnet", "timm"]
)
def test_image_tokens_are_open_clips_normalised_features(
    cfg: dict[str, Any], cells: int, generator: torch.Generator
):
    adapter, whole = pair("vision", cfg, "tokens")
    images = pictures(generator)
    with torch.no_grad():
        if cfg is VISION:
            whole.visual.output_tokens = True
            expected = whole.visual(images)[1]
        else:
            maps = whole.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)
            expected = maps["image_intermediates"][-1].flatten(2).transpose(1, 2)
        torch.testing.assert_close(adapter.features(images), expected, **TOLERANCE)
        sequence = adapter(ModalityInput(images, torch.arange(2), torch.tensor([[3, 64, 64]] * 2)))
    assert sequence.grids == ((cells, cells),) * 2
    assert sequence.tokens.shape == (2, 1 + cells * cells, 16)


SENTENCES = ["a dog barks", "two people dance slowly on the beach!", "x"]


def texts() -> tuple[ModalityInput, Tensor]:
    """Return rows padded to the longest, and open_clip's own ids."""
    prep = OpenClipTextPreprocess(OpenClipTextPreprocess.Config(model="ViT-S-32", max_tokens=16))
    items = [prep(s) for s in SENTENCES]
    ids = open_clip.get_tokenizer("ViT-S-32", context_length=16)(SENTENCES)
    for item, row in zip(items, ids, strict=True):
        assert item.values.tolist() == row[: len(item.values)].tolist()
        assert int(row[len(item.values) :].sum()) == 0
        assert int(item.values[-1]) == 49407
    return ModalityInput.stack(items, torch.arange(3)), ids


@pytest.mark.parametrize("cfg", [TEXT, BIDIRECTIONAL], ids=["causal", "bidirectional"])
def test_text_features_are_open_clips(cfg: dict[str, Any]):
    rows, ids = texts()
    adapter, whole = pair("text", cfg, "pooled")
    with torch.no_grad():
        expected = whole.encode_text(ids)
        torch.testing.assert_close(adapter(rows).tokens[:, 1], adapter.proj(expected), **TOLERANCE)
    adapter, whole = pair("text", cfg, "tokens")
    whole.text.output_tokens = True
    with torch.no_grad():
        expected = adapter.proj(whole.text(ids)[1])
        found = adapter(rows)
    for row, length in enumerate(rows.sizes[:, 0].tolist()):
        assert int(found.valid[row].sum()) == length + 1
        torch.testing.assert_close(found.tokens[row, 1 : length + 1], expected[row, :length], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "tag"), [("ViT-B-32", "openai"), ("ViT-B-16-SigLIP", "webli"), ("RN50", "")]
)
def test_pictures_are_prepared_as_open_clip_does(name: str, tag: str):
    config = OpenClipImagePreprocess.Config(model=name, tag=tag)
    prep = OpenClipImagePreprocess(config)
    record = open_clip.get_pretrained_cfg(name, tag or "openai")
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    keys = ("mean", "std", "interpolation", "resize_mode")
    given = {k: record[k] for k in keys if k in record}
    theirs = open_clip.image_transform(size, is_train=False, **given)
    rows = np.linspace(0, 1, 300)[:, None, None] * np.array([255, 128, 40])
    columns = (np.sin(np.linspace(0, 9, 400)) * 60 + 60)[None, :, None]
    pixels = np.clip(rows + columns, 0, 255).astype(np.uint8)
    expected = theirs(Image.fromarray(pixels))
    found = prep(pixels).values
    assert found.shape == expected.shape
    level = 1 / 255 / min(prep.filled.config.std)
    difference = (found - expected).abs() / level
    assert float(difference.max()) < 2.1  # Pillow rounds after each of its two passes
    assert float((difference > 1.1).float().mean()) < 1e-3


@pytest.mark.parametrize("side", ["vision", "text"])
def test_a_frozen_tower_stays_as_it_is(side: str, generator: torch.Generator):
    cfg = VISION if side == "vision" else TEXT
    adapter, _ = pair(side, cfg, "tokens", freeze=True)
    adapter.train()
    assert not adapter.tower.training
    assert adapter.training
    rows = texts()[0]
    if side == "vision":
        rows = ModalityInput(pictures(generator), torch.arange(2), torch.tensor([[3, 64, 64]] * 2))
    adapter(rows).tokens.square().sum().backward()
    assert all(p.grad is None for p in adapter.tower.parameters())
    assert adapter.proj.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "ViT-B-23"}, "open_clip_image.model: 'ViT-B-23' is unknown to open_clip"),
        ({"model": "ViT-B-23"}, "Did you mean 'ViT-B-32'"),
        (
            {"model": "ViT-B-32", "tag": "opnai"},
            "open_clip_image.tag: ViT-B-32 has no weights tagged",
        ),
    ],
)
def test_wrong_names_get_their_neighbours(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        schema.parse(OpenClipImageAdapter.Config, options)
    assert said in str(caught.value)


def test_what_cannot_be_built_is_one_line():
    config = schema.parse(OpenClipImageAdapter.Config, {"create": {"vision_cfg": {"layrs": 3}}})
    with pytest.raises(ConfigError, match=r"x: open_clip cannot build ViT-S-32 \(.*layrs"):
        config.build(name="x", dim=16, num_heads=2)
    with pytest.raises(DataError, match="expected str"):
        OpenClipTextPreprocess(OpenClipTextPreprocess.Config())(b"bytes")
