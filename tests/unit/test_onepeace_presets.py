"""The presets have the released model's parts, and what `mmzoo info` says of them is what is built."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mmzoo import zoo
from mmzoo.batch import DataInfo
from mmzoo.cli import catalog
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.onepeace.interop import to_onepeace
from mmzoo.models.onepeace.options import options_of

RELEASED = {
    "modalities.text": 78_008_880,
    "modalities.image": 3_390_816,
    "modalities.audio": 19_040_816,
    "trunk": 40 * 94_430_208 + 3 * 2 * 1536,
    "heads.align": 3 * (1536 * 1536 + 1536) + 1,
    "total": 3_884_740_545,
}
"""Counted on the reference's own modules at full size (onepeace.md section 0)."""
SIZES = ["tiny", "small", "base", "large", "4b"]


def on_meta(name: str) -> MultimodalModel:
    with torch.device("meta"):
        return MultimodalModel(MultimodalModel.resolve(zoo.preset(name), DataInfo()))


def test_the_released_size_is_the_released_size():
    model = on_meta("onepeace_4b")
    assert model.num_params() == RELEASED
    assert catalog.figures()["onepeace_4b"]["params"] == RELEASED


def test_info_tells_it_without_building_anything():
    code = "import sys, mmzoo.cli.main as m; c = m.main(sys.argv[1:]); sys.exit(c or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "info", "model/onepeace_4b", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["parameters"]["total"] == 3_884_740_545
    assert set(facts["flops"]) == {"text", "image", "audio"}


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_committed(size: str):
    assert catalog.figures()[f"onepeace_{size}"]["params"] == on_meta(f"onepeace_{size}").num_params()


def test_the_released_layout_describes_the_preset():
    """The names and shapes of the 4B model lead back to its options."""
    model = on_meta("onepeace_4b")
    names = to_onepeace(model.state_dict())
    found = options_of({name: tuple(tensor.shape) for name, tensor in names.items()})
    given = model.config
    assert names["encoder_wrapper.image_adapter.rel_pos_table_list.0.weight"].shape == (964, 24)
    assert names["encoder_wrapper.audio_adapter.embed_positions.5.0.weight"].shape == (1536, 96, 19)
    assert (found.trunk.dim, found.trunk.depth, found.trunk.num_heads) == (1536, 40, 24)
    assert found.modalities["audio"].to_dict() == given.modalities["audio"].to_dict()
    with torch.device("meta"):
        again = MultimodalModel(found).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_weights_start_as_the_reference_s():
    torch.manual_seed(0)
    model = zoo.create_model("onepeace_tiny", pretrained=False)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(
            ("qkv.weight", "w_in.weight", "w_out.weight", "projection.weight", "cls_token", "positions")
        ):
            assert tensor.abs().max() <= 0.02, name
            if tensor.numel() > 1e4:
                assert tensor.std() == pytest.approx(0.0108, rel=0.02), name
        elif name.endswith(("biases.0.table", "q_bias", "v_bias", "w_out.bias", "conv1.bias")):
            assert not tensor.any(), name
    assert state["heads.align.log_scale"].exp() == pytest.approx(1 / 0.07)
    projection = state["heads.align.projections.image.weight"]
    assert projection.abs().max() <= 0.02
    assert not state["heads.align.projections.image.bias"].any()
    assert model.config.trunk.layer_scale_init == 1e-2
    assert zoo.preset("onepeace_4b").trunk.layer_scale_init == 1e-6
