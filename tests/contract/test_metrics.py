from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from contract.fakes import INFO, NAMES, SCENE, TARGET, batch, form, part, predictions
from mmzoo import registry, schema
from mmzoo.batch import Batch, Prediction
from mmzoo.metrics.base import NOT_SHARES, Metric, MetricContext

ROWS = sorted(k for k in registry.table("metrics") if registry.find("metrics", k).reads not in SCENE)
"""Those of scenes are in test_scenes."""
SIZE = 24


def build(name: str) -> Metric:
    return registry.find("metrics", name).Config().build()


def case(metric: Metric, seed: int = 0, prefix: str = "s") -> tuple[dict[str, Prediction], Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = predictions(form(metric), generator, SIZE)
    return found, batch(form(metric), generator, tuple(f"{prefix}{i}" for i in range(SIZE)))


def context(metric: Metric) -> MetricContext:
    reference = None
    if metric.needs_reference:
        reference = metric.update(*case(metric, 1, "train"), TARGET)
    vectors = {TARGET: torch.randn(len(NAMES), 2, 5, generator=torch.Generator().manual_seed(2))}
    return MetricContext(INFO, TARGET, vectors if metric.needs_class_vectors else {}, reference)


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_numbers_by_name(name):
    metric = build(name)
    state = metric.update(*case(metric), TARGET)
    found = metric.compute(state, context(metric))
    assert found
    assert all(isinstance(v, float) and np.isfinite(v) for v in found.values())
    assert not metric.names() or {k.rsplit("/", 1)[-1] for k in found} <= set(metric.names())
    assert not metric.names() or found.keys() <= set(metric.figure_names(tuple(case(metric)[0])))
    assert all(0 <= v <= 1 for k, v in found.items() if k.rsplit("/", 1)[-1] not in NOT_SHARES)
    drawn = metric.figures(state, context(metric))
    assert all(m.ndim == 2 and m.shape[0] == m.shape[1] for m in drawn.values())


@pytest.mark.parametrize("name", ROWS)
def test_merged_parts_equal_the_whole(name):
    """In any order, through pickling, and with samples that two ranks both saw."""
    metric = build(name)
    found, labels = case(metric)
    states = [metric.update(*part(found, labels, r), TARGET) for r in (range(16, 24), range(9), range(6, 18))]
    states = [pickle.loads(pickle.dumps(s)) for s in states]
    whole = metric.compute(metric.update(found, labels, TARGET), context(metric))
    left = metric.merge(metric.merge(states[0], states[1]), states[2])
    right = metric.merge(states[0], metric.merge(states[1], states[2]))
    assert metric.compute(left, context(metric)) == pytest.approx(whole)
    assert metric.compute(right, context(metric)) == pytest.approx(whole)


@pytest.mark.parametrize("name", ROWS)
def test_order_of_samples_does_not_matter(name):
    metric = build(name)
    found, labels = case(metric)
    first, second = (metric.update(*part(found, labels, r), TARGET) for r in (range(10), range(10, SIZE)))
    ends = [
        metric.compute(metric.merge(*pair), context(metric)) for pair in ((first, second), (second, first))
    ]
    assert ends[0] == pytest.approx(ends[1])


@pytest.mark.parametrize("name", ROWS)
def test_perfect_differs_from_shuffled(name):
    """No metric may be blind: predictions handed to the wrong samples must change some figure."""
    metric = build(name)
    found, labels = case(metric)
    rolled = {p: Prediction(x.values.roll(1 + n, 0), x.index) for n, (p, x) in enumerate(found.items())}
    figures = [metric.compute(metric.update(f, labels, TARGET), context(metric)) for f in (found, rolled)]
    assert figures[0] != figures[1]


@pytest.mark.parametrize("name", ROWS)
def test_config_round_trip_and_same_numbers(name):
    cls = registry.find("metrics", name)
    config = cls.Config()
    assert schema.parse(cls.Config, config.to_dict()) == config
    metric = config.build()
    found = [metric.compute(metric.update(*case(metric), TARGET), context(metric)) for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ROWS)
def test_no_predictions_give_no_figures(name):
    metric = build(name)
    state = metric.update({}, Batch(("a",)), TARGET)
    assert metric.compute(metric.merge(state, state), context(metric)) == {}
    assert metric.figures(state, context(metric)) == {}
