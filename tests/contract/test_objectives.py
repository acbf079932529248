from __future__ import annotations

import dataclasses

import pytest
import torch

from contract.fakes import SCENE, TARGET, Scale, batch, form, lessons, part, predictions
from mmzoo import registry, schema
from mmzoo.batch import Batch, Prediction, PredictionKind
from mmzoo.objectives.base import Objective

ROWS = sorted(
    k
    for k in registry.table("objectives")
    if registry.find("objectives", k).reads not in SCENE | {PredictionKind.TOKENS}
)
"""Those that read hidden tokens are in test_masked_heads, those of scenes in test_scenes."""
IDS = tuple(f"s{i}" for i in range(12))


def build(name: str) -> Objective:
    return registry.find("objectives", name).Config().build()


def case(objective: Objective, seed: int = 0) -> tuple[dict[str, Prediction], Batch, Scale]:
    generator, scale = torch.Generator().manual_seed(seed), Scale()
    contrast = objective.reads is PredictionKind.VECTORS
    scalars = (scale.scale * 1.0, scale.offset * 1.0) if contrast else ()
    found = predictions(form(objective), generator, len(IDS), *scalars)
    for prediction in found.values():
        prediction.values.requires_grad_()
    labels = batch(form(objective), generator, IDS)
    targets = {**labels.targets, **lessons(objective, generator, found)}
    return found, dataclasses.replace(labels, targets=targets), scale


@pytest.mark.parametrize("name", ROWS)
def test_gives_a_finite_state_with_named_parts(name):
    objective = build(name)
    found, labels, _ = case(objective)
    state = objective(found, labels, TARGET)
    assert state.total.sum.shape == state.total.count.shape == ()
    assert state.total.sum.dtype == torch.float32
    assert torch.isfinite(state.mean())
    assert state.mean() > 0
    passes = [p.split("~") if objective.reads is PredictionKind.VECTORS else [p] for p in state.parts]
    assert {x for names in passes for x in names} <= set(found)
    torch.testing.assert_close(sum(p.sum for p in state.parts.values()), state.total.sum)
    torch.testing.assert_close(sum(p.count for p in state.parts.values()), state.total.count)


@pytest.mark.parametrize("name", ROWS)
def test_gradient_is_that_of_the_sum(name):
    """Against central differences in a random direction, for every pass that has a gradient."""
    objective = build(name)
    found, labels, _ = case(objective)
    state = objective(found, labels, TARGET)
    state.total.sum.backward()
    moved = {p: x.values.grad for p, x in found.items() if x.values.grad is not None and x.values.grad.any()}
    assert moved
    generator = torch.Generator().manual_seed(1)
    kinked = {PredictionKind.DENSE: 1e-3, PredictionKind.NUMBERS: 1e-3, PredictionKind.BOXES: 2e-4}
    width = kinked.get(objective.reads, 1e-2)  # narrow: absolute values have kinks
    for p, grad in moved.items():
        step = torch.randn(grad.shape, generator=generator)
        if objective.reads is PredictionKind.DENSE:  # a sum over many pixels: uphill, or rounding is all
            step = step + grad / grad.abs().mean()
        ends = []
        for sign in (width, -width):
            values = found[p].values.detach() + sign * step
            other = {**found, p: Prediction(values, found[p].index, found[p].scale, found[p].offset)}
            ends.append(objective(other, labels, TARGET).total.sum.item())
        assert (ends[0] - ends[1]) / (2 * width) == pytest.approx(
            (grad * step).sum().item(), rel=2e-2, abs=2e-2
        )


@pytest.mark.parametrize("name", ROWS)
def test_nothing_to_compare_is_a_zero_that_can_be_differentiated(name):
    objective = build(name)
    found, _, _ = case(objective)
    only = {"image": found["image"]}
    state = objective(only, Batch(IDS), TARGET)
    state.total.sum.backward()
    assert state.mean().item() == 0
    assert torch.equal(only["image"].values.grad, torch.zeros_like(only["image"].values))


@pytest.mark.parametrize("name", ROWS)
def test_states_merge(name):
    objective = build(name)
    found, labels, _ = case(objective)
    halves = [objective(*part(found, labels, s), TARGET) for s in (range(7), range(7, 12))]
    merged = halves[0].merge(halves[1])
    torch.testing.assert_close(merged.total.sum, halves[0].total.sum + halves[1].total.sum)
    if not objective.depends_on_batch:
        torch.testing.assert_close(merged.mean(), objective(found, labels, TARGET).mean())


@pytest.mark.parametrize("name", ROWS)
def test_config_round_trip_and_same_bits(name):
    cls = registry.find("objectives", name)
    config = cls.Config()
    assert schema.parse(cls.Config, config.to_dict()) == config
    objective = config.build()
    first, second = (objective(*case(objective)[:2], TARGET).total.sum for _ in range(2))
    assert torch.equal(first, second)


def test_pairs_survive_the_round_trip():
    cls = registry.find("objectives", "infonce")
    config = cls.Config(pairs=[("image", "text"), ("audio", "image+text")])
    assert schema.parse(cls.Config, {"pairs": [["image", "text"], ["audio", "image+text"]]}) == config
    assert schema.parse(cls.Config, config.to_dict()) == config
