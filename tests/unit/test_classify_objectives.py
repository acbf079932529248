from __future__ import annotations

import math

import pytest
import torch

from mmzoo.batch import Batch, Prediction, Target
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.classify import BinaryCrossEntropy, CrossEntropy, OverLabels

IDS = ("a", "b", "c", "d", "e", "f")


@pytest.fixture
def logits(generator):
    made = {"image": torch.randn(4, 3, generator=generator), "audio": torch.randn(2, 3, generator=generator)}
    rows = {"image": [0, 2, 3, 5], "audio": [1, 2]}
    return {m: Prediction(made[m].requires_grad_(), torch.tensor(rows[m])) for m in made}


def slow_row(x: list[float], label: int, smoothing: float, weights: list[float]) -> float:
    top = math.log(sum(math.exp(v) for v in x))
    logs = [v - top for v in x]
    spread = -sum(w * lp for w, lp in zip(weights, logs, strict=True)) * smoothing / len(x)
    return -(1 - smoothing) * weights[label] * logs[label] + spread


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [[], [0.5, 2.0, 1.0]])
def test_cross_entropy_counts_only_labelled_rows(logits, smoothing, weights):
    batch = Batch(IDS, targets={"word": Target(torch.tensor([2, 0, 1]), torch.tensor([1, 2, 5]))})
    config = CrossEntropy.Config(label_smoothing=smoothing, class_weights=weights)
    state = config.build()(logits, batch, "word")
    w = weights or [1.0] * 3
    rows = {"image": [(1, 0), (3, 1)], "audio": [(0, 2), (1, 0)]}
    total = count = 0.0
    for name, pairs in rows.items():
        part = sum(slow_row(logits[name].values[i].tolist(), y, smoothing, w) for i, y in pairs)
        weight = sum(w[y] for _, y in pairs)
        assert state.parts[name].sum.item() == pytest.approx(part, rel=1e-5)
        assert state.parts[name].count.item() == pytest.approx(weight)
        total, count = total + part, count + weight
    assert state.mean().item() == pytest.approx(total / count, rel=1e-5)
    state.total.sum.backward()
    assert not logits["image"].values.grad[[0, 2]].any()
    assert logits["image"].values.grad[[1, 3]].any(dim=1).all()


@pytest.mark.parametrize(("over", "share"), [(OverLabels.MEAN, 1 / 3), (OverLabels.SUM, 1.0)])
def test_bce_reduces_labels_then_averages_rows(logits, over, share):
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    batch = Batch(IDS, targets={"tags": Target(labels, torch.tensor([2, 3]))})
    weights = [1.0, 3.0, 0.5]
    state = BinaryCrossEntropy.Config(pos_weight=weights, over_labels=over).build()(logits, batch, "tags")

    def slow(x, y):
        terms = [
            -w * t * math.log(1 / (1 + math.exp(-v))) - (1 - t) * math.log(1 / (1 + math.exp(v)))
            for v, t, w in zip(x.tolist(), y.tolist(), weights, strict=True)
        ]
        return sum(terms) * share

    image = slow(logits["image"].values[1], labels[0]) + slow(logits["image"].values[2], labels[1])
    audio = slow(logits["audio"].values[1], labels[0])
    assert state.parts["image"].sum.item() == pytest.approx(image, rel=1e-5)
    assert state.mean().item() == pytest.approx((image + audio) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", [CrossEntropy, BinaryCrossEntropy])
def test_no_label_in_the_batch_is_a_zero_that_can_be_differentiated(logits, kind):
    empty = torch.zeros(0, 3) if kind is BinaryCrossEntropy else torch.zeros(0, dtype=torch.int64)
    for targets in ({}, {"word": Target(empty, torch.zeros(0, dtype=torch.int64))}):
        state = kind.Config().build()(logits, Batch(IDS, targets=targets), "word")
        state.total.sum.backward()
        assert state.mean().item() == 0
        assert state.total.count.item() == 0
        assert torch.equal(logits["image"].values.grad, torch.zeros(4, 3))
    state = kind.Config().build()({}, Batch(IDS), "word")
    state.total.sum.backward()
    assert state.mean().item() == 0


def test_parts_of_a_batch_merge_to_the_whole(logits):
    labels = torch.tensor([2, 0, 1, 1])
    whole = Batch(IDS, targets={"word": Target(labels, torch.tensor([0, 2, 3, 5]))})
    image = logits["image"]
    objective = CrossEntropy.Config(label_smoothing=0.1).build()
    halves = [
        objective({"image": Prediction(image.values[s], image.index[s])}, whole, "word")
        for s in (slice(0, 1), slice(1, 4))
    ]
    expected = objective({"image": image}, whole, "word").mean()
    torch.testing.assert_close(halves[0].merge(halves[1]).mean(), expected)


@pytest.mark.parametrize(
    ("kind", "options", "labels", "error", "line"),
    [
        (
            CrossEntropy,
            {},
            torch.tensor([0, 3]),
            ShapeError,
            "batch.targets.y: class 3; expected 0..2. Check",
        ),
        (
            CrossEntropy,
            {},
            torch.tensor([-1, 2]),
            ShapeError,
            "batch.targets.y: class -1; expected 0..2. Check",
        ),
        (
            CrossEntropy,
            {},
            torch.ones(2, 3),
            ShapeError,
            "batch.targets.y: (2, 3) float32; expected one class number",
        ),
        (
            CrossEntropy,
            {"class_weights": [1.0]},
            torch.tensor([0, 1]),
            ConfigError,
            "objective.class_weights: 1 weights",
        ),
        (
            BinaryCrossEntropy,
            {},
            torch.ones(2, 4),
            ShapeError,
            "batch.targets.y: labels (2, 4) for logits (2, 3)",
        ),
        (
            BinaryCrossEntropy,
            {"pos_weight": [1.0]},
            torch.ones(2, 3),
            ConfigError,
            "objective.pos_weight: 1 weights",
        ),
    ],
)
def test_wrong_labels_are_named(kind, options, labels, error, line):
    index = torch.tensor([0, 1])
    batch = Batch(IDS, targets={"y": Target(labels, index)})
    with pytest.raises(error) as caught:
        kind.Config(**options).build()({"image": Prediction(torch.zeros(2, 3), index)}, batch, "y")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_wrong_options_are_named(logits):
    with pytest.raises(ConfigError, match="objective: no target; expected the name of a label"):
        CrossEntropy.Config().build()(logits, Batch(IDS), "")
    with pytest.raises(ConfigError, match=r"label_smoothing: -0.1; expected a share"):
        CrossEntropy.Config(label_smoothing=-0.1)
    with pytest.raises(ConfigError, match=r"class_weights: \[-1.0\]; expected numbers of 0 or more"):
        CrossEntropy.Config(class_weights=[-1.0])
    with pytest.raises(ConfigError, match=r"pos_weight: \[0.0\]; expected"):
        BinaryCrossEntropy.Config(pos_weight=[0.0])
    three = {"image": Prediction(torch.zeros(1, 2, 3), torch.tensor([0]))}
    with pytest.raises(
        ShapeError, match=r"objective/image: predictions \(1, 2, 3\); expected \(rows, classes\)"
    ):
        CrossEntropy.Config().build()(three, Batch(IDS), "word")
