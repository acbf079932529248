"""Rows sorted by group and their matrix products, against loops over single rows, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmzoo.layers.grouped_linear import (
    GroupedKernel,
    choices,
    gather,
    grouped_linear,
    sort_by_group,
    spread,
)

KERNELS = [GroupedKernel.SLICES, GroupedKernel.GROUPED_MM]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("columns", "rows"), [(8, 12), (30, 18), (7, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_product_is_each_rows_own(kernel: GroupedKernel, columns: int, rows: int, with_bias: bool, generator):
    """Sizes that 16 bytes do not divide, an empty group first, in the middle and last."""
    ends = torch.tensor([0, 4, 4, 9, 9], dtype=torch.int32)
    group = [1] * 4 + [3] * 5
    x = torch.randn(9, columns, generator=generator, dtype=torch.float64).requires_grad_()
    w = torch.randn(5, rows, columns, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(5, rows, generator=generator, dtype=torch.float64).requires_grad_() if with_bias else None
    leaves = [x, w] if b is None else [x, w, b]
    wanted = torch.stack([w[g] @ x[i] + (0 if b is None else b[g]) for i, g in enumerate(group)])
    grad = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(wanted, leaves, grad)
    single = [t.detach().float().requires_grad_() for t in leaves]
    found = grouped_linear(single[0], single[1], ends, single[2] if with_bias else None, kernel)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    for own, other in zip(torch.autograd.grad(found, single, grad.float()), expected, strict=True):
        torch.testing.assert_close(own.double(), other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_expanded_gradient_and_no_rows_are_no_trouble(kernel: GroupedKernel, generator):
    x = torch.randn(4, 8, generator=generator, requires_grad=True)
    w = torch.randn(2, 8, 8, generator=generator, requires_grad=True)
    grouped_linear(x, w, torch.tensor([1, 4], dtype=torch.int32), None, kernel).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], w[0].sum(0))
    none = grouped_linear(x[:0], w, torch.tensor([0, 0], dtype=torch.int32), None, kernel)
    assert none.shape == (0, 8)


def test_autocast_reaches_the_products(generator):
    x, w = torch.randn(4, 8, generator=generator), torch.randn(2, 8, 8, generator=generator)
    ends = torch.tensor([1, 4], dtype=torch.int32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert grouped_linear(x, w, ends).dtype is torch.bfloat16
    assert grouped_linear(x, w, ends).dtype is torch.float32


def reference(x: Tensor, groups: Tensor, weights: Tensor, capacity: int | None) -> Tensor:
    """Scale each chosen row by its group's number plus one; first choices fill a group first."""
    y, used = torch.zeros_like(x), [0] * 4
    for k in range(groups.shape[1]):
        for t in range(groups.shape[0]):
            g = int(groups[t, k])
            if capacity is None or used[g] < capacity:
                y[t] = y[t] + weights[t, k] * (g + 1) * x[t]
            used[g] += 1
    return y


@pytest.mark.parametrize("capacity", [None, 3, 1])
@pytest.mark.parametrize("top_k", [1, 2])
def test_rows_go_to_their_groups_and_come_back(capacity: int | None, top_k: int, generator):
    x = torch.randn(7, 3, generator=generator, requires_grad=True)
    groups = torch.stack([torch.randperm(4, generator=generator)[:top_k] for _ in range(7)])
    weights = torch.rand(7, top_k, generator=generator, requires_grad=True)
    order, counts = sort_by_group(groups, 4, capacity=capacity)
    assert counts.tolist() == [int((groups == g).sum()) for g in range(4)]
    rows = spread(x, order)
    group = torch.bucketize(torch.arange(len(rows)), order.ends, right=True)
    found = gather(rows * (group + 1)[:, None], weights, order)
    wanted = reference(x, groups, weights, capacity)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn(7, 3, generator=generator)
    own = torch.autograd.grad(found, [x, weights], grad)
    other = torch.autograd.grad(wanted, [x, weights], grad)
    torch.testing.assert_close(own, other)


def test_choices_come_back_in_order(generator):
    x = torch.randn(5, 2, generator=generator)
    groups = torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(5)])
    order, _ = sort_by_group(groups, 3)
    group = torch.bucketize(torch.arange(10), order.ends, right=True)
    found = choices(torch.cat([spread(x, order), group[:, None]], dim=1), order)
    assert torch.equal(found[..., :2], x[:, None].expand(-1, 2, -1))
    assert torch.equal(found[..., 2].long(), groups)
