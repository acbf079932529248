"""What every router must do, whichever rows the table has, and what a trunk does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmzoo import registry, schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.packing import Packed, pack
from mmzoo.trunk.router import GateWeights, Router, Routing, TopKConfig
from mmzoo.trunk.router import route as choose
from mmzoo.trunk.trunk import Trunk

DIM, EXPERTS = 16, 6
NAMES, TASKS = ("image", "text"), ("find", "name")
ROWS = sorted(registry.table("routers"))


def tokens(modality: str, lengths: list[int]) -> TokenSequence:
    generator = torch.Generator().manual_seed(len(modality))
    n = max(lengths)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), n, DIM, generator=generator)
    return TokenSequence(x.masked_fill(~valid[..., None], 1e3), valid, torch.arange(len(lengths)), modality)


def buffer() -> Packed:
    return pack([[tokens("text", [3, 5])], [tokens("image", [6, 6])]], NAMES)


def build(key: str) -> Router:
    torch.manual_seed(0)
    config = registry.find("routers", key).Config()
    return config.build(dim=DIM, num_experts=EXPERTS, modalities=NAMES, tasks=TASKS)


def route(router: Router, packed: Packed, *, training: bool = False) -> Routing:
    vectors = {task: torch.full((router.task_dim,), float(i)) for i, task in enumerate(TASKS)}
    context = MixerContext(training=training, task="name", task_vectors=vectors)
    return router(packed.buffer, seq=packed.seq, ctx=context)


@pytest.mark.parametrize("key", ROWS)
def test_choices_are_distinct_experts_with_weights(key: str):
    packed = buffer()
    found = route(build(key), packed)
    assert found.experts_tk.shape == found.weights_tk.shape
    assert len(found.experts_tk) == packed.seq.num_tokens
    assert all(
        len(set(row)) == len(row) and set(row) <= set(range(EXPERTS)) for row in found.experts_tk.tolist()
    )
    assert (found.weights_tk > 0).all()
    torch.testing.assert_close(found.probs_te.sum(1), torch.ones(packed.seq.num_tokens))


@pytest.mark.parametrize("key", ROWS)
def test_every_parameter_gets_a_gradient_through_weights(key: str):
    router = build(key)
    found = route(router, buffer(), training=True)
    (found.weights_tk * torch.randn(found.weights_tk.shape)).sum().backward()
    lacking = [n for n, p in router.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert lacking == (["gates.find.weight"] if key == "task_topk" else [])  # the other task ran


@pytest.mark.parametrize("key", ROWS)
def test_config_round_trip_and_same_seed_same_bits(key: str):
    config = registry.find("routers", key).Config()
    assert schema.parse(type(config), config.to_dict()) == config
    first, second = route(build(key), buffer()), route(build(key), buffer())
    assert torch.equal(first.experts_tk, second.experts_tk)
    assert torch.equal(first.weights_tk, second.weights_tk)


def trunk(key: str, **options: Any) -> Trunk:
    torch.manual_seed(0)
    tree = {
        "dim": DIM,
        "depth": 3,
        "num_heads": 2,
        "ffn": {"type": "moe", "num_experts": EXPERTS, "hidden_dim": 8, "router": key, "every": 2, **options},
    }
    made = Trunk(schema.parse(Trunk.Config, tree), modalities=NAMES, tasks=TASKS)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


@pytest.mark.parametrize("key", ROWS)
def test_padding_never_counts(key: str):
    """Neither tokens nor balance losses nor counts change with what stands in the padding, or with more."""
    model = trunk(key, balance={"z_weight": 1.0, "cv2_weight": 1.0, "load_balance_weight": 1.0}).eval()
    text = tokens("text", [3, 5])
    wide = TokenSequence(
        torch.cat([text.tokens, torch.full((2, 4, DIM), 7.0)], 1),
        torch.cat([text.valid, torch.zeros(2, 4, dtype=torch.bool)], 1),
        text.index,
        "text",
    )
    given = {"tasks": {"find": [0], "name": [0]}}
    first, second = model([[text]], **given), model([[wide]], **given)
    assert torch.equal(first.groups[0][0].tokens[text.valid], second.groups[0][0].tokens[wide.valid])
    assert {k: v.item() for k, v in first.aux.items()} == {k: v.item() for k, v in second.aux.items()}
    copies = 2 if model.fork_layer is not None else 1
    assert first.stats["1/routing"].experts_tk.shape[0] == 8 * copies


@pytest.mark.parametrize("key", ROWS)
@pytest.mark.parametrize("mode", ["block", "ffn"])
def test_recomputed_blocks_give_the_same_gradients(key: str, mode: str):
    gradients = []
    for chosen in ("none", mode):
        model = trunk(key)
        model.set_checkpointing(chosen)
        out = model([[tokens("text", [3, 5])]], tasks={"find": [0], "name": [0]})
        (
            sum(s.tokens.square().sum() for group in out.groups for s in group) + sum(out.aux.values())
        ).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("key", [key for key in ROWS if key != "soft"])
def test_one_expert_a_token_needs_weights_that_train_the_router(key: str):
    """Renormalised they are p / p = 1; full and straight-through ones carry the gradient of p."""
    options = registry.find("routers", key).Config
    sizes: dict[str, Any] = {"dim": DIM, "modalities": NAMES, "tasks": TASKS}
    said = "router.weights: renormalised with top_k 1, a weight of 1 whatever the router says; expected full"
    with pytest.raises(ConfigError, match=said):
        options(top_k=1).build(num_experts=EXPERTS, **sizes)
    for weights in ("full", "straight_through"):
        router = options(top_k=1, weights=GateWeights(weights)).build(num_experts=EXPERTS, **sizes)
        found = route(router, buffer())
        found.weights_tk.sum().backward()
        assert any(p.grad is not None and float(p.grad.abs().max()) > 1e-3 for p in router.parameters())
        assert bool((found.weights_tk == 1).all()) is (weights == "straight_through")
    options(top_k=1).build(num_experts=len(NAMES) if key == "modality" else 1, **sizes)  # no choice


def test_a_modality_without_experts_of_its_own_is_told():
    """Three modalities on two experts: no equal share, so each has to be told what it may use."""
    sizes: dict[str, Any] = {"dim": DIM, "num_experts": 2, "modalities": (*NAMES, "audio"), "tasks": ()}
    options = registry.find("routers", "modality").Config
    said = "router.experts.image: no share of 2 experts for 3 modalities; expected experts of its own"
    with pytest.raises(ConfigError, match=said):
        options().build(**sizes)
    with pytest.raises(ConfigError, match=r"router\.experts\.audio: no share"):
        options(experts={"image": [0, 1], "text": [0, 1]}).build(**sizes)
    named = options(experts={name: [0, 1] for name in sizes["modalities"]}).build(**sizes)
    assert named.allowed["audio"] == (0, 1)


def test_a_forbidden_expert_is_not_chosen_however_unlikely_the_others():
    """exp(-200) is 0 in float32: with an offset its probability is that of an expert that is forbidden."""
    logits = torch.tensor([[0.0, -200.0, -torch.inf, -torch.inf]])
    found = choose(logits, TopKConfig(top_k=2, prob_offset=1e-4, weights=GateWeights.FULL))
    assert found.experts_tk.tolist() == [[0, 1]]
    torch.testing.assert_close(found.weights_tk, torch.tensor([[1.0001, 1e-4]]))
