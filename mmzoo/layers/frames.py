"""Strided convolution over time with the channels last, as the layers around it want them.

Axis letters: k rows, t steps, n frames, c channels read, o channels written, w width of the kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def conv_over_time(
    x: Float[Tensor, "k t c"], weight: Float[Tensor, "o c w"], stride: int
) -> Float[Tensor, "k n o"]:
    """Convolve without padding or bias; a frame for every `stride` steps while the kernel fits.

    Why: on a CPU, conv1d's layout asks for a transposed copy before and after every LayerNorm, and its
    gradient is slow at small strides: one matrix product over gathered steps takes about half the time of
    forward and backward (benchmarks/pretraining_step.py). Elsewhere the library's convolution is taken.
    Math: y[k, i] = sum over j < w of x[k, i * stride + j] W_j, n = floor((t - w) / stride) + 1.
    """
    if x.device.type != "cpu":
        return F.conv1d(x.transpose(1, 2), weight, stride=stride).transpose(1, 2)
    k, t, c = x.shape
    wide = weight.shape[2]
    n = (t - wide) // stride + 1
    if c == 1:
        steps = x[..., 0].unfold(1, wide, stride)
    elif wide == stride:
        steps = x[:, : n * stride].reshape(k, n, wide * c)
    else:
        last = stride * (n - 1) + 1
        steps = torch.cat([x[:, j : j + last : stride] for j in range(wide)], dim=-1)
    return F.linear(steps, weight.transpose(1, 2).flatten(1))
