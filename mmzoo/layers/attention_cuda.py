"""Attention backends for CUDA: `varlen` (flash attention over cumulative lengths) and `flex` (compiled,
with bias).

Not run on a GPU by the tests: what surrounds the kernels (arguments, block masks, bias addressing) is
checked on CPU, the kernels themselves only where a GPU is present.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmzoo.errors import ConfigError
from mmzoo.layers.segments import Segments

BLOCK = 128
"""Rows and columns of a block of flex attention's block mask."""


def attend_varlen(qkv: Float[Tensor, "t 3 h d"], segments: Segments, scale: float) -> Float[Tensor, "t h d"]:
    """Run torch.nn.attention.varlen on the flat buffer; 16 bits, no bias."""
    if segments.has_bias:
        raise _refuse("varlen", "an additive bias or a mask function", "neither", "Use flex or auto.")
    if qkv.device.type != "cuda" or qkv.dtype not in (torch.float16, torch.bfloat16):
        found = f"{str(qkv.dtype).removeprefix('torch.')} on {qkv.device.type}"
        raise _refuse("varlen", found, "float16 or bfloat16 on cuda", "Use auto.")
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    lengths = segments.cu_seqlens, segments.max_length
    return call_varlen(varlen_attn, (q, k, v), lengths, scale=scale, is_causal=segments.is_causal)


def call_varlen(
    function: Callable[..., Any],
    qkv: tuple[Tensor, Tensor, Tensor],
    lengths: tuple[Tensor, int],
    *,
    scale: float,
    is_causal: bool,
) -> Tensor:
    """Call `varlen_attn` as its version wants it.

    Why: causality is `is_causal` in the first release and `window_size=(-1, 0)` from 2.11 on; releases
    without `scale` always divide by the root of the head width.
    """
    q, k, v = qkv
    known = inspect.signature(function).parameters
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1, 0) if is_causal else (-1, -1)
    else:
        options["is_causal"] = is_causal
    if "scale" in known:
        options["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)
    cu_seqlens, longest = lengths
    return function(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)


def attend_flex(qkv: Float[Tensor, "t 3 h d"], segments: Segments, scale: float) -> Float[Tensor, "t h d"]:
    """Run flex_attention on the flat buffer with a document mask, and the bias looked up by a score
    function.
    """
    if qkv.device.type == "cpu" and torch.is_grad_enabled() and qkv.requires_grad:
        do = "Use bmm or auto, or torch.no_grad()."
        raise _refuse("flex", "a gradient on cpu", "inference there (PyTorch has no such backward pass)", do)
    mask = block_mask(segments, qkv.device)
    score = score_function(segments, qkv.device)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in qkv.unbind(1))
    out = _flex(qkv.device.type)(q, k, v, score_mod=score, block_mask=mask, scale=scale)
    return out[0].transpose(0, 1)


@functools.cache
def _flex(device_type: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # on CPU compilation takes longer than any use of it here
    function: Callable[..., Any] = flex_attention
    return function if device_type == "cpu" else torch.compile(function, dynamic=True)


def block_mask(segments: Segments, device: torch.device) -> Any:
    """Return flex attention's BlockMask: which blocks of keys each block of queries needs, found on the host.

    Why: PyTorch's create_block_mask evaluates t x t pairs; segments are contiguous, so their ends suffice.
    """
    if "block_mask" not in segments.cache:
        from torch.nn.attention.flex_attention import BlockMask, and_masks

        segment, place = (x.to(device) for x in _row_tables(segments))
        allowed: list[Callable[..., Tensor]] = [lambda b, h, q, k: segment[q] == segment[k]]
        if segments.is_causal:
            allowed.append(lambda b, h, q, k: place[q] >= place[k])
        if mask_mod := segments.mask_mod:
            allowed.append(lambda b, h, q, k: mask_mod(segment[q], h, place[q], place[k]))
        partial, full = _blocks(segments)
        t = len(segment)
        segments.cache["block_mask"] = BlockMask.from_kv_blocks(
            *(x.to(device) for x in (*_ordered(partial), *_ordered(full))),
            BLOCK_SIZE=BLOCK,
            mask_mod=and_masks(*allowed),
            seq_lengths=(t, t),
        )
    return segments.cache["block_mask"]


def score_function(segments: Segments, device: torch.device) -> Callable[..., Tensor] | None:
    """Return score_mod(score, b, h, q, k) that adds the bias, or None without one.

    Why: the biases of all runs lie in one flat vector, each once however many segments share it; a
    query's row knows where its segment's bias starts and its strides, so nothing of size t x t exists.
    Entry 0 is the zero that runs without bias read, with strides of 0; the tail is for pairs across
    segments, looked up before the mask drops them.
    """
    if not any(bias is not None for bias in segments.biases):
        return None
    if "score" not in segments.cache:
        zero, tail = torch.zeros(1, device=device), torch.zeros(segments.max_length, device=device)
        own = [bias.reshape(-1).float() for bias in segments.biases if bias is not None]
        flat = torch.cat([zero, *own, tail])
        start, head_step, row_step, column_step = (x.to(device) for x in _bias_tables(segments))
        place = _row_tables(segments)[1].to(device)
        segments.cache["score"] = lambda logit, b, h, q, k: (
            logit + flat[start[q] + h * head_step[q] + place[q] * row_step[q] + place[k] * column_step[q]]
        )
    return segments.cache["score"]


def _row_tables(segments: Segments) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """Return the segment of each row and its place within it, on the host."""
    lengths = torch.tensor([span.length for span in segments.spans for _ in range(span.count)])
    segment = torch.arange(len(lengths)).repeat_interleave(lengths)
    return segment, torch.arange(len(segment)) - (lengths.cumsum(0) - lengths)[segment]


def _bias_tables(segments: Segments) -> tuple[Int[Tensor, " t"], ...]:
    """Return for each query row: where its bias starts in the flat vector, and the steps by head, query
    and key.
    """
    rows: list[tuple[int, int, int, int]] = []
    repeats: list[int] = []
    base = 1
    for span, bias in zip(segments.spans, segments.biases, strict=True):
        area = span.length * span.length
        for i in range(span.count):
            if bias is None:
                rows.append((0, 0, 0, 0))
            else:
                own, heads = bias.shape[0], bias.shape[1]
                start = base + (i * heads * area if own > 1 else 0)
                rows.append((start, area if heads > 1 else 0, span.length, 1))
            repeats.append(span.length)
        base += 0 if bias is None else bias.numel()
    table = torch.tensor(rows).repeat_interleave(torch.tensor(repeats), dim=0)
    return tuple(table.unbind(1))


def _blocks(segments: Segments) -> tuple[Bool[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Return which (query block, key block) pairs hold some allowed pair, and which hold nothing else."""
    segment, _ = _row_tables(segments)
    t = len(segment)
    lengths = torch.tensor([span.length for span in segments.spans for _ in range(span.count)])
    ends = lengths.cumsum(0)
    first = torch.arange(0, t, BLOCK)
    top, bottom = segment[first], segment[(first + BLOCK - 1).clamp(max=t - 1)]
    begin, end = (ends - lengths)[top][:, None], ends[bottom][:, None]
    left = first[None, :]
    some = (left + BLOCK > begin) & (left < end)
    inside = (top == bottom)[:, None] & (left >= begin) & (left + BLOCK <= end)
    if segments.is_causal:
        some &= left <= first[:, None]
        inside &= left < first[:, None]
    if segments.mask_mod is not None:
        inside = torch.zeros_like(inside)
    return some & ~inside, inside


def _ordered(blocks: Bool[Tensor, "n n"]) -> tuple[Int[Tensor, "1 1 n"], Int[Tensor, "1 1 n n"]]:
    """Return for each row the number of chosen columns, and the columns with the chosen ones first."""
    columns = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None]


def _refuse(backend: str, found: str, expected: str, do: str) -> ConfigError:
    return ConfigError(str(ConfigError.at(f"attention backend {backend}", found, expected, do)))
