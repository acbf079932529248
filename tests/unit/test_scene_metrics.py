"""Figures of scenes around a vehicle against hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmzoo.batch import IGNORE, Batch, DataInfo, Prediction, Target
from mmzoo.errors import ShapeError
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.boxes_3d import NuScenesBoxes, average_precision, errors_of, mean_errors
from mmzoo.metrics.scene import MapIou, OccupancyIou, SceneMetric

PASS = "camera+lidar"


def figures(
    metric: SceneMetric, values: Tensor, labels: Tensor | list[Tensor], names: tuple[str, ...] = ()
) -> dict[str, float]:
    index, ids = torch.arange(len(values)), tuple(map(str, range(len(values))))
    if isinstance(labels, list):
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
        target = Target(padded, index, torch.tensor([len(rows) for rows in labels]))
    else:
        target = Target(labels, index)
    state = metric.update({PASS: Prediction(values, index)}, Batch(ids, targets={"what": target}), "what")
    return metric.compute(state, MetricContext(DataInfo({"what": names}), "what"))


def test_map_takes_the_best_threshold_of_each_class():
    probs = torch.tensor([[[[0.9, 0.5, 0.4]], [[0.1, 0.2, 0.62]]]])
    target = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    found = figures(MapIou.Config().build(), probs.logit(), target, ("road", "walk"))
    assert found == {"mIoU": 1.0, "IoU/road": 1.0, "IoU/walk": 1.0}
    both = figures(MapIou.Config().build(), probs.logit().repeat(2, 1, 1, 1), torch.cat([target, 1 - target]))
    assert both["IoU/1"] == pytest.approx(1 / 4)
    fixed = figures(MapIou.Config(thresholds=[0.7]).build(), probs.logit(), target)
    assert fixed["IoU/0"] == pytest.approx(1 / 2)
    with pytest.raises(ShapeError, match="one grid"):
        figures(MapIou.Config().build(), probs.logit(), target[..., :2])


def test_occupancy_leaves_free_and_unknown_out():
    chosen, true = torch.tensor([[[[1, 1, 0, 2]]]]), torch.tensor([[[[1, 2, 0, IGNORE]]]])
    logits = torch.nn.functional.one_hot(chosen, 3).movedim(-1, 1).float()
    found = figures(OccupancyIou.Config().build(), logits, true, ("free", "car", "bus"))
    assert found == {"mIoU": 0.25, "sc_IoU": 1.0, "IoU/car": 0.5, "IoU/bus": 0.0}
    with pytest.raises(ShapeError, match=r"class 7; expected 0\.\.2"):
        figures(OccupancyIou.Config().build(), logits, true.masked_fill(true == 2, 7))


def box(x: float = 0.0, yaw: float = 0.0, kind: int = 0) -> Tensor:
    return torch.tensor([x, 0.0, 1.0, 4.0, 2.0, 1.5, yaw, 1.0, -2.0, float(kind)])


def detections(boxes: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([boxes[:, :9], torch.rand(len(boxes), 1, generator=generator), boxes[:, 9:]], dim=1)


def test_perfect_boxes_score_full_marks_and_errors_are_told(generator: torch.Generator):
    metric = NuScenesBoxes.Config().build()
    truth = torch.stack([box(x=5.0 * i, kind=i // 3) for i in range(6)])
    perfect = figures(metric, detections(truth, generator)[None], [truth])
    assert (perfect["mAP"], perfect["NDS4"]) == pytest.approx((1, 1))
    moved = truth.clone()
    moved[:, 0] += 0.75
    moved[:, 6] += 0.3
    found = figures(metric, detections(moved, generator)[None], [truth])
    assert found["mAP"] == pytest.approx(0.75)  # wrong at 0.5 m, right at 1, 2 and 4 m
    assert found["ATE_m"] == pytest.approx(0.75, abs=1e-4)
    assert found["AOE_rad"] == pytest.approx(0.3, abs=1e-4)
    assert found["NDS4"] == pytest.approx((5 * 0.75 + 0.25 + 1 + 0.7 + 1) / 9, abs=1e-4)
    elsewhere = detections(truth, generator)
    elsewhere[:, 10] = 7
    assert figures(metric, elsewhere[None], [truth])["NDS4"] == 0
    assert figures(metric, elsewhere[None], [truth[:0]]) == {}
    cones = torch.stack([box(x=5.0 * i, kind=1) for i in range(3)])
    alone = figures(metric, detections(cones, generator)[None], [cones], ("car", "traffic_cone"))
    assert (alone["mAP"], alone["NDS4"]) == pytest.approx((1, 1))  # cones have neither a heading nor a motion
    assert not {"AOE_rad", "AVE_m_s"} & set(alone)


def test_errors_that_mean_nothing_for_a_class_are_left_out(generator: torch.Generator):
    metric = NuScenesBoxes.Config().build()
    truth = torch.stack([box(x=5.0 * i, kind=i // 3) for i in range(6)])
    turned = truth.clone()
    turned[3:, 6] += math.pi
    turned[3:, 7] += 5.0
    found = detections(turned, generator)[None]
    known = figures(metric, found, [truth], ("car", "barrier"))
    assert (known["AOE_rad"], known["AVE_m_s"]) == pytest.approx((0, 0), abs=1e-5)
    plain = figures(metric, found, [truth], ("car", "bus"))
    assert plain["AOE_rad"] == pytest.approx(math.pi / 2, abs=1e-4)
    assert plain["AVE_m_s"] == pytest.approx(2.5, abs=1e-4)


def test_unknown_velocities_are_no_errors(generator: torch.Generator):
    metric = NuScenesBoxes.Config().build()
    truth = torch.stack([box(x=5.0 * i) for i in range(4)])
    labels = truth.clone()
    labels[:2, 7:9] = torch.nan
    found = detections(truth, generator)[None]
    assert figures(metric, found, [labels])["AVE_m_s"] == pytest.approx(0, abs=1e-6)
    assert math.isnan(errors_of(found[0, 0].numpy(), labels[0].numpy(), 2 * np.pi)[3])


def test_average_precision_and_running_means_of_known_curves():
    assert average_precision(np.array([True, True]), 2) == pytest.approx(1)
    assert average_precision(np.array([False, False]), 2) == 0
    half = average_precision(np.array([True]), 2)  # precision 1 up to recall 0.5
    assert half == pytest.approx(40 / 90)
    assert average_precision(np.array([True, False, True]), 2) < 1
    assert mean_errors([np.full(4, 0.2)], 10).tolist() == [1.0] * 4  # recall 0.1 is not reached
    steps = mean_errors([np.full(4, 0.0), np.full(4, 1.0)], 2)  # 0 up to recall 0.5, then up to 0.5 at 1
    levels = np.linspace(0, 1, 101)[11:]
    assert steps[0] == pytest.approx(np.interp(levels, [0.5, 1.0], [0.0, 0.5]).mean())


def test_each_scene_has_its_own_boxes(generator: torch.Generator):
    metric = NuScenesBoxes.Config().build()
    truth = [torch.stack([box(x=5.0)]), torch.stack([box(x=-8.0), box(x=12.0)])]
    found = torch.stack([detections(torch.stack([box(x=5.0), box(x=12.0)]), generator) for _ in range(2)])
    found[0, :, 9], found[1, :, 9] = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    assert figures(metric, found, truth)["mAP"] == pytest.approx(
        average_precision(np.array([True, True, False, False]), 3)
    )
