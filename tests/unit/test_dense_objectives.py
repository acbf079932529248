"""Dense losses against formulas written out pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.batch import IGNORE, Batch, Prediction, Target
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.dense import BalancedEdge, BalancedSaliency, DenseCrossEntropy, DepthL1, NormalsL1
from mmzoo.state import LossState


def run(objective, values: Tensor, labels: Tensor) -> LossState:
    index = torch.arange(len(values))
    batch = Batch(tuple(f"{i}" for i in index.tolist()), targets={"t": Target(labels, index)})
    return objective({"image": Prediction(values, index)}, batch, "t")


def with_ignored(labels: Tensor, generator: torch.Generator, value: float = IGNORE) -> Tensor:
    hidden = torch.rand(labels.shape[0], *labels.shape[-2:], generator=generator) < 0.3
    return labels.masked_fill(hidden[:, None] if labels.ndim == 4 else hidden, value)


def test_cross_entropy_is_a_mean_over_labelled_pixels_of_the_batch(generator):
    values = torch.randn(2, 5, 4, 6, generator=generator)
    labels = with_ignored(torch.randint(5, (2, 4, 6), generator=generator), generator)
    probs = values.double().softmax(1)
    terms = [
        -math.log(probs[b, labels[b, y, x], y, x]) for b, y, x in torch.nonzero(labels != IGNORE).tolist()
    ]
    state = run(DenseCrossEntropy.Config().build(), values, labels)
    assert state.mean().item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert state.total.count.item() == len(terms)


def test_saliency_weighs_each_side_by_the_share_of_the_other(generator):
    values = torch.randn(2, 2, 4, 6, generator=generator)
    labels = with_ignored((torch.rand(2, 4, 6, generator=generator) < 0.2).long(), generator)
    valid = labels != IGNORE
    share = (labels == 0).sum().item() / valid.sum().item()
    probs = values.double().softmax(1)
    terms = [
        -(share if labels[b, y, x] else 1 - share) * math.log(probs[b, labels[b, y, x], y, x])
        for b, y, x in torch.nonzero(valid).tolist()
    ]
    state = run(BalancedSaliency.Config().build(), values, labels)
    assert state.mean().item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_normals_sum_over_axes_and_divide_by_pixels(generator):
    values = 3 * torch.randn(2, 3, 4, 6, generator=generator)
    true = F.normalize(torch.randn(2, 3, 4, 6, generator=generator), dim=1)
    labels = with_ignored(true, generator)
    labels[0, 1, 0, 0] = IGNORE  # one axis missing is as good as none
    pixels = [(b, y, x) for b, y, x in torch.nonzero((labels != IGNORE).all(1)).tolist()]
    total = 0.0
    for b, y, x in pixels:
        p = values[b, :, y, x].double()
        total += (p / p.norm() - labels[b, :, y, x].double()).abs().sum().item()
    state = run(NormalsL1.Config().build(), values, labels)
    assert state.mean().item() == pytest.approx(total / len(pixels), rel=1e-5)


@pytest.mark.parametrize("weight", [0.95, 0.88])
def test_edge_equals_the_form_with_pos_weight(weight, generator):
    values = torch.randn(2, 1, 4, 6, generator=generator)
    labels = with_ignored(torch.rand(2, 1, 4, 6, generator=generator).round(decimals=1), generator)
    valid, f = labels != IGNORE, 1 / (1 - weight)
    expected = (
        F.binary_cross_entropy_with_logits(values[valid], labels[valid], pos_weight=torch.tensor(weight * f))
        / f
    )
    state = run(BalancedEdge.Config(pos_weight=weight).build(), values, labels)
    torch.testing.assert_close(state.mean(), expected)


@pytest.mark.parametrize("hole", [float("nan"), float("inf"), float("-inf"), 0.0, -1.0])
def test_depth_of_holes_has_neither_loss_nor_gradient(hole: float):
    values = torch.tensor([[[[2.0, 3.0, 4.0]]]], requires_grad=True)
    state = DepthL1.Config().build().sum(values, torch.tensor([[[[1.0, hole, 6.0]]]]))
    assert (float(state.sum.detach()), float(state.count)) == (3.0, 2.0)
    state.mean().backward()
    assert values.grad.flatten().tolist() == [0.5, 0.0, -0.5]


def test_depth_leaves_out_what_was_not_measured(generator):
    values = torch.randn(2, 1, 4, 6, generator=generator)
    labels = with_ignored(torch.rand(2, 1, 4, 6, generator=generator) + 0.5, generator, 0.0)
    errors = [
        abs(a - b) for a, b in zip(values.flatten().tolist(), labels.flatten().tolist(), strict=True) if b
    ]
    state = run(DepthL1.Config().build(), values, labels)
    assert state.mean().item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert state.total.count.item() == len(errors)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (DenseCrossEntropy.Config(), torch.full((2, 4, 6), IGNORE)),
        (BalancedSaliency.Config(), torch.full((2, 4, 6), IGNORE)),
        (NormalsL1.Config(), torch.full((2, 3, 4, 6), float(IGNORE))),
        (BalancedEdge.Config(), torch.full((2, 1, 4, 6), float(IGNORE))),
        (DepthL1.Config(), torch.zeros(2, 1, 4, 6)),
    ],
)
def test_nothing_labelled_is_zero_with_a_zero_gradient(options, labels):
    channels = labels.shape[1] if labels.ndim == 4 else 2
    values = torch.zeros(2, channels, 4, 6, requires_grad=True)
    state = run(options.build(), values, labels)
    state.mean().backward()
    assert state.mean().item() == 0
    assert torch.equal(values.grad, torch.zeros_like(values))


def test_wrong_sizes_classes_and_weights_say_so():
    objective = DenseCrossEntropy.Config().build()
    with pytest.raises(ShapeError, match="same image size"):
        run(objective, torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"class 7; expected 0\.\.2"):
        run(objective, torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 7))
    with pytest.raises(ShapeError, match="dense head"):
        run(NormalsL1.Config().build(), torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="pos_weight"):
        BalancedEdge.Config(pos_weight=1.0)
