"""Tasks that part inside the trunk: each sees what it would see alone, what comes before runs once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.trunk import Trunk, TrunkOutput

DIM = 16
NAMES, TASKS = ("image", "text", "audio"), ("find", "name", "count")
READS = {"find": [0, 1, 2], "name": [1], "count": [2, 0]}


def trunk(router: str = "task_topk", **options: Any) -> Trunk:
    torch.manual_seed(0)
    ffn = {"type": "moe", "num_experts": 4, "hidden_dim": 8, "router": router, "every": 2}
    tree = {"dim": DIM, "depth": 4, "num_heads": 2, "ffn": ffn, **options}
    made = Trunk(schema.parse(Trunk.Config, tree), modalities=NAMES, tasks=TASKS)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


def tokens(modality: str, lengths: list[int], *, bias: bool = False) -> TokenSequence:
    generator = torch.Generator().manual_seed(len(modality))
    n = max(lengths)
    x = torch.randn(len(lengths), n, DIM, generator=generator)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    biases = (torch.randn(1, 2, n, n, generator=generator),) if bias else ()
    return TokenSequence(x, valid, torch.arange(len(lengths)), modality, biases=biases)


def groups(*, bias: bool = False) -> list[list[TokenSequence]]:
    image, text = tokens("image", [4, 2], bias=bias), tokens("text", [5, 3], bias=bias)
    return [[image], [text], [text, image]]


def values(out: TrunkOutput) -> list[Tensor]:
    return [s.tokens for group in out.groups for s in group]


@pytest.mark.parametrize("router", ["task_topk", "task_embedding"])
@pytest.mark.parametrize("bias", [False, True])
def test_each_task_sees_what_it_would_see_alone(router: str, bias: bool):
    model = trunk(router)
    assert model.fork_layer == 1
    together = model(groups(bias=bias), tasks=READS)
    assert set(together.tasks) == set(TASKS)
    for task, own in READS.items():
        alone = model([groups(bias=bias)[g] for g in own], MixerContext(task=task))
        for a, b in zip(values(alone), values(together.tasks[task]), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    first, third = (together.tasks[t].groups for t in ("find", "count"))
    assert not torch.allclose(first[0][0].tokens, third[1][0].tokens, atol=1e-3)


def test_masks_follow_their_segments_into_the_copies():
    model = trunk()

    def mask(segment: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) | (segment % 2 == 0)

    together = model(groups(), mask_mod=mask, tasks=dict.fromkeys(TASKS, range(3)))
    for task in TASKS:
        alone = model(groups(), MixerContext(task=task), mask_mod=mask)
        for a, b in zip(values(alone), values(together.tasks[task]), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_what_comes_before_the_first_task_dependent_block_runs_once():
    model = trunk()
    rows: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: rows.append(o[0].shape[0]))
    model(groups(), tasks=READS)
    shared = 6 + 8 + 14
    copies = (6 + 8 + 14) + 8 + (14 + 6)
    assert rows == [shared, copies, copies, copies]


def test_taps_are_shared_before_the_fork_and_a_tasks_own_after_it():
    model = trunk()
    out = model(groups(), tasks=READS, taps=(0, 1, 2))
    for task, own in READS.items():
        taps = out.tasks[task].taps
        assert set(taps) == {0, 1, 2}
        alone = model([groups()[g] for g in own], MixerContext(task=task), taps=(0, 1, 2))
        for n in taps:
            for a, b in zip(taps[n], alone.tasks[task].taps[n], strict=True):
                for s, other in zip(a, b, strict=True):
                    torch.testing.assert_close(s.tokens, other.tokens, atol=1e-5, rtol=1e-5)


def test_gradients_of_all_tasks_add_up_in_the_shared_blocks():
    model = trunk()
    sum(v.square().sum() for v in values(model(groups(), tasks=READS))).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for task, own in READS.items():
        sum(
            v.square().sum() for v in values(model([groups()[g] for g in own], MixerContext(task=task)))
        ).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, atol=2e-3, rtol=1e-3)


def test_a_trunk_that_no_task_changes_does_not_look_at_them():
    model = trunk("topk")
    assert model.fork_layer is None
    with_tasks, without = model(groups(), tasks=READS), model(groups())
    assert with_tasks.tasks == {}
    assert all(torch.equal(a, b) for a, b in zip(values(with_tasks), values(without), strict=True))


def test_unknown_and_missing_tasks_are_told():
    model = trunk()
    with pytest.raises(ConfigError, match=r"no task 'fnd'.*find"):
        model(groups(), tasks={"fnd": [0]})
    with pytest.raises(ConfigError, match="no task; expected some of find"):
        model(groups())
    with pytest.raises(ConfigError, match="without tasks"):
        Trunk(model.config, modalities=NAMES)


@pytest.mark.parametrize("kind", ["moe", "soft_moe"])
def test_experts_in_no_block_at_all_are_refused(kind: str):
    said = r"trunk\.ffn\.every: 5 in a trunk of 4 blocks: none has experts; expected at most trunk\.depth"
    with pytest.raises(ConfigError, match=said):
        schema.parse(Trunk.Config, {"depth": 4, "ffn": {"type": kind, "every": 5}})
    assert schema.parse(Trunk.Config, {"depth": 4, "ffn": {"type": kind, "every": 4}}).ffn.every == 4


LOSSES = [
    ({"mutual_information_weight": 0.1}, r"condition: task \(of mutual_information_weight\)"),
    ({"scope": "task"}, "scope: task"),
]


@pytest.mark.parametrize(("balance", "said"), LOSSES)
@pytest.mark.parametrize("router", ["topk", "modality"])
def test_losses_by_task_need_a_router_by_task(balance: dict[str, Any], said: str, router: str):
    ffn = {"type": "moe", "num_experts": 6, "hidden_dim": 8, "balance": balance}
    wanted = (
        rf"trunk\.ffn\.balance: {said}, but nothing here depends on the task; expected a router by task\."
    )
    with pytest.raises(ConfigError, match=wanted):
        trunk(ffn={**ffn, "router": router})
    trunk(ffn={**ffn, "router": "task_topk"})
    by_modality = dict.fromkeys(("condition", "scope"), "modality")
    trunk(ffn={**ffn, "router": router, "balance": {**balance, **by_modality}})
    trunk(ffn={**ffn, "router": router, "balance": {"load_balance_weight": 0.0, "scope": "task"}})


@pytest.mark.parametrize(("balance", "said"), LOSSES)
def test_losses_by_task_see_tasks_behind_the_fork(balance: dict[str, Any], said: str):
    """Attention routed by the token tells tasks apart in the blocks after one whose experts part them."""
    mixer = {"type": "moa", "num_experts": 4, "balance": balance}
    ffn = {"type": "moe", "num_experts": 4, "hidden_dim": 8, "router": "task_topk"}
    trunk(mixer=mixer, ffn={**ffn, "every": 2})
    with pytest.raises(ConfigError, match=rf"trunk\.mixer\.balance: {said}"):
        trunk(mixer=mixer, ffn={**ffn, "every": 4})
    with pytest.raises(ConfigError, match=rf"trunk\.mixer\.balance: {said}"):
        trunk("topk", mixer=mixer)  # tasks never part
