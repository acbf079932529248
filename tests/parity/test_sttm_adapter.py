"""The fMRI adapter against STTM's brain network: subject adapters, shared core, and the tokens it makes."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmzoo.batch import ModalityInput
from mmzoo.modalities.fmri import FmriAdapter, module_key

Golden = dict[str, torch.Tensor]
PART = {"0": "linear", "1": "norm"}


@pytest.fixture
def golden(shared: pathlib.Path) -> Golden:
    return load_file(shared / "parity" / "sttm_a.safetensors")


def rename(key: str) -> str | None:
    if found := re.fullmatch(r"input_proj\.head(\w+)\.(\d)\.(\w+)", key):
        return f"subjects.{module_key(found[1])}.{PART[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"input_res_block\.head(\w+)\.(\d)\.(\d)\.(\w+)", key):
        return f"subjects.{module_key(found[1])}.blocks.{found[2]}.{PART[found[3]]}.{found[4]}"
    if found := re.fullmatch(r"mlp\.(\d)\.(\d)\.(\w+)", key):
        return f"core.{found[1]}.{PART[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"hidd2token\.(\d)\.(\w+)", key):
        return f"{'norm' if found[1] == '0' else 'to_tokens'}.{found[2]}"
    return None


def build(golden: Golden) -> FmriAdapter:
    config = FmriAdapter.Config(
        subjects={"1": 61, "5": 47}, hidden_dim=48, num_core_blocks=2, num_tokens=17, token_dim=8
    )
    adapter = FmriAdapter(config, name="fmri", dim=16, num_heads=2)
    state = {k.removeprefix("sd."): v for k, v in golden.items() if k.startswith("sd.")}
    renamed = {new: v for k, v in state.items() if (new := rename(k))}
    missing, unexpected = adapter.load_state_dict(renamed, strict=False)
    assert unexpected == []
    assert sorted(missing) == [
        "cls_token",
        "projection.bias",
        "projection.weight",
    ]  # ours: into the trunk's width
    left = {k.split(".")[0] for k in state if rename(k) is None}
    assert left == {"token_attention", "projector"}  # theirs: what the trunk and the heads do here
    return adapter.eval()


def both(golden: Golden) -> ModalityInput:
    values = torch.zeros(8, 61)
    values[::2], values[1::2, :47] = golden["in.voxels_subj1"], golden["in.voxels_subj5"]
    sizes = torch.tensor([[61], [47]] * 4)
    return ModalityInput(values, torch.arange(8), sizes, subjects=("1", "5") * 4)


def test_subject_adapters_and_core(golden: Golden) -> None:
    adapter = build(golden)
    with torch.no_grad():
        code = adapter.encode_subjects(both(golden))
        shared_code = adapter.core(code)
    for start, subject in ((0, "1"), (1, "5")):
        torch.testing.assert_close(code[start::2], golden[f"out.adapter_subj{subject}"], rtol=1e-5, atol=1e-5)
        expected = golden[f"out.backbone_subj{subject}"]
        torch.testing.assert_close(shared_code[start::2], expected, rtol=1e-5, atol=1e-5)


def test_tokens_followed_by_sttms_own_attention(golden: Golden) -> None:
    """What comes after our tokens in STTM, written out here, must give its token output."""
    state = {k.removeprefix("sd.token_attention."): v for k, v in golden.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    with torch.no_grad():
        x = build(golden).encode_tokens(both(golden))
        normed = norm("layer_norm", x)
        q, k, v = (linear(f"attention.{part}", normed).reshape(8, 17, 8, 4).transpose(1, 2) for part in "qkv")
        # the reference multiplies the logits by sqrt(head_dim) where others divide
        mixed = (q @ k.transpose(2, 3) * 4**0.5).softmax(-1) @ v
        y = x + linear("attention.projection", mixed.transpose(1, 2).reshape(8, 17, 32))
        out = linear(
            "out_proj.4", F.gelu(norm("out_proj.1", linear("out_proj.0", norm("qkv_layer_norm", y))))
        )
    torch.testing.assert_close(out[::2], golden["out.tokens"][:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out[1::2], golden["out.tokens"][4:], rtol=1e-4, atol=1e-4)
