"""A timm ViT's blocks inside our trunk, and the key-map engine behind it."""

from __future__ import annotations

import pytest
import timm
import torch

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.checkpoints.key_map import KeyMap
from mmzoo.errors import CheckpointError
from mmzoo.models.vit.interop import from_timm, to_timm
from mmzoo.trunk.trunk import Trunk

PLAIN = {
    "mixer": {"type": "attention", "qkv_bias": "all", "sub_norm": False},
    "ffn": {"type": "shared", "activation": "gelu", "sub_norm": False},
    "norm_eps": 1e-6,
    "layer_scale_init": None,
    "final_norm": "shared",
}


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_a_timm_vit_gives_the_same_features(layer_scale: float | None):
    vit = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=48, depth=3, init_values=layer_scale
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    options = {**PLAIN, "dim": 192, "depth": 3, "num_heads": 3, "layer_scale_init": layer_scale}
    trunk = Trunk(schema.parse(Trunk.Config, options), modalities=("image",)).eval()
    trunk.load_state_dict(from_timm(vit.state_dict()))
    images = torch.randn(2, 3, 48, 48, generator=generator)
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool)
        found = trunk([[TokenSequence(tokens, valid, torch.arange(2), "image")]]).groups[0][0].tokens
        torch.testing.assert_close(found, vit.forward_features(images), atol=1e-5, rtol=1e-5)
    inside = {k: v for k, v in vit.state_dict().items() if k.startswith(("blocks.", "norm."))}
    back = to_timm(trunk.state_dict())
    assert back.keys() == inside.keys()
    assert all(torch.equal(back[k], inside[k]) for k in inside)


MAP = KeyMap("old weights", (("a.{i}.{p}", "b.{i}.{p}"), (("q.{i}", "k.{i}"), "qk.{i}")))


def test_stacked_rows_both_ways():
    theirs = {"a.0.weight": torch.zeros(1), "q.3": torch.ones(2, 2), "k.3": torch.full((2, 2), 2.0)}
    ours = MAP.to_ours(theirs)
    assert ours.keys() == {"b.0.weight", "qk.3"}
    assert ours["qk.3"].tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]
    back = MAP.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[k], theirs[k]) for k in theirs)


def test_keys_without_a_row_and_missing_parts_are_errors():
    with pytest.raises(CheckpointError, match="old weights: 1 keys without a row, c first; expected none"):
        MAP.to_ours({"c": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 keys without a row, a\.0\.w first"):
        MAP.to_theirs({"a.0.w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"old weights: no k.3; expected it beside q.3"):
        MAP.to_ours({"q.3": torch.zeros(1)})
