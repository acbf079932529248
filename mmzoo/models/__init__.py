"""Adapters, trunk and heads put together, and one folder a published family."""

from mmzoo.registry import Row

TABLE = {
    "multimodal": Row("mmzoo.models.multimodal:MultimodalModel", "adapters, one trunk, heads (the default)"),
    "m3net": Row("mmzoo.models.m3net.model:M3Net", "boxes, map and occupancy from bird's-eye views (M3Net)"),
}
