"""Balance losses against formulas written out with loops in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.balance import (
    BalanceConfig,
    BalanceScope,
    Compat,
    Condition,
    balance,
    cv2,
    expected_load,
    joint_probs,
    load_balance,
    mutual_information,
    z_loss,
)
from mmzoo.trunk.packing import pack
from mmzoo.trunk.plan import SeqInfo, TaskSpan
from mmzoo.trunk.router import GateWeights, Routing, TopKConfig, route

E, K, T = 5, 2, 12


def routing(generator: torch.Generator, *, noisy: bool = False, weights: str = "full") -> Routing:
    clean = torch.randn(T, E, generator=generator).requires_grad_()
    config = TopKConfig(top_k=K, weights=GateWeights(weights))
    if not noisy:
        return route(clean, config)
    std = 0.1 + torch.rand(T, E, generator=generator)
    return route(clean, config, std, torch.randn(T, E, generator=generator))


def seq(lengths: dict[str, int]) -> SeqInfo:
    groups = [
        [TokenSequence(torch.zeros(1, n, 4), torch.ones(1, n, dtype=torch.bool), torch.tensor([0]), m)]
        for m, n in lengths.items()
    ]
    return pack(groups, tuple(lengths)).seq


def cv(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1) / mean**2


def test_load_balance_is_its_formula(generator):
    r = routing(generator)
    total = 0.0
    for e in range(E):
        chosen = sum(e in row for row in r.experts_tk.tolist()) / (T * K)
        total += chosen * sum(p[e] for p in r.probs_te.tolist()) / T
    assert load_balance(r).item() == pytest.approx(E * total, rel=1e-5)


def test_even_use_has_load_balance_one_and_no_variation():
    experts = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2]])
    even = torch.full((4, 4), 0.25)
    r = Routing(experts, torch.full((4, 2), 0.5), even, even.log(), even.log())
    assert load_balance(r).item() == pytest.approx(1.0)
    assert cv2(r).item() == pytest.approx(0.0, abs=1e-6)


def test_z_loss_is_its_formula(generator):
    logits = torch.randn(T, E, generator=generator)
    wanted = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits.tolist()) / T
    assert z_loss(logits).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("weights", ["full", "renormalised"])
def test_cv2_without_noise_counts(weights: str, generator):
    r = routing(generator, weights=weights)
    importance, load = [0.0] * E, [0.0] * E
    for experts, values in zip(r.experts_tk.tolist(), r.weights_tk.tolist(), strict=True):
        for e, w in zip(experts, values, strict=True):
            importance[e] += w
            load[e] += 1
    assert cv2(r).item() == pytest.approx(cv(importance) + cv(load), rel=1e-4)


def test_expected_load_is_the_share_of_redraws(generator):
    """Redraw one expert's noise many times, the others' kept: that is what the formula promises."""
    r = routing(generator, noisy=True)
    assert r.noise_std_te is not None
    logits, clean, std = (t.detach() for t in (r.logits_te, r.clean_te, r.noise_std_te))
    draws = torch.randn(20_000, generator=generator)
    wanted = torch.zeros(E)
    for t in range(T):
        for e in range(E):
            others = logits[t][[i for i in range(E) if i != e]]
            needed = others.topk(K).values[-1]
            wanted[e] += ((clean[t, e] + draws * std[t, e]) > needed).float().mean()
    torch.testing.assert_close(expected_load(r), wanted, atol=0.1, rtol=0.0)
    assert expected_load(r).sum().item() == pytest.approx(T * K, rel=0.2)
    grad = torch.autograd.grad(expected_load(r)[0], r.clean_te)[0]
    assert bool(grad.any())


@pytest.mark.parametrize("allowed", [2, 3])
def test_forbidden_experts_are_certain_not_to_be_chosen(allowed: int, generator):
    """Rows 0, 1, … may use the first `allowed` experts alone: exactly top_k of them, or one more."""
    std = (0.1 + torch.rand(T, E, generator=generator)).requires_grad_()
    clean = torch.randn(T, E, generator=generator).requires_grad_()
    masked = clean.masked_fill(torch.arange(E) >= allowed, -torch.inf)
    r = route(masked, TopKConfig(top_k=K), std, torch.randn(T, E, generator=generator))
    load = expected_load(r)
    assert load[allowed:].tolist() == [0.0] * (E - allowed)
    if allowed == K:
        assert load[:K].tolist() == [float(T)] * K
    else:
        few = route(clean[:, :allowed], TopKConfig(top_k=K), std[:, :allowed], None)
        logits = r.logits_te[:, :allowed]
        alone = dataclasses.replace(few, experts_tk=r.experts_tk, logits_te=logits)
        torch.testing.assert_close(load[:allowed], expected_load(alone))
    for grad in torch.autograd.grad(cv2(r), (clean, std), allow_unused=True):
        assert grad is not None
        assert bool(grad.isfinite().all())


def test_m3vits_released_load_differs_and_stays_under_compat(generator):
    r = routing(generator, noisy=True)
    assert not torch.allclose(cv2(r), cv2(r, Compat.M3VIT))


def test_mutual_information_is_its_formula(generator):
    joint = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    joint[1, 2] = 0
    joint = joint / joint.sum()
    rows, columns = joint.sum(1).tolist(), joint.sum(0).tolist()
    wanted = sum(
        p * math.log(p / (rows[i] * columns[j]))
        for i, row in enumerate(joint.tolist())
        for j, p in enumerate(row)
        if p
    )
    assert mutual_information(joint).item() == pytest.approx(wanted)
    assert mutual_information(torch.eye(4).double() / 4).item() == pytest.approx(math.log(4))
    assert mutual_information(torch.full((4, 4), 1 / 16).double()).item() == pytest.approx(0.0, abs=1e-12)


def spans(*names: str) -> tuple[TaskSpan, ...]:
    size = T // len(names)
    return tuple(TaskSpan(name, i * size, (i + 1) * size) for i, name in enumerate(names))


def test_scopes_average_over_tasks_and_modalities(generator):
    r = routing(generator)
    plan = seq({"a": 4, "b": 8})
    parted = dataclasses.replace(plan, task_spans=spans("x", "y", "x"))

    def value(scope: BalanceScope, info: SeqInfo) -> float:
        config = BalanceConfig(load_balance_weight=2.0, scope=scope)
        return balance(r, info, config)["load_balance"].item()

    def of(rows: list[int]) -> float:
        return 2.0 * load_balance(r.rows(torch.tensor(rows))).item()

    whole = of(list(range(T)))
    assert value(BalanceScope.ALL, parted) == pytest.approx(whole)
    assert value(BalanceScope.TASK, plan) == pytest.approx(whole)
    x, y = [*range(4), *range(8, 12)], list(range(4, 8))
    assert value(BalanceScope.TASK, parted) == pytest.approx((of(x) + of(y)) / 2)
    wanted = (of(list(range(4))) + of(list(range(4, 12)))) / 2
    assert value(BalanceScope.MODALITY, plan) == pytest.approx(wanted)
    config = BalanceConfig(load_balance_weight=0.0, mutual_information_weight=0.5)
    found = balance(r, parted, config)
    joint = torch.stack([r.probs_te[x].sum(0), r.probs_te[y].sum(0)]) / T
    assert found["mutual_information"].item() == pytest.approx(-0.5 * mutual_information(joint).item())
    config.condition = Condition.MODALITY
    joint = joint_probs(r, [[slice(0, 4)], [slice(4, 12)]])
    assert balance(r, plan, config)["mutual_information"].item() == pytest.approx(
        -0.5 * mutual_information(joint).item()
    )


def test_a_weight_of_zero_computes_nothing_and_a_negative_one_is_refused(generator):
    r: Routing = routing(generator)
    info = seq({"a": T})
    assert balance(r, info, BalanceConfig(load_balance_weight=0.0)) == {}
    assert set(balance(r, info, BalanceConfig(z_weight=1.0, cv2_weight=1.0))) == {
        "load_balance",
        "router_z",
        "cv2",
    }
    with pytest.raises(ConfigError, match="z_weight"):
        BalanceConfig(z_weight=-1.0)


def test_all_losses_reach_the_logits(generator):
    r = routing(generator, noisy=True)
    plan = seq({"a": 4, "b": 8})
    config = BalanceConfig(
        load_balance_weight=1.0, z_weight=1.0, cv2_weight=1.0, mutual_information_weight=1.0,
        condition=Condition.MODALITY,
    )  # fmt: skip
    for name, value in balance(r, plan, config).items():
        grad: Tensor = torch.autograd.grad(value, r.clean_te, retain_graph=True)[0]
        assert bool(grad.any()), name


def test_load_balance_of_all_experts_weighs_and_teaches(generator):
    """Every token takes every expert: choices are even by force, weights are not."""
    clean = torch.randn(T, E, generator=generator).requires_grad_()
    r = route(clean, TopKConfig(top_k=E))
    mean = clean.detach().softmax(1).mean(0)
    assert load_balance(r).item() == pytest.approx(E * mean.square().sum().item(), rel=1e-5)
    assert bool(torch.autograd.grad(load_balance(r), clean)[0].abs().max() > 1e-4)
    assert load_balance(r, Compat.MODSQUAD).item() == pytest.approx(1.0)
    even = route(torch.zeros(T, E), TopKConfig(top_k=E))
    assert load_balance(even).item() == pytest.approx(1.0)
