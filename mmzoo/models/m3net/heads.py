"""The three heads: boxes, map, occupancy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo.layers.deformable import DeformableAttention
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.parts import Mlp, PositionEmbedding

ATTRIBUTES = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""What a box is made of: centre in cells, height m, log sizes, (sin, cos) of the yaw, velocity m/s."""


class BoxHead(nn.Module):
    """Each query says its box and its classes.

    Shape: queries (b q d), positions (b q 2) -> by attribute (b q n), `heatmap` the class logits.
    """

    def __init__(self, dim: int, num_classes: int, hidden: int = 64) -> None:
        """One small network an attribute."""
        super().__init__()
        widths = {**ATTRIBUTES, "heatmap": num_classes}
        self.attributes = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width))
                for name, width in widths.items()
            }
        )
        last = self.attributes["heatmap"][-1]  # pyright: ignore[reportIndexIssue] a Sequential
        nn.init.constant_(last.bias, -2.19)  # classes start near 0.1, as the focal loss wants

    def forward(
        self, queries: Float[Tensor, "b q d"], positions: Float[Tensor, "b q 2"]
    ) -> dict[str, Float[Tensor, "b q n"]]:
        """Predict; centres are offsets to the queries' cells."""
        found = {name: net(queries) for name, net in self.attributes.items()}
        found["center"] = found["center"] + positions
        return found


def decode_boxes(found: Mapping[str, Tensor], grid: GridConfig) -> Float[Tensor, "b q 9"]:
    """Return boxes: centre x y z in metres, sizes in metres, yaw in radians, velocity x y in m/s."""
    centre = found["center"] * grid.cell_m - grid.range_m
    yaw = torch.atan2(found["rot"][..., 0], found["rot"][..., 1])
    return torch.cat([centre, found["height"], found["dim"].exp(), yaw[..., None], found["vel"]], dim=-1)


def encode_boxes(boxes: Float[Tensor, "n 9"], grid: GridConfig) -> Float[Tensor, "n 10"]:
    """Return the code that the head is trained towards, attributes in order."""
    yaw = boxes[:, 6:7]
    centre = (boxes[:, :2] + grid.range_m) / grid.cell_m
    return torch.cat(
        [centre, boxes[:, 2:3], boxes[:, 3:6].log(), yaw.sin(), yaw.cos(), boxes[:, 7:9]], dim=-1
    )


def score_boxes(
    found: Mapping[str, Tensor], class_scores: Float[Tensor, "b k q"], classes: Int[Tensor, "b q"]
) -> Float[Tensor, "b q"]:
    """Return the score of each box for its query's class: the head's times the heat map's."""
    both = found["heatmap"].sigmoid() * class_scores.transpose(1, 2)
    return both.gather(2, classes[..., None])[..., 0]


class MapHead(nn.Module):
    """Each stripe of the map is segmented by its own class queries.

    Math: logit = <MLP(LN(query of stripe and class)), feature of the cell>.
    Shape: queries (b stripes*classes d), features (b d hm wm) -> (b classes hm wm).
    """

    def __init__(self, dim: int, stripes: int) -> None:
        """Norm and embedding network."""
        super().__init__()
        self.stripes = stripes
        self.norm, self.mlp = nn.LayerNorm(dim), Mlp(dim, dim, dim, dim)

    def forward(
        self, queries: Float[Tensor, "b q d"], features: Float[Tensor, "b d hm wm"]
    ) -> Float[Tensor, "b k hm wm"]:
        """Segment."""
        embedded = self.mlp(self.norm(queries)).unflatten(1, (self.stripes, -1))
        striped = features.unflatten(2, (self.stripes, -1))
        return torch.einsum("bskd,bdsyx->bksyx", embedded, striped).flatten(2, 3)


class OccupancyHead(nn.Module):
    """Fills a volume of voxels with what the queries know, lets voxels exchange it, names their classes.

    Shape: queries (b q d), owner (b z*y*x) the query of each voxel or -1 -> (b classes z y x) logits of
    `size`. compat(m3net): the released code swaps x and y when it samples the volume, and divides reference
    points by the volume's size once more for its second layer (`released=True`).
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        num_heads: int = 8,
        layers: int = 2,
        hidden: int = 1024,
        released: bool = False,
    ) -> None:
        """Take widths and depth."""
        super().__init__()
        self.released = released
        self.empty = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.empty, std=0.02)
        self.attention = nn.ModuleList(
            DeformableAttention(dim, num_heads=num_heads, axes=3) for _ in range(layers)
        )
        self.ffn = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)) for _ in range(layers)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.classify = Mlp(dim, dim, dim, num_classes)

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        owner: Int[Tensor, "b n"],
        embed: PositionEmbedding,
        shape: tuple[int, int, int],
        size: tuple[int, int, int] | None = None,
    ) -> Float[Tensor, "b k z y x"]:
        """Classify a volume of `shape` (z, y, x), resized to `size` if it is another."""
        b, _, d = queries.shape
        taken = queries.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, d))
        x = torch.where((owner >= 0)[..., None], taken, self.empty)
        centres = _centres(shape).to(x)[None].expand(b, -1, -1)
        x = x + embed(centres)
        extent = x.new_tensor(shape[::-1])
        for number, (attention, ffn, norm) in enumerate(
            zip(self.attention, self.ffn, self.norm, strict=True)
        ):
            reference = centres / extent ** (number + 1 if self.released else 1)
            volume = x.transpose(1, 2).unflatten(2, shape)
            if self.released:
                volume = volume.transpose(-1, -2)
            x = x + attention(x, reference, volume)
            x = norm(x + ffn(x))
        logits = self.classify(x).transpose(1, 2).unflatten(2, shape)
        if size is None or size == shape:
            return logits
        return F.interpolate(logits, size=size, mode="trilinear", align_corners=False)


def _centres(shape: tuple[int, int, int]) -> Float[Tensor, "n 3"]:
    z, y, x = torch.meshgrid(*[torch.arange(n) + 0.5 for n in shape], indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)
