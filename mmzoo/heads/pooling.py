"""From the tokens of a row to one vector; shared by all heads."""

from __future__ import annotations

import dataclasses
from enum import Enum

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError


class Pooling(str, Enum):
    """How the tokens of a row become one vector."""

    CLS = "cls"
    """the first real token"""
    MEAN = "mean"
    """the mean of the real tokens behind the leading CLS"""
    ATTENTION = "attention"
    """their average weighted by a learned query a head"""


def build_pool(pooling: Pooling, dim: int, num_heads: int) -> nn.Module:
    """Build the module `TokenSequence -> (k, d)`."""
    if pooling is Pooling.ATTENTION:
        return AttentionPool(dim, num_heads)
    return ClsPool() if pooling is Pooling.CLS else MeanPool()


class ClsPool(nn.Module):
    """Takes the first real token of each row; zeros where a row has none."""

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "k d"]:
        """Pool."""
        tokens, valid = sequence.tokens, sequence.valid
        first = valid.int().argmax(dim=1)
        if not bool(first.any()):
            found = tokens[:, 0]
        else:
            found = tokens[torch.arange(len(tokens), device=tokens.device), first.to(tokens.device)]
        return found if bool(valid.any(dim=1).all()) else _without(found, ~valid.any(dim=1))


class MeanPool(nn.Module):
    """Averages the body of each row; zeros where a row has no real token."""

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "k d"]:
        """Pool."""
        body = body_mask(sequence).to(sequence.tokens.device, non_blocking=True)[..., None]
        total = sequence.tokens.masked_fill(~body, 0.0).sum(dim=1)
        return total / body.sum(dim=1).clamp(min=1)


class AttentionPool(nn.Module):
    """One learned query a head attends to the body of each row.

    Math: logits_n = q_h · (W_k x_n)_h, with no 1/sqrt(d); y = LN(W_o concat_h Σ_n softmax(logits)_n (W_v x_n
    + b_v)_h).
    Ref: ONE-PEACE's attention pooling (classification heads); CLS is left out.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Check that the heads divide the width."""
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            do = "Choose another number of heads."
            raise ConfigError.at(
                "head.pool_heads", str(num_heads), f"a divisor of the trunk's width {dim}", do
            )
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "k d"]:
        """Pool."""
        body = body_mask(sequence).to(sequence.tokens.device, non_blocking=True)[..., None]
        tokens = sequence.tokens.masked_fill(~body, 0.0)
        keys, values = (x.unflatten(-1, (self.num_heads, -1)) for x in (self.key(tokens), self.value(tokens)))
        logits = (keys * self.query).sum(dim=-1).float()
        lowest = torch.finfo(logits.dtype).min
        weights = logits.masked_fill(~body, lowest).softmax(dim=1).to(values.dtype)
        pooled = (weights[..., None] * values).sum(dim=1).flatten(1)
        return self.norm(self.out(pooled))


def check_part(part: str, passes: tuple[str, ...]) -> None:
    """Raise ConfigError where `part` names a modality that no pass has."""
    if part and not any(part in name.split("+") for name in passes):
        found = f"{part!r} for {', '.join(passes)}"
        raise ConfigError.at(
            "head.part", found, "a modality of the passes", "Empty it, or change the passes."
        )


def part_of(sequence: TokenSequence, part: str) -> TokenSequence:
    """Return what a sequence holds of one modality, no rows where it holds none; all of it where `part` is
    empty.
    """
    if part in ("", sequence.modality):
        return sequence
    for own in sequence.parts:
        if own.modality == part:
            return own
    return dataclasses.replace(
        sequence, tokens=sequence.tokens[:0], valid=sequence.valid[:0], index=sequence.index[:0], parts=()
    )


def body_mask(sequence: TokenSequence) -> Bool[Tensor, "k n"]:
    """Return, on the host, the real tokens behind the `num_prefix` leading ones; all real ones where none is
    behind."""
    body = sequence.valid.clone()
    body[:, : sequence.num_prefix] = False
    return torch.where(body.any(dim=1, keepdim=True), body, sequence.valid)


def _without(values: Float[Tensor, "k d"], rows: Bool[Tensor, " k"]) -> Float[Tensor, "k d"]:
    return values.masked_fill(rows.to(values.device)[:, None], 0.0)
