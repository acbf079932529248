"""MLoRE's whole model against its golden file: names there and back, and what a checkpoint's size binds."""

from __future__ import annotations

import pathlib

import pytest
import torch

from mmzoo.errors import CheckpointError
from mmzoo.models.mlore.interop import WRAPPER, from_mlore, options_of, to_mlore
from mmzoo.models.multimodal import MultimodalModel
from tests.parity.families import mlore
from tests.parity.golden import Golden, read


@pytest.fixture(scope="module")
def golden(shared: pathlib.Path) -> Golden:
    path = shared / "parity" / "mlore_a.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    return read(path)


def test_names_go_there_and_back_and_unused_ones_are_listed(golden: Golden):
    weights = golden.under("state/")
    extra = ["backbone.q_fuse.semseg.0.weight", "backbone.classify_route_2.1.bias", "aux_heads.depth.weight"]
    wrapped = {WRAPPER + k: v for k, v in weights.items()} | {WRAPPER + k: torch.zeros(1) for k in extra}
    loaded = from_mlore(wrapped)
    assert sorted(loaded.unused) == sorted(extra)
    assert loaded.state.keys() == mlore.build(golden).state_dict().keys()
    back = to_mlore(loaded.state)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], v) for k, v in weights.items())


def test_an_unknown_name_is_refused(golden: Golden):
    with pytest.raises(CheckpointError, match="1 keys without a row, backbone"):
        from_mlore({**golden.under("state/"), "backbone.what": torch.zeros(1)})


def test_another_size_is_refused_at_loading_and_served_at_run_time(golden: Golden):
    with pytest.raises(CheckpointError, match="12 positions for images of 64 x 64; expected 16"):
        options_of(golden.under("state/"), image_size=(64, 64), num_heads=3)
    model = mlore.build(golden)
    image = torch.nn.functional.interpolate(golden.tensors["in/image"], (96, 128), mode="bilinear")
    with torch.no_grad():
        found = model(mlore.batch_of(image)).predictions["semseg"]["image"].values
    assert found.shape == (2, 5, 96, 128)
    assert bool(found.isfinite().all())


def test_folding_changes_nothing_but_rounding_and_is_for_evaluation_only(golden: Golden):
    plain, folded = mlore.run(golden, "experts"), mlore.run(golden, "folded")
    for name, value in plain.items():
        torch.testing.assert_close(folded[name], value, atol=1e-5, rtol=0)
    model = mlore.build(golden, "folded").train()
    batch = mlore.batch_of(golden.tensors["in/image"])
    decoder = model.decoder
    assert isinstance(model, MultimodalModel)
    assert decoder is not None
    before = decoder.get_buffer("first.0.branches.semseg.mixture_norm.running_mean").clone()
    model(batch)
    after = decoder.get_buffer("first.0.branches.semseg.mixture_norm.running_mean")
    assert not torch.equal(before, after)
