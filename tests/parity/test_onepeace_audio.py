"""The audio adapter against ONE-PEACE's own outputs (golden tensors), padding by its way and by ours."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
from safetensors.torch import load_file

from mmzoo.batch import ModalityInput
from mmzoo.modalities.audio import PadFrames, WaveformAdapter

PREFIX = "sd.encoder_wrapper.audio_adapter."
NAMES = (
    (r"cls_embedding", "cls_token"),
    (r"cls_pos_embed", "cls_position"),
    (r"embed_audios\.0\.conv_layers\.(\d)\.0\.weight", r"extractor.convs.\1.weight"),
    (r"embed_audios\.0\.conv_layers\.(\d)\.2\.1\.(weight|bias)", r"extractor.norms.\1.\2"),
    (r"embed_audios\.2\.(weight|bias)", r"norm.\1"),
    (r"embed_audios\.3\.(weight|bias)", r"projection.\1"),
    (r"rel_pos_table_list\.0\.weight", "biases.0.table"),
)
Golden = dict[str, torch.Tensor]


@pytest.fixture(params=["onepeace_a", "onepeace_c"])
def golden(shared: pathlib.Path, request: pytest.FixtureRequest) -> Golden:
    return load_file(shared / "parity" / f"{request.param}.safetensors")


def build(golden: Golden, pad_frames: PadFrames) -> WaveformAdapter:
    state = {k.removeprefix(PREFIX): v for k, v in golden.items() if k.startswith(PREFIX)}
    assert not state.pop("mask_embedding").isnan().any()  # exists in the reference, never used
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer = re.fullmatch(r"embed_positions\.(\d)\.0\.(weight|bias)", name)
        if layer:
            renamed[f"positions.{int(layer[1]) - 1}.conv.{layer[2]}"] = tensor
            continue
        new = [re.sub(old, now, name) for old, now in NAMES if re.fullmatch(old, name)]
        assert len(new) == 1, name
        renamed[new[0]] = tensor
    channels, kernel = state["embed_audios.3.weight"].shape[1], state["embed_positions.1.0.weight"].shape[2]
    options = WaveformAdapter.Config(
        conv_layers=[(channels, 10, 5), *[(channels, 3, 2)] * 4, *[(channels, 2, 2)] * 2],
        position_depth=sum(k.startswith("embed_positions") for k in state) // 2,
        position_kernel=kernel,
        position_groups=state["cls_embedding"].shape[2] // state["embed_positions.1.0.weight"].shape[1],
        num_buckets=(state["rel_pos_table_list.0.weight"].shape[0] - 2) // 2,
        pad_frames=pad_frames,
    )
    dim, heads = state["cls_embedding"].shape[2], state["rel_pos_table_list.0.weight"].shape[1]
    adapter = WaveformAdapter(options, name="audio", dim=dim, num_heads=heads)
    adapter.load_state_dict(renamed)
    return adapter.eval()


def clips(golden: Golden) -> ModalityInput:
    waves = golden["in.src_audios"]
    lengths = [int(row.nonzero().max()) + 1 for row in waves]  # noise, padded with exact zeros
    return ModalityInput(waves, torch.arange(len(waves)), torch.tensor(lengths)[:, None])


def test_reference_padding_reproduces_the_reference(golden: Golden) -> None:
    with torch.no_grad():
        out = build(golden, PadFrames.REFERENCE)(clips(golden))
    assert torch.equal(~out.valid, golden["adapter.audio.padding_mask"].bool())
    expected = golden["adapter.audio.x"]
    torch.testing.assert_close(out.tokens[out.valid], expected[out.valid], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.biases[0][0, 0], golden["adapter.audio.bias0_head0"], rtol=0, atol=0)


def test_zeroed_padding_agrees_on_full_rows_and_differs_only_by_padding(golden: Golden) -> None:
    x = clips(golden)
    with torch.no_grad():
        zeroed, reference = build(golden, PadFrames.ZERO), build(golden, PadFrames.REFERENCE)
        out = zeroed(x)
        full = [row for row in range(len(x)) if bool(out.valid[row].all())]
        short = [row for row in range(len(x)) if row not in full]
        assert full
        assert short
        torch.testing.assert_close(out.tokens[full], golden["adapter.audio.x"][full], rtol=1e-5, atol=1e-5)
        for row in short:  # a short clip is what the reference itself gives for that clip alone
            length = int(x.sizes[row, 0])
            alone = reference(
                ModalityInput(x.values[row : row + 1, :length], x.index[:1], x.sizes[row : row + 1])
            )
            n = alone.tokens.shape[1]
            torch.testing.assert_close(out.tokens[row, :n], alone.tokens[0], rtol=1e-5, atol=1e-5)
            assert (out.tokens[row, :n] - golden["adapter.audio.x"][row, :n]).abs().max() > 1e-3
