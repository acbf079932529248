"""The shared decoder: one memory of the view for all tasks, read through each task's channel scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.layers.channel_scaling import Gate, TaskChannelScaling
from mmzoo.layers.deformable import DeformableAttention
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.parts import concatenate
from mmzoo.models.m3net.queries import Queries


@dataclass(frozen=True)
class Decoded:
    """What the decoder gives: queries by task, memory, the memory's start, the last layer's gates by task."""

    queries: Mapping[str, Float[Tensor, "b q d"]]
    memory: Float[Tensor, "b d h w"]
    source: Float[Tensor, "b d h w"]
    gates: Mapping[str, Float[Tensor, "b n d"]]


class DecoderLayer(nn.Module):
    """The memory attends to itself; then each task's queries attend to it through the task's gate.

    Math: m = LN(m + Deform(m + pos, m)); m = LN(m + FFN(m)); for each task q_t += Deform(q_t + qpos, m g_t),
    one attention for all tasks; q = LN(q); q = LN(q + FFN(q)).
    Shape: memory (b h*w d), position likewise; queries, their embeddings (b q d) and references (b q 2) by
    task.
    """

    def __init__(self, dim: int, tasks: Sequence[str], *, hidden: int, num_heads: int, gate: Gate) -> None:
        """Take widths and the tasks' names."""
        super().__init__()
        self.self_attention = DeformableAttention(dim, num_heads=num_heads)
        self.memory_norm1, self.memory_norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.memory_ffn = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.scaling = TaskChannelScaling(dim, tasks, gate)
        self.cross_attention = DeformableAttention(dim, num_heads=num_heads)
        self.query_norm1, self.query_norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_ffn = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def remember(
        self,
        memory: Float[Tensor, "b n d"],
        position: Float[Tensor, "b n d"],
        reference: Float[Tensor, "b n 2"],
        size: tuple[int, int],
    ) -> Float[Tensor, "b n d"]:
        """Return the memory after its own attention and feed-forward."""
        value = memory.transpose(1, 2).unflatten(2, size)
        memory = self.memory_norm1(memory + self.self_attention(memory + position, reference, value))
        return self.memory_norm2(memory + self.memory_ffn(memory))

    def read(
        self,
        memory: Float[Tensor, "b n d"],
        queries: Mapping[str, tuple[Tensor, Tensor, Tensor]],
        size: tuple[int, int],
    ) -> tuple[dict[str, Float[Tensor, "b q d"]], dict[str, Float[Tensor, "b n d"]]]:
        """Return each task's queries (given as query, embedding, reference) after reading the memory, and the
        gates they read it through."""
        gates = {task: self.scaling.gate(memory, task) for task in queries}
        seen = [
            self.cross_attention(q + where, at, (memory * gates[task]).transpose(1, 2).unflatten(2, size))
            for task, (q, where, at) in queries.items()
        ]
        joined = self.query_norm1(concatenate([q for q, _, _ in queries.values()]) + concatenate(seen))
        joined = self.query_norm2(joined + self.query_ffn(joined))
        pieces = joined.split([q.shape[1] for q, _, _ in queries.values()], dim=1)
        return dict(zip(queries, pieces, strict=True)), gates


class SharedDecoder(nn.Module):
    """Layers of memory and queries; the level's embedding joins the positions of both.

    Shape: features (b c h w); queries by task; out see `Decoded`.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        tasks: Sequence[str],
        *,
        layers: int,
        hidden: int,
        num_heads: int = 8,
        gate: Gate = Gate.LINEAR,
    ) -> None:
        """Take widths, the tasks' names and the depth."""
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(channels, dim, 1), nn.GroupNorm(math.gcd(32, dim), dim))
        self.level_embedding = nn.Parameter(torch.zeros(1, dim))
        nn.init.normal_(self.level_embedding)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, tasks, hidden=hidden, num_heads=num_heads, gate=gate) for _ in range(layers)
        )

    def forward(
        self,
        features: Float[Tensor, "b c h w"],
        position: Float[Tensor, "b n d"],
        queries: Mapping[str, Queries],
        grid: GridConfig,
    ) -> Decoded:
        """Run the layers; `position` embeds every cell."""
        source = self.project(features)
        size = (source.shape[2], source.shape[3])
        memory = source.flatten(2).transpose(1, 2)
        where = position + self.level_embedding
        at = (grid.centres().to(memory) / grid.cells)[None].expand(len(memory), -1, -1)
        found = {task: q.features for task, q in queries.items()}
        gates: dict[str, Tensor] = {}
        for layer in self.layers:
            if not isinstance(layer, DecoderLayer):
                raise TypeError(type(layer).__name__)
            memory = layer.remember(memory, where, at, size)
            given = {
                t: (found[t], q.embedding + self.level_embedding, q.positions / grid.cells)
                for t, q in queries.items()
            }
            if given:
                found, gates = layer.read(memory, given, size)
        return Decoded(found, memory.transpose(1, 2).unflatten(2, size), source, gates)
