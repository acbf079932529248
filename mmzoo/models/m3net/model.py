"""M3Net at the bird's-eye-view level: fusion, queries of three tasks, shared decoder, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.errors import ConfigError
from mmzoo.layers.channel_scaling import Gate
from mmzoo.layers.mafi import ChannelAttention, Mafi, PlainFusion
from mmzoo.models.m3net.decoder import Decoded, SharedDecoder
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.heads import BoxHead, MapHead, OccupancyHead, decode_boxes, score_boxes
from mmzoo.models.m3net.parts import PositionEmbedding, conv_block
from mmzoo.models.m3net.queries import BoxQueries, MapQueries, OccupancyQueries, Queries

BOXES, MAP, OCCUPANCY = "boxes", "map", "occupancy"
TASKS = (BOXES, MAP, OCCUPANCY)


class Fusion(str, Enum):
    """How camera and lidar views become one."""

    MAFI = "mafi"
    CONV = "conv"


class Compat(str, Enum):
    """Which code the numbers follow."""

    NONE = "none"
    M3NET = "m3net"


@dataclass(kw_only=True)
class M3NetConfig(schema.Config):
    """Sizes and choices; the defaults are the paper's."""

    camera_channels: int = 80
    """channels of the camera view"""
    lidar_channels: int = 256
    """channels of the lidar view"""
    neck_channels: int = 256
    """channels after fusion; the neck gives twice as many"""
    dim: int = 256
    """width of queries and memory"""
    num_heads: int = 8
    """attention heads"""
    layers: int = 6
    """decoder layers"""
    hidden_dim: int = 1024
    """width of the feed-forwards"""
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    """boxes, map, occupancy: those the model has"""
    num_boxes: int = 200
    """box queries"""
    num_classes: int = 10
    """classes of boxes"""
    small_classes: list[int] = field(default_factory=lambda: [8, 9])
    """box classes that may fill one cell (pedestrian, cone)"""
    map_classes: int = 6
    """classes of the map, which may overlap"""
    stripes: int = 5
    """stripes of map rows, each with its own queries"""
    occupancy_classes: int = 17
    """classes of voxels, 0 free"""
    levels: int = 5
    """voxels along z before the last resizing"""
    pool: int = 4
    """cells an occupancy query spans along x and y where nothing says which voxels hold something"""
    grid: GridConfig = field(default_factory=GridConfig)
    """where cells lie"""
    fusion: Fusion = Fusion.MAFI
    """mafi, or one convolution"""
    gate: Gate = Gate.LINEAR
    """task-oriented channel scaling: linear, sigmoid or off"""
    compat: Compat = Compat.NONE
    """m3net: as the released code computes, defects included (specified in `interop`)"""

    def __post_init__(self) -> None:
        """Check what must fit."""
        unknown = [t for t in self.tasks if t not in TASKS]
        if unknown or not self.tasks:
            raise ConfigError.at(
                "tasks", str(self.tasks), f"some of {', '.join(TASKS)}", "Name at least one."
            )
        if self.dim % self.num_heads:
            found = f"dim {self.dim} with {self.num_heads} heads"
            raise ConfigError.at("dim", found, "a multiple of num_heads", "Change one of them.")
        if self.grid.map_cells % self.stripes:
            found = f"{self.stripes} stripes of {self.grid.map_cells} rows"
            raise ConfigError.at("stripes", found, "a divisor of grid.map_cells", "Set stripes=1.")


@dataclass(frozen=True)
class M3NetOutput:
    """What the model predicts, by task; tasks it was not asked for are absent.

    Shape: boxes (b q 9) with scores and classes (b q), attributes (b q n) raw; map logits (b k hm wm), and
    those of the queries' start; occupancy logits (b k z y x); heatmap logits (b k h w).
    """

    boxes: Mapping[str, Shaped[Tensor, ...]] = field(default_factory=dict)
    map: Mapping[str, Shaped[Tensor, ...]] = field(default_factory=dict)
    occupancy: Float[Tensor, "b k z y x"] | None = None
    queries: Mapping[str, Queries] = field(default_factory=dict)
    decoded: Decoded | None = None


class M3Net(nn.Module, schema.Configurable):
    """Boxes, map and occupancy from a camera and a lidar view of the same ground.

    Shape: camera (b ca h w), lidar (b cl h w) -> `M3NetOutput`. Any batch size (the release took one).
    """

    Config = M3NetConfig

    def __init__(self, config: M3NetConfig) -> None:
        """Build what the tasks need."""
        super().__init__()
        self.config = config
        released, width = config.compat is Compat.M3NET, config.neck_channels
        kind = ChannelAttention.SHARED if released else ChannelAttention.SEPARATE
        first, second = config.camera_channels, config.lidar_channels
        self.fusion = (
            Mafi(first, second, width, kind)
            if config.fusion is Fusion.MAFI
            else PlainFusion(first, second, width)
        )
        self.near = nn.Sequential(conv_block(width, width), conv_block(width, width))
        self.far = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), conv_block(width, width), conv_block(width, width)
        )
        self.body = M3NetBody(config, 2 * width)

    def view(
        self, camera: Float[Tensor, "b ca h w"], lidar: Float[Tensor, "b cl h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the fused view: a near and a far-sighted half."""
        fused = self.fusion(camera, lidar)
        far = nn.functional.interpolate(self.far(fused), size=fused.shape[2:], mode="nearest")
        return torch.cat([self.near(fused), far], dim=1)

    def forward(
        self,
        camera: Float[Tensor, "b ca h w"],
        lidar: Float[Tensor, "b cl h w"],
        occupied: Bool[Tensor, "b z y x"] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> M3NetOutput:
        """Predict; `occupied` says which voxels hold lidar points, where that is known."""
        return self.body(self.view(camera, lidar), occupied, tasks)


class M3NetBody(nn.Module):
    """From a fused view to the tasks' predictions (the release's dense head)."""

    def __init__(self, config: M3NetConfig, channels: int) -> None:
        """Take the view's channels."""
        super().__init__()
        self.config, dim = config, config.dim
        self.released = config.compat is Compat.M3NET
        self.shared = nn.Conv2d(channels, dim, 3, padding=1)
        self.key_position = PositionEmbedding(2, dim)
        sizes = {"hidden": config.hidden_dim, "num_heads": config.num_heads}
        self.decoder = SharedDecoder(
            channels, dim, config.tasks, layers=config.layers, gate=config.gate, **sizes
        )
        has = config.tasks.__contains__
        if has(BOXES) or has(MAP):
            self.query_position = PositionEmbedding(2, dim)
        if has(BOXES):
            small = tuple(config.small_classes)
            self.box_queries = BoxQueries(dim, config.num_classes, config.num_boxes, small)
            self.box_head = BoxHead(dim, config.num_classes)
        if has(MAP):
            self.map_queries = MapQueries(dim, config.map_classes, config.stripes, config.num_heads)
            self.map_project = nn.Conv2d(dim, dim, 1)
            self.map_head = MapHead(dim, config.stripes)
        if has(OCCUPANCY):
            self.voxel_position = PositionEmbedding(3, dim)
            self.occupancy_queries = OccupancyQueries(config.levels, config.pool)
            self.occupancy_head = OccupancyHead(
                dim, config.occupancy_classes, hidden=config.hidden_dim, released=self.released
            )

    def forward(
        self,
        view: Float[Tensor, "b c h w"],
        occupied: Bool[Tensor, "b z y x"] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> M3NetOutput:
        """Predict the asked tasks (default: all the model has)."""
        asked = [t for t in self.config.tasks if tasks is None or t in tasks]
        queries = self.ask(view, asked, occupied)
        grid = self.config.grid
        where = self.key_position(grid.centres().to(view)[None].expand(len(view), -1, -1))
        decoded = self.decoder(view, where, queries, grid)
        boxes = self._boxes(queries[BOXES], decoded) if BOXES in asked else {}
        maps = self._map(queries[MAP], decoded) if MAP in asked else {}
        occupancy = self._occupancy(queries[OCCUPANCY], decoded) if OCCUPANCY in asked else None
        return M3NetOutput(boxes, maps, occupancy, queries, decoded)

    def ask(
        self, view: Float[Tensor, "b c h w"], tasks: Sequence[str], occupied: Tensor | None
    ) -> dict[str, Queries]:
        """Return the tasks' queries.

        compat(m3net): cells of the strongest boxes, numbered on the view's grid, are left out of the map's
        arg-max on the map's grid, where they are other places.
        """
        u = self.shared(view)
        queries: dict[str, Queries] = {}
        if BOXES in tasks:
            queries[BOXES] = self.box_queries(u, self.config.grid, self.query_position)
        if MAP in tasks:
            blank = queries[BOXES].extra["cells"] if self.released and BOXES in queries else None
            queries[MAP] = self.map_queries(u, self.config.grid, self.query_position, blank)
        if OCCUPANCY in tasks:
            queries[OCCUPANCY] = self.occupancy_queries(u, self.voxel_position, occupied)
        return queries

    def map_features(self, decoded: Decoded) -> Float[Tensor, "b d hm wm"]:
        """Return the memory for the map, on the map's grid.

        compat(m3net): the released decoder leaves the first axis x, which the labels do not.
        """
        gate = decoded.gates[MAP].transpose(1, 2).unflatten(2, decoded.memory.shape[2:])
        found = self.config.grid.to_map(self.map_project(decoded.memory + decoded.source) * gate)
        return found.transpose(2, 3) if self.released else found

    def _boxes(self, queries: Queries, decoded: Decoded) -> dict[str, Tensor]:
        raw = self.box_head(decoded.queries[BOXES], queries.positions)
        classes = queries.extra["classes"]
        scores = score_boxes(raw, queries.extra["class_scores"], classes)
        made = {"boxes": decode_boxes(raw, self.config.grid), "scores": scores, "classes": classes}
        return {**raw, **made, "dense": queries.extra["heatmap"]}

    def _map(self, queries: Queries, decoded: Decoded) -> dict[str, Tensor]:
        logits = self.map_head(decoded.queries[MAP], self.map_features(decoded))
        return {"logits": logits, "start": queries.extra["logits"]}

    def _occupancy(self, queries: Queries, decoded: Decoded) -> Tensor:
        shape = (self.config.levels, *decoded.memory.shape[2:])
        owner = queries.extra["owner"]
        return self.occupancy_head(decoded.queries[OCCUPANCY], owner, self.voxel_position, shape)
