"""One block and its parts: switches, feed-forwards, attention options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.layers.gated import geglu
from mmzoo.trunk.attention import MultiHeadAttention, QkvBias
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.block import Block, BlockConfig
from mmzoo.trunk.feed_forward import Activation, ModalityFeedForward, SharedFeedForward
from mmzoo.trunk.packing import pack

DIM, HEADS = 12, 3
NAMES = ("a", "b", "c")


def sequence(modality: str, lengths: list[int]) -> TokenSequence:
    n = max(lengths)
    generator = torch.Generator().manual_seed(ord(modality))
    tokens = torch.randn(len(lengths), n, DIM, generator=generator)
    return TokenSequence(
        tokens, torch.arange(n) < torch.tensor(lengths)[:, None], torch.arange(len(lengths)), modality
    )


def scramble(module: torch.nn.Module) -> Any:
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    return module


def test_modality_feed_forward_uses_each_modalitys_weights():
    ffn = scramble(
        ModalityFeedForward(
            ModalityFeedForward.Config(activation=Activation.GELU, hidden_dim=7), dim=DIM, modalities=NAMES
        )
    )
    packed = pack([[sequence("a", [2])], [sequence("c", [3, 1])]], NAMES)
    found, aux = ffn(packed.buffer, seq=packed.seq, ctx=MixerContext())
    assert aux == {}
    for name, (start, end) in packed.seq.modality_slices.items():
        net = ffn.networks[name]
        torch.testing.assert_close(found[start:end], net(packed.buffer[start:end]))
    found.sum().backward()
    assert all(p.grad is None for p in ffn.networks["b"].parameters())
    assert all(p.grad is not None for p in ffn.networks["a"].parameters())


@pytest.mark.parametrize("sub_norm", [True, False])
@pytest.mark.parametrize("activation", ["geglu", "gelu"])
def test_shared_feed_forward_is_its_formula(activation: str, sub_norm: bool):
    options = {"activation": activation, "hidden_dim": 5, "sub_norm": sub_norm}
    ffn = scramble(
        SharedFeedForward(schema.parse(SharedFeedForward.Config, options), dim=DIM, modalities=NAMES)
    )
    net = ffn.network
    packed = pack([[sequence("a", [2])], [sequence("b", [3])]], NAMES)
    x = packed.buffer.double()
    w = {k: v.double() for k, v in net.state_dict().items()}
    if activation == "geglu":
        gate, up = x @ w["w_in.weight"][:5].T, x @ w["w_in.weight"][5:].T
        h = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * up
    else:
        h = x @ w["w_in.weight"].T + w["w_in.bias"]
        h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    if sub_norm:
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        h = h * w["norm.weight"] + w["norm.bias"]
    wanted = h @ w["w_out.weight"].T + w["w_out.bias"]
    found, _ = ffn(packed.buffer, seq=packed.seq, ctx=MixerContext())
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head_gain", [True, False])
@pytest.mark.parametrize("sub_norm", [True, False])
@pytest.mark.parametrize("qkv_bias", list(QkvBias))
def test_attention_is_torchs_own(qkv_bias: QkvBias, sub_norm: bool, head_gain: bool):
    config = MultiHeadAttention.Config(qkv_bias=qkv_bias, sub_norm=sub_norm, head_gain=head_gain)
    mixer = scramble(MultiHeadAttention(config, dim=DIM, num_heads=HEADS))
    a = sequence("a", [4])
    packed = pack([[a]], NAMES)
    found, _ = mixer(packed.buffer, seq=packed.seq, ctx=MixerContext())
    zero = torch.zeros(DIM)
    bias = {
        QkvBias.NONE: torch.zeros(3 * DIM),
        QkvBias.ALL: mixer.qkv.bias,
        QkvBias.NO_KEY: torch.cat([mixer.q_bias, zero, mixer.v_bias]) if qkv_bias is QkvBias.NO_KEY else None,
    }[qkv_bias]
    identity = torch.eye(DIM)
    reference = F.multi_head_attention_forward(
        a.tokens.transpose(0, 1), a.tokens.transpose(0, 1), a.tokens.transpose(0, 1), DIM, HEADS,
        mixer.qkv.weight, bias, None, None, False, 0.0, identity, zero, need_weights=False,
    )[0][:, 0]  # fmt: skip
    if head_gain:
        reference = reference * mixer.head_gain.repeat_interleave(DIM // HEADS)
    if sub_norm:
        reference = F.layer_norm(reference, (DIM,), mixer.norm.weight, mixer.norm.bias)
    torch.testing.assert_close(
        found, F.linear(reference, mixer.out.weight, mixer.out.bias), atol=1e-5, rtol=1e-5
    )


def test_layer_scale_can_be_left_out():
    block = Block(BlockConfig(layer_scale_init=None), dim=DIM, num_heads=HEADS, modalities=NAMES)
    assert not [name for name, _ in block.named_parameters() if "gamma" in name]
    packed = pack([[sequence("a", [4])]], NAMES)
    x = packed.buffer
    y, _ = block(x, seq=packed.seq, ctx=MixerContext())
    mid = x + block.mixer(block.norm1(x), seq=packed.seq, ctx=MixerContext())[0]
    torch.testing.assert_close(y, mid + block.ffn(block.norm2(mid), seq=packed.seq, ctx=MixerContext())[0])


def test_a_cache_and_uneven_heads_are_refused():
    mixer = MultiHeadAttention(MultiHeadAttention.Config(), dim=DIM, num_heads=HEADS)
    packed = pack([[sequence("a", [2])]], NAMES)
    with pytest.raises(ConfigError, match="a key-value cache; expected none"):
        mixer(packed.buffer, seq=packed.seq, ctx=MixerContext(), cache={})
    with pytest.raises(ConfigError, match="5 heads; expected a divisor of dim 12"):
        MultiHeadAttention(MultiHeadAttention.Config(), dim=DIM, num_heads=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gated_gelu_and_its_hand_written_gradient(dtype: torch.dtype):
    h = torch.randn(3, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gate, up = h.chunk(2, -1)
    wanted = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * up
    weight = torch.arange(12.0, dtype=dtype).view(3, 4)
    torch.testing.assert_close(geglu(h), wanted)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), h) for y in (geglu(h), wanted)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(geglu(h), wanted)
