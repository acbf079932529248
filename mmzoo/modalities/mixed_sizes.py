"""Batches of images of several sizes: each size is embedded in one go, the rows come back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmzoo.batch import ModalityInput, TokenSequence


class Embedded(NamedTuple):
    """Tokens (k n d) of images of one size, the grid their patches lie on, their biases (1 h n n), and the
    backbone's feature maps (k c h w) where those are wanted."""

    tokens: Tensor
    grid: tuple[int, ...] | None
    biases: tuple[Tensor, ...] = ()
    levels: tuple[Tensor, ...] = ()


Embed = Callable[[Float[Tensor, "k c height width"]], Embedded]


def embed_by_size(x: ModalityInput, embed: Embed, name: str, num_prefix: int) -> TokenSequence:
    """Embed each size that occurs once, unpadded, so that padding cannot reach a token.

    Shape: values (k c height width), sizes (k 3) -> tokens (k n d), right-padded to the longest row; biases
    one for all rows where sizes agree, else one a row; feature maps where sizes agree.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (_, height, width) in enumerate(x.sizes.tolist()):
        groups.setdefault((height, width), []).append(row)
    if len(groups) == 1:
        ((height, width),) = groups
        part = embed(x.values[:, :, :height, :width])
        valid = torch.ones(part.tokens.shape[:2], dtype=torch.bool)
        grids = None if part.grid is None else (part.grid,) * len(x)
        return TokenSequence(
            part.tokens, valid, x.index, name, grids, num_prefix, part.biases, levels=part.levels
        )
    parts = [embed(x.values[rows][:, :, :height, :width]) for (height, width), rows in groups.items()]
    return _interleave(x, parts, list(groups.values()), name, num_prefix)


def _interleave(
    x: ModalityInput, parts: list[Embedded], rows: list[list[int]], name: str, num_prefix: int
) -> TokenSequence:
    order = torch.tensor([row for group in rows for row in group]).argsort()
    place = order.to(x.values.device)
    longest = max(part.tokens.shape[1] for part in parts)
    lengths = torch.tensor(
        [part.tokens.shape[1] for part, group in zip(parts, rows, strict=True) for _ in group]
    )
    tokens = [F.pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1])) for part in parts]
    grids = [part.grid for part, group in zip(parts, rows, strict=True) for _ in group]
    in_order = [grids[i] for i in order.tolist()]
    return TokenSequence(
        torch.cat(tokens).index_select(0, place),
        torch.arange(longest) < lengths[order][:, None],
        x.index,
        name,
        None
        if any(grid is None for grid in in_order)
        else tuple(grid for grid in in_order if grid is not None),
        num_prefix,
        tuple(
            torch.cat(
                [_spread(bias, len(group), longest) for bias, group in zip(biases, rows, strict=True)]
            ).index_select(0, place)
            for biases in zip(*(part.biases for part in parts), strict=True)
        ),
    )


def _spread(bias: Float[Tensor, "1 h n n"], rows: int, longest: int) -> Float[Tensor, "k h m m"]:
    spare = longest - bias.shape[-1]
    return F.pad(bias, (0, spare, 0, spare)).expand(rows, -1, -1, -1)


def fake_images(channels: int, sizes: Sequence[Sequence[int]], generator: torch.Generator) -> ModalityInput:
    """Make noise images of the given heights and widths, padded to the largest."""
    height, width = max(s[0] for s in sizes), max(s[1] for s in sizes)
    values = torch.zeros(len(sizes), channels, height, width)
    for image, (rows, cols) in zip(values, sizes, strict=True):
        image[:, :rows, :cols].normal_(generator=generator)
    extents = torch.tensor([[channels, *size] for size in sizes])
    return ModalityInput(values, torch.arange(len(sizes)), extents)
