"""Position tables against loops over pairs, hand-written bicubic weights and SciPy's splines."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from mmzoo.errors import ConfigError
from mmzoo.layers.positions import (
    GridPositions,
    RelativeBias1d,
    RelativeBias2d,
    resize_grid,
    resize_relative_table,
    token_buckets,
)
from mmzoo.layers.splines import spline_matrix


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.nn.init.normal_(module.get_parameter("table"), generator=torch.Generator().manual_seed(3))
    return module


def bucket_by_hand(distance: int, num_buckets: int, max_positions: int) -> int:
    middle = num_buckets // 2
    if abs(distance) <= middle:
        return distance + num_buckets - 1
    one, span = np.float32, np.float32(math.log((max_positions - 1) / middle))
    steps = np.ceil(np.log(one(abs(distance)) / one(middle)) / span * one(middle - 1))
    return int(np.sign(distance)) * (middle + int(steps)) + num_buckets - 1


@pytest.mark.parametrize(("num_buckets", "max_positions"), [(8, 40), (5, 12), (16, 100), (64, 20)])
def test_bias_1d_reads_the_bucket_of_every_pair(num_buckets, max_positions):
    bias = randomised(RelativeBias1d(num_buckets, 3, max_positions))
    n, entries = 11, bias.table.shape[0]
    assert entries == 2 * num_buckets + 2
    found = bias(n)
    for q in range(n):
        for k in range(n):
            row = bucket_by_hand(q - k, num_buckets, max_positions)
            row = {(True, True): entries - 1, (True, False): entries - 3, (False, True): entries - 2}.get(
                (q == 0, k == 0), row
            )
            assert torch.equal(found[0, :, q, k], bias.table[row]), (q, k)


def test_distances_past_the_last_position_take_the_outermost_bucket():
    bias = randomised(RelativeBias1d(8, 2, 10))
    found = bias(30)
    assert torch.equal(found[0, :, 29, 2], found[0, :, 28, 19])
    assert torch.equal(found[0, :, 29, 2], bias.table[14])
    assert torch.equal(found[0, :, 2, 29], bias.table[0])


def test_too_few_buckets_are_refused():
    with pytest.raises(ConfigError, match="num_buckets 1, max_positions 1024; expected at least 2"):
        token_buckets(1, 1024)


@pytest.mark.parametrize(("size", "rows", "cols"), [(4, 4, 4), (4, 2, 3), (5, 1, 5), (2, 4, 3)])
def test_bias_2d_reads_the_offset_of_every_pair(size, rows, cols):
    bias = randomised(RelativeBias2d(size, 2))
    found, entries, limit = bias(rows, cols), bias.table.shape[0], size - 1
    assert found.shape == (1, 2, rows * cols + 1, rows * cols + 1)
    patches = [(i, j) for i in range(rows) for j in range(cols)]
    for q, (i, j) in enumerate(patches, start=1):
        assert torch.equal(found[0, :, q, 0], bias.table[entries - 2])
        assert torch.equal(found[0, :, 0, q], bias.table[entries - 3])
        for k, (a, b) in enumerate(patches, start=1):
            down, right = max(-limit, min(limit, i - a)), max(-limit, min(limit, j - b))
            row = (down + limit) * (2 * size - 1) + right + limit
            assert torch.equal(found[0, :, q, k], bias.table[row])
    assert torch.equal(found[0, :, 0, 0], bias.table[entries - 1])


def cubic_weight(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic_matrix(old: int, new: int) -> torch.Tensor:
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[i, min(max(j, 0), old - 1)] += cubic_weight(centre - j)
    return weights


@pytest.mark.parametrize(("rows", "cols"), [(7, 7), (3, 6), (4, 9), (2, 2)])
def test_resized_grid_is_bicubic_and_keeps_the_cls_row(generator, rows, cols):
    table = torch.randn(17, 5, generator=generator)
    found = resize_grid(table, rows, cols)
    down, right = bicubic_matrix(4, rows), bicubic_matrix(4, cols)
    expected = torch.einsum("ay,bx,yxd->abd", down, right, table[1:].view(4, 4, 5).double()).flatten(0, 1)
    torch.testing.assert_close(found[1:].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], table[0])


def test_resized_grid_is_kept_in_evaluation_and_follows_the_table():
    positions = GridPositions(4, 6).eval()
    assert positions(4, 4) is positions.table
    with torch.no_grad():
        first = positions(3, 5)
        assert positions(3, 5) is first
        positions.table.mul_(2.0)
        second = positions(3, 5)
    assert torch.equal(second, resize_grid(positions.table, 3, 5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fused", [False, True])
def test_cache_notices_an_optimiser_step(fused):
    positions = GridPositions(4, 6)
    optimiser = torch.optim.AdamW(positions.parameters(), lr=0.1, fused=fused)
    with torch.no_grad():
        before = positions(2, 3)
    positions(2, 3).square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        after = positions(2, 3)
    assert torch.equal(after, resize_grid(positions.table, 2, 3))
    assert not torch.equal(after, before)


def test_cache_notices_loading_replacing_and_writes_through_data():
    positions, other = GridPositions(3, 4).eval(), GridPositions(3, 4)
    with torch.no_grad():
        positions(2, 2)
        positions.load_state_dict(other.state_dict())
        assert torch.equal(positions(2, 2), resize_grid(other.table, 2, 2))
        positions.load_state_dict({"table": torch.ones(10, 4)}, assign=True)
        torch.testing.assert_close(positions(2, 2), torch.ones(5, 4))
        positions.table.data.fill_(2.0)
        positions.eval()
        torch.testing.assert_close(positions(2, 2), torch.full((5, 4), 2.0))
        positions.double()
        assert positions(2, 2).dtype == torch.float64


def test_gradient_flows_through_resizing_and_gathering_after_evaluation():
    for module, size in (
        (GridPositions(4, 6), (2, 5)),
        (RelativeBias2d(3, 2), (2, 2)),
        (RelativeBias1d(4, 2), (6,)),
    ):
        with torch.no_grad():
            module.eval()(*size)
        for mode in (True, False):
            module.train(mode).zero_grad()
            out = module(*size)
            out.backward(torch.ones_like(out))
            rows_used = int((module.table.grad.abs().sum(1) > 0).sum())
            assert rows_used >= 7
    assert module.table.grad.sum() == 36 * 2


def test_result_of_inference_mode_may_be_used_in_a_graph():
    bias = randomised(RelativeBias1d(4, 2)).eval().requires_grad_(False)
    with torch.inference_mode():
        bias(5)
    weight = torch.ones(2, 5, 5, requires_grad=True)
    (bias(5)[0] * weight).sum().backward()
    assert torch.equal(weight.grad, bias(5)[0])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_share_no_memory_of_results(clone):
    bias = randomised(RelativeBias2d(3, 2)).eval()
    with torch.no_grad():
        kept = bias(2, 2)
        twin = clone(bias)
        twin.table.zero_()
        assert torch.equal(twin(2, 2), torch.zeros_like(kept))
        assert bias(2, 2) is kept


def test_cache_holds_a_bounded_number_of_sizes():
    bias = randomised(RelativeBias1d(8, 1)).eval()
    with torch.no_grad():
        first = bias(2)
        for n in range(3, 13):
            bias(n)
        assert bias(2) is not first
        assert torch.equal(bias(2), first)


def test_relative_table_grows_by_the_spline_scipy_draws(generator):
    interpolate = pytest.importorskip("scipy.interpolate")
    table = torch.randn(13 * 13 + 3, 2, generator=generator)
    found = resize_relative_table(table, 9)
    assert found.shape == (17 * 17 + 3, 2)
    ratio = min(np.linspace(1.01, 1.5, 200_001), key=lambda q: abs((1 - q**6) / (1 - q) - 8))
    reach = np.cumsum(ratio ** np.arange(6))
    nodes = np.concatenate([-reach[::-1], [0.0], reach])
    for head in range(2):
        square = table[:169, head].reshape(13, 13).numpy()
        spline = interpolate.RectBivariateSpline(nodes, nodes, square, kx=3, ky=3, s=0)
        expected = spline(np.arange(-8, 9), np.arange(-8, 9))
        np.testing.assert_allclose(found[:289, head].reshape(17, 17).numpy(), expected, atol=1e-4)
    assert torch.equal(found[-3:], table[-3:])


def test_relative_table_of_the_same_or_a_smaller_size_keeps_its_offsets(generator):
    big = RelativeBias2d(5, 3)
    big.table.data.normal_(generator=generator)
    assert torch.equal(resize_relative_table(big.table, 5), big.table)
    small = RelativeBias2d(3, 3)
    small.load_state_dict({"table": resize_relative_table(big.table.detach(), 3)})
    assert torch.equal(small(3, 2), big(3, 2))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_spline_goes_through_its_nodes_and_draws_cubics_exactly(generator, count):
    nodes = torch.rand(count, generator=generator, dtype=torch.float64).cumsum(0) + torch.arange(count)
    points = torch.linspace(float(nodes[0]), float(nodes[-1]), 23, dtype=torch.float64)
    degree = min(count - 1, 3)
    polynomial = torch.randn(degree + 1, generator=generator, dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return sum(c * x**i for i, c in enumerate(polynomial))

    torch.testing.assert_close(spline_matrix(nodes, points) @ value(nodes), value(points))
    torch.testing.assert_close(spline_matrix(nodes, nodes), torch.eye(count, dtype=torch.float64))
    outside = spline_matrix(nodes, torch.tensor([-50.0, 50.0]))
    torch.testing.assert_close(outside, torch.eye(count, dtype=torch.float64)[[0, -1]])


def test_spline_is_scipys_not_a_knot_spline(generator):
    interpolate = pytest.importorskip("scipy.interpolate")
    nodes = torch.tensor([-4.0, -2.5, -1.0, 0.0, 1.5, 2.0, 5.0], dtype=torch.float64)
    values = torch.randn(7, generator=generator, dtype=torch.float64)
    points = torch.linspace(-4, 5, 40, dtype=torch.float64)
    expected = interpolate.CubicSpline(nodes.numpy(), values.numpy(), bc_type="not-a-knot")(points.numpy())
    np.testing.assert_allclose((spline_matrix(nodes, points) @ values).numpy(), expected, atol=1e-12)
