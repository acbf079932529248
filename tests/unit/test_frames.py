"""Convolution over time against torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmzoo.layers.frames import conv_over_time


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("wide", "stride"), [(10, 5), (3, 2), (2, 2), (2, 3), (1, 1), (4, 1)])
@pytest.mark.parametrize("steps", [10, 11, 13])
def test_it_is_a_convolution(channels: int, wide: int, stride: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(2, steps, channels, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, channels, wide, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = conv_over_time(x, weight, stride)
    theirs = F.conv1d(x.transpose(1, 2), weight, stride=stride).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    toward = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    for own, other in zip(
        torch.autograd.grad(ours, (x, weight), toward),
        torch.autograd.grad(theirs, (x, weight), toward),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
