"""Boxes, numbers and soft labels: losses and figures against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from mmzoo.batch import Batch, DataInfo, NumericKind, Prediction, Target
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.heads.numbers import BoxHead, RegressionHead
from mmzoo.layers.boxes import generalised_iou, has_extent, iou
from mmzoo.learners.tasks import TaskConfig, faults_of
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.classify import Accuracy
from mmzoo.metrics.numbers import BoxIou, RegressionError
from mmzoo.metrics.soft_accuracy import SoftAccuracy
from mmzoo.models.multimodal import HeadSpec
from mmzoo.objectives.boxes import BoxLoss
from mmzoo.objectives.classify import BinaryCrossEntropy, CrossEntropy, OverLabels
from mmzoo.objectives.numbers import AbsoluteError, SmoothL1, SquaredError

PASS = "text+image"


def draw(count: int, seed: int = 0) -> Tensor:
    """Return boxes of all sizes, many of which do not meet."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def slow_giou(a: list[float], b: list[float]) -> float:
    """One pair by counting: areas from the intervals on each axis."""

    def length(low: float, high: float) -> float:
        return high - low if high > low else 0.0

    inter = length(max(a[0], b[0]), min(a[2], b[2])) * length(max(a[1], b[1]), min(a[3], b[3]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def test_overlap_is_that_of_torchvision_and_of_a_slow_formula() -> None:
    a, b = draw(200, 1), draw(200, 2)
    torch.testing.assert_close(generalised_iou(a, b), generalized_box_iou(a, b).diagonal())
    torch.testing.assert_close(iou(a, b), box_iou(a, b).diagonal())
    slow = [slow_giou(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(generalised_iou(a, b), torch.tensor(slow, dtype=torch.float64))
    assert (iou(a, b) == 0).any()
    flipped = a[:, [2, 3, 0, 1]]
    assert not has_extent(flipped).any()
    assert not iou(flipped, b).any()
    assert not iou(a, flipped).any()


def batch(values: Tensor, index: list[int], size: int) -> Batch:
    return Batch(tuple(f"s{i}" for i in range(size)), {}, {"y": Target(values, torch.tensor(index))})


def predicted(values: Tensor) -> dict[str, Prediction]:
    return {PASS: Prediction(values, torch.arange(len(values)))}


def test_box_loss_is_the_sum_of_corners_over_rows_and_the_mean_overlap_of_valid_boxes() -> None:
    """Rows 1 and 4 have no label; of the labelled ones two are no boxes."""
    values, truth = draw(8, 3).float(), draw(6, 4).float()
    values[2] = values[2, [2, 1, 0, 3]]
    values[5] = values[5, [0, 3, 2, 1]]
    values.requires_grad_()
    state = BoxLoss(BoxLoss.Config())(predicted(values), batch(truth, [0, 2, 3, 5, 6, 7], 8), "y")
    chosen = values[[0, 2, 3, 5, 6, 7]]
    valid = [0, 2, 4, 5]
    giou = torch.tensor([slow_giou(chosen[i].tolist(), truth[i].tolist()) for i in valid])
    expected = (chosen - truth).abs().sum() / 6 + (1 - giou).mean()
    torch.testing.assert_close(state.mean(), expected)
    assert state.total.count == 6
    state.mean().backward()
    assert not values.grad[[1, 4]].any()
    torch.testing.assert_close(values.grad[2], (values[2] - truth[1]).sign() / 6)
    weighed = BoxLoss(BoxLoss.Config(l1_weight=5.0, giou_weight=2.0))
    found = weighed(predicted(values), batch(truth, [0, 2, 3, 5, 6, 7], 8), "y").mean()
    torch.testing.assert_close(found, 5 * (chosen - truth).abs().sum() / 6 + 2 * (1 - giou).mean())


@pytest.mark.parametrize("kind", ["crossed", "points"])
def test_without_a_valid_box_the_overlap_is_zero_and_every_gradient_finite(kind: str) -> None:
    """Where the reference gives NaN."""
    truth = draw(3, 5).float()
    values = (truth[:, [2, 3, 0, 1]] if kind == "crossed" else torch.full((3, 4), 0.5)).requires_grad_()
    state = BoxLoss(BoxLoss.Config())(predicted(values), batch(truth, [0, 1, 2], 3), "y")
    torch.testing.assert_close(state.mean(), (values - truth).abs().sum() / 3)
    state.mean().backward()
    torch.testing.assert_close(values.grad, (values - truth).sign() / 3)


def test_box_loss_gradient_in_double_precision() -> None:
    truth = draw(6, 6)
    values = draw(6, 7)
    values[1] = values[1, [2, 1, 0, 3]]
    loss = BoxLoss(BoxLoss.Config())
    assert torch.autograd.gradcheck(lambda v: loss.sum(v, truth), values.requires_grad_())


def test_box_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="not both 0"):
        BoxLoss.Config(l1_weight=0.0, giou_weight=0.0)
    with pytest.raises(ConfigError, match="4, the corners of a box"):
        BoxHead.Config(num_classes=5)
    with pytest.raises(ConfigError, match="shares above 0"):
        BoxIou.Config(thresholds=[0.5, 50.0])
    with pytest.raises(ConfigError, match="a positive number"):
        SmoothL1.Config(beta=0.0)


def test_acc_at_half_counts_overlaps_of_half_or_more() -> None:
    """Boxes moved aside by a third (IoU 1/2), by half (1/3), not at all, and turned inside out."""
    truth = torch.tensor([[0.0, 0.0, 0.375, 0.5]]).expand(4, 4).clone()
    values = truth.clone()
    values[0, [0, 2]] += 0.125
    values[1, [0, 2]] += 0.1875
    values[3] = values[3, [2, 3, 0, 1]]
    metric = BoxIou(BoxIou.Config(thresholds=[0.5, 0.75]))
    state = metric.update(predicted(values), batch(truth, [0, 1, 2, 3], 4), "y")
    found = metric.compute(state, MetricContext(DataInfo()))
    assert found == pytest.approx({"Acc@0.5": 2 / 4, "Acc@0.75": 1 / 4, "mean_IoU": (1 / 2 + 1 / 3 + 1) / 4})


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (AbsoluteError(AbsoluteError.Config()), F.l1_loss),
        (SquaredError(SquaredError.Config()), F.mse_loss),
        (SmoothL1(SmoothL1.Config(beta=0.5)), lambda x, y: F.smooth_l1_loss(x, y, beta=0.5)),
    ],
)
def test_losses_of_numbers_are_means_over_labelled_rows_and_numbers(objective, expected) -> None:
    values, truth = torch.randn(5, 3), torch.randn(3, 3)
    state = objective(predicted(values), batch(truth, [0, 2, 4], 5), "y")
    torch.testing.assert_close(state.mean(), expected(values[[0, 2, 4]], truth))
    with pytest.raises(ShapeError, match="as many numbers each"):
        objective(predicted(values), batch(torch.randn(3, 2), [0, 2, 4], 5), "y")


def test_regression_figures() -> None:
    rng = np.random.default_rng(0)
    truth, off = rng.normal(size=(50, 2)), 0.1 * rng.normal(size=(50, 2))
    truth[:, 1] = 7.0  # does not vary: no R2 of its own
    metric = RegressionError(RegressionError.Config())
    labels = batch(torch.from_numpy(truth), list(range(50)), 50)
    state = metric.update(predicted(torch.from_numpy(truth + off)), labels, "y")
    found = metric.compute(state, MetricContext(DataInfo()))
    r2 = 1 - (off[:, 0] ** 2).sum() / (50 * truth[:, 0].var())
    expected = {"MAE": np.abs(off).mean(), "RMSE": np.sqrt((off**2).mean()), "R2": r2}
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0.9 < found["R2"] < 1


def test_soft_labels_in_loss_and_accuracy() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
    scores = torch.tensor([[0.3, 1.0, 0.0], [0.0, 0.0, 0.6]])
    loss = BinaryCrossEntropy(BinaryCrossEntropy.Config(over_labels=OverLabels.SUM))
    labels = batch(scores, [0, 1], 3)
    p = logits[:2].sigmoid()
    expected = -(scores * p.log() + (1 - scores) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(loss(predicted(logits), labels, "y").mean(), expected)
    metric = SoftAccuracy(SoftAccuracy.Config())
    found = metric.compute(metric.update(predicted(logits), labels, "y"), MetricContext(DataInfo()))
    assert found == pytest.approx({"accuracy": (0.3 + 0.6) / 2})


def test_tasks_that_do_not_fit_their_label_are_refused_in_a_line() -> None:
    info = DataInfo(
        labels={"box": ("x1", "y1", "x2", "y2"), "age": ("age",), "what": ("a", "b")},
        numeric={"box": NumericKind.BOXES, "age": NumericKind.NUMBERS},
    )

    def faults(target: str, head, objective, metric) -> str:
        task = TaskConfig(target=target, head=head, objective=objective, metrics=[metric])
        return "\n".join(faults_of("t", task, HeadSpec(head=head, passes=[PASS], target=target), info))

    regress = (RegressionHead.Config(), AbsoluteError.Config(), RegressionError.Config())
    point = (BoxHead.Config(), BoxLoss.Config(), BoxIou.Config())
    assert faults("age", *regress) == ""
    assert faults("box", *point) == ""
    assert "reads numbers; expected boxes, which box is" in faults("box", *regress)
    assert "reads boxes; expected no label of numbers, which what is" in faults("what", *point)
    classify = (RegressionHead.Config(), CrossEntropy.Config(), Accuracy.Config())
    assert "reads classes; expected numbers, which age is" in faults("age", *classify)
    assert RegressionHead.resolve(RegressionHead.Config(), info, "box").num_classes == 4
