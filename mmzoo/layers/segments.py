"""The geometry of a packed buffer as attention sees it: which rows form a segment, what logits get added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """`count` neighbouring segments of `length` tokens from row `start`; `segment` numbers the first of
    them.
    """

    start: int
    count: int
    length: int
    segment: int


@dataclass
class Segments:
    """The geometry of a buffer in attention order, and what is added to its logits.

    biases: empty, or for each span additive logits (1 or count, 1 or h, length, length), or None.
    mask_mod(segment, head, query, key) -> True where a query may look; positions count within the segment.
    cache: values derived once and used by every layer.
    """

    spans: Sequence[Span]
    cu_seqlens: Int[Tensor, " s1"]
    max_length: int
    biases: Sequence[Tensor | None] = ()
    is_causal: bool = False
    mask_mod: Callable[..., Tensor] | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def has_bias(self) -> bool:
        """Say whether anything but causality is added to the logits."""
        return self.mask_mod is not None or any(bias is not None for bias in self.biases)

    @property
    def bias_needs_grad(self) -> bool:
        """Say whether some bias is learned."""
        return torch.is_grad_enabled() and any(
            bias is not None and bias.requires_grad for bias in self.biases
        )

    def logits(self, heads: int, device: torch.device) -> tuple[Tensor | None, ...]:
        """Return for each span what is added to its logits: bias, and minus infinity where masks forbid.

        Shape: (1 or count, 1 or h, length, length), None where nothing is added.
        """
        if "logits" not in self.cache:
            biases = self.biases or (None,) * len(self.spans)
            masks = [self._mask(span, heads, device) for span in self.spans]
            self.cache["logits"] = tuple(_merge(b, m) for b, m in zip(biases, masks, strict=True))
        return self.cache["logits"]

    def visible(self, heads: int, device: torch.device) -> Int[Tensor, "t _"]:
        """Return how many keys each row may look at; for each head where the masks differ by head."""
        counts: list[Tensor] = []
        for span in self.spans:
            mask = self._mask(span, heads, device)
            seen = torch.full((1, 1, 1), span.length, device=device) if mask is None else mask.sum(-1)
            seen = seen.expand(span.count, -1, span.length).transpose(1, 2)
            counts.append(seen.reshape(-1, seen.shape[2]))
        width = max((seen.shape[1] for seen in counts), default=1)
        return torch.cat([seen.expand(-1, width) for seen in counts])

    def _mask(self, span: Span, heads: int, device: torch.device) -> Tensor | None:
        if self.mask_mod is None and not self.is_causal:
            return None
        place = torch.arange(span.length, device=device)
        query, key = place[:, None], place[None, :]
        allowed = (
            (query >= key)[None, None]
            if self.is_causal
            else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        )
        if self.mask_mod is not None:
            segment = torch.arange(span.segment, span.segment + span.count, device=device)[
                :, None, None, None
            ]
            head = torch.arange(heads, device=device)[:, None, None]
            allowed = allowed & self.mask_mod(segment, head, query, key)
        return allowed.expand(-1, -1, span.length, span.length)


def _merge(bias: Tensor | None, allowed: Tensor | None) -> Tensor | None:
    if allowed is None:
        return bias
    if bias is None:
        return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)
    return torch.where(allowed, bias, bias.new_full((), -torch.inf))
