"""Every attention backend against softmax attention computed one segment at a time in float64."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmzoo.errors import ConfigError
from mmzoo.layers import attention
from mmzoo.layers.attention import Backend, Segments, Span, attend, choose

CPU = [Backend.SEGMENTS, Backend.BMM, Backend.DENSE]
HEADS, WIDTH = 2, 8
RUNS = [(3, 4), (1, 7), (2, 1), (1, 5)]


def geometry(
    bias: str = "",
    *,
    is_causal: bool = False,
    mask_mod: Callable[..., Tensor] | None = None,
    grad: bool = True,
) -> tuple[Tensor, Segments]:
    """Make qkv and segments; bias: '', 'shared' (1 h n n), 'each' (count h n n), 'some' (absent on every
    other run).
    """
    generator = torch.Generator().manual_seed(3)
    spans, start, segment = [], 0, 0
    biases: list[Tensor | None] = []
    for i, (count, length) in enumerate(RUNS):
        spans.append(Span(start, count, length, segment))
        rows = 1 if bias == "shared" else count
        made = torch.randn(rows, HEADS, length, length, generator=generator).requires_grad_(grad)
        biases.append(None if bias == "some" and i % 2 else made)
        start, segment = start + count * length, segment + count
    qkv = torch.randn(start, 3, HEADS, WIDTH, generator=generator).requires_grad_(grad)
    ends = torch.tensor([0] + [n for c, n in RUNS for _ in range(c)]).cumsum(0).to(torch.int32)
    return qkv, Segments(tuple(spans), ends, 7, tuple(biases) if bias else (), is_causal, mask_mod)


def slowly(qkv: Tensor, segments: Segments, scale: float) -> Tensor:
    """Attend query by query in float64."""
    out = torch.zeros(qkv.shape[0], HEADS, WIDTH, dtype=torch.float64)
    x = qkv.double()
    for r, span in enumerate(segments.spans):
        bias = segments.biases[r] if segments.biases else None
        for c in range(span.count):
            rows = range(span.start + c * span.length, span.start + (c + 1) * span.length)
            for h in range(HEADS):
                for i, query in enumerate(rows):
                    seen, logits = [], []
                    for j, key in enumerate(rows):
                        if segments.is_causal and j > i:
                            continue
                        place = [torch.tensor(n) for n in (span.segment + c, h, i, j)]
                        if segments.mask_mod is not None and not bool(segments.mask_mod(*place)):
                            continue
                        logit = x[query, 0, h] @ x[key, 1, h] * scale
                        if bias is not None:
                            logit = logit + bias[min(c, bias.shape[0] - 1), h, i, j].double()
                        seen.append(key)
                        logits.append(logit)
                    if seen:
                        out[query, h] = torch.stack(logits).softmax(0) @ x[seen, 2, h]
    return out


def odd_pairs(segment: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Depend on every argument; leave some queries of segment 3 with nothing to see."""
    return ((segment + head + query * key) % 3 != 0) & ~((segment == 3) & (query == 2))


CASES = {
    "plain": {},
    "bias_shared": {"bias": "shared"},
    "bias_each": {"bias": "each"},
    "bias_some": {"bias": "some"},
    "causal": {"is_causal": True},
    "causal_bias": {"bias": "shared", "is_causal": True},
    "mask": {"mask_mod": odd_pairs},
    "mask_bias_causal": {"bias": "each", "mask_mod": odd_pairs, "is_causal": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CPU)
def test_backends_agree_with_the_slow_formula(backend: Backend, case: str):
    qkv, segments = geometry(**CASES[case])
    weight = torch.randn(qkv.shape[0], HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    learned = [b for b in segments.biases if b is not None]
    expected = slowly(qkv, segments, 0.3)
    wanted = torch.autograd.grad((expected * weight).sum(), [qkv, *learned], allow_unused=True)
    found = attend(qkv, segments, backend=backend, scale=0.3)
    got = torch.autograd.grad((found * weight).sum(), [qkv, *learned], allow_unused=True)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    for g, w in zip(got, wanted, strict=True):
        w = torch.zeros_like(g) if w is None else w
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", CPU)
def test_default_scale_is_one_over_root_of_head_width(backend: Backend):
    qkv, segments = geometry(grad=False)
    torch.testing.assert_close(
        attend(qkv, segments, backend=backend), attend(qkv, segments, backend=backend, scale=8**-0.5)
    )


def test_bmm_in_bfloat16_is_near_float32():
    qkv, segments = geometry("shared")
    wanted = attend(qkv, segments, backend=Backend.BMM)
    grads = torch.autograd.grad(wanted.square().sum(), [qkv, segments.biases[0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(qkv.bfloat16(), segments)
    assert found.dtype == torch.bfloat16
    got = torch.autograd.grad(found.float().square().sum(), [qkv, segments.biases[0]])
    torch.testing.assert_close(found.float(), wanted, atol=3e-2, rtol=3e-2)
    for g, w in zip(got, grads, strict=True):
        assert g.dtype == torch.float32
        assert (g - w).norm() / w.norm() < 2e-2


def test_gradcheck_of_the_hand_written_backward():
    qkv, segments = geometry("each")
    double = [qkv.detach().double().requires_grad_()]
    double += [b.detach().double().requires_grad_() for b in segments.biases if b is not None]

    def run(x: Tensor, *biases: Tensor) -> Tensor:
        again = Segments(segments.spans, segments.cu_seqlens, segments.max_length, biases)
        return attend(x, again, backend=Backend.BMM)

    assert torch.autograd.gradcheck(run, double, fast_mode=True)


def test_no_tokens_give_no_output():
    empty = Segments((), torch.zeros(1, dtype=torch.int32), 0)
    for backend in [Backend.AUTO, *CPU]:
        assert attend(torch.zeros(0, 3, HEADS, WIDTH), empty, backend=backend).shape == (0, HEADS, WIDTH)


@pytest.mark.parametrize(
    ("device", "dtype", "needs_bias", "bias_grad", "expected"),
    [
        ("cpu", torch.float32, False, False, Backend.SEGMENTS),
        ("cpu", torch.float32, True, False, Backend.SEGMENTS),
        ("cpu", torch.float32, True, True, Backend.BMM),
        ("cpu", torch.bfloat16, False, False, Backend.BMM),
        ("cuda", torch.bfloat16, False, False, Backend.VARLEN),
        ("cuda", torch.float16, True, True, Backend.FLEX),
        ("cuda", torch.float32, False, False, Backend.FLEX),
        ("mps", torch.float16, False, False, Backend.SEGMENTS),
    ],
)
def test_choice(device: str, dtype: torch.dtype, needs_bias: bool, bias_grad: bool, expected: Backend):
    assert choose(device, dtype, needs_bias=needs_bias, bias_grad=bias_grad) is expected


def test_choice_is_logged_once(caplog: pytest.LogCaptureFixture):
    attention._announce.cache_clear()
    qkv, segments = geometry(grad=False)
    with caplog.at_level(logging.INFO, logger=attention.log.name):
        attend(qkv, segments)
        attend(qkv, segments)
    assert [r.getMessage() for r in caplog.records] == ["attention backend: segments (cpu, float32, no bias)"]


def test_auto_has_no_kernel_of_its_own():
    with pytest.raises(ConfigError, match="attention backend: 'auto'; expected one of segments, bmm"):
        attention.kernel(Backend.AUTO)
