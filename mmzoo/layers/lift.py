"""Camera features lifted to a bird's-eye view: pixels' features, shared out along rays, land in cells."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def frustum(
    size: tuple[int, int], stride: float, depths_m: Float[Tensor, " d"], intrinsics: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b d h w 3"]:
    """Return the points that the pixels of a feature map see at each depth, in the camera's frame (m).

    Math: depth * K^-1 (u, v, 1), u and v the middle of each feature in pixels of the image.
    """
    h, w = size
    v, u = torch.meshgrid((torch.arange(h) + 0.5) * stride, (torch.arange(w) + 0.5) * stride, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], dim=-1).to(intrinsics)
    rays = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(intrinsics), rays)
    return rays[:, None] * depths_m.to(intrinsics)[None, :, None, None, None]


def to_cells(
    points: Float[Tensor, "*axes 3"], cells: tuple[int, int], range_m: float
) -> tuple[Int[Tensor, "*axes"], Bool[Tensor, "*axes"]]:
    """Return the number of the cell (row y, column x) below each point, and whether there is one."""
    h, w = cells
    extent = points.new_tensor([w, h])
    at = ((points[..., :2] + range_m) / (2 * range_m) * extent).floor().long()
    inside = ((at >= 0) & (at < extent)).all(dim=-1)
    return at[..., 1] * w + at[..., 0], inside


def lift(
    features: Float[Tensor, "b c h w"],
    depth_probs: Float[Tensor, "b d h w"],
    points: Float[Tensor, "b d h w 3"],
    cells: tuple[int, int],
    range_m: float,
) -> Float[Tensor, "b c y x"]:
    """Add every pixel's feature, times the probability of each depth, to the cell below the point it sees.

    Why: `index_add_` is exact and runs everywhere; the pooling kernel of BEVFusion computes the same sum.
    Shape: points in the vehicle's frame; several cameras of one vehicle are further images whose results add.
    Ref: Philion & Fidler 2020 (Lift, Splat, Shoot).
    """
    b, c = features.shape[:2]
    index, inside = to_cells(points, cells, range_m)
    size = cells[0] * cells[1]
    index = index + torch.arange(b, device=index.device)[:, None, None, None] * size
    share = (depth_probs[:, :, None] * features[:, None]).movedim(2, -1)
    out = features.new_zeros(b * size, c).index_add(0, index[inside], share[inside])
    return out.reshape(b, *cells, c).movedim(-1, 1)
