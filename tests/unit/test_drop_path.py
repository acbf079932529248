"""Stochastic depth: the ramp, one draw a segment, the mean kept."""

from __future__ import annotations

import pytest
import torch

from mmzoo.layers.drop_path import drop_path_rates, drop_path_scale


def test_rates_rise_linearly():
    assert drop_path_rates(0.4, 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert drop_path_rates(0.4, 1) == [0.0]
    assert drop_path_rates(0.4, 0) == []


def test_rows_of_a_segment_share_one_draw(generator: torch.Generator):
    rows = torch.tensor([0, 2, 1, 1, 0, 2])
    seen = set()
    for _ in range(64):
        scale = drop_path_scale(rows, 3, 0.25, generator=generator)
        assert scale.shape == (6, 1)
        flat = scale[:, 0]
        assert torch.equal(flat, flat[torch.tensor([0, 1, 2, 2, 0, 1])])
        assert all(v == 0 or v == pytest.approx(4 / 3) for v in flat.tolist())
        seen.add(tuple(flat.tolist()))
    assert len(seen) > 4  # of 8 combinations


def test_the_mean_is_one_and_the_generator_decides(generator: torch.Generator):
    rows = torch.arange(40_000)
    scale = drop_path_scale(rows, 40_000, 0.3, generator=generator)
    assert float(scale.mean()) == pytest.approx(1.0, abs=0.015)
    again = drop_path_scale(rows, 40_000, 0.3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scale, again)


def test_certain_loss_gives_zeros():
    assert (drop_path_scale(torch.tensor([0, 1]), 2, 1.0) == 0).all()
