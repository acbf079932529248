"""Objectives and metrics of scenes around a vehicle keep the promises of every row of their tables."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from mmzoo import registry, schema
from mmzoo.batch import Batch, DataInfo, PredictionKind, SceneKind, Target
from mmzoo.metrics.base import NOT_SHARES, MetricContext
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.predictions import as_predictions

KINDS = {k.value for k in SceneKind}
OBJECTIVES = sorted(
    k for k in registry.table("objectives") if registry.find("objectives", k).reads.value in KINDS
)
METRICS = sorted(k for k in registry.table("metrics") if registry.find("metrics", k).reads.value in KINDS)
GRID = GridConfig(cells=6, range_m=12.0, map_cells=4, map_range_m=10.0)
SIZE, QUERIES, CLASSES, TARGET = 6, 5, 3, "what"
INFO = DataInfo({TARGET: ("ant", "bee", "cat")})
TASKS = {
    PredictionKind.BOXES_3D: "boxes",
    PredictionKind.GROUND_MAP: "map",
    PredictionKind.VOXELS: "occupancy",
}


def case(component: object, rows: range = range(SIZE)):
    """Return predictions of one pass, labels of most samples, and the leaves that gradients must reach."""
    generator = torch.Generator().manual_seed(0)

    def rand(*size: int) -> Tensor:
        return torch.randn(SIZE, *size, generator=generator)[rows.start : rows.stop].requires_grad_()

    index, ids = torch.arange(len(rows)), tuple(f"s{i}" for i in rows)
    center, rot = rand(QUERIES, 2), rand(QUERIES, 2)
    raw = {"center": 3 + center, "height": rand(QUERIES, 1), "dim": rand(QUERIES, 3), "rot": rot}
    raw |= {"vel": rand(QUERIES, 2), "heatmap": rand(QUERIES, CLASSES), "dense": rand(CLASSES, 6, 6)}
    boxes = torch.cat([2 * raw["center"] - 6, raw["height"], raw["dim"].exp(), rot[..., :1], raw["vel"]], -1)
    kinds = torch.randint(CLASSES, (SIZE, QUERIES), generator=generator)[rows.start : rows.stop]
    raw |= {"boxes": boxes, "scores": raw["heatmap"][..., 0].sigmoid(), "classes": kinds}
    maps = {"logits": rand(CLASSES, 4, 4), "start": rand(CLASSES, 4, 4)}
    voxels = rand(CLASSES, 2, 6, 6)
    task = TASKS[component.reads]  # pyright: ignore[reportAttributeAccessIssue]
    found = {"camera+lidar": as_predictions(raw, maps, voxels, index, GRID)[task]}
    labels = label_of(task, generator)
    kept = torch.tensor([i for i in rows if i % 4 != 3])
    own = kept - rows.start
    sizes = (kept % 3) if task == "boxes" else None
    leaves = [center, rot, raw["dense"]] if task == "boxes" else [maps["logits"], maps["start"]]
    leaves = [voxels] if task == "occupancy" else leaves
    return found, Batch(ids, targets={TARGET: Target(labels[kept], own, sizes)}), leaves


def label_of(task: str, generator: torch.Generator) -> Tensor:
    if task == "map":
        return (torch.rand(SIZE, CLASSES, 4, 4, generator=generator) < 0.4).float()
    if task == "occupancy":
        made = torch.randint(CLASSES, (SIZE, 2, 6, 6), generator=generator)
        made[:, 0, 0] = 255
        return made
    boxes = 4 * torch.randn(SIZE, 2, 10, generator=generator)
    boxes[..., 3:6] = boxes[..., 3:6].abs() + 0.5
    boxes[..., 9] = torch.randint(CLASSES, (SIZE, 2), generator=generator).float()
    boxes[0, :, 7:9] = torch.nan
    return boxes


def build(table: str, name: str):
    return registry.find(table, name).Config().build()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_is_finite_with_parts_that_sum_up_and_gradients_everywhere(name):
    objective = build("objectives", name)
    found, labels, leaves = case(objective)
    state = objective(found, labels, TARGET)
    assert state.total.sum.shape == state.total.count.shape == ()
    assert state.total.count == len(labels.targets[TARGET].index)
    assert torch.isfinite(state.mean())
    assert state.mean() > 0
    torch.testing.assert_close(sum(p.sum for p in state.parts.values()), state.total.sum)
    grads = torch.autograd.grad(state.total.sum, leaves)
    assert all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in grads)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_to_compare_is_a_zero_that_can_be_differentiated(name):
    objective = build("objectives", name)
    for number in range(2):
        found, labels, _ = case(objective)
        none = {TARGET: empty(labels.targets[TARGET])} if number else {}
        nothing = Batch(labels.ids, targets=none)
        state = objective(found, nothing, TARGET)
        state.total.sum.backward()
        assert state.mean().item() == 0
    assert objective({}, labels, TARGET).mean().item() == 0


def empty(target: Target) -> Target:
    return Target(target.values[:0], target.index[:0], target.sizes[:0] if target.sizes is not None else None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_states_merge(name):
    objective = build("objectives", name)
    halves = [objective(*case(objective, rows)[:2], TARGET) for rows in (range(4), range(4, SIZE))]
    merged = halves[0].merge(halves[1])
    torch.testing.assert_close(merged.total.sum, halves[0].total.sum + halves[1].total.sum)
    if not objective.depends_on_batch:
        torch.testing.assert_close(merged.mean(), objective(*case(objective)[:2], TARGET).mean())


@pytest.mark.parametrize(
    ("table", "name"), [("objectives", n) for n in OBJECTIVES] + [("metrics", n) for n in METRICS]
)
def test_config_round_trip(table, name):
    cls = registry.find(table, name)
    assert schema.parse(cls.Config, cls.Config().to_dict()) == cls.Config()


def measured(metric, rows: range = range(SIZE)):
    return metric.update(*case(metric, rows)[:2], TARGET)


@pytest.mark.parametrize("name", METRICS)
def test_figures_are_numbers_by_name_and_tell_samples_apart(name):
    metric = build("metrics", name)
    found, labels, _ = case(metric)
    context = MetricContext(INFO, TARGET)
    figures = metric.compute(metric.update(found, labels, TARGET), context)
    assert figures
    assert all(isinstance(v, float) for v in figures.values())
    assert all(0 <= v <= 1 for k, v in figures.items() if k.rsplit("/", 1)[-1] not in NOT_SHARES)
    label = labels.targets[TARGET]
    other = Target(label.values.roll(1, 0), label.index, label.sizes)
    rolled = metric.update(found, Batch(labels.ids, targets={TARGET: other}), TARGET)
    assert metric.compute(rolled, context) != figures


@pytest.mark.parametrize("name", METRICS)
def test_merged_parts_equal_the_whole(name):
    """In any order, through pickling, and with samples that two ranks both saw."""
    metric, context = build("metrics", name), MetricContext(INFO, TARGET)
    parts = [measured(metric, rows) for rows in (range(4, 6), range(3), range(2, 5))]
    parts = [pickle.loads(pickle.dumps(p)) for p in parts]
    whole = metric.compute(measured(metric), context)
    left = metric.merge(metric.merge(parts[0], parts[1]), parts[2])
    right = metric.merge(parts[1], metric.merge(parts[2], parts[0]))
    assert metric.compute(left, context) == pytest.approx(whole)
    assert metric.compute(right, context) == pytest.approx(whole)


@pytest.mark.parametrize("name", METRICS)
def test_no_predictions_give_no_figures(name):
    metric = build("metrics", name)
    state = metric.update({}, Batch(("a",)), TARGET)
    assert metric.compute(metric.merge(state, state), MetricContext(INFO, TARGET)) == {}
