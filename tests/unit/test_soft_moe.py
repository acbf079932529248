"""Soft mixture of experts against its formula, one token, slot and segment at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.feed_forward import ModalityFeedForward
from mmzoo.trunk.packing import Packed, pack
from mmzoo.trunk.routing_stats import routing_use
from mmzoo.trunk.soft_moe import SoftMoeFeedForward
from mmzoo.trunk.trunk import Trunk

DIM, EXPERTS, SLOTS = 6, 3, 2
NAMES = ("image", "text")


def sequence(modality: str, lengths: list[int], *, garbage: float = 1.0) -> TokenSequence:
    generator = torch.Generator().manual_seed(len(modality))
    n = max(lengths) + 2
    values = torch.randn(len(lengths), n, DIM, generator=generator)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    values = torch.where(valid[:, :, None], values, values * garbage)
    return TokenSequence(values, valid, torch.arange(len(lengths)), modality)


def layer(**options: Any) -> SoftMoeFeedForward:
    torch.manual_seed(0)
    tree = {"num_experts": EXPERTS, "slots": SLOTS, "hidden_dim": 5, **options}
    made = SoftMoeFeedForward(schema.parse(SoftMoeFeedForward.Config, tree), dim=DIM, modalities=NAMES)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape) * 0.4)
    return made


def mixed() -> Packed:
    text, image = sequence("text", [3, 5, 3]), sequence("image", [4, 2, 4])
    return pack([[text], [image], [text, image]], NAMES)


def run(made: SoftMoeFeedForward, packed: Packed) -> Tensor:
    return made(packed.buffer, seq=packed.seq, ctx=MixerContext())[0]


def slow(made: SoftMoeFeedForward, tokens: Tensor) -> Tensor:
    """Return Y of one segment's tokens (n d); experts are plain GELU networks."""
    phi, weights = made.phi.view(EXPERTS, SLOTS, DIM), made.experts
    assert weights.b_in is not None

    def fit(token: Tensor, slot: Tensor) -> Tensor:
        product = (token * slot).sum()
        if made.scale is None:
            return product
        return (
            made.scale * product / (token.square().sum().sqrt() + 1e-6) / (slot.square().sum().sqrt() + 1e-6)
        )

    y = [torch.zeros(DIM) for _ in tokens]
    total = [sum(fit(token, slot).exp() for slot in phi.flatten(0, 1)) for token in tokens]
    for e in range(EXPERTS):
        for p in range(SLOTS):
            shares = torch.stack([fit(token, phi[e, p]) for token in tokens]).softmax(0)
            read = sum(share * token for share, token in zip(shares, tokens, strict=True))
            inner = weights.w_in[e] @ read + weights.b_in[e]
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            outer = weights.w_out[e] @ inner + weights.b_out[e]
            for i, token in enumerate(tokens):
                y[i] = y[i] + fit(token, phi[e, p]).exp() / total[i] * outer
    return torch.stack(y)


@pytest.mark.parametrize("logits", ["normalised", "plain"])
def test_every_segment_is_the_formula(logits: str):
    """Alone, in batches of unequal lengths, and of two modalities, whose tokens fill the slots together."""
    made, packed = layer(logits=logits, activation="gelu", sub_norm=False), mixed()
    with torch.no_grad():
        y = run(made, packed)
        for number in range(packed.seq.num_segments):
            rows = (packed.seq.segment_of_row == number).nonzero()[:, 0]
            wanted = slow(made, packed.buffer[rows])
            torch.testing.assert_close(y[rows], wanted, atol=1e-5, rtol=1e-5)
    assert packed.seq.num_segments == 9


def test_neither_padding_nor_the_rest_of_the_batch_counts():
    made = layer()
    whole = run(made, pack([[sequence("text", [3, 5, 3])]], NAMES))
    noisy = run(made, pack([[sequence("text", [3, 5, 3], garbage=1e3)]], NAMES))
    assert torch.equal(whole, noisy)
    alone = run(made, pack([[sequence("text", [3, 5, 3])], [sequence("image", [4, 1])]], NAMES))
    torch.testing.assert_close(alone[5:], whole, atol=1e-6, rtol=1e-6)


def test_one_slot_in_all_gives_every_token_the_same():
    made = layer(num_experts=1, slots=1)
    y = run(made, pack([[sequence("text", [4])]], NAMES))
    torch.testing.assert_close(y, y[:1].expand_as(y))


@pytest.mark.parametrize("kernel", ["slices", "grouped_mm"])
def test_both_kernels_agree(kernel: str):
    torch.testing.assert_close(
        run(layer(kernel=kernel), mixed()), run(layer(), mixed()), atol=1e-5, rtol=1e-5
    )


def test_what_sees_only_a_part_is_refused():
    made, text = layer(), sequence("text", [3])
    causal = pack([[text]], NAMES, is_causal=True)
    masked = pack([[text]], NAMES, mask_mod=lambda s, h, q, k: q >= k)
    for packed in (causal, masked):
        with pytest.raises(ConfigError, match=r"soft_moe\): a causal plan or a mask"):
            run(made, packed)


def test_use_is_the_share_of_each_expert_in_what_tokens_read():
    made, packed, context = layer(), mixed(), MixerContext(layer=2)
    made(packed.buffer, seq=packed.seq, ctx=context)
    use = routing_use(context.stats)["2"]["", "text"]
    torch.testing.assert_close(use.probs.sum(), torch.tensor(22.0, dtype=torch.float64))
    assert use.tokens == 22


def test_any_block_of_a_trunk_takes_it():
    ffn = {"type": "soft_moe", "num_experts": 4, "every": 2, "hidden_dim": 8}
    tree = {"dim": DIM, "depth": 4, "num_heads": 2, "ffn": ffn}
    trunk = Trunk(schema.parse(Trunk.Config, tree), modalities=NAMES)
    kinds = [type(block.ffn) for block in trunk._blocks()]
    assert kinds == [ModalityFeedForward, SoftMoeFeedForward] * 2
    out = trunk([[sequence("text", [3, 5])]])
    out.groups[0][0].tokens.sum().backward()
    assert sorted(out.stats) == ["1/routing", "3/routing"]


def test_its_cost_goes_with_slots_and_segments():
    made = layer(activation="gelu")
    rows = 3 * EXPERTS * SLOTS
    assert made.flops(50, 3) == 2 * rows * 2 * 5 * DIM + 6 * 50 * EXPERTS * SLOTS * DIM


def test_impossible_numbers_are_told_together():
    with pytest.raises(
        ConfigError, match=r"num_experts: 0; expected at least 1[^\n]*\n.*slots: 0; expected at least 1"
    ):
        layer(num_experts=0, slots=0)
