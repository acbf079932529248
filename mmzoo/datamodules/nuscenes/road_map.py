"""The map expansion of nuScenes: areas and lines of a place, drawn around a vehicle.

Why: the published devkit draws it with three further packages; areas filled by the even-odd rule and lines as
bands give the same six layers.

Ref: nuScenes map expansion v1.3, maps/expansion/<location>.json; layers as BEVFusion's map labels have them.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mmzoo.datamodules.faults import decoding

AREAS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
LINES = ("road_divider", "lane_divider")
"""Together the layer `divider`, the last one."""
FOLDER = "maps/expansion"
LINE_M = 0.5
"""How far to both sides a line reaches."""
Array = np.ndarray


Shape = tuple[Float[Array, "_ 2"], ...]
"""An area (its outline, then its holes) or a line, in metres of the place."""


@dataclass(frozen=True)
class Layer:
    """The shapes of a layer, with their lowest and highest corners."""

    shapes: tuple[Shape, ...]
    low: Float[Array, "n 2"]
    high: Float[Array, "n 2"]

    @staticmethod
    def of(shapes: Iterable[Shape]) -> Layer:
        """Measure shapes."""
        kept = tuple(shapes)
        low = [np.concatenate(shape).min(axis=0) for shape in kept]
        high = [np.concatenate(shape).max(axis=0) for shape in kept]
        return Layer(kept, np.array(low).reshape(-1, 2), np.array(high).reshape(-1, 2))

    def near(self, centre: Float[Array, " 2"], reach_m: float) -> Iterator[Shape]:
        """Yield the shapes that a square around a place may hold parts of."""
        within = (self.low <= centre + reach_m) & (self.high >= centre - reach_m)
        for number in np.flatnonzero(np.all(within, axis=1)):
            yield self.shapes[number]


@functools.lru_cache(maxsize=4)
def read_place(path: Path) -> tuple[Layer, ...]:
    """Read the six layers of a place; kept, since a file is tens of megabytes."""
    with decoding(path.name):
        tables: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        nodes = {n["token"]: (float(n["x"]), float(n["y"])) for n in tables["node"]}
        polygons = {p["token"]: p for p in tables["polygon"]}
        lines = {row["token"]: row for row in tables["line"]}
        areas = [Layer.of(_areas(tables.get(layer, ()), polygons, nodes)) for layer in AREAS]
        marks = [s for layer in LINES for s in _lines(tables.get(layer, ()), lines, nodes)]
        return (*areas, Layer.of(marks))


def draw(
    layers: Sequence[Layer], to_global: Float[Array, "4 4"], cells: int, range_m: float
) -> Bool[Array, "k y x"]:
    """Return which layers hold at the middles of cells around a vehicle, in its frame seen from above.

    Math: x and y of the frame's motion to the place, turned by the heading of its x axis alone.
    """
    heading = np.arctan2(to_global[1, 0], to_global[0, 0])
    cos, sin = np.cos(heading), np.sin(heading)
    turn, centre = np.array([[cos, -sin], [sin, cos]]), to_global[:2, 3]
    reach = np.sqrt(2) * range_m + LINE_M
    out = np.zeros((len(layers), cells, cells), dtype=bool)
    for number, layer in enumerate(layers):
        for shape in layer.near(centre, reach):
            rings = [((ring - centre) @ turn + range_m) * cells / (2 * range_m) for ring in shape]
            if number < len(AREAS):
                out[number] |= fill(rings, cells)
            else:
                out[number] |= band(rings[0], cells, LINE_M * cells / (2 * range_m))
    return out


def fill(rings: Sequence[Float[Array, "_ 2"]], cells: int) -> Bool[Array, "y x"]:
    """Return the cells whose middle lies inside an odd number of rings; places count cells.

    Math: an edge that crosses a row's middle flips all middles to the right of the crossing.
    """
    flips = np.zeros((cells, cells + 1), dtype=np.int64)
    middles = np.arange(cells) + 0.5
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        crosses = (start[:, 1:] <= middles) != (end[:, 1:] <= middles)
        edge, row = np.nonzero(crosses)
        (x0, y0), (x1, y1) = start[edge].T, end[edge].T
        at = x0 + (middles[row] - y0) / (y1 - y0) * (x1 - x0)
        column = np.clip(np.ceil(at - 0.5), 0, cells).astype(np.int64)
        np.add.at(flips, (row, column), 1)
    return flips[:, :-1].cumsum(axis=1) % 2 == 1


def band(line: Float[Array, "p 2"], cells: int, reach: float) -> Bool[Array, "y x"]:
    """Return the cells whose middle lies within `reach` of a line; places count cells."""
    out = np.zeros((cells, cells), dtype=bool)
    for start, end in itertools.pairwise(line):
        low = np.clip(np.floor(np.minimum(start, end) - reach), 0, cells).astype(int)
        high = np.clip(np.ceil(np.maximum(start, end) + reach), 0, cells).astype(int)
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]] + 0.5
        along = end - start
        length = max(float(along @ along), 1e-12)
        share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length, 0, 1)
        far = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
        out[low[1] : high[1], low[0] : high[0]] |= far <= reach
    return out


def _areas(
    rows: Sequence[Mapping[str, Any]], polygons: Mapping[str, Any], nodes: Mapping[str, tuple[float, float]]
) -> Iterator[Shape]:
    for row in rows:
        for token in row.get("polygon_tokens") or [row["polygon_token"]]:
            polygon = polygons[token]
            holes = [hole["node_tokens"] for hole in polygon.get("holes", ())]
            rings = [_places(tokens, nodes) for tokens in (polygon["exterior_node_tokens"], *holes)]
            if len(rings[0]) > 2:
                yield tuple(rings)


def _lines(
    rows: Sequence[Mapping[str, Any]], lines: Mapping[str, Any], nodes: Mapping[str, tuple[float, float]]
) -> Iterator[Shape]:
    for row in rows:
        places = _places(lines[row["line_token"]]["node_tokens"], nodes)
        if len(places) > 1:
            yield (places,)


def _places(tokens: Sequence[str], nodes: Mapping[str, tuple[float, float]]) -> Float[Array, "_ 2"]:
    return np.array([nodes[t] for t in tokens]).reshape(-1, 2)
