"""The trunk: a stack of blocks over one packed buffer, a final norm, and sequences in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError, ShapeError, close_matches
from mmzoo.layers.drop_path import drop_path_rates
from mmzoo.layers.init import init_weights
from mmzoo.layers.norms import ModalityNorm
from mmzoo.trunk.base import Aux, MixerContext
from mmzoo.trunk.block import Block, BlockConfig, Checkpointing
from mmzoo.trunk.fork import Fork, TaskGroups, check_tasks, fork
from mmzoo.trunk.packing import Groups, Packed, pack, unpack
from mmzoo.trunk.plan import SeqInfo
from mmzoo.trunk.routers import TaskEmbedding


class FinalNorm(str, Enum):
    """The norm after the last block."""

    PER_MODALITY = "per_modality"
    SHARED = "shared"
    NONE = "none"


@dataclass(frozen=True)
class TrunkOutput:
    """The trunk's answer: sequences nested as they were given, mean over layers of each aux scalar, free
    statistics; `taps` has, for each number of blocks asked for, the sequences as they were after so many.
    """

    groups: list[list[TokenSequence]]
    aux: Aux
    stats: dict[str, Any]
    taps: dict[int, list[list[TokenSequence]]] = field(default_factory=dict)
    tasks: dict[str, TrunkOutput] = field(default_factory=dict)
    """of a trunk routed by task: what each task sees, its groups in the order it named them; `groups` above
    then holds those of the first task, then those of the second, …"""


class Trunk(nn.Module, schema.Configurable):
    """Reads every pass of a step in one packed buffer.

    groups: each is one pass; several sequences in a group are joint. Padding is neither computed nor seen.
    Weights: `blocks.<i>.*`, `norm.norms.<modality>.*` (per_modality) or `norm.*` (shared).
    Ref: ONE-PEACE section 3.1.
    """

    @dataclass(kw_only=True)
    class Config(BlockConfig):
        """Size of the trunk and what its blocks consist of."""

        dim: int = 256
        """width of the residual stream"""
        depth: int = 6
        """number of blocks"""
        num_heads: int = 4
        """attention heads; dim is split evenly over them"""
        drop_path_prob: float = 0.0
        """probability of leaving out a branch for a sample, at the last layer; rises linearly from 0"""
        final_norm: FinalNorm = FinalNorm.PER_MODALITY
        """norm after the last block"""
        init_from: str = ""
        """blocks a MultimodalModel's trunk starts from: timm:NAME (published ViT) or timm-random:NAME"""

        def __post_init__(self) -> None:
            """Check sizes and probability."""
            faults = [
                (
                    self.dim < 1 or self.num_heads < 1 or self.dim % max(self.num_heads, 1) != 0,
                    "trunk.num_heads",
                    f"{self.num_heads} heads for dim {self.dim}",
                    "a divisor of dim",
                    "Change either.",
                ),
                (self.depth < 0, "trunk.depth", str(self.depth), "0 or more", "Give a number of blocks."),
                (
                    not 0.0 <= self.drop_path_prob < 1.0,
                    "trunk.drop_path_prob",
                    str(self.drop_path_prob),
                    "0 <= p < 1",
                    "Give a probability.",
                ),
                (
                    getattr(self.ffn, "every", 1) > max(self.depth, 1),
                    "trunk.ffn.every",
                    f"{getattr(self.ffn, 'every', 1)} in a trunk of {self.depth} blocks: none has experts",
                    "at most trunk.depth",
                    "Lower it.",
                ),
            ]
            lines = [str(ConfigError.at(*rest)) for wrong, *rest in faults if wrong]
            if lines:
                raise ConfigError("\n".join(lines))

    def __init__(self, config: Config, *, modalities: tuple[str, ...], tasks: tuple[str, ...] = ()) -> None:
        """Build the blocks with ONE-PEACE's initial weights; `tasks` are the names that may be routed by."""
        super().__init__()
        self.config, self.modalities, self.tasks = config, tuple(modalities), tuple(tasks)
        dim = config.dim
        self.blocks = nn.ModuleList(
            Block(
                config,
                dim=dim,
                num_heads=config.num_heads,
                modalities=self.modalities,
                drop_path_prob=prob,
                layer=layer,
                tasks=self.tasks,
            )
            for layer, prob in enumerate(drop_path_rates(config.drop_path_prob, config.depth))
        )
        _check_losses_by_task(self._blocks())
        self.task_embedding = _task_embedding(self._blocks(), self.tasks)
        self.norm: nn.Module | None = None
        if config.final_norm is FinalNorm.PER_MODALITY:
            self.norm = ModalityNorm(dim, self.modalities, eps=config.norm_eps)
        elif config.final_norm is FinalNorm.SHARED:
            self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        init_weights(self)

    @property
    def fork_layer(self) -> int | None:
        """The first block whose work depends on the task, where tasks part; None where no block's does."""
        return next((layer for layer, block in enumerate(self._blocks()) if block.task_dependent), None)

    def forward(
        self,
        groups: Groups,
        ctx: MixerContext | None = None,
        *,
        is_causal: bool = False,
        mask_mod: Callable[..., Tensor] | None = None,
        taps: Sequence[int] = (),
        tasks: TaskGroups | None = None,
    ) -> TrunkOutput:
        """Run all passes; `is_causal` and `mask_mod` (see SeqInfo) narrow what tokens see within their
        segment. `taps`: numbers of blocks after which the residual stream is wanted too (0 = the input).
        `tasks`: which groups each task reads; a trunk that no task changes runs each group once and does
        not look at them.
        """
        packed = pack(groups, self.modalities, is_causal=is_causal, mask_mod=mask_mod)
        ctx = ctx or MixerContext(training=self.training)
        kept: dict[int, Tensor] = dict.fromkeys(self._checked_taps(taps), packed.buffer)
        layer = self.fork_layer
        if layer is None:
            x, aux = self.run(packed.buffer, packed.seq, ctx, kept)
            tapped = {count: unpack(kept[count], packed, groups) for count in kept}
            return TrunkOutput(unpack(x, packed, groups), aux, ctx.stats, tapped)
        chosen = check_tasks(tasks, self.tasks, ctx.task, len(groups))
        parting = fork(groups, packed, chosen, self.modalities, layer)
        x, aux = self.run(packed.buffer, packed.seq, ctx, kept, parting)
        return self._parted(x, aux, ctx, kept, parting, (groups, packed, chosen))

    def _parted(
        self,
        x: Tensor,
        aux: Aux,
        ctx: MixerContext,
        kept: dict[int, Tensor],
        parting: Fork,
        shared: tuple[Groups, Packed, TaskGroups],
    ) -> TrunkOutput:
        """Unpack what each task sees; taps from before the fork are the same for all."""
        groups, packed, tasks = shared
        found = unpack(x, parting.packed, parting.groups)
        early = {n: unpack(y, packed, groups) for n, y in kept.items() if n <= parting.layer}
        late = {n: unpack(y, parting.packed, parting.groups) for n, y in kept.items() if n > parting.layer}
        views: dict[str, TrunkOutput] = {}
        for task, own in parting.tasks.items():
            taps = {n: [tapped[g] for g in tasks[task]] for n, tapped in early.items()}
            taps |= {n: [tapped[g] for g in own] for n, tapped in late.items()}
            views[task] = TrunkOutput([found[g] for g in own], aux, ctx.stats, taps)
        return TrunkOutput(found, aux, ctx.stats, tasks=views)

    def run(
        self,
        x: Float[Tensor, "t d"],
        seq: SeqInfo,
        ctx: MixerContext,
        kept: dict[int, Tensor] | None = None,
        parting: Fork | None = None,
    ) -> tuple[Float[Tensor, "_ d"], Aux]:
        """Run the blocks and the final norm over a packed buffer; the stream after n blocks, not normed,
        replaces the value of each key n of `kept`. Tasks part, if they do, as `parting` says.
        """
        self._check(x, seq)
        if not seq.num_tokens:
            return x, {}
        blocks = self._blocks()
        if (
            blocks
        ):  # the residual stream keeps the precision of the weights, whatever autocast made of the tokens
            x = x.to(blocks[0].norm1.weight.dtype)
        own_seq = [parting.packed.seq if parting and n >= parting.layer else seq for n in range(len(blocks))]
        for layer, block in enumerate(blocks):
            block.mixer.prepare(own_seq[layer], layer)
        if self.task_embedding is not None:
            ctx = dataclasses.replace(ctx, task_vectors=self.task_embedding())
        sums: dict[str, list[Tensor]] = {}
        for layer, block in enumerate(blocks):
            own = dataclasses.replace(ctx, layer=layer, depth=len(blocks), training=self.training)
            if parting and layer == parting.layer:
                x = parting.copy(x)
            x, aux = block(x, seq=own_seq[layer], ctx=own)
            if kept is not None and layer + 1 in kept:
                kept[layer + 1] = x
            for name, value in aux.items():
                sums.setdefault(name, []).append(value)
        x = self._normed(x, own_seq[-1] if own_seq else seq)
        return x, {name: torch.stack(values).mean() for name, values in sums.items()}

    def _normed(self, x: Tensor, seq: SeqInfo) -> Tensor:
        if isinstance(self.norm, ModalityNorm):
            return self.norm(x, seq.modality_slices)
        return x if self.norm is None else self.norm(x)

    def set_checkpointing(self, mode: Checkpointing | str) -> None:
        """Choose what the blocks recompute in the backward pass: none, block, ffn."""
        known = [m.value for m in Checkpointing]
        if mode not in known:
            do = close_matches(str(mode), known)
            raise ConfigError.at("trainer.checkpointing", repr(mode), f"one of {', '.join(known)}", do)
        for block in self._blocks():
            block.checkpointing = Checkpointing(mode)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile every block with torch.compile, sizes dynamic; attention kernels stay eager."""
        for block in self._blocks():
            block.compile(dynamic=True, backend=backend)

    def num_params(self) -> int:
        """Count the parameters."""
        return sum(p.numel() for p in self.parameters())

    def flops(self, lengths: Sequence[int], num_tasks: int = 1) -> int:
        """Return the FLOPs of one forward over segments of these lengths (training costs three times that);
        the blocks after the fork, if there is one, run once for each of `num_tasks`.

        Math: for gelu and hidden = 4 dim, depth * (24 dim^2 sum(l) + 4 dim sum(l^2)); geglu has 8 dim^2
        more a token.
        """
        blocks = self._blocks()
        layer = self.fork_layer
        cost = [block.mixer.flops(lengths) + block.ffn.flops(sum(lengths), len(lengths)) for block in blocks]
        return sum(cost[:layer]) + (0 if layer is None else num_tasks * sum(cost[layer:]))

    def _checked_taps(self, taps: Sequence[int]) -> Sequence[int]:
        outside = [n for n in taps if not 0 <= n <= len(self.blocks)]
        if outside:
            found, expected = f"a tap after {outside[0]} blocks", f"0 to {len(self.blocks)}"
            raise ConfigError.at("trunk", found, expected, "Change the taps or the depth.")
        return taps

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _check(self, x: Tensor, seq: SeqInfo) -> None:
        if x.shape[1] != self.config.dim:
            raise ShapeError.at(
                "trunk", f"tokens of width {x.shape[1]}", f"{self.config.dim}", "Match the adapters."
            )
        if len(seq.biases) not in (0, 1, len(self.blocks)):
            found, expected = f"{len(seq.biases)} biases", f"none, one, or {len(self.blocks)} (one a layer)"
            raise ShapeError.at("trunk", found, expected, "Mend the adapter's relative bias.")
        for bias in seq.biases[0] if seq.biases else ():
            if bias is not None and bias.shape[1] not in (1, self.config.num_heads):
                found, expected = f"a bias for {bias.shape[1]} heads", f"{self.config.num_heads}"
                raise ShapeError.at("trunk", found, expected, "Build the adapter with the trunk's num_heads.")
        for block in self._blocks():
            block.mixer.check(seq)


def _check_losses_by_task(blocks: Sequence[Block]) -> None:
    """Refuse losses that tell tasks apart where no token is any task's: in all of a kind's layers before the
    first part that depends on the task, which is where the trunk makes a copy of the tokens for each.
    """
    parts = [(name, getattr(block, name)) for block in blocks for name in ("mixer", "ffn")]
    first = next((place for place, (_, part) in enumerate(parts) if part.task_dependent), len(parts))
    asked: dict[str, tuple[int, str]] = {}
    for place, (name, part) in enumerate(parts):
        by_task = getattr(getattr(part.config, "balance", None), "by_task", "")
        if by_task:
            asked[name] = place, by_task
    for name, (last, by_task) in asked.items():
        if last < first:
            found, expected = f"{by_task}, but nothing here depends on the task", "a router by task"
            do = f"Choose trunk.{name}.router=task_topk, or modality in place of task."
            raise ConfigError.at(f"trunk.{name}.balance", found, expected, do)


def _task_embedding(blocks: Sequence[Block], tasks: tuple[str, ...]) -> TaskEmbedding | None:
    """Make the vectors of tasks that routers of the blocks read, if any do."""
    widths = {part.task_dim for block in blocks for part in (block.mixer, block.ffn)} - {0}
    if len(widths) > 1:
        found, do = f"task vectors of widths {sorted(widths)}", "Give all blocks one router.task_dim."
        raise ConfigError.at("trunk", found, "one width", do)
    return TaskEmbedding(tasks, widths.pop()) if widths else None
