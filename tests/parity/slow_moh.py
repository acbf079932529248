"""MoH computed slowly from a state dict under the reference's names; shares no code with mmzoo.

Follows attention_moe.md section 2.1 (routers, gates) and 18 (cosine attention): one sample, one query and one
head at a time. Shapes: one sample's tokens (n d).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Heads:
    """How many heads there are, how many are shared, how many of the others a token has."""

    total: int
    shared: int
    routed: int


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Apply a linear map by name, with its bias where it has one."""
    y = state[f"{name}.weight"] @ x
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def softmax(logits: list[Tensor]) -> list[Tensor]:
    """Return the softmax of scalars."""
    top = max(logits)
    powers = [(logit - top).exp() for logit in logits]
    return [power / sum(powers) for power in powers]


def gates(state: State, heads: Heads, token: Tensor) -> list[Tensor]:
    """Return the weight of every head for one token, by the learned router."""
    one = torch.ones(())
    shared = [one] * heads.shared
    if heads.shared > 1:
        shared = [heads.shared * p for p in softmax(list(linear(state, "wg_1", token)))]
    routed = [0 * one] * (heads.total - heads.shared)
    if heads.routed:
        probs = softmax(list(linear(state, "wg", token)))
        best = sorted(range(len(probs)), key=lambda i: -probs[i].item())[: heads.routed]
        total = sum(probs[i] for i in best)
        routed = [heads.routed * p / total if i in best else 0 * p for i, p in enumerate(probs)]
        if heads.shared:
            first, second = (2 * w for w in softmax(list(linear(state, "wg_0", token))))
            shared, routed = [g * first for g in shared], [g * second for g in routed]
    return shared + routed


def balance(state: State, heads: Heads, x: Tensor) -> Tensor:
    """Return E^2 mean_i(mean p_i x share of tokens that chose i) over all tokens (b n d)."""
    count = heads.total - heads.shared
    mass, chosen = torch.zeros(count), torch.zeros(count)
    tokens = x.flatten(0, 1)
    for token in tokens:
        probs = torch.stack(softmax(list(linear(state, "wg", token))))
        mass += probs
        chosen[probs.argsort(descending=True)[: heads.routed]] += 1
    return count**2 * (mass / len(tokens) * chosen / len(tokens)).mean()


def split(state: State, x: Tensor, heads: int) -> list[list[list[Tensor]]]:
    """Return queries, keys and values, by head and token."""
    width = len(state["qkv.weight"]) // (3 * heads)
    made = torch.stack([linear(state, "qkv", token) for token in x])
    return [
        [
            [made[n, (part * heads + h) * width : (part * heads + h + 1) * width] for n in range(len(x))]
            for h in range(heads)
        ]
        for part in range(3)
    ]


def cosine_logit(state: State, h: int, q: Tensor, k: Tensor, tokens: int) -> Tensor:
    """Return the cosine part of one logit."""
    direction = q / q.square().sum().sqrt() + state["query_embedding"][h, 0]
    warmth = (1 + state["temperature"][h, 0, 0].exp()).log()
    return warmth * math.log(tokens) * (direction * k / k.square().sum().sqrt()).sum()


def position_bias(state: State, h: int, offset: Tensor) -> Tensor:
    """Return the network's bias of one pair."""
    hidden = linear(state, "cpb_fc1", offset).clamp(min=0)
    return linear(state, "cpb_fc2", hidden)[h]


def attention(
    state: State, heads: Heads, x: Tensor, index: Tensor | None = None, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output and the weighted heads side by side; cosine attention where a table is given."""
    queries, keys, values = split(state, x, heads.total)
    weights = [gates(state, heads, token) for token in x]
    rows: list[Tensor] = []
    for n in range(len(x)):
        parts: list[Tensor] = []
        for h in range(heads.total):
            if index is None or table is None:
                scale = queries[h][n].numel() ** -0.5
                logits = [scale * (queries[h][n] * key).sum() for key in keys[h]]
            else:
                offsets = [table[index.reshape(len(x), len(x))[n, m]] for m in range(len(x))]
                logits = [
                    cosine_logit(state, h, queries[h][n], keys[h][m], len(x))
                    + position_bias(state, h, offsets[m])
                    for m in range(len(x))
                ]
            mixed = sum(p * value for p, value in zip(softmax(logits), values[h], strict=True))
            parts.append(weights[n][h] * mixed)
        rows.append(torch.cat(parts))
    return torch.stack([linear(state, "proj", row) for row in rows]), torch.stack(rows)


def offsets_of(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the index of every pair (n * n) and the log-spaced table of the offsets there are."""
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1])]

    def spaced(d: int, extent: int) -> float:
        reach = 8 * d / (extent - 1)
        return math.copysign(math.log2(abs(reach) + 1) / math.log2(8), d)

    known: dict[tuple[int, int], int] = {}
    index: list[int] = []
    for query in cells:
        for key in cells:
            offset = (query[0] - key[0], query[1] - key[1])
            index.append(known.setdefault(offset, len(known)))
    table = [[spaced(r, grid[0]), spaced(c, grid[1])] for r, c in known]
    return torch.tensor(index), torch.tensor(table)
