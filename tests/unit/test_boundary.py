"""Boundary scores: thinning, matching and odsF, each against a slow independent version on small pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mmzoo.batch import IGNORE, Batch, DataInfo, Prediction, Target
from mmzoo.errors import ConfigError
from mmzoo.layers.thinning import thin
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.boundary import Boundary, count_matched


def blobs(rng: np.random.Generator, shape: tuple[int, int] = (14, 17)) -> np.ndarray:
    return rng.random(shape) < rng.uniform(0.3, 0.9)


def slow_thin(picture: np.ndarray) -> np.ndarray:
    """Read every pixel's ring, one by one, as the paper states the conditions."""
    now = np.pad(picture, 1)
    while True:
        before = now.copy()
        for side in (0, 1):
            marked = []
            for y, x in zip(*np.nonzero(now), strict=True):
                e, ne, n, nw, w, sw, s, se = (
                    bool(now[y + dy, x + dx])
                    for dy, dx in ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
                )
                crossings = (
                    (not e and (ne or n))
                    + (not n and (nw or w))
                    + (not w and (sw or s))
                    + (not s and (se or e))
                )
                least = min(
                    (e or ne) + (n or nw) + (w or sw) + (s or se),
                    (ne or n) + (nw or w) + (sw or s) + (se or e),
                )
                third = not ((ne or n or not se) and e) if side == 0 else not ((sw or s or not nw) and w)
                if crossings == 1 and 2 <= least <= 3 and third:
                    marked.append((y, x))
            for at in marked:
                now[at] = False
        if np.array_equal(before, now):
            return now[1:-1, 1:-1]


def test_thinning_equals_the_slow_one_pixel_by_pixel():
    rng = np.random.default_rng(0)
    pictures = np.stack([blobs(rng) for _ in range(30)])
    assert np.array_equal(thin(pictures), np.stack([slow_thin(p) for p in pictures]))


def test_thinning_keeps_pieces_together_and_leaves_lines():
    from scipy.ndimage import label

    rng, ring = np.random.default_rng(1), np.ones((3, 3))
    for _ in range(20):
        picture = blobs(rng)
        thinned = thin(picture)
        assert not (thinned & ~picture).any()
        assert label(thinned, ring)[1] == label(picture, ring)[1]
        assert np.array_equal(thin(thinned), thinned)
    bar = np.zeros((9, 30), bool)
    bar[2:7, 3:27] = True
    assert thin(bar).sum() < 30
    assert thin(bar).any(axis=0).sum() >= 18


def slow_match(predicted: np.ndarray, true: np.ndarray, reach: float) -> int:
    """Find the largest assignment by trying every subset of pairs, largest first."""
    near = [
        (tuple(p), tuple(t))
        for p in np.argwhere(predicted)
        for t in np.argwhere(true)
        if np.hypot(*(p - t)) <= reach
    ]
    for size in range(min(int(predicted.sum()), int(true.sum())), 0, -1):
        for chosen in itertools.combinations(near, size):
            if len({p for p, _ in chosen}) == len({t for _, t in chosen}) == size:
                return size
    return 0


def test_matching_is_the_largest_there_is():
    rng = np.random.default_rng(2)
    sizes = set()
    for _ in range(40):
        predicted, true = (rng.random((5, 6)) < 0.15 for _ in range(2))
        for reach in (0.5, 1.0, 1.5, 2.3):
            expected = slow_match(predicted, true, reach)
            assert count_matched(predicted, true, reach) == expected
            sizes.add(expected)
    assert len(sizes) > 3


def test_a_greedy_matching_would_be_smaller():
    predicted, true = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    predicted[0, [1, 2]] = True
    true[0, [0, 1]] = True
    assert count_matched(predicted, true, 1.0) == 2


def slow_ods(probs: list[np.ndarray], trues: list[np.ndarray], levels: list[float], reach: float) -> float:
    best = 0.0
    for level in levels:
        matched = found = 0
        for prob, true in zip(probs, trues, strict=True):
            line = slow_thin(prob >= level)
            matched += slow_match(line, true, reach)
            found += int(line.sum())
        precision, recall = matched / max(found, 1), matched / sum(int(t.sum()) for t in trues)
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-9))
    return best


def run(options: Boundary.Config, values: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    index = torch.arange(len(values))
    batch = Batch(tuple(f"{i}" for i in index.tolist()), targets={"t": Target(labels, index)})
    metric = options.build()
    state = metric.update({"image": Prediction(values, index)}, batch, "t")
    return metric.compute(state, MetricContext(DataInfo()))


def test_ods_equals_the_slow_one():
    rng = np.random.default_rng(3)
    trues = [rng.random((6, 7)) < 0.12 for _ in range(3)]
    logits = [rng.normal(0, 1, t.shape) + 2.5 * t - 1.5 for t in trues]
    probs = [np.round(255 / (1 + np.exp(-x))) / 255 for x in logits]
    options = Boundary.Config(max_dist=0.12, thresholds=9)
    values = torch.from_numpy(np.stack(logits))[:, None].float()
    labels = torch.from_numpy(np.stack(trues))[:, None].float()
    found = run(options, values, labels)
    expected = slow_ods(probs, trues, [k / 10 for k in range(1, 10)], 0.12 * np.hypot(6, 7))
    assert found["odsF@0.12"] == pytest.approx(expected)
    assert found["oisF@0.12"] >= found["odsF@0.12"] - 1e-9
    assert 0.3 < expected < 1


def test_pads_do_not_count_and_distance_is_of_the_real_part():
    rng = np.random.default_rng(4)
    true = torch.from_numpy(rng.random((1, 1, 8, 9)) < 0.15).float()
    values = torch.randn(1, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    padded = torch.full((1, 1, 20, 31), float(IGNORE))
    padded[..., 5:13, 7:16] = true
    wide = torch.full((1, 1, 20, 31), 9.0)
    wide[..., 5:13, 7:16] = values
    options = Boundary.Config(max_dist=0.1, thresholds=9)
    assert run(options, wide, padded) == run(options, values, true)


def test_perfect_is_one_and_no_boundary_gives_no_figure():
    true = torch.zeros(1, 1, 8, 9)
    options = Boundary.Config(thresholds=5)
    assert run(options, true, true) == {}
    true[0, 0, 3] = 1
    assert run(options, 20 * true - 10, true) == {"odsF@0.0075": 1.0, "oisF@0.0075": 1.0}
    with pytest.raises(ConfigError, match="thresholds"):
        Boundary.Config(thresholds=0)
