"""Every attention backend against softmax attention computed one segment at a time in float64."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from mmzoo.errors import ConfigError
from mmzoo.layers import attention, attention_cuda
from mmzoo.layers.attention import Backend, attend, choose
from mmzoo.layers.segments import Segments, Span

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


def test_choice_on_cuda_minds_head_width_and_generation():
    def on_cuda(**options: int) -> Backend:
        return choose("cuda", torch.bfloat16, needs_bias=False, bias_grad=False, **options)

    assert on_cuda(width=64) is Backend.VARLEN
    assert on_cuda(width=12) is Backend.SEGMENTS
    assert on_cuda(width=36) is Backend.FLEX
    assert on_cuda(capability=75) is Backend.SEGMENTS


def test_varlen_is_called_as_each_version_wants_it():
    calls: list[dict[str, object]] = []

    def first(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        calls.append({"q": query, "cu": (cu_seq_q, cu_seq_k), "max": (max_q, max_k), "causal": is_causal})
        return query

    def now(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        calls.append({"q": query, "scale": scale, "window": window_size})
        return query

    q, ends = torch.ones(2, 1, 4), torch.tensor([0, 2], dtype=torch.int32)
    for causal in (True, False):
        attention_cuda.call_varlen(first, (q, q, q), (ends, 2), scale=2.0, is_causal=causal)
        attention_cuda.call_varlen(now, (q, q, q), (ends, 2), scale=2.0, is_causal=causal)
    assert [c.get("causal", c.get("window")) for c in calls] == [True, (-1, 0), False, (-1, -1)]
    assert torch.equal(calls[0]["q"], q * 4.0)  # its own scale is 1 / 2
    assert torch.equal(calls[1]["q"], q)
    assert calls[1]["scale"] == 2.0
    assert calls[0]["max"] == (2, 2)
    assert calls[0]["cu"] == (ends, ends)


def test_the_installed_varlen_takes_our_arguments():
    parameters = inspect.signature(varlen_attn).parameters
    names = list(parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert "window_size" in names
    assert "scale" in names


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
def test_flex_forward_on_cpu(case: str):
    qkv, segments = geometry(**CASES[case], grad=False)
    with torch.no_grad():
        found = attend(qkv, segments, backend=Backend.FLEX, scale=0.3)
    torch.testing.assert_close(found, slowly(qkv, segments, 0.3).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("lengths", [[300, 5, 5, 129, 256, 1], [128, 128], [1000], [3, 4]])
def test_block_mask_holds_exactly_the_needed_blocks(lengths: list[int], is_causal: bool):
    starts = torch.tensor([0, *lengths]).cumsum(0)
    spans = tuple(Span(int(s), 1, n, i) for i, (s, n) in enumerate(zip(starts, lengths, strict=False)))
    segments = Segments(spans, starts.to(torch.int32), max(lengths), is_causal=is_causal)
    mask = attention_cuda.block_mask(segments, torch.device("cpu"))
    t, block = int(starts[-1]), attention_cuda.BLOCK
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    pairs = owner[:, None] == owner[None, :]
    if is_causal:
        pairs &= torch.arange(t)[:, None] >= torch.arange(t)[None, :]
    n = -(-t // block)
    padded = torch.zeros(n * block, n * block, dtype=torch.bool)
    padded[:t, :t] = pairs
    counts = padded.view(n, block, n, block).sum((1, 3))
    needed = {(i, j) for i in range(n) for j in range(n) if counts[i, j]}
    partial, full = (
        listed(mask.kv_num_blocks, mask.kv_indices),
        listed(mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    assert partial | full == needed
    assert not partial & full
    rows = torch.tensor([min(block, t - i * block) for i in range(n)])
    for i, j in full:
        assert counts[i, j] == rows[i] * block
    everything = torch.arange(t)
    assert torch.equal(mask.mask_mod(starts[0], None, everything[:, None], everything[None, :]), pairs)


def listed(counts: Tensor, indices: Tensor) -> set[tuple[int, int]]:
    return {(i, int(j)) for i, c in enumerate(counts[0, 0].tolist()) for j in indices[0, 0, i, :c]}


def test_cuda_backends_refuse_what_they_cannot_do():
    qkv, segments = geometry("shared")
    with pytest.raises(ConfigError, match="varlen: an additive bias or a mask function; expected neither"):
        attend(qkv, segments, backend=Backend.VARLEN)
    with pytest.raises(ConfigError, match="varlen: float32 on cpu; expected float16 or bfloat16 on cuda"):
        attend(qkv, geometry()[1], backend=Backend.VARLEN)
    with pytest.raises(ConfigError, match="attention backend flex: a gradient on cpu; expected inference"):
        attend(qkv, segments, backend=Backend.FLEX)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("backend", "dtype"), [(Backend.VARLEN, torch.bfloat16), (Backend.FLEX, torch.float32)]
)
def test_cuda_backends_agree_with_bmm(backend: Backend, dtype: torch.dtype, case: str):
    qkv, segments = geometry(**CASES[case])
    if backend is Backend.VARLEN and segments.has_bias:
        pytest.skip("varlen takes no bias")
    wide = torch.cat([qkv, qkv * 0.5], -1).detach()  # heads of 16, the least that flex takes
    weight = torch.randn(wide.shape[0], HEADS, 2 * WIDTH)
    results = []
    for device, chosen, kind in [("cpu", Backend.BMM, torch.float32), ("cuda", backend, dtype)]:
        x = wide.to(device, kind).requires_grad_()
        biases = [b.detach().to(device).requires_grad_() for b in segments.biases if b is not None]
        moved = iter(biases)
        own = dataclasses.replace(
            segments,
            cu_seqlens=segments.cu_seqlens.to(device),
            biases=tuple(None if b is None else next(moved) for b in segments.biases),
            cache={},
        )
        y = attend(x, own, backend=chosen)
        grads = torch.autograd.grad((y.float() * weight.to(device)).sum(), [x, *biases])
        results.append([t.float().cpu() for t in (y, *grads)])
    tolerance = 3e-2 if dtype is torch.bfloat16 else 1e-4
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
