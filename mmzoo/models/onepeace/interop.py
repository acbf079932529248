"""The reference's weights <-> ours. Trunk keys only so far: `encoder_wrapper.fusion_model.*`.

The trunk's options for them are its defaults (`norm_eps` 1e-5 everywhere). The reference keeps q, k and
v apart and has no bias on k; the two halves of GeGLU are `wi_0` (through GELU) and `wi_1`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmzoo.checkpoints.key_map import KeyMap, Row

TRUNK_PREFIX = "encoder_wrapper.fusion_model."
MODALITIES = ("text", "image", "audio")
"""In the order of the reference's joint passes."""

TRUNK_ROWS: tuple[Row, ...] = (
    # ONE-PEACE                                            trunk
    ("layers.{i}.self_attn_layer_norm.{p}",                "blocks.{i}.norm1.{p}"),
    (("layers.{i}.self_attn.q_proj.weight",
      "layers.{i}.self_attn.k_proj.weight",
      "layers.{i}.self_attn.v_proj.weight"),               "blocks.{i}.mixer.qkv.weight"),
    ("layers.{i}.self_attn.q_proj.bias",                   "blocks.{i}.mixer.q_bias"),
    ("layers.{i}.self_attn.v_proj.bias",                   "blocks.{i}.mixer.v_bias"),
    ("layers.{i}.self_attn.c_attn",                        "blocks.{i}.mixer.head_gain"),
    ("layers.{i}.self_attn.ln.{p}",                        "blocks.{i}.mixer.norm.{p}"),
    ("layers.{i}.self_attn.out_proj.{p}",                  "blocks.{i}.mixer.out.{p}"),
    ("layers.{i}.gamma_1",                                 "blocks.{i}.gamma_1"),
    ("layers.{i}.final_layer_norm.{p}",                    "blocks.{i}.norm2.{p}"),
    (("layers.{i}.{m}_ffn.0.wi_0.weight",
      "layers.{i}.{m}_ffn.0.wi_1.weight"),                 "blocks.{i}.ffn.networks.{m}.w_in.weight"),
    ("layers.{i}.{m}_ffn.2.{p}",                           "blocks.{i}.ffn.networks.{m}.norm.{p}"),
    ("layers.{i}.{m}_ffn.3.{p}",                           "blocks.{i}.ffn.networks.{m}.w_out.{p}"),
    ("layers.{i}.gamma_2",                                 "blocks.{i}.gamma_2"),
    ("{m}_layer_norm.{p}",                                 "norm.norms.{m}.{p}"),
)  # fmt: skip

TRUNK_KEYS = KeyMap("ONE-PEACE trunk weights", TRUNK_ROWS)


def trunk_from_onepeace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trunk's weights from a whole reference state dict (its `model` entry)."""
    own = {k.removeprefix(TRUNK_PREFIX): v for k, v in state.items() if k.startswith(TRUNK_PREFIX)}
    own.pop("version", None)  # compat(onepeace): fairseq's format counter
    return TRUNK_KEYS.to_ours(own)


def trunk_to_onepeace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a trunk's weights under the reference's names."""
    return {TRUNK_PREFIX + k: v for k, v in TRUNK_KEYS.to_theirs(state).items()}
