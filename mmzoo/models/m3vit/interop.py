"""M3ViT's weights <-> a MultimodalModel: adapter `image`, a routed trunk, decoder `final`, heads `upsample`.

Its experts may be spread over several files (expert parallelism: a folder 0.pth, 1.pth, …), which are joined
here. Gates are stored transposed. The `tam_model*` weights serve training only and have no place here.
Ref: M3ViT (Liang et al. 2022); the code's README for the folder of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.checkpoints.key_map import KeyMap, Row
from mmzoo.checkpoints.restricted import load_torch
from mmzoo.errors import CheckpointError
from mmzoo.models.multimodal import MultimodalModel

TRAINING_ONLY = ("tam_model",)
EXPERT = re.compile(r"mlp\.experts\.")
GATE = re.compile(r"\.mlp\.gate\.(?:\d+\.)?w_(?:gate|noise)$|\.ffn\.router\.gates?\..*(?:weight|noise)$")
"""Weights whose two axes are the other way round."""
POSITIONS = "backbone.pos_embed"
HEAD = re.compile(r"decoders\.(?P<t>[^.]+)\.conv_(?P<i>\d+)\.(?P<p>weight|bias)")

BACKBONE: tuple[Row, ...] = (
    # M3ViT                                          mmzoo
    ("backbone.cls_token",                           "adapters.image.cls_token"),
    (POSITIONS,                                      "adapters.image.positions.table"),
    ("backbone.patch_embed.proj.{p}",                "adapters.image.stem.proj.{p}"),
    ("backbone.gate_task_represent.{l}.{p}",         "trunk.task_embedding.{l}.{p}"),
    ("backbone.blocks.{i}.norm1.{p}",                "trunk.blocks.{i}.norm1.{p}"),
    ("backbone.blocks.{i}.attn.qkv.{p}",             "trunk.blocks.{i}.mixer.qkv.{p}"),
    ("backbone.blocks.{i}.attn.proj.{p}",            "trunk.blocks.{i}.mixer.out.{p}"),
    ("backbone.blocks.{i}.norm2.{p}",                "trunk.blocks.{i}.norm2.{p}"),
    ("backbone.blocks.{i}.mlp.fc1.{p}",              "trunk.blocks.{i}.ffn.network.w_in.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}",              "trunk.blocks.{i}.ffn.network.w_out.{p}"),
    ("backbone.blocks.{i}.mlp.experts.htoh4.weight", "trunk.blocks.{i}.ffn.experts.w_in"),
    ("backbone.blocks.{i}.mlp.experts.htoh4.bias",   "trunk.blocks.{i}.ffn.experts.b_in"),
    ("backbone.blocks.{i}.mlp.experts.h4toh.weight", "trunk.blocks.{i}.ffn.experts.w_out"),
    ("backbone.blocks.{i}.mlp.experts.h4toh.bias",   "trunk.blocks.{i}.ffn.experts.b_out"),
    ("backbone.blocks.{i}.mlp.gate.w_gate",          "trunk.blocks.{i}.ffn.router.gate.weight"),
    ("backbone.blocks.{i}.mlp.gate.w_noise",         "trunk.blocks.{i}.ffn.router.gate.noise"),
)  # fmt: skip

DECODER: tuple[Row, ...] = (
    ("decoders.{t}.norm.{p}",                        "decoder.branches.{t}.norm.{p}"),
    ("decoders.{t}.conv_0.{p}",                      "decoder.branches.{t}.conv.{p}"),
    ("decoders.{t}.syncbn_fc_0.{p}",                 "decoder.branches.{t}.conv_norm.{p}"),
)  # fmt: skip


def key_map(tasks: Sequence[str], num_convs: int) -> KeyMap:
    """Return the table for these tasks, in the order that the gates are numbered in."""
    rows: list[Row] = [*BACKBONE, *DECODER]
    for n, task in enumerate(tasks):
        block = f"trunk.blocks.{{i}}.ffn.router.gates.{task}"
        rows.append((f"backbone.blocks.{{i}}.mlp.gate.{n}.w_gate", f"{block}.weight"))
        rows.append((f"backbone.blocks.{{i}}.mlp.gate.{n}.w_noise", f"{block}.noise"))
        for i in range(1, num_convs):
            rows.append((f"decoders.{task}.conv_{i}.{{p}}", f"heads.{task}.convs.{i - 1}.{{p}}"))
            rows.append((f"decoders.{task}.syncbn_fc_{i}.{{p}}", f"heads.{task}.norms.{i - 1}.{{p}}"))
        rows.append((f"decoders.{task}.conv_{num_convs}.{{p}}", f"heads.{task}.out.{{p}}"))
    return KeyMap("M3ViT weights", rows)


def from_m3vit(state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return a model's weights from M3ViT's; `tasks` in the order of its gates."""
    kept = {k: v for k, v in state.items() if not k.startswith(TRAINING_ONLY)}
    kept = {k: v.t().contiguous() if GATE.search(k) else v for k, v in kept.items()}
    kept = {k: v[0] if k == POSITIONS else v for k, v in kept.items()}
    return key_map(tasks, num_convs(kept)).to_ours(kept)


def to_m3vit(state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return a model's weights under M3ViT's names."""
    tail = re.compile(r"heads\.[^.]+\.convs\.(\d+)\.weight")
    count = 2 + max((int(m[1]) for k in state if (m := tail.fullmatch(k))), default=-1)
    turned = {k: v.t().contiguous() if GATE.search(k) else v for k, v in state.items()}
    made = key_map(tasks, count).to_theirs(turned)
    return {k: v[None] if k == POSITIONS else v for k, v in made.items()}


def num_convs(state: Mapping[str, Tensor]) -> int:
    """Return how many 3x3 convolutions a decoder has; the one after them is 1x1."""
    found = [int(m["i"]) for k in state if (m := HEAD.fullmatch(k))]
    if not found:
        raise CheckpointError.at("M3ViT weights", "no decoder", "decoders.TASK.conv_0", "Check the file.")
    return max(found)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Join the files of an expert-parallel run: experts one behind the other, the rest from the first."""
    paths = sorted(folder.glob("*.pth"), key=lambda p: int(p.stem) if p.stem.isdigit() else -1)
    if not paths or [p.stem for p in paths] != [str(i) for i in range(len(paths))]:
        found = ", ".join(p.name for p in paths) or "no .pth file"
        raise CheckpointError.at(str(folder), found, "0.pth, 1.pth, … without a gap", "Copy all files.")
    return join_ranks([_weights(load_torch(path)) for path in paths])


def join_ranks(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the experts of all ranks; every other weight is the same on each."""
    return {
        key: torch.cat([state[key] for state in states]) if EXPERT.search(key) else value
        for key, value in states[0].items()
    }


def _weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    for name in ("state_dict", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    return {k.removeprefix("module."): v for k, v in checkpoint.items() if isinstance(v, Tensor)}


def config_of(
    state: Mapping[str, Tensor],
    tasks: Sequence[str],
    *,
    num_heads: int,
    image_size: tuple[int, int],
    top_k: int,
    noisy: bool = False,
) -> MultimodalModel.Config:
    """Return the options of the model that these weights belong to.

    What shapes do not tell: attention heads, image size (pixels), experts a token, and whether the gates
    are of type `noisy` (learned noise, renormalised) or `noisy_vmoe`. With one expert a token renormalised
    weights are 1; `straight_through` has these values and lets training reach the gates.
    """
    stem = state["backbone.patch_embed.proj.weight"]
    dim, patch = stem.shape[0], stem.shape[2]
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("backbone.blocks."))
    experts = state["backbone.blocks.1.mlp.experts.htoh4.weight"]
    vector = state.get("backbone.gate_task_represent.fc2.weight")
    router = {
        "type": "task_topk" if vector is None else "task_embedding",
        "top_k": top_k,
        "weights": ("renormalised" if top_k > 1 else "straight_through") if noisy else "full",
        "noise": "learned" if noisy else "constant",
        **({} if vector is None else {"task_dim": vector.shape[0]}),
    }
    plain = {"activation": "gelu", "sub_norm": False}
    convs = num_convs(state)
    tree = {
        "modalities": {
            "image": {
                "type": "image",
                "stem": "conv",
                "patch_size": patch,
                "position_grid": image_size[0] // patch,
                "position_cols": image_size[1] // patch,
                "num_bias_tables": 0,
                "preprocess": {"size": list(image_size)},
            }
        },
        "trunk": {
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "norm_eps": 1e-6,
            "layer_scale_init": None,
            "final_norm": "none",
            "mixer": {"qkv_bias": "all", "sub_norm": False},
            "ffn": {
                "type": "moe",
                **plain,
                "every": 2,
                "num_experts": experts.shape[0],
                "hidden_dim": experts.shape[1],
                "router": router,
                "dense": {
                    "type": "shared",
                    **plain,
                    "hidden_dim": state["backbone.blocks.0.mlp.fc1.weight"].shape[0],
                },
                "balance": {"load_balance_weight": 0.0, "cv2_weight": 0.01, "scope": "task"},
            },
        },
        "decoder": {
            "type": "final",
            "width": state[f"decoders.{tasks[0]}.conv_0.weight"].shape[0],
        },
        "heads": {
            task: {
                "head": {
                    "type": "upsample",
                    "num_channels": state[f"decoders.{task}.conv_{convs}.weight"].shape[0],
                    "upsample": convs - 1,
                },
                "passes": ["image"],
            }
            for task in tasks
        },
    }
    return schema.parse(MultimodalModel.Config, tree, "M3ViT")
