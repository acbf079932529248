"""The three query initialisations: boxes from a heat map, map from stripes, occupancy from voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from mmzoo.models.m3net.grid import GridConfig, MapSampling
from mmzoo.models.m3net.parts import Mlp, PositionEmbedding, SetAttention, conv_block, take


@dataclass(frozen=True)
class Queries:
    """Queries of one task.

    Shape: features and embedding (b q d), positions (b q 2) in cells, x first; `extra` what heads and losses
    need beside them.
    """

    features: Float[Tensor, "b q d"]
    embedding: Float[Tensor, "b q d"]
    positions: Float[Tensor, "b q 2"]
    extra: Mapping[str, Shaped[Tensor, ...]] = field(default_factory=dict)


class BoxQueries(nn.Module):
    """One query at each of the strongest local maxima of a class heat map.

    Math: query = u[cell] + MLP(LN(class embedding)); small classes (a pedestrian fills one cell) need not be
    local maxima, and the view's outermost cells are none.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int, small_classes: tuple[int, ...]) -> None:
        """Take the counts, and the numbers of the classes that are small."""
        super().__init__()
        self.num_queries, self.small_classes = num_queries, small_classes
        last = nn.Conv2d(dim, num_classes, 3, padding=1)
        # cells start near 0.1, as CenterPoint's do: most hold no box
        last.bias = nn.Parameter(torch.full((num_classes,), -2.19))
        self.heatmap = nn.Sequential(conv_block(dim, dim), last)
        self.embedding = nn.Embedding(num_classes, dim)
        self.norm, self.mlp = nn.LayerNorm(dim), Mlp(dim, dim, dim, dim)

    def forward(self, u: Float[Tensor, "b d h w"], grid: GridConfig, embed: PositionEmbedding) -> Queries:
        """Find the maxima."""
        logits = self.heatmap(u)
        scores = self.local_maxima(logits.detach().sigmoid()).flatten(2)
        flat = scores.flatten(1)
        # argsort, not topk: it is stable, so that ties are settled alike everywhere
        chosen = flat.argsort(dim=-1, descending=True, stable=True)[:, : self.num_queries]
        cells, classes = chosen % scores.shape[2], chosen // scores.shape[2]
        features = take(u.flatten(2).transpose(1, 2), cells) + self.mlp(self.norm(self.embedding(classes)))
        positions = grid.centres().to(u)[cells]
        extra = {
            "heatmap": logits,
            "scores": scores,
            "cells": cells,
            "classes": classes,
            "class_scores": scores.gather(2, cells[:, None].expand(-1, scores.shape[1], -1)),
        }
        return Queries(features, embed(positions), positions, extra)

    def local_maxima(self, scores: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Set what is no maximum of its 3x3 neighbourhood to zero."""
        peak = torch.zeros_like(scores)
        peak[:, :, 1:-1, 1:-1] = F.max_pool2d(scores, 3, stride=1)
        small = list(self.small_classes)
        peak[:, small] = scores[:, small]
        return scores * (scores == peak)


class MapQueries(nn.Module):
    """One query for each class and stripe of the map, where the class is most likely.

    Math: v = MLP(u) on the map's grid; logits <class embedding, v>; query = u at the stripe's arg-max, after
    attention across stripes, then across classes, plus the class embedding. Order: stripe by stripe.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        stripes: int,
        num_heads: int,
        sampling: MapSampling = MapSampling.CENTRE,
    ) -> None:
        """Take the counts, and where the view is sampled."""
        super().__init__()
        self.stripes, self.num_classes, self.sampling = stripes, num_classes, sampling
        self.pixel = Mlp(dim, dim, dim, dim)
        self.embedding = nn.Embedding(num_classes, dim)
        self.across_stripes, self.across_classes = SetAttention(dim, num_heads), SetAttention(dim, num_heads)

    def forward(
        self,
        u: Float[Tensor, "b d h w"],
        grid: GridConfig,
        embed: PositionEmbedding,
        blank: Int[Tensor, "b q"] | None = None,
    ) -> Queries:
        """Find the arg-max cells; `blank` names map cells to leave out."""
        b = len(u)
        pixels = grid.to_map(self.pixel(u.movedim(1, -1)).movedim(-1, 1), self.sampling)
        logits = torch.einsum("bdhw,kd->bkhw", pixels, self.embedding.weight)
        scores = logits.detach().sigmoid().flatten(2)
        if blank is not None:
            marked = scores.new_zeros(b, max(scores.shape[2], grid.cells**2)).scatter(1, blank, 1.0)
            scores = scores * (1 - marked[:, None, : scores.shape[2]])
        within = scores.unflatten(2, (self.stripes, -1)).argmax(dim=-1).transpose(1, 2)  # b stripe class
        stride = grid.map_cells // self.stripes * grid.map_cells
        start = torch.arange(self.stripes, device=u.device) * stride
        cells = (within + start[None, :, None]).flatten(1)
        positions = grid.map_centres(self.sampling).to(u)[cells]
        features = take(grid.to_map(u, self.sampling).flatten(2).transpose(1, 2), cells)
        where = embed(positions)
        features = self._exchange(features, where) + self.embedding.weight.repeat(self.stripes, 1)[None]
        extra = {"pixels": pixels, "logits": logits, "within": within}
        return Queries(features.reshape(b, -1, u.shape[1]), where, positions, extra)

    def _exchange(self, x: Float[Tensor, "b q d"], where: Float[Tensor, "b q d"]) -> Float[Tensor, "b q d"]:
        shape = (self.stripes, self.num_classes)
        x, where = x.unflatten(1, shape), where.unflatten(1, shape)
        by_class = self.across_stripes(x.transpose(1, 2).flatten(0, 1), where.transpose(1, 2).flatten(0, 1))
        x = by_class.unflatten(0, (len(x), self.num_classes)).transpose(1, 2)
        return (
            self.across_classes(x.flatten(0, 1), where.flatten(0, 1)).unflatten(0, (len(x), -1)).flatten(1, 2)
        )


class OccupancyQueries(nn.Module):
    """One query for every cell of a coarse grid of voxels, or for each voxel known to hold something.

    Why: M3Net asks lidar which voxels hold points. Without that (`occupied` None) all cells of a grid pooled
    by `pool` along x and y are asked.
    """

    def __init__(self, levels: int, pool: int) -> None:
        """Take the number of voxels along z, and how many cells a query spans along x and y."""
        super().__init__()
        self.levels, self.pool = levels, pool

    def forward(
        self, u: Float[Tensor, "b d h w"], embed: PositionEmbedding, occupied: Tensor | None = None
    ) -> Queries:
        """Ask; `extra["owner"]` (b z*y*x) is the query of each voxel, -1 for none.

        Shape: occupied (b z y x) bool.
        """
        b, _, h, w = u.shape
        owner, index, real = self._all(b, h, w) if occupied is None else _listed(occupied)
        owner, index = owner.to(u.device), index.to(u.device)
        z, cell = index // (h * w), index % (h * w)
        x, y = cell % w + 0.5, cell // w + 0.5
        xyz = torch.stack([x, y, z + 0.5], dim=-1).to(u)
        pooled = u
        if occupied is None and self.pool > 1:
            pooled = F.avg_pool2d(u, self.pool, ceil_mode=True)
            pooled = F.interpolate(pooled, scale_factor=float(self.pool), mode="nearest")[..., :h, :w]
        features = take(pooled.flatten(2).transpose(1, 2), cell)
        return Queries(features, _embedded(embed, xyz, real), xyz[..., :2], {"owner": owner})

    def _all(self, b: int, h: int, w: int) -> tuple[Tensor, Tensor, None]:
        step = self.pool
        rows, columns = -(-h // step), -(-w // step)
        z, y, x = torch.meshgrid(torch.arange(self.levels), torch.arange(h), torch.arange(w), indexing="ij")
        owner = (z * rows + y // step) * columns + x // step
        middle_y = (torch.arange(rows) * step + step // 2).clamp(max=h - 1)
        middle_x = (torch.arange(columns) * step + step // 2).clamp(max=w - 1)
        qz, qy, qx = torch.meshgrid(torch.arange(self.levels), middle_y, middle_x, indexing="ij")
        index = (qz * h + qy) * w + qx
        return owner.reshape(1, -1).expand(b, -1), index.reshape(1, -1).expand(b, -1), None


def _embedded(
    embed: PositionEmbedding, xyz: Float[Tensor, "b q 3"], real: Bool[Tensor, "b q"] | None
) -> Float[Tensor, "b q d"]:
    """Embed the rows that are real, so that what fills a batch up is not in the norm's statistics; the others
    are zero. With fewer than two real rows, of which a norm in training can say nothing, all are embedded."""
    count = xyz[..., 0].numel() if real is None else int(real.sum())
    if real is None or count < 2 or count == real.numel():
        return embed(xyz)
    found = embed(xyz[real][None])[0]
    return found.new_zeros((*real.shape, found.shape[1])).masked_scatter(real[..., None], found)


def _listed(occupied: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Number the voxels that hold something; rows with fewer than the longest are filled up, and which are
    real is told.

    On the meta device, where nobody knows which those are, all are taken to.
    """
    flat = occupied.flatten(1)
    order = flat.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    longest = flat.shape[1] if flat.is_meta else int(flat.sum(dim=1).max())
    index = order[:, : max(1, longest)]
    numbers = torch.arange(index.shape[1], device=flat.device).expand_as(index)
    owner = torch.full(flat.shape, -1, dtype=torch.int64, device=flat.device).scatter(1, index, numbers)
    real = None if flat.is_meta else numbers < flat.sum(dim=1, keepdim=True)
    return torch.where(flat, owner, -1), index, real
