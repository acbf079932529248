"""Mixture of heads: warm start, formulas of both routers, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.attention import MultiHeadAttention
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.moh import MixtureOfHeads
from mmzoo.trunk.packing import Packed, pack
from mmzoo.trunk.routing_stats import RoutingRecord

DIM, HEADS = 16, 8


def buffer(generator: torch.Generator) -> Packed:
    x = torch.randn(2, 5, DIM, generator=generator)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    return pack([[TokenSequence(x, valid, torch.arange(2), "a")]], ("a",))


def mixer(**options: Any) -> MixtureOfHeads:
    torch.manual_seed(1)
    return MixtureOfHeads(schema.parse(MixtureOfHeads.Config, options), dim=DIM, num_heads=HEADS)


def plain() -> MultiHeadAttention:
    torch.manual_seed(0)
    made = MultiHeadAttention(MultiHeadAttention.Config(), dim=DIM, num_heads=HEADS)
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    return made


def run(made: Any, packed: Packed) -> torch.Tensor:
    made.prepare(packed.seq, 0)
    return made(packed.buffer, seq=packed.seq, ctx=MixerContext())[0]


@pytest.mark.parametrize("router", ["learned", "query_norm"])
def test_all_heads_on_start_as_plain_attention(router: str, generator):
    """With every routed head chosen and routers near zero nothing is left out and every weight is 1."""
    packed, attention = buffer(generator), plain()
    made = mixer(router=router, shared_heads=3, top_k=5)
    report = made.load_state_dict(MixtureOfHeads.from_mha(attention.state_dict()), strict=False)
    assert report.unexpected_keys == []
    assert set(report.missing_keys) <= {"wg", "wg_0", "wg_1"}
    torch.testing.assert_close(run(made, packed), run(attention, packed), atol=2e-3, rtol=2e-3)


def test_warm_start_drops_heads_and_nothing_else(generator):
    packed, attention = buffer(generator), plain()
    made = mixer(shared_heads=2, top_k=3)
    made.load_state_dict(MixtureOfHeads.from_mha(attention.state_dict()), strict=False)
    q = torch.zeros(len(packed.buffer), HEADS, DIM // HEADS)
    gates, routing = made.gates(packed.buffer, q)
    assert routing is not None
    assert routing.experts_tk.shape == (8, 3)
    torch.testing.assert_close(gates, (gates > 0).float(), atol=2e-3, rtol=0.0)
    assert ((gates > 0).sum(1) == 5).all()
    assert (gates[:, :2] > 0).all()


def test_learned_gates_are_their_formula(generator):
    made = mixer(shared_heads=3, top_k=2)
    for p in (made.wg, made.wg_0, made.wg_1):
        nn.init.normal_(p, std=1.0)
    x = torch.randn(4, DIM, generator=generator)
    found, _ = made.gates(x, torch.zeros(4, HEADS, 2))
    for t in range(4):
        p = torch.softmax(made.wg @ x[t], 0)
        stage = 2 * torch.softmax(made.wg_0 @ x[t], 0)
        shared = 3 * torch.softmax(made.wg_1 @ x[t], 0) * stage[0]
        kept = sorted(range(5), key=lambda i, p=p: -p[i].item())[:2]
        routed = [
            2 * p[i] / (p[kept[0]] + p[kept[1]]) * stage[1] if i in kept else p[0] * 0 for i in range(5)
        ]
        torch.testing.assert_close(found[t], torch.cat([shared, torch.stack(routed)]))


def test_query_norm_is_hard_and_has_a_gradient(generator):
    made = mixer(router="query_norm", shared_heads=4, top_k=2)
    assert not any(name.startswith("wg") for name, _ in made.named_parameters())
    q = torch.randn(6, HEADS, 2, generator=generator, requires_grad=True)
    gates, _ = made.gates(torch.zeros(6, DIM), q)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert (gates.sum(1) == 6).all()
    (gates * torch.rand(6, HEADS, generator=generator)).sum().backward()
    assert q.grad is not None
    assert bool(q.grad[:, 4:].any())


def test_queries_of_equal_length_are_equally_likely():
    """A spread of 0, as where a token is zero, gives even probabilities and finite gradients."""
    made = mixer(router="query_norm", shared_heads=4, top_k=2, qkv_bias="none")
    q = torch.zeros(3, HEADS, 2)
    q[1] = torch.tensor([3.0, 4.0])
    q[2] = torch.randn(HEADS, 2, generator=torch.Generator().manual_seed(0))
    q.requires_grad_()
    gates, routing = made.gates(torch.zeros(3, DIM), q)
    assert routing is not None
    torch.testing.assert_close(routing.probs_te[:2], torch.full((2, 4), 0.25))
    assert (gates.sum(1) == 6).all()
    (gates * torch.arange(HEADS)).sum().backward()
    assert q.grad is not None
    assert bool(q.grad.isfinite().all())
    assert bool(q.grad[2].any())


def test_its_choices_are_recorded_and_balanced(generator):
    packed, made, context = buffer(generator), mixer(shared_heads=2, top_k=3), MixerContext(layer=4)
    made.prepare(packed.seq, 0)
    _, aux = made(packed.buffer, seq=packed.seq, ctx=context)
    assert 0.01 * 2.9 < aux["head_balance"].item() < 0.01 * 6
    record = context.stats["4/heads/routing"]
    assert isinstance(record, RoutingRecord)
    assert record.use()["", "a"].chosen.sum().item() == 3 * 8


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"shared_heads": 9}, "shared_heads 9"),
        ({"shared_heads": 4, "top_k": 5}, "top_k 5"),
        ({"kv_heads": 3}, "kv_heads 3"),
        ({"shared_heads": 0, "top_k": 0}, "no head at all"),
    ],
)
def test_impossible_heads_are_refused(options: dict[str, Any], found: str):
    with pytest.raises(ConfigError, match=found):
        mixer(**options)


@pytest.mark.parametrize("router", ["learned", "query_norm"])
def test_heads_are_chosen_in_float32_under_autocast(router: str, generator):
    x, made = buffer(generator).buffer, mixer(router=router, shared_heads=2, top_k=3)
    for p in made.parameters():
        nn.init.normal_(p)
    q = torch.randn(len(x), HEADS, DIM // HEADS, generator=generator)
    wanted, choice = made.gates(x, q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, mixed = made.gates(x, q)
    assert choice is not None
    assert mixed is not None
    assert torch.equal(found, wanted)
    assert torch.equal(mixed.logits_te, choice.logits_te)
