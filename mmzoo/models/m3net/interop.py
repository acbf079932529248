"""Names of the released M3Net (Cedarch/M3Net, Apache-2.0) and ours, side by side.

What `compat=m3net` keeps of the release: one channel attention for both of MAFI's maps; the map sampled at
its cells' lower edges, on a view stretched to its outer centres (`MapSampling`); the map's features with x
first; box cells that blank map cells of the same number; x and y swapped, and references divided twice, in
the occupancy volume. Its parameters without effect are dropped (`UNUSED`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmzoo.errors import CheckpointError

MAFI = {
    r"conv\.": "joint.",
    r"conv_det\.": "second.",
    r"conv_seg\.": "first.",
    r"se_layer\.att_det\.1\.": "gate_second.",
}
LAYER = r"transformer\.encoder\.layers\.(\d+)\."
DECODER = {
    r"input_proj\.0\.0\.": "project.0.",
    r"input_proj\.0\.1\.": "project.1.",
    r"transformer\.level_embed$": "level_embedding",
    LAYER + r"self_attn\.": r"layers.\1.self_attention.",
    LAYER + r"cross_attn\.": r"layers.\1.cross_attention.",
    LAYER + r"norm1\.": r"layers.\1.memory_norm1.",
    LAYER + r"linear1\.": r"layers.\1.memory_ffn.0.",
    LAYER + r"linear2\.": r"layers.\1.memory_ffn.2.",
    LAYER + r"norm2\.": r"layers.\1.memory_norm2.",
    LAYER + r"norm_query\.": r"layers.\1.query_norm1.",
    LAYER + r"linear1_3\.": r"layers.\1.query_ffn.0.",
    LAYER + r"linear2_3\.": r"layers.\1.query_ffn.2.",
    LAYER + r"norm2_3\.": r"layers.\1.query_norm2.",
    LAYER + r"gate\.proj1\.": r"layers.\1.scaling.proj.boxes.",
    LAYER + r"gate\.gate1\.": r"layers.\1.scaling.out.boxes.",
    LAYER + r"gate\.proj2\.": r"layers.\1.scaling.proj.map.",
    LAYER + r"gate\.gate2\.": r"layers.\1.scaling.out.map.",
    LAYER + r"gate\.proj3\.": r"layers.\1.scaling.proj.occupancy.",
    LAYER + r"gate\.gate3\.": r"layers.\1.scaling.out.occupancy.",
}
HEAD = {
    r"shared_conv\.": "shared.",
    r"pos_layer_(query|key)\.position_embedding_head\.0\.": r"\1_position.first.",
    r"pos_layer_(query|key)\.position_embedding_head\.1\.": r"\1_position.norm.",
    r"pos_layer_(query|key)\.position_embedding_head\.3\.": r"\1_position.second.",
    r"pos_layer_occ\.position_embedding_head\.0\.": "voxel_position.first.",
    r"pos_layer_occ\.position_embedding_head\.1\.": "voxel_position.norm.",
    r"pos_layer_occ\.position_embedding_head\.3\.": "voxel_position.second.",
    r"heatmap_head\.0\.conv\.": "box_queries.heatmap.0.0.",
    r"heatmap_head\.0\.bn\.": "box_queries.heatmap.0.1.",
    r"heatmap_head\.1\.": "box_queries.heatmap.1.",
    r"center_query\.": "box_queries.embedding.",
    r"center_norm\.": "box_queries.norm.",
    r"center_mlp\.": "box_queries.mlp.",
    r"prediction_head\.(\w+)\.0\.0\.": r"box_head.attributes.\1.0.",
    r"prediction_head\.(\w+)\.1\.": r"box_head.attributes.\1.2.",
    r"gate_map\.": "map_queries.pixel.",
    r"querymap_cls_feat\.": "map_queries.embedding.",
    r"seg_map_attn\.self_attn\.": "map_queries.across_stripes.attention.",
    r"seg_map_attn\.norm\.": "map_queries.across_stripes.norm.",
    r"dist_map_attn\.self_attn\.": "map_queries.across_classes.attention.",
    r"dist_map_attn\.norm\.": "map_queries.across_classes.norm.",
    r"map_norm_dec\.": "map_head.norm.",
    r"map_embed_dec\.": "map_head.mlp.",
    r"occ_attn\.(\d+)\.self_attn\.": r"occupancy_head.attention.\1.",
    r"voxel_mlp_head\.": "occupancy_head.classify.",
    r"mask_embed\.weight$": "occupancy_head.empty",
    r"pixel_decoder\.map_features\.conv\.": "map_project.",
}
UNUSED = re.compile(
    r"(^|\.)(se_layer\.att_seg|segmap_head|class_encoding|gate_heat|center_embed|center_map_norm|map_norm_enc"
    r"|map_embed_enc|query_feat|query_embed|predictor|adapter_1|heatmap_features|layer_1|line_features"
    r"|mask_features|map_features\.fc|query_attn|linear[12]_[24]|norm2_[24]|gate\.ln)(\.|$)"
)
"""Parameters that the release keeps without effect."""


def from_mafi(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the fuser's weights under our names."""
    return _rename(state, MAFI)


def from_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the pixel decoder's weights under our names; the map's projection belongs to the body."""
    return _rename({k: v for k, v in state.items() if not k.startswith("map_features.")}, DECODER)


def from_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dense head's weights under the names of `M3NetBody`.

    One-dimensional convolutions of width 1 become linear maps.
    """
    own = "pixel_decoder.map_features."
    inner = {
        k.removeprefix("pixel_decoder."): v
        for k, v in state.items()
        if k.startswith("pixel_decoder.") and not k.startswith(own)
    }
    outer = {k: v for k, v in state.items() if not k.startswith("pixel_decoder.") or k.startswith(own)}
    found = _rename(outer, HEAD) | {f"decoder.{k}": v for k, v in _rename(inner, DECODER).items()}
    return {k: v[..., 0] if v.ndim == 3 else v for k, v in found.items()}


def _rename(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if UNUSED.search(name):
            continue
        for pattern, ours in table.items():
            if re.match(pattern, name):
                found[re.sub(f"^{pattern}", ours, name)] = tensor
                break
        else:
            where, do = f"m3net weight {name!r}", "Check that the file is an M3Net checkpoint."
            raise CheckpointError.at(where, "unknown", "a name of the release", do)
    return found
