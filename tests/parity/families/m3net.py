"""M3Net (Apache-2.0): MAFI, the shared decoder with channel scaling, the head from view to boxes and map.

Sizes come from the json and the weights' shapes; what neither tells (the map's reach
of 50 m) is the release's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmzoo.layers.mafi import ChannelAttention, Mafi
from mmzoo.models.m3net.decoder import DecoderLayer, SharedDecoder
from mmzoo.models.m3net.grid import GridConfig, MapSampling
from mmzoo.models.m3net.heads import ATTRIBUTES
from mmzoo.models.m3net.interop import from_decoder, from_head, from_mafi
from mmzoo.models.m3net.model import M3NetBody
from mmzoo.models.m3net.options import BOXES, MAP, OCCUPANCY, Compat, M3NetConfig
from mmzoo.models.m3net.queries import Queries
from tests.parity.golden import Golden, Row

TOLERANCE = 1e-5
MAP_RANGE_M, RANGE_M, STRIPES = 50.0, 54.0, 5
FILLER = 11
"""compat(m3net): the release's label list carries as many of these as there are box queries."""


def outputs(golden: Golden) -> set[str]:
    """Return the names of all outputs."""
    return {name for name in golden.tensors if name.startswith("out/")}


def rows(golden: Golden) -> Iterator[Row]:
    """Run the part that the file holds; integers must agree exactly."""
    state = golden.under("state/")
    with torch.no_grad():
        if any(k.startswith("conv_det.") for k in state):
            found = _mafi(golden)
        elif any(k.startswith("pixel_decoder.") for k in state):
            found = _head(golden)
        else:
            found = _decoder(golden)
    for name in sorted(outputs(golden) & set(found)):
        expected = golden.tensors[name]
        exact = not expected.is_floating_point()
        values = found[name] if exact else found[name].to(expected.dtype)
        large = not exact and float(expected.abs().max()) > 1.0  # metres and features
        yield Row(name, values, expected, 0.0 if exact else TOLERANCE, relative=large)


def _mafi(golden: Golden) -> dict[str, Tensor]:
    camera, lidar = (golden.tensors[f"in/spatial_features_{x}"] for x in ("img", "lidar"))
    state = golden.under("state/")
    dim = state["conv.0.weight"].shape[0]
    fuser = Mafi(camera.shape[1], lidar.shape[1], dim, ChannelAttention.SHARED)
    fuser.load_state_dict(from_mafi(state), strict=True)
    return {"out/spatial_features": fuser.eval()(camera, lidar)}


def _grid(record: Mapping[str, Any], cells: int, map_cells: int) -> GridConfig:
    reach = record.get("point_cloud_range")
    range_m = float(reach[3]) if reach else RANGE_M
    return GridConfig(cells=cells, range_m=range_m, map_cells=map_cells, map_range_m=MAP_RANGE_M)


def _decoder(golden: Golden) -> dict[str, Tensor]:
    record, state = golden.record, golden.under("state/")
    features, where = golden.tensors["in/features"], golden.tensors["in/bev_pos_embed"]
    grid = _grid(record, features.shape[-1], golden.tensors["out/map_features"].shape[-1])
    decoder = _shared(record, state, features.shape[1]).eval()
    decoder.load_state_dict(from_decoder(state), strict=True)
    sizes = {
        BOXES: record["num_det_queries"],
        MAP: record["num_seg_queries"],
        OCCUPANCY: record["num_occ_queries"],
    }
    queries = _queries(golden, sizes)
    seen: dict[str, Tensor] = {}
    first = decoder.layers[0]
    assert isinstance(first, DecoderLayer)
    _watch(first, seen)
    decoded = decoder(features, where.flatten(2).transpose(1, 2), queries, grid)
    conv = nn.Conv2d(decoded.memory.shape[1], decoded.memory.shape[1], 1)
    conv.load_state_dict({k: state[f"map_features.conv.{k}"] for k in ("weight", "bias")})
    gate = decoded.gates[MAP].transpose(1, 2).unflatten(2, decoded.memory.shape[2:])
    features = conv(decoded.memory + decoded.source) * gate
    maps = grid.to_map(features, MapSampling.RELEASED).transpose(2, 3)
    found = {
        "out/query": torch.cat([decoded.queries[t] for t in sizes], dim=1),
        "out/memory": decoded.memory,
        "out/map_features": maps,
        "out/layer0_src": seen["memory"],
        "out/layer0_query": seen["query"],
        "out/selfattn0_query": seen["attention/query"],
        "out/selfattn0_ref": seen["attention/reference"][:, :, None],
        "out/selfattn0_value": seen["attention/value"].flatten(2).transpose(1, 2),
        "out/selfattn0_out": seen["attention/out"],
        "out/tcs0_in": seen["memory"],
    }
    names = {"det": BOXES, "seg": MAP, "occ": OCCUPANCY}
    return found | {f"out/tcs0_{k}": first.scaling.gate(seen["memory"], t) for k, t in names.items()}


def _shared(record: Mapping[str, Any], state: Mapping[str, Tensor], channels: int) -> SharedDecoder:
    dim = state["transformer.level_embed"].shape[1]
    number = {int(k.split(".")[3]) for k in state if k.startswith("transformer.encoder.layers.")}
    hidden = state["transformer.encoder.layers.0.linear1.weight"].shape[0]
    tasks = (BOXES, MAP, OCCUPANCY)
    heads = record.get("nheads", 8)
    return SharedDecoder(channels, dim, tasks, layers=len(number), hidden=hidden, num_heads=heads)


def _queries(golden: Golden, sizes: Mapping[str, int]) -> dict[str, Queries]:
    parts = [golden.tensors[f"in/{k}"] for k in ("query_feat", "query_embed")]
    features, embedding = (x.transpose(1, 2).split(list(sizes.values()), dim=1) for x in parts)
    positions = golden.tensors["in/query_pos"].split(list(sizes.values()), dim=1)
    made = zip(features, embedding, positions, strict=True)
    return {task: Queries(f, e, p) for task, (f, e, p) in zip(sizes, made, strict=True)}


def _watch(layer: DecoderLayer, seen: dict[str, Tensor]) -> None:
    """Note what goes in and out of a layer's parts."""

    def attention(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.update(
            {f"attention/{k}": v for k, v in zip(("query", "reference", "value"), given, strict=True)}
        )
        seen["attention/out"] = out

    layer.self_attention.register_forward_hook(attention)

    def norm(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, given, out: seen.__setitem__(name, out)

    layer.memory_norm2.register_forward_hook(norm("memory"))
    layer.query_norm2.register_forward_hook(norm("query"))


def options(golden: Golden) -> tuple[M3NetConfig, int]:
    """Return the options of a head's file, and the channels of its view."""
    record, state = golden.record, golden.under("state/")
    view = golden.tensors["in/spatial_features_2d"]
    classes, stripes = (
        golden.tensors["out/dense_heatmap"].shape[1],
        golden.tensors["out/top_seg_index"].shape[1],
    )
    numbers = {
        int(k.split(".")[4]) for k in state if k.startswith("pixel_decoder.transformer.encoder.layers.")
    }
    config = M3NetConfig(
        dim=state["shared_conv.weight"].shape[0],
        layers=len(numbers),
        hidden_dim=state["pixel_decoder.transformer.encoder.layers.0.linear1.weight"].shape[0],
        tasks=[BOXES, MAP],
        num_boxes=record["num_det_queries"],
        num_classes=classes,
        map_classes=state["querymap_cls_feat.weight"].shape[0],
        stripes=stripes,
        grid=_grid(record, view.shape[-1], golden.tensors["out/masks_bev"].shape[-1]),
        compat=Compat.M3NET,
    )
    return config, view.shape[1]


def _head(golden: Golden) -> dict[str, Tensor]:
    config, channels = options(golden)
    body = M3NetBody(config, channels)
    body.load_state_dict(from_head(golden.under("state/")), strict=True)
    out = body.eval()(golden.tensors["in/spatial_features_2d"])
    boxes, maps = out.queries[BOXES], out.queries[MAP]
    joined = {
        "feat": torch.cat([boxes.features, maps.features], dim=1).transpose(1, 2),
        "embed": torch.cat([boxes.embedding, maps.embedding], dim=1).transpose(1, 2),
        "pos": torch.cat([boxes.positions, maps.positions], dim=1),
        "labels": F.pad(boxes.extra["classes"], (0, config.num_boxes), value=FILLER).int(),
    }
    made, scores, classes = (out.boxes[k] for k in ("boxes", "scores", "classes"))
    near = (made[..., :2].abs() <= 61.2).all(dim=-1) & (made[..., 2].abs() <= 10.0)
    return {
        **{f"out/query_{k}": v for k, v in joined.items()},
        **{f"out/head_{k}": out.boxes[k].transpose(1, 2) for k in (*ATTRIBUTES, "heatmap")},
        "out/dense_heatmap": out.boxes["dense"],
        "out/heatmap_nms": boxes.extra["scores"],
        "out/top_proposals_index": boxes.extra["cells"].int(),
        "out/top_seg_index": maps.extra["within"].int(),
        "out/map_features_enc": maps.extra["pixels"],
        "out/pred_map_enc": maps.extra["logits"],
        "out/masks_bev": out.map["logits"].sigmoid(),
        "out/pred_boxes": made[near],
        "out/pred_scores": scores[near],
        "out/pred_labels": (classes[near] + 1).int(),
    }
