"""The pretraining decoder's weights go to ours and back; each of the reference's ways is a switch."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import torch
from torch import Tensor

from mmzoo.heads.masked import InputFacts
from mmzoo.layers.contrast import Keys
from mmzoo.modalities.audio import HiddenFrames
from mmzoo.models.denoising import DecoderPadding
from mmzoo.models.onepeace.decoder import (
    decoder_from_onepeace,
    decoder_names,
    decoder_options_of,
    decoder_to_onepeace,
)
from mmzoo.objectives.contrast import InfoNce
from tests.parity.families import onepeace, onepeace_pretraining
from tests.parity.golden import Golden, read

STAGE = onepeace_pretraining.STAGES[1]


@pytest.fixture(params=["onepeace_a", "onepeace_c"])
def golden(shared: pathlib.Path, request: pytest.FixtureRequest) -> Golden:
    return read(shared / "parity" / f"{request.param}.safetensors")


def test_every_weight_goes_there_and_back(golden: Golden):
    state = golden.under("sd.")
    config = onepeace.config_of(golden)
    options = decoder_options_of({k: tuple(v.shape) for k, v in state.items()}, num_heads=config["dec_heads"])
    inputs = {
        "text": InputFacts("text", (514,)),
        "image": InputFacts("image", (config["img_bucket"],) * 2),
        "audio": InputFacts("audio", (1026,)),
    }
    head = options.build(dim=config["dim"], passes=("text", "image", "audio"), inputs=inputs)
    head.load_state_dict(decoder_from_onepeace(state))
    back = decoder_to_onepeace(head.state_dict())
    assert sorted(back) == sorted(decoder_names(state))
    assert all(torch.equal(back[k], state[k]) for k in back)
    assert [n for n, p in head.named_parameters() if not p.requires_grad] == [
        f"unread.{n}" for n in ("text_cls", "image_cls", "audio_cls", "audio_mask")
    ]


def students(golden: Golden, **changes: object) -> Tensor:
    """What the student of the audio pass makes of hidden frames, with one of the reference's ways changed."""
    model = onepeace_pretraining.build(golden, onepeace.build(golden), STAGE)
    batch = onepeace.inputs(golden, model)
    drawn = onepeace_pretraining._students(golden, model, batch, STAGE).hidden["denoise"]
    head, adapter = model.heads["denoise"], model.adapter("audio")
    for name, value in changes.items():
        owner = adapter if name == "hidden_frames" else head
        owner.config = dataclasses.replace(owner.config, **{name: value})
    head.draw = lambda what, generator: drawn
    with torch.no_grad():
        return model(batch, ["denoise"]).predictions["denoise"]["audio"].values


def test_each_of_the_references_ways_is_a_switch(golden: Golden):
    expected = students(golden)
    for changes in ({"hidden_frames": HiddenFrames.ZERO}, {"padding": DecoderPadding.SKIP}):
        assert (students(golden, **changes) - expected).abs().max() > 1e-3, changes


def test_keys_without_gradient_change_gradients_alone(golden: Golden):
    model = onepeace.build(golden)
    batch = onepeace.inputs(golden, model)
    output = model(batch, ["align"]).predictions["align"]
    losses, gradients = [], []
    for keys in Keys:
        loss = InfoNce.Config(pairs=[("image", "text")], keys=keys).build()(output, batch, "").mean()
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, output["image"].values, retain_graph=True)[0])
    assert losses[0] == losses[1]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3
