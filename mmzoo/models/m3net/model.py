"""M3Net at the bird's-eye-view level: fusion, queries of three tasks, shared decoder, heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mmzoo.batch import Batch, DataInfo, ModalityInput, ModelOutput
from mmzoo.layers.mafi import ChannelAttention, Mafi, PlainFusion
from mmzoo.models.base import JOINT, Stage, TaskModel, check_tasks
from mmzoo.models.finetune.prepare import prepare
from mmzoo.models.m3net.decoder import Decoded, SharedDecoder
from mmzoo.models.m3net.grid import MapSampling
from mmzoo.models.m3net.heads import BoxHead, MapHead, OccupancyHead, decode_boxes, score_boxes
from mmzoo.models.m3net.options import (
    BOXES,
    CAMERA,
    CLASSES,
    LIDAR,
    MAP,
    OCCUPANCY,
    OCCUPIED,
    SMALL_CLASSES,
    Compat,
    Fusion,
    M3NetConfig,
)
from mmzoo.models.m3net.parts import PositionEmbedding, conv_block
from mmzoo.models.m3net.predictions import as_predictions
from mmzoo.models.m3net.queries import BoxQueries, MapQueries, OccupancyQueries, Queries
from mmzoo.trunk.base import MixerContext

TASK_PARTS = ("body.box_", "body.map_", "body.occupancy_", "body.query_", "body.voxel_")
"""Parts of the body that only some tasks need, beside the gates of their channels."""


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


class M3Net(TaskModel):
    """Boxes, map and occupancy from a camera and a lidar view of the same ground.

    Shape: `predict` takes camera (b ca h w) and lidar (b cl h w), any b (the release took one scene).
    """

    Config = M3NetConfig

    def __init__(self, config: M3NetConfig) -> None:
        """Build what the tasks need."""
        super().__init__()
        self.config = config
        self.passes = dict.fromkeys(config.tasks, config.default_passes)
        gates = (f"body.decoder.layers.{i}.scaling." for i in range(config.layers))
        self.task_parts = (*TASK_PARTS, *gates)
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
        prepare(self, config)

    def view(
        self, camera: Float[Tensor, "b ca h w"], lidar: Float[Tensor, "b cl h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the fused view: a near and a far-sighted half."""
        fused = self.fusion(camera, lidar)
        far = nn.functional.interpolate(self.far(fused), size=fused.shape[2:], mode="nearest")
        return torch.cat([self.near(fused), far], dim=1)

    def forward(
        self, batch: Batch, tasks: Sequence[str] | None = None, ctx: MixerContext | None = None
    ) -> ModelOutput:
        """Predict the named tasks (default all) for the scenes that have every input of the model.

        `ctx` changes nothing: nothing in the model is random.
        """
        del ctx
        asked = list(self.config.tasks if tasks is None else tasks)
        check_tasks(asked, self.config.tasks)
        name = self.config.default_passes[0]
        views = shared_rows(batch, name.split(JOINT))
        if views is None:
            return ModelOutput({task: {} for task in asked})
        given, index = views
        out = self.predict(given[CAMERA], given[LIDAR], given.get(OCCUPIED), asked)
        found = as_predictions(out.boxes, out.map, out.occupancy, index, self.config.grid)
        return ModelOutput({task: {name: found[task]} for task in asked})

    def predict(
        self,
        camera: Float[Tensor, "b ca h w"],
        lidar: Float[Tensor, "b cl h w"],
        occupied: Bool[Tensor, "b z y x"] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> M3NetOutput:
        """Predict; `occupied` says which voxels hold lidar points, where that is known."""
        return self.body(self.view(camera, lidar), occupied, tasks)

    @classmethod
    def resolve(cls, config: M3NetConfig, info: DataInfo) -> M3NetConfig:
        """Take the numbers of classes from the data, and which are small by their names."""
        known = {task: info.labels[t] for task, t in config.targets.items() if t in info.labels}
        found: dict[str, Any] = {CLASSES[task][0]: len(names) for task, names in known.items()}
        names = known.get(BOXES, ())
        if names and config.small_classes == M3NetConfig().small_classes:
            found["small_classes"] = [number for number, name in enumerate(names) if name in SMALL_CLASSES]
        return dataclasses.replace(config, **found)

    def stages(self) -> tuple[Stage, ...]:
        """Return fusion, neck and body."""
        return (Stage(("fusion",)), Stage(("near", "far")), Stage(("body",), chain=True))

    def parts(self) -> dict[str, nn.Module]:
        """Return fusion, the two halves of the neck, and what the body is made of."""
        body = {f"body.{name}": child for name, child in self.body.named_children()}
        return {"fusion": self.fusion, "near": self.near, "far": self.far, **body}

    def watch_tokens(self, seen: Callable[[int], None]) -> Any:
        """Tell `seen` how many cells the decoder remembers in each run."""

        def count(module: nn.Module, inputs: Any, output: Decoded) -> None:
            seen(output.memory[:, 0].numel())

        return self.body.decoder.register_forward_hook(count)

    def fake_batch(self, seed: int) -> Batch:
        """Return one random scene."""
        generator = torch.Generator().manual_seed(seed)
        channels = {CAMERA: self.config.camera_channels, LIDAR: self.config.lidar_channels}
        cells, rows = self.config.grid.cells, {}
        for name, view in self.config.inputs.items():
            size = (channels.get(name, self.config.levels), cells, cells)
            item = view.preprocess.build()(torch.randn(size, generator=generator).clamp(min=0))
            rows[name] = ModalityInput.stack([item], torch.zeros(1, dtype=torch.int64))
        return Batch(("fake",), rows)


def shared_rows(batch: Batch, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor] | None:
    """Return those rows of each input whose sample has them all, and their samples; None where none has."""
    inputs = [batch.inputs[m] for m in names if m in batch.inputs]
    if len(inputs) < len(names):
        return None
    index = inputs[0].index
    for other in inputs[1:]:
        index = index[torch.isin(index, other.index)]
    if not len(index):
        return None
    rows = {m: _rows(x, index) for m, x in zip(names, inputs, strict=True)}
    return rows, index


def _rows(x: ModalityInput, index: Tensor) -> Tensor:
    if len(index) == len(x):
        return x.values
    return x.values[torch.isin(x.index, index).to(x.values.device)]


class M3NetBody(nn.Module):
    """From a fused view to the tasks' predictions (the release's dense head)."""

    def __init__(self, config: M3NetConfig, channels: int) -> None:
        """Take the view's channels."""
        super().__init__()
        self.config, dim = config, config.dim
        self.released = config.compat is Compat.M3NET
        self.sampling = MapSampling.RELEASED if self.released else MapSampling.CENTRE
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
            self.map_queries = MapQueries(
                dim, config.map_classes, config.stripes, config.num_heads, self.sampling
            )
            self.map_project = nn.Conv2d(dim, dim, 1)
            self.map_head = MapHead(dim, config.stripes)
        if has(OCCUPANCY):
            self.voxel_position = PositionEmbedding(3, dim)
            self.occupancy_queries = OccupancyQueries(config.levels, config.pool)
            self.occupancy_head = OccupancyHead(
                dim, config.occupancy_classes, **sizes, released=self.released
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
        features = self.map_project(decoded.memory + decoded.source) * gate
        found = self.config.grid.to_map(features, self.sampling)
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
