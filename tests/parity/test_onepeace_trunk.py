"""Our trunk with the reference's weights gives the reference's hidden states (onepeace.md section 10)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmzoo.batch import TokenSequence
from mmzoo.models.onepeace.interop import TRUNK_PREFIX, trunk_from_onepeace, trunk_to_onepeace
from mmzoo.trunk.packing import pack, unpack
from mmzoo.trunk.trunk import Trunk

PASSES = {
    "text": ["text"],
    "image": ["image"],
    "audio": ["audio"],
    "vl": ["text", "image"],
    "al": ["text", "audio"],
}
"""The reference's passes and the order of their modalities."""

Golden = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(params=["onepeace_a", "onepeace_c"])
def golden(request: pytest.FixtureRequest, shared: pathlib.Path) -> Golden:
    folder = shared / "parity"
    record = json.loads((folder / f"{request.param}.json").read_text())
    return record["config"] or record["config_target"], load_file(folder / f"{request.param}.safetensors")


def reference_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")}


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> Trunk:
    options = Trunk.Config(dim=config["dim"], depth=config["layers"], num_heads=config["heads"])
    options.ffn.hidden_dim = config["ffn"]
    trunk = Trunk(options, modalities=("text", "image", "audio"))
    trunk.load_state_dict(trunk_from_onepeace(reference_state(tensors)))
    return trunk.eval()


def bucket(distance: Tensor, b: int) -> Tensor:
    """One-dimensional bucket of a distance query - key (onepeace.md section 1.2), before b - 1 is added."""
    m = b // 2
    far = m + torch.ceil(torch.log(distance.abs() / m) / torch.log(torch.tensor(1023 / m)) * (m - 1))
    return torch.where(distance.abs() <= m, distance, distance.sign() * far.nan_to_num().to(torch.int64))


def axis_bias(table: Tensor, n: int, b: int) -> Tensor:
    """Relative bias of n tokens, CLS first: (1, h, n, n)."""
    place = torch.arange(n)
    index = bucket(place[:, None] - place[None, :], b) + b - 1
    index[0, :], index[:, 0], index[0, 0] = 2 * b - 1, 2 * b, 2 * b + 1
    return table[index].permute(2, 0, 1)[None]


def grid_bias(table: Tensor, side: int) -> Tensor:
    """Relative bias of a square grid behind CLS: (1, h, n, n)."""
    i, j = (torch.arange(side * side) // side, torch.arange(side * side) % side)
    inner = (i[:, None] - i + side - 1) * (2 * side - 1) + (j[:, None] - j + side - 1)
    index = torch.zeros(side * side + 1, side * side + 1, dtype=torch.int64)
    index[1:, 1:] = inner
    last = len(table)
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return table[index].permute(2, 0, 1)[None]


def sequences(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, TokenSequence]:
    """The reference adapters' own outputs, with relative bias from the tables of the state dict."""
    made: dict[str, TokenSequence] = {}
    for name in ("text", "image", "audio"):
        tokens = tensors[f"adapter.{name}.x"]
        k, n, _ = tokens.shape
        padded = tensors.get(f"adapter.{name}.padding_mask", torch.zeros(k, n, dtype=torch.uint8)).bool()
        table = tensors[f"sd.encoder_wrapper.{name}_adapter.rel_pos_table_list.0.weight"]
        if name == "image":
            table = tensors.get("load.image_rel_pos_table_7x7", table)
            bias = grid_bias(table, config["img_rel_bucket"])
        else:
            bias = axis_bias(table, n, config[f"{name}_bucket"])
        made[name] = TokenSequence(tokens, ~padded, torch.arange(k), name, biases=(bias,))
    return made


def test_the_biases_are_those_of_the_reference_adapters(golden: Golden):
    config, tensors = golden
    made = sequences(config, tensors)
    assert torch.equal(made["text"].biases[0][0], tensors["adapter.text.bias0"])
    assert torch.equal(made["image"].biases[0][0], tensors["adapter.image.bias0"])
    assert torch.equal(made["audio"].biases[0][0, 0], tensors["adapter.audio.bias0_head0"])


@pytest.mark.parametrize("backend", ["segments", "bmm", "dense"])
def test_hidden_states_of_every_pass_run_together(golden: Golden, backend: str):
    config, tensors = golden
    trunk = build(config, tensors)
    for block in trunk.blocks:
        block.mixer.backend = type(block.mixer.backend)(backend)
    made = sequences(config, tensors)
    groups = [[made[m] for m in names] for names in PASSES.values()]
    packed = pack(groups, trunk.modalities)
    hidden: list[Tensor] = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda _, __, out: hidden.append(out[0]))
    with torch.no_grad():
        outputs = trunk(groups).groups
    for layer, x in enumerate(hidden):
        for name, group in zip(PASSES, unpack(x, packed, groups), strict=True):
            valid = torch.cat([s.valid for s in group], 1)
            found = torch.cat([s.tokens for s in group], 1)
            wanted = tensors[f"hidden.{name}.layer{layer}"]
            torch.testing.assert_close(found[valid], wanted[valid], atol=1e-4, rtol=1e-4)
    assert len(hidden) == config["layers"]
    for (name, names), group in zip(PASSES.items(), outputs, strict=True):
        for modality, s in zip(names, group, strict=True):
            wanted = tensors[f"out.{name}.{modality}"]
            torch.testing.assert_close(s.tokens[s.valid], wanted[s.valid], atol=1e-4, rtol=1e-4)


def test_weights_return_under_their_names(golden: Golden):
    config, tensors = golden
    state = reference_state(tensors)
    own = {k: v for k, v in state.items() if k.startswith(TRUNK_PREFIX)}
    back = trunk_to_onepeace(build(config, tensors).state_dict())
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
