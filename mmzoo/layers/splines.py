"""Cubic spline interpolation on uneven nodes as a matrix: a table is resampled by two matrix products."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def spline_matrix(nodes: Float[Tensor, " n"], points: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """Return the weights with which values at `nodes` (ascending) give the spline's values at `points`.

    Why: the spline is linear in the values, so one matrix resamples every head and both axes of a table.
    Math: piecewise cubics with continuous second derivatives; the third derivative too is continuous at the
    second and the last but one node ("not-a-knot"). Up to three nodes: the polynomial through them. Points
    outside the nodes are moved to the nearest end. Float64 throughout.
    Ref: equals FITPACK's interpolating spline of degree 3 (smoothing 0), which ONE-PEACE's loader uses.
    """
    nodes, points = nodes.double(), points.double().clamp(float(nodes[0]), float(nodes[-1]))
    count = len(nodes)
    if count < 4:
        return _lagrange(nodes, points)
    curvature = _curvature(nodes)
    left = (torch.searchsorted(nodes, points, right=True) - 1).clamp(0, count - 2)
    width = nodes[left + 1] - nodes[left]
    to_left, to_right = (points - nodes[left]) / width, (nodes[left + 1] - points) / width
    unit = torch.eye(count, dtype=torch.float64)
    straight = to_right[:, None] * unit[left] + to_left[:, None] * unit[left + 1]
    bend_left = ((to_right**3 - to_right) * width**2 / 6)[:, None] * curvature[left]
    bend_right = ((to_left**3 - to_left) * width**2 / 6)[:, None] * curvature[left + 1]
    return straight + bend_left + bend_right


def _curvature(nodes: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Return the matrix from the values at the nodes to the spline's second derivatives there."""
    count, step = len(nodes), nodes.diff()
    system = torch.zeros(count, count, dtype=torch.float64)
    slopes = torch.zeros(count, count, dtype=torch.float64)
    inner = torch.arange(1, count - 1)
    system[inner, inner - 1] = step[:-1] / 6
    system[inner, inner] = (step[:-1] + step[1:]) / 3
    system[inner, inner + 1] = step[1:] / 6
    slopes[inner, inner - 1] = 1 / step[:-1]
    slopes[inner, inner] = -1 / step[:-1] - 1 / step[1:]
    slopes[inner, inner + 1] = 1 / step[1:]
    system[0, :3] = torch.stack([-1 / step[0], 1 / step[0] + 1 / step[1], -1 / step[1]])
    system[-1, -3:] = torch.stack([-1 / step[-2], 1 / step[-2] + 1 / step[-1], -1 / step[-1]])
    return torch.linalg.solve(system, slopes)


def _lagrange(nodes: Float[Tensor, " n"], points: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """Return the weights of the polynomial through all nodes."""
    weights = torch.ones(len(points), len(nodes), dtype=torch.float64)
    for i in range(len(nodes)):
        for j in range(len(nodes)):
            if i != j:
                weights[:, i] *= (points - nodes[j]) / (nodes[i] - nodes[j])
    return weights
