"""Least squares on the simplex against brute force and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmzoo.learners.balance.simplex import min_norm, minimise, project


def test_projection_onto_the_simplex_is_the_nearest_point():
    point = np.array([0.9, -0.3, 0.8])
    found = project(point)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    parts = 60
    grid = np.array(
        [[a, b, parts - a - b] for a, b in itertools.product(range(parts + 1), repeat=2) if a + b <= parts]
    )
    grid = grid / parts
    assert np.linalg.norm(found - point) <= np.linalg.norm(grid - point, axis=1).min() + 1e-12


def test_minimiser_reaches_corners_and_ill_conditioned_points():
    assert min_norm(np.diag([1.0, 100.0])).tolist() == pytest.approx([100 / 101, 1 / 101], abs=1e-6)
    corner = min_norm(np.array([[1.0, 2.0], [2.0, 9.0]]))
    assert corner.tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    scale = np.array([1.0, 1e-2, 1e-4])
    found = minimise(lambda w: (float(w @ (scale * w)), 2 * scale * w), 3)
    np.testing.assert_allclose(found, 1 / scale / (1 / scale).sum(), atol=1e-4)
