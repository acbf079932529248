from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mmzoo.errors import ConfigError
from mmzoo.learners.optim import Decay, OptimConfig, build_optimizer, lr_factor
from mmzoo.state import LossState, Sum


def test_merged_states_equal_the_state_of_the_whole():
    values = torch.arange(10.0)
    whole = LossState(Sum(values.sum(), torch.tensor(10.0)), {"p": Sum(values.sum(), torch.tensor(10.0))})
    a = LossState(Sum(values[:3].sum(), torch.tensor(3.0)), {"p": Sum(values[:3].sum(), torch.tensor(3.0))})
    b = LossState(Sum(values[3:].sum(), torch.tensor(7.0)), {"p": Sum(values[3:].sum(), torch.tensor(7.0))})
    merged = a.merge(b)
    assert merged.mean() == whole.mean() == values.mean()
    assert merged.parts["p"].mean() == values.mean()
    assert LossState.zero(values).merge(a).mean() == a.mean()


def test_counts_may_be_sums_of_weights_below_one():
    state = Sum(torch.tensor(0.3), torch.tensor(0.5))
    assert float(state.mean()) == pytest.approx(0.6)


def test_zero_state_is_zero_not_nan():
    assert float(LossState.zero(torch.ones(1)).mean()) == 0.0


def test_schedule_against_its_formula():
    config = OptimConfig(warmup=0.1, min_lr_ratio=0.1)
    factors = [lr_factor(s, 100, config) for s in range(101)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    for step in (10, 40, 77, 100):
        u = (step - 10) / 90
        assert factors[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * u)) / 2)
    assert lr_factor(55, 100, OptimConfig(warmup=0.1, decay=Decay.CONSTANT)) == 1.0
    assert lr_factor(55, 100, OptimConfig(warmup=0.1, decay=Decay.LINEAR, min_lr_ratio=0.0)) == pytest.approx(
        0.5
    )


def test_groups_spare_biases_norms_and_positions_from_decay_and_scale_by_longest_prefix():
    model = nn.ModuleDict(
        {"a": nn.Linear(3, 3), "b": nn.ModuleDict({"n": nn.LayerNorm(3), "w": nn.Linear(3, 2)})}
    )
    model.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 3)))
    optimizer = build_optimizer(
        model, OptimConfig(lr=1.0, weight_decay=0.3, lr_scales={"b": 0.5, "b.w": 0.25})
    )
    found = {
        name: (g["weight_decay"], g["lr"])
        for name, p in model.named_parameters()
        for g in optimizer.param_groups
        if any(p is q for q in g["params"])
    }
    assert found == {
        "a.weight": (0.3, 1.0),
        "a.bias": (0.0, 1.0),
        "b.n.weight": (0.0, 0.5),
        "b.n.bias": (0.0, 0.5),
        "b.w.weight": (0.3, 0.25),
        "b.w.bias": (0.0, 0.25),
        "cls_token": (0.0, 1.0),
    }


def test_timm_optimisers_by_name_and_a_wrong_name():
    model = nn.Linear(2, 2)
    assert type(build_optimizer(model, OptimConfig(name="lion"))).__name__ == "Lion"
    with pytest.raises(ConfigError, match=r"optim\.name: 'adamz'; expected adamw or an optimiser of timm"):
        build_optimizer(model, OptimConfig(name="adamz"))


def test_moments_reach_the_optimisers_that_have_them():
    model = nn.Linear(2, 2)
    plain = build_optimizer(model, OptimConfig()).param_groups[0]
    assert (plain["betas"], plain["eps"]) == ((0.9, 0.98), 1e-8)
    given = build_optimizer(model, OptimConfig(betas=(0.8, 0.9), eps=1e-5)).param_groups[0]
    assert (given["betas"], given["eps"]) == ((0.8, 0.9), 1e-5)
    lion = build_optimizer(model, OptimConfig(name="lion", betas=(0.7, 0.8))).param_groups[0]
    assert lion["betas"] == (0.7, 0.8)
    assert build_optimizer(model, OptimConfig(name="lion")).param_groups[0]["betas"] == (0.9, 0.99)
    adan = build_optimizer(model, OptimConfig(name="adan", betas=(0.9, 0.8, 0.7), eps=1e-6)).param_groups[0]
    assert (adan["betas"], adan["eps"]) == ((0.9, 0.8, 0.7), 1e-6)
    ahead = OptimConfig(name="lookahead_lamb", eps=1e-5, lr_scales={"weight": 0.5})
    assert {g["eps"] for g in build_optimizer(model, ahead).param_groups} == {1e-5}
    assert {g["lr_scale"] for g in build_optimizer(model, ahead).param_groups} == {0.5, 1.0}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "lion", "eps": 1e-6}, "optim.eps: 1e-06; expected none, for lion takes none. Leave"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "optim.betas: (0.9, 0.99); expected none, for sgd takes"),
        ({"name": "adan", "betas": (0.9, 0.99)}, "optim.betas: (0.9, 0.99); expected 3 of them. Leave"),
        ({"betas": (0.9, 0.99, 0.9)}, "optim.betas: (0.9, 0.99, 0.9); expected 2 of them. Leave"),
        ({"name": "adahessian"}, "optim.name: 'adahessian'; expected adamw or an optimiser of timm. It"),
        ({"name": "lookahead_lamp"}, "optim.name: 'lookahead_lamp'; expected adamw or an optimiser of timm"),
        ({"betas": (0.9, 1.0)}, "optim.betas: (0.9, 1.0); expected shares in [0, 1)"),
        ({"eps": 0.0}, "optim.eps: 0.0; expected a positive number"),
    ],
)
def test_moments_that_an_optimiser_lacks_are_refused(options: dict[str, Any], line: str):
    with pytest.raises(ConfigError) as caught:
        build_optimizer(nn.Linear(2, 2), OptimConfig(**options))
    assert str(caught.value).startswith(line)


def test_nothing_to_train_is_said():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_polynomial_decay_is_that_of_the_dense_benchmarks():
    config = OptimConfig(warmup=0.0, decay=Decay.POLY, min_lr_ratio=0.0)
    for step in (0, 1, 20_000, 39_999, 40_000):
        assert lr_factor(step, 40_000, config) == pytest.approx((1 - step / 40_000) ** 0.9)
    assert lr_factor(30, 40, OptimConfig(warmup=0.0, decay=Decay.POLY, poly_power=2.0, min_lr_ratio=0.2)) == (
        pytest.approx(0.2 + 0.8 * 0.25**2)
    )
    with pytest.raises(ConfigError, match=r"optim.poly_power: 0.0; expected a positive number"):
        OptimConfig(poly_power=0.0)
