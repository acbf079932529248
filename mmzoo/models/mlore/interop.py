"""The reference's weights <-> ours: a plain ViT, MLoRE's decoder and one dense head a task.

The reference's ViT has no CLS token in its sequence, yet its position table keeps CLS's row; the table and
the routers' pixel weights belong to one image size (here both are resized where another is given). Files are
`{"model": …, "optimizer": …}` with `module.` before each name. ViT-B models carry weights that the released
code never reads, see `UNUSED`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from mmzoo import schema
from mmzoo.checkpoints.key_map import KeyMap, Row
from mmzoo.errors import CheckpointError
from mmzoo.models.multimodal import MultimodalModel

MODALITY = "image"
WRAPPER = "module."
"""What DistributedDataParallel put before each name."""
UNUSED = r"backbone\.(q_fuse|classify_route_[12])\..+|aux_heads\..+"
"""Names of weights that no forward pass of the release reads."""
POSITIONS = ("backbone.pos_embed", "adapters.image.positions.table")

BACKBONE: tuple[Row, ...] = (
    # MLoRE                                        mmzoo
    POSITIONS,
    ("backbone.patch_embed.proj.{p}",              "adapters.image.stem.proj.{p}"),
    ("backbone.blocks.{i}.norm1.{p}",              "trunk.blocks.{i}.norm1.{p}"),
    ("backbone.blocks.{i}.attn.qkv.{p}",           "trunk.blocks.{i}.mixer.qkv.{p}"),
    ("backbone.blocks.{i}.attn.proj.{p}",          "trunk.blocks.{i}.mixer.out.{p}"),
    ("backbone.blocks.{i}.norm2.{p}",              "trunk.blocks.{i}.norm2.{p}"),
    ("backbone.blocks.{i}.mlp.fc1.{p}",            "trunk.blocks.{i}.ffn.network.w_in.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}",            "trunk.blocks.{i}.ffn.network.w_out.{p}"),
    ("backbone.norm.{p}",                          "trunk.norm.{p}"),
)  # fmt: skip

BLOCK: tuple[tuple[str, str], ...] = (
    # in backbone.MLoRE_<1|2>.{l}                  in decoder.<first|second>.{l}
    ("lora_list_1.{e}.W.{p}",                      "experts.{e}.down.{p}"),
    ("lora_list_1.{e}.M.{p}",                      "experts.{e}.up.{p}"),
    ("share_conv.{p}",                             "share.{p}"),
    ("conv1.{t}.{p}",                              "branches.{t}.enter.{p}"),
    ("conv2.{t}.W.{p}",                            "branches.{t}.own.down.{p}"),
    ("conv2.{t}.M.{p}",                            "branches.{t}.own.up.{p}"),
    ("conv3.{t}.{p}",                              "branches.{t}.leave.{p}"),
    ("bn.{t}.{p}",                                 "branches.{t}.norm.{p}"),
    ("bn_all.{t}.{p}",                             "branches.{t}.mixture_norm.{p}"),
    ("router_1.{t}.0.conv1.{p}",                   "branches.{t}.router.conv1.{p}"),
    ("router_1.{t}.0.conv2.{p}",                   "branches.{t}.router.conv2.{p}"),
    ("router_1.{t}.0.conv3.{p}",                   "branches.{t}.router.conv3.{p}"),
    ("router_1.{t}.0.convsp.{p}",                  "branches.{t}.router.pool.{p}"),
    ("router_1.{t}.0.ln.{p}",                      "branches.{t}.router.norm.{p}"),
    ("router_1.{t}.0.ln_sp.{p}",                   "branches.{t}.router.pool_norm.{p}"),
    ("router_1.{t}.1.{p}",                         "branches.{t}.router.out.{p}"),
)  # fmt: skip

DECODER: tuple[Row, ...] = (
    ("backbone.fea_fuse.{l}.{p}",                  "decoder.fuse.{l}.{p}"),
    ("backbone.task_mask.{t}.{i}.{p}",             "decoder.masks.{t}.{i}.{p}"),
    ("heads.{t}.mt_proj.0.{p}",                    "heads.{t}.conv.{p}"),
    ("heads.{t}.mt_proj.1.{p}",                    "heads.{t}.norm.{p}"),
    ("heads.{t}.linear_pred.{p}",                  "heads.{t}.out.{p}"),
    *((f"backbone.MLoRE_1.{{l}}.{theirs}",         f"decoder.first.{{l}}.{ours}") for theirs, ours in BLOCK),
    *((f"backbone.MLoRE_2.{{l}}.{theirs}",         f"decoder.second.{{l}}.{ours}") for theirs, ours in BLOCK),
)  # fmt: skip

KEYS = KeyMap("MLoRE weights", (*BACKBONE, *DECODER))


class Loaded(NamedTuple):
    """A model's weights, and the names of the file that nothing reads."""

    state: dict[str, Tensor]
    unused: tuple[str, ...]


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return name in the file -> name without the wrapper."""
    return {name: name.removeprefix(WRAPPER) for name in names}


def from_mlore(state: Mapping[str, Tensor]) -> Loaded:
    """Return a MultimodalModel's weights from the `model` entry of a released file."""
    plain = {new: state[old] for old, new in plain_names(state).items()}
    unused = tuple(name for name in plain if re.fullmatch(UNUSED, name))
    made = KEYS.to_ours({k: v for k, v in plain.items() if k not in unused})
    if POSITIONS[1] in made:
        made[POSITIONS[1]] = made[POSITIONS[1]][0]
    return Loaded(made, unused)


def to_mlore(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's weights under the reference's names, without wrapper."""
    made = KEYS.to_theirs(state)
    if POSITIONS[0] in made:
        made[POSITIONS[0]] = made[POSITIONS[0]][None]
    return made


def options_of(
    state: Mapping[str, Tensor], *, image_size: tuple[int, int], num_heads: int, **decoder: Any
) -> MultimodalModel.Config:
    """Return the options of the model that a file's weights belong to, as far as their shapes tell.

    The rest: the image's height and width in pixels, the attention heads (the released ViTs have one a
    64 channels), and of `decoder` at least top_k and gate_order (see MloreConfig).
    """
    shapes = {new: tuple(state[old].shape) for old, new in plain_names(state).items()}
    patch = _shape(shapes, "backbone.patch_embed.proj.weight")
    grid = [side // patch[2] for side in image_size]
    entries = _shape(shapes, POSITIONS[0])[1]
    if entries != 1 + grid[0] * grid[1]:
        found = f"{entries - 1} positions for images of {image_size[0]} x {image_size[1]}"
        do = "Give the size that the weights were trained at."
        raise CheckpointError.at("MLoRE weights", found, f"{grid[0] * grid[1]}", do)
    first = "backbone.MLoRE_1.0."
    ranks = [
        _shape(shapes, f"{first}lora_list_1.{e}.W.weight")[0]
        for e in range(_count(shapes, f"{first}lora_list_1"))
    ]
    matches = {name: re.fullmatch(r"heads\.([^.]+)\.linear_pred\.weight", name) for name in shapes}
    tasks = {match[1]: shapes[name][0] for name, match in matches.items() if match}
    tree: dict[str, Any] = {
        "modalities": {
            MODALITY: {
                "type": "image", "stem": "conv", "patch_size": patch[2],
                "preprocess": {"size": list(image_size)},
                "position_grid": grid[0], "position_cols": grid[1], "num_bias_tables": 0, "cls_token": False,
            }
        },
        "trunk": {
            "dim": patch[0], "depth": _count(shapes, "backbone.blocks"), "num_heads": num_heads,
            "norm_eps": 1e-6, "layer_scale_init": None, "final_norm": "shared",
            "mixer": {"type": "attention", "qkv_bias": "all", "sub_norm": False},
            "ffn": {
                "type": "shared", "activation": "gelu", "sub_norm": False,
                "hidden_dim": _shape(shapes, "backbone.blocks.0.mlp.fc1.weight")[0],
            },
        },
        "decoder": {
            "type": "mlore", "width": _shape(shapes, "backbone.fea_fuse.0.weight")[0], "ranks": ranks,
            "task_rank": _shape(shapes, f"{first}conv2.{next(iter(tasks))}.W.weight")[0],
            "pool_grid": grid, **decoder,
        },
        "heads": {
            task: {
                "head": {"type": "dense", "num_channels": channels}, "passes": [MODALITY],
            }
            for task, channels in tasks.items()
        },
    }  # fmt: skip
    return schema.parse(MultimodalModel.Config, tree, "MLoRE")


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError.at("MLoRE weights", f"no {name}", "a whole model", "Check the file.")
    return shapes[name]


def _count(names: Iterable[str], prefix: str) -> int:
    """Return how many numbered parts there are below a prefix."""
    return len(
        {name.removeprefix(f"{prefix}.").split(".")[0] for name in names if name.startswith(f"{prefix}.")}
    )
