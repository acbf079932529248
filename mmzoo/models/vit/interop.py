"""timm's VisionTransformer blocks <-> a Trunk with plain pre-norm blocks.

The trunk's options for such weights: `qkv_bias: all, sub_norm: false, head_gain: false` in the mixer; a
shared feed- forward with `activation: gelu, sub_norm: false`; `norm_eps: 1e-6, layer_scale_init: null,
final_norm: shared`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmzoo.checkpoints.key_map import KeyMap, Row

OUTSIDE = (
    "cls_token",
    "reg_token",
    "pos_embed",
    "patch_embed.",
    "norm_pre.",
    "fc_norm.",
    "head.",
    "attn_pool.",
)
"""What timm keeps outside the blocks: embedding and head, which belong to adapters and heads here."""

ROWS: tuple[Row, ...] = (
    # timm                                   trunk
    ("blocks.{i}.norm1.{p}",                 "blocks.{i}.norm1.{p}"),
    ("blocks.{i}.attn.qkv.{p}",              "blocks.{i}.mixer.qkv.{p}"),
    ("blocks.{i}.attn.norm.{p}",             "blocks.{i}.mixer.norm.{p}"),
    ("blocks.{i}.attn.proj.{p}",             "blocks.{i}.mixer.out.{p}"),
    ("blocks.{i}.ls1.gamma",                 "blocks.{i}.gamma_1"),
    ("blocks.{i}.norm2.{p}",                 "blocks.{i}.norm2.{p}"),
    ("blocks.{i}.mlp.fc1.{p}",               "blocks.{i}.ffn.network.w_in.{p}"),
    ("blocks.{i}.mlp.norm.{p}",              "blocks.{i}.ffn.network.norm.{p}"),
    ("blocks.{i}.mlp.fc2.{p}",               "blocks.{i}.ffn.network.w_out.{p}"),
    ("blocks.{i}.ls2.gamma",                 "blocks.{i}.gamma_2"),
    ("norm.{p}",                             "norm.{p}"),
)  # fmt: skip

KEYS = KeyMap("timm ViT weights", ROWS)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trunk's weights from a timm VisionTransformer's state dict; embedding and head are left
    out.
    """
    return KEYS.to_ours({k: v for k, v in state.items() if not k.startswith(OUTSIDE)})


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a trunk's weights under timm's names."""
    return KEYS.to_theirs(state)
