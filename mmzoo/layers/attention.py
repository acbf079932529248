"""Attention over the segments of a packed buffer: the table of backends and how one is chosen.

`attend(qkv [t 3 h d], segments)` -> [t h d]: every token looks at the tokens of its own segment. All
backends compute softmax(q k^T * scale + logits) v; they differ in speed, memory and in what they
support:

| backend  | device        | dtype     | bias / mask_mod | gradient of a bias | kernel
|
| segments | any           | any       | yes             | slow               | one batched SDPA a run
|
| bmm      | any           | any       | yes             | yes                | bmm-softmax-bmm, one
autograd node |
| varlen   | CUDA sm80+    | f16, bf16 | no              | -                  | torch.nn.attention.varlen
|
| flex     | CUDA          | any       | yes             | yes                | flex_attention, document
mask      |
| dense    | any           | any       | yes             | yes                | one t x t matrix (for
tests)       |
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo.errors import ConfigError
from mmzoo.layers.segments import Segments

log = logging.getLogger(__name__)


class Backend(str, Enum):
    """Which kernel computes attention; `auto` chooses by device, dtype and need."""

    AUTO = "auto"
    SEGMENTS = "segments"
    BMM = "bmm"
    VARLEN = "varlen"
    FLEX = "flex"
    DENSE = "dense"


BACKENDS = {
    Backend.SEGMENTS: "mmzoo.layers.attention_segments:attend_segments",
    Backend.BMM: "mmzoo.layers.attention_bmm:attend_bmm",
    Backend.VARLEN: "mmzoo.layers.attention_cuda:attend_varlen",
    Backend.FLEX: "mmzoo.layers.attention_cuda:attend_flex",
    Backend.DENSE: "mmzoo.layers.attention_segments:attend_dense",
}
"""Where each kernel is; imported when it is first used."""


def choose(
    device_type: str,
    dtype: torch.dtype,
    *,
    needs_bias: bool,
    bias_grad: bool,
    width: int = 64,
    capability: int = 90,
) -> Backend:
    """Choose the fastest backend that can do it; width: of a head; capability: of a CUDA device, 80 is sm80.

    Why: measured on CPU (performance.md section 1): SDPA is best in f32; bmm beats the flash kernel 2-5
    times in 16-bit training, and SDPA has no fast gradient for a bias. On CUDA the flash kernel takes no
    bias, head widths that 8 divides up to 256, and needs sm80; flex needs heads of 16 or more.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    if device_type == "cuda" and capability >= 80:
        if half and not needs_bias and width % 8 == 0 and width <= 256:
            return Backend.VARLEN
        if width >= 16:
            return Backend.FLEX
    return Backend.BMM if bias_grad or (half and device_type == "cpu") else Backend.SEGMENTS


def attend(
    qkv: Float[Tensor, "t 3 h d"],
    segments: Segments,
    *,
    backend: Backend = Backend.AUTO,
    scale: float | None = None,
) -> Float[Tensor, "t h d"]:
    """Attend within each segment. scale: default 1 / sqrt(d)."""
    if qkv.shape[0] == 0:
        return qkv[:, 0]
    if backend is Backend.AUTO:
        backend = choose(
            qkv.device.type,
            qkv.dtype,
            needs_bias=segments.has_bias,
            bias_grad=segments.bias_needs_grad,
            width=qkv.shape[3],
            capability=_capability(qkv.device),
        )
        _announce(backend, qkv.device.type, qkv.dtype, segments.has_bias)
    return kernel(backend)(qkv, segments, qkv.shape[3] ** -0.5 if scale is None else scale)


def prepare(segments: Segments, heads: int, device: torch.device, backend: Backend) -> None:
    """Derive merged masks and bias tables before the first layer.

    Why: they may carry gradients, and a checkpointed block must do the same work when it is run again.
    """
    flex = backend is Backend.FLEX or (backend is Backend.AUTO and device.type == "cuda")
    if flex and segments.has_bias:
        importlib.import_module("mmzoo.layers.attention_cuda").score_function(segments, device)
    elif not flex and (segments.is_causal or segments.mask_mod is not None):
        segments.logits(heads, device)


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def kernel(backend: Backend) -> Callable[[Tensor, Segments, float], Tensor]:
    """Import and return the function behind a backend."""
    if backend not in BACKENDS:
        known = ", ".join(b.value for b in BACKENDS)
        raise ConfigError.at("attention backend", repr(backend.value), f"one of {known}", "Choose one.")
    module, _, name = BACKENDS[backend].partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def _announce(backend: Backend, device_type: str, dtype: torch.dtype, has_bias: bool) -> None:  # noqa: FBT001 logged
    kind = str(dtype).removeprefix("torch.")
    log.info(
        "attention backend: %s (%s, %s, %s bias)",
        backend.value,
        device_type,
        kind,
        "with" if has_bias else "no",
    )
