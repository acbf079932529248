"""Mixture of attention: how many heads a token has, and what that asks of biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.moa import MixtureOfAttention
from mmzoo.trunk.packing import Packed, pack
from mmzoo.trunk.routing_stats import RoutingRecord

DIM, HEADS, EXPERTS = 12, 4, 6


def mixer(**router: Any) -> MixtureOfAttention:
    tree = {"num_experts": EXPERTS, "router": {"type": "topk", **router}}
    torch.manual_seed(0)
    config = schema.parse(MixtureOfAttention.Config, tree)
    made = MixtureOfAttention(config, dim=DIM, num_heads=HEADS)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
    return made.eval()


def buffer(*, bias_heads: int = 0) -> Packed:
    x = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(1))
    biases = (torch.zeros(1, bias_heads, 5, 5),) if bias_heads else ()
    sequence = TokenSequence(x, torch.ones(2, 5, dtype=torch.bool), torch.arange(2), "a", biases=biases)
    return pack([[sequence]], ("a",))


@pytest.mark.parametrize(("router", "heads"), [({}, HEADS), ({"top_k": 2}, 2), ({"top_k": 6}, 6)])
def test_a_token_has_top_k_heads_or_as_many_as_the_trunk(router: dict[str, int], heads: int):
    """The output is the weighted sum over the chosen experts, computed one token at a time."""
    made, packed, context = mixer(**router), buffer(), MixerContext()
    made.prepare(packed.seq, 0)
    with torch.no_grad():
        y, _ = made(packed.buffer, seq=packed.seq, ctx=context)
        record = context.stats["0/queries/routing"]
        assert isinstance(record, RoutingRecord)
        assert record.experts_tk.shape == (10, heads)
        keys, values = made.kv(packed.buffer[:5]).chunk(2, dim=1)
        for t in range(5):
            probs = record.probs_te[t]
            total, wanted = probs[record.experts_tk[t]].sum(), torch.zeros(DIM)
            for e in record.experts_tk[t].tolist():
                q = made.w_q[e] @ packed.buffer[t]
                head = (keys @ q / made.head_dim**0.5).softmax(0) @ values
                wanted = wanted + probs[e] / total * (made.w_out[e] @ head)
            torch.testing.assert_close(y[t], wanted, atol=1e-5, rtol=1e-5)


def test_its_cost_goes_with_the_heads_of_a_token():
    few, many = mixer(top_k=1, weights="full"), mixer(top_k=4)
    per_head = 2 * 2 * DIM * few.head_dim * 5 + 4 * few.head_dim * 25
    assert many.flops([5]) - few.flops([5]) == 3 * per_head


def test_a_bias_for_other_heads_is_refused():
    mixer().check(buffer(bias_heads=HEADS).seq)
    mixer(top_k=2).check(buffer(bias_heads=1).seq)
    with pytest.raises(ConfigError, match=r"\(moa\): a bias for 4 heads; expected one for 2"):
        mixer(top_k=2).check(buffer(bias_heads=HEADS).seq)


def test_more_heads_than_experts_are_refused():
    with pytest.raises(ConfigError, match="7 of 6 experts"):
        mixer(top_k=7)
