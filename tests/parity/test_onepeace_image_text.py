"""The image and text adapters against ONE-PEACE's own outputs (Apache-2.0), tables and token ids."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from mmzoo.batch import ModalityInput
from mmzoo.layers.positions import (
    RelativeBias1d,
    RelativeBias2d,
    resize_relative_table,
    token_buckets,
)
from mmzoo.modalities.image import ImageAdapter
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.tokenizers import Gpt2Bpe

IMAGE = "sd.encoder_wrapper.image_adapter."
IMAGE_KEYS = {
    "stem.conv1.weight": "embed_images.0.weight",
    "stem.conv1.bias": "embed_images.0.bias",
    "stem.norm1.weight": "embed_images.1.layer_norm.weight",
    "stem.norm1.bias": "embed_images.1.layer_norm.bias",
    "stem.conv2.weight": "embed_images.3.weight",
    "stem.conv2.bias": "embed_images.3.bias",
    "stem.norm2.weight": "embed_images.4.layer_norm.weight",
    "stem.norm2.bias": "embed_images.4.layer_norm.bias",
    "stem.conv3.weight": "embed_images.6.weight",
    "stem.conv3.bias": "embed_images.6.bias",
    "cls_token": "cls_embedding",
    "positions.table": "pos_embed",
    "biases.0.table": "rel_pos_table_list.0.weight",
}


@pytest.fixture(scope="module", params=["onepeace_a", "onepeace_c"])
def golden(request, shared):
    record = json.loads((shared / "parity" / f"{request.param}.json").read_text())
    return load_file(shared / "parity" / f"{request.param}.safetensors"), record["config"] or record[
        "config_target"
    ]


@pytest.fixture(scope="module")
def aux(shared):
    return json.loads((shared / "parity" / "onepeace_aux.json").read_text())


def image_adapter(tensors, sizes, bias_grid: int) -> ImageAdapter:
    side = sizes["img_size"]
    config = ImageAdapter.Config(
        preprocess=ImagePreprocess.Config(size=(side, side)),
        position_grid=sizes["img_bucket"],
        bias_grid=bias_grid,
    )
    adapter = ImageAdapter(config, name="image", dim=sizes["dim"], num_heads=sizes["heads"])
    state = {ours: tensors[IMAGE + theirs] for ours, theirs in IMAGE_KEYS.items()}
    state["biases.0.table"] = resize_relative_table(state["biases.0.table"], bias_grid)
    adapter.load_state_dict(state)
    return adapter.eval()


@pytest.mark.parametrize("training", [False, True])
def test_image_adapter_matches(golden, training):
    tensors, sizes = golden
    adapter = image_adapter(tensors, sizes, sizes["img_rel_bucket"]).train(training)
    images = tensors["in.src_images"]
    extents = torch.tensor([images.shape[1:]] * len(images))
    with torch.set_grad_enabled(training):
        found = adapter(ModalityInput(images, torch.arange(len(images)), extents))
    torch.testing.assert_close(found.tokens, tensors["adapter.image.x"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.biases[0][0], tensors["adapter.image.bias0"], atol=1e-6, rtol=1e-6)
    grid = sizes["img_size"] // 16
    assert found.grids == ((grid, grid),) * len(images)
    assert bool(found.valid.all())


@pytest.mark.parametrize("num_buckets", [8, 16, 256, 512])
def test_every_distance_falls_into_the_same_bucket(aux, num_buckets):
    expected = aux["token_buckets"][str(num_buckets)]
    assert expected["rel_from"] == -1023
    assert token_buckets(num_buckets, 1024).tolist() == expected["index"]
    index = RelativeBias1d(num_buckets, 1).index(3)
    marks = (index[0, 1].item(), index[1, 0].item(), index[0, 0].item())
    assert marks == (expected["cls_query_row"], expected["cls_key_col"], expected["cls_cls"])


@pytest.mark.parametrize("size", [4, 7, 16])
def test_image_index_is_the_same(aux, size):
    index = RelativeBias2d(size, 1).index(size, size)
    assert (
        hashlib.sha256(index.numpy().tobytes()).hexdigest() == aux["image_buckets"][str(size)]["sha256_int64"]
    )


def test_text_index_is_the_same(shared):
    record = json.loads((shared / "parity" / "onepeace_a.json").read_text())["omitted_buffers"]
    expected = record["encoder_wrapper.text_adapter.rp_bucket"]["sha256"]
    index = RelativeBias1d(256, 1).index(1024)
    assert hashlib.sha256(index.numpy().tobytes()).hexdigest() == expected


def test_gpt2_bpe_gives_the_released_ids(aux, shared):
    tokenizer = Gpt2Bpe.Config(tables=str(shared / "data" / "gpt2_bpe")).build()
    assert tokenizer.vocab_size == aux["tokenizer"]["vocab"]
    for text, ids in aux["tokenizer"]["examples"].items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text.lower()
