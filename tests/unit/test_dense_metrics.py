"""Figures of dense tasks against formulas written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.batch import IGNORE, Batch, DataInfo, Prediction, Target
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.delta import delta_m
from mmzoo.metrics.dense import DepthError, MeanIou, NormalsError, Saliency, SaliencyProtocol

CONTEXT = MetricContext(DataInfo())


def run(options, values: Tensor, labels: Tensor) -> dict[str, float]:
    index = torch.arange(len(values))
    batch = Batch(tuple(f"{i}" for i in index.tolist()), targets={"t": Target(labels, index)})
    metric = options.build()
    return metric.compute(metric.update({"image": Prediction(values, index)}, batch, "t"), CONTEXT)


def test_miou_is_over_the_set_and_all_classes(generator):
    values, labels = (
        torch.randn(3, 6, 5, 7, generator=generator),
        torch.randint(4, (3, 5, 7), generator=generator),
    )
    labels[0, :2] = IGNORE
    values[:, 5] = -99.0  # a class that neither occurs nor is predicted counts 0
    chosen = values.argmax(1)
    ious = []
    for c in range(6):
        pairs = [
            (p == c, t == c)
            for p, t in zip(chosen.flatten().tolist(), labels.flatten().tolist(), strict=True)
            if t != IGNORE
        ]
        both = sum(p and t for p, t in pairs)
        either = sum(p or t for p, t in pairs)
        ious.append(both / either if either else 0.0)
    found = run(MeanIou.Config(), values, labels)
    assert found["mIoU"] == pytest.approx(sum(ious) / 6)
    real = labels != IGNORE
    assert found["pixel_acc"] == pytest.approx((chosen == labels)[real].float().mean().item())


def test_depth_errors(generator):
    true = 10 * torch.rand(2, 1, 5, 7, generator=generator)
    true[0, 0, 0], true[1, 0, 0, 0] = 0.0, 90.0
    values = true + torch.randn(true.shape, generator=generator)
    values[1, 0, 1, 1] = -3.0
    pairs = [
        (max(p, 0.0), t)
        for p, t in zip(values.flatten().tolist(), true.flatten().tolist(), strict=True)
        if 0 < t < 80
    ]
    found = run(DepthError.Config(), values, true)
    n = len(pairs)
    assert found["rmse_m"] == pytest.approx(math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n))
    logs = [(math.log(max(p, 1e-3)) - math.log(t)) ** 2 for p, t in pairs]
    assert found["log_rmse"] == pytest.approx(math.sqrt(sum(logs) / n))
    assert found["abs_rel"] == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / n)
    assert found["sq_rel_m"] == pytest.approx(sum((p - t) ** 2 / t for p, t in pairs) / n)


def test_normals_error_is_the_angle(generator):
    true = F.normalize(torch.randn(2, 3, 5, 7, generator=generator), dim=1)
    values = 4 * (true + 0.4 * torch.randn(true.shape, generator=generator))
    true[0, :, 0] = IGNORE
    angles = [
        math.degrees(
            math.acos(
                min(
                    1.0,
                    float(F.cosine_similarity(values[b, :, y, x].double(), true[b, :, y, x].double(), dim=0)),
                )
            )
        )
        for b, y, x in torch.nonzero((true != IGNORE).all(1)).tolist()
    ]
    found = run(NormalsError.Config(), values, true)
    assert found["mErr_deg"] == pytest.approx(np.mean(angles), rel=1e-5)
    assert found["rmse_deg"] == pytest.approx(math.sqrt(np.mean(np.square(angles))), rel=1e-5)
    for name, limit in (("within_11", 11.25), ("within_22", 22.5), ("within_30", 30.0)):
        assert found[name] == pytest.approx(np.mean(np.array(angles) < limit))


@pytest.fixture
def saliency(generator) -> tuple[Tensor, Tensor]:
    labels = (torch.rand(3, 6, 8, generator=generator) < 0.3).long()
    values = torch.randn(3, 2, 6, 8, generator=generator)
    values[:, 1] += 1.5 * labels
    labels[0, 0] = IGNORE
    return values, labels


def best_f(prob: Tensor, labels: Tensor, cuts) -> float:
    real = labels != IGNORE
    p, t = prob[real], labels[real] == 1
    scores = []
    for cut in cuts:
        hit = p >= cut
        precision, recall = (hit & t).sum() / max(int(hit.sum()), 1), (hit & t).sum() / t.sum()
        scores.append(float(1.3 * precision * recall / (0.3 * precision + recall)) if hit.any() else 0.0)
    return max(scores)


def test_saliency_by_thresholds_on_the_probability(saliency):
    values, labels = saliency
    cuts = [k / 20 for k in range(1, 20)]
    found = run(Saliency.Config(), values, labels)
    assert found["F_maxf"] == pytest.approx(best_f(values.double().softmax(1)[:, 1], labels, cuts), abs=1e-6)


def test_saliency_with_the_extra_sigmoid_has_five_operating_points(saliency):
    values, labels = saliency
    found = run(Saliency.Config(), values, labels)
    cuts = [0.0] + [math.log(t / (1 - t)) for t in (0.55, 0.60, 0.65, 0.70)]
    assert cuts[1:] == pytest.approx([0.2007, 0.4055, 0.6190, 0.8473], abs=1e-4)
    prob = values.double().softmax(1)[:, 1]
    assert found["F_invpt"] == pytest.approx(best_f(prob, labels, cuts), abs=1e-6)
    assert found["F_invpt"] != found["F_maxf"]


def test_saliency_as_the_mean_of_images(saliency):
    values, labels = saliency
    labels[2][labels[2] == 1] = 0  # an image without anything salient counts 1 where nothing is found
    prob = values.double().softmax(1)[:, 1]
    means = []
    for cut in [k / 20 for k in range(1, 20)]:
        ious = []
        for p, t in zip(prob, labels, strict=True):
            hit, true = (p >= cut)[t != IGNORE], (t == 1)[t != IGNORE]
            union = int((hit | true).sum())
            ious.append(int((hit & true).sum()) / union if union else 1.0)
        means.append(sum(ious) / len(ious))
    found = run(Saliency.Config(protocols=[SaliencyProtocol.MIOU]), values, labels)
    assert found == {"IoU_miou": pytest.approx(max(means))}


def test_delta_m_counts_errors_the_other_way():
    found = {"seg/mIoU": 0.44, "depth/rmse_m": 0.6, "normals/mErr_deg": 18.0, "seg/loss": 1.0}
    single = {"seg/mIoU": 0.40, "depth/rmse_m": 0.5, "normals/mErr_deg": 20.0}
    assert delta_m(found, single) == pytest.approx(100 * (0.1 - 0.2 + 0.1) / 3)
    assert delta_m({"align/loss/image~text": 3.0}, {"align/loss/image~text": 2.0}) == pytest.approx(-50)
    with pytest.raises(ConfigError, match="seg/mIoU"):
        delta_m(found, {"seg/mIou": 0.4})
    with pytest.raises(ConfigError, match="more than 0"):
        delta_m(found, {"seg/mIoU": 0.0})


def test_wrong_shapes_and_options_say_so():
    with pytest.raises(ShapeError, match="image's size"):
        run(MeanIou.Config(), torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"class 7; expected 0\.\.2"):
        run(MeanIou.Config(), torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 7))
    with pytest.raises(ConfigError, match="max_depth_m"):
        DepthError.Config(max_depth_m=0.0)
    with pytest.raises(ConfigError, match="protocols"):
        Saliency.Config(protocols=[])
