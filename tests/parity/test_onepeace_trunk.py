"""Every attention backend gives the reference's hidden states; weights return under their names."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch

from mmzoo.checkpoints.loading import InMemory, load_weights
from mmzoo.errors import CheckpointError
from mmzoo.layers.attention import Backend
from mmzoo.models.onepeace.interop import buffers, from_onepeace, layout_of, read_names, to_onepeace
from tests.parity.families import onepeace
from tests.parity.golden import Golden, read


@pytest.fixture(params=["onepeace_a", "onepeace_c"])
def golden(request: pytest.FixtureRequest, shared: pathlib.Path) -> Golden:
    return read(shared / "parity" / f"{request.param}.safetensors")


@pytest.mark.parametrize("backend", ["segments", "bmm", "dense"])
def test_hidden_states_of_every_pass_run_together(golden: Golden, backend: str):
    model = onepeace.build(golden)
    for block in model.trunk.blocks:
        block.mixer.backend = Backend(backend)
    batch = onepeace.inputs(golden, model)
    outputs, layers = onepeace.forward(model, batch)
    assert list(outputs) == list(onepeace.PASSES)
    for layer, tokens in enumerate(layers):
        for name, sequences in outputs.items():
            valid = torch.cat([s.valid for s in sequences], 1)
            expected = golden.tensors[f"hidden.{name}.layer{layer}"]
            torch.testing.assert_close(tokens[name][valid], expected[valid], atol=1e-4, rtol=1e-4)
    assert len(layers) == onepeace.config_of(golden)["layers"]


def test_weights_return_under_their_names(golden: Golden):
    state = golden.under("sd.")
    decoder = set(read_names(state).decoder)
    own = {k: v for k, v in state.items() if k not in decoder}
    back = to_onepeace(from_onepeace(state))
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)


def test_every_weight_has_a_place_and_every_place_a_weight(golden: Golden):
    model = onepeace.build(golden)
    report = load_weights(model, InMemory(from_onepeace(golden.under("sd."))))
    assert report.missing == report.unexpected == []
    assert report.taken == len(model.state_dict())
    grid = onepeace.config_of(golden)["img_rel_bucket"]
    stored = golden.tensors["sd.encoder_wrapper.image_adapter.rel_pos_table_list.0.weight"]
    resized = (2 * grid - 1) ** 2 + 3 != len(stored)
    assert list(report.resized) == ["adapters.image.biases.0.table"] * resized


def test_buffers_are_the_reference_s(golden: Golden):
    import hashlib

    made = buffers(golden.under("sd."))
    expected = golden.record["omitted_buffers"]
    assert made.keys() == expected.keys()
    side = onepeace.config_of(golden)["img_rel_bucket"]
    for name, facts in expected.items():
        if name == "encoder_wrapper.image_adapter.rp_bucket" and list(made[name].shape) != facts["shape"]:
            assert facts["shape"] == [side * side + 1] * 2  # recorded of the resized model, made of the file
            continue
        assert list(made[name].shape) == facts["shape"], name
        assert hashlib.sha256(made[name].numpy().tobytes()).hexdigest() == facts["sha256"], name


def test_an_unknown_name_is_refused_and_foreign_files_are_told(golden: Golden):
    state = golden.under("sd.")
    with pytest.raises(CheckpointError, match=re.escape("1 keys without a row, encoder_wrapper.what first")):
        from_onepeace({**state, "encoder_wrapper.what": torch.zeros(1)})
    name = "encoder_wrapper.fusion_model.layers.0.self_attn.v_proj.weight"
    cut = {k: v for k, v in state.items() if k != name}
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.v_proj\.weight; expected it beside"):
        from_onepeace(cut)
    assert layout_of(["blocks.0.attn.qkv.weight"]) is None
    with pytest.raises(CheckpointError, match="expected encoder_wrapper"):
        from_onepeace({"blocks.0.attn.qkv.weight": torch.zeros(1)})
