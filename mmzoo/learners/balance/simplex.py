"""Convex problems over weights that are at least 0 and sum to 1; small, so solved in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmzoo.learners.balance.base import Gram, Weights

Problem = Callable[[Weights], tuple[float, Weights]]
"""Weights -> value and gradient of what is minimised."""
ROUNDS, TOLERANCE = 2000, 1e-12


def project(point: Weights) -> Weights:
    """Return the nearest point of the simplex.

    Ref: Held, Wolfe & Crowder 1974 (sort, then find where the excess is used up).
    """
    falling = np.sort(point)[::-1]
    excess = np.cumsum(falling) - 1.0
    last = np.nonzero(falling * np.arange(1, len(point) + 1) > excess)[0][-1]
    return np.maximum(point - excess[last] / (last + 1), 0.0)


def minimise(problem: Problem, size: int) -> Weights:
    """Return the minimiser on the simplex, by projected gradients with a halving step and momentum.

    Ref: Beck & Teboulle 2009 (FISTA), restarted where the value would rise (O'Donoghue & Candes 2015).
    """
    at = ahead = np.full(size, 1.0 / size)
    value, momentum, step = problem(at)[0], 1.0, 1.0
    for _ in range(ROUNDS):
        found, slope = problem(ahead)
        while True:
            new = project(ahead - step * slope)
            move = new - ahead
            reached = problem(new)[0]
            if (
                reached <= found + slope @ move + move @ move / (2 * step) + 1e-15 * abs(found)
                or step < 1e-12
            ):
                break
            step /= 2
        if reached > value:
            if momentum == 1.0:
                break
            ahead, momentum = at, 1.0
            continue
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = project(new + (momentum - 1) / faster * (new - at))
        change = float(np.abs(new - at).max())
        at, value, momentum = new, reached, faster
        if change < TOLERANCE:
            break
    return at


def min_norm(products: Gram) -> Weights:
    """Return the weights of the shortest vector in the convex hull of vectors with these inner products."""
    scaled = products / max(float(np.trace(products)), 1e-300)

    def problem(w: Weights) -> tuple[float, Weights]:
        moved = scaled @ w
        return float(w @ moved), 2 * moved

    return minimise(problem, len(products))
