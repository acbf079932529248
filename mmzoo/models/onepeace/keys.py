"""The two columns: every tensor of the reference's files beside its place in a MultimodalModel.

The reference keeps q, k and v apart and has no bias on k; the two halves of GeGLU are `wi_0` (through GELU)
and `wi_1`. `{i}` counts layers, `{m}` is text, image or audio, `{p}` weight or bias. A contrastive head is
called `align` here, a classifier `classify`; `interop.py` puts the names of the model at hand.
Ref: layouts as the reference's loaders and run files imply them (commit 71cfadf).
"""

from __future__ import annotations

from mmzoo.checkpoints.key_map import Row

MAX_POSITION_DEPTH = 32
"""Positional convolutions that the table has rows for; the reference numbers them from 1."""

TRUNK: tuple[Row, ...] = (
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

TEXT: tuple[Row, ...] = (
    # text_adapter                           adapters.text
    ("cls_embedding",                        "cls_token"),
    ("embed_tokens.weight",                  "embedding.weight"),
    ("embed_positions.weight",               "positions"),
    ("type_embedding",                       "type_embedding"),
    ("rel_pos_table_list.{i}.weight",        "biases.{i}.table"),
)  # fmt: skip

IMAGE: tuple[Row, ...] = (
    # image_adapter                          adapters.image
    ("cls_embedding",                        "cls_token"),
    ("pos_embed",                            "positions.table"),
    ("type_embedding",                       "type_embedding"),
    ("embed_images.0.{p}",                   "stem.conv1.{p}"),
    ("embed_images.1.layer_norm.{p}",        "stem.norm1.{p}"),
    ("embed_images.3.{p}",                   "stem.conv2.{p}"),
    ("embed_images.4.layer_norm.{p}",        "stem.norm2.{p}"),
    ("embed_images.6.{p}",                   "stem.conv3.{p}"),
    ("rel_pos_table_list.{i}.weight",        "biases.{i}.table"),
)  # fmt: skip

AUDIO: tuple[Row, ...] = (
    # audio_adapter                          adapters.audio
    ("cls_embedding",                        "cls_token"),
    ("cls_pos_embed",                        "cls_position"),
    ("type_embedding",                       "type_embedding"),
    ("mask_embedding",                       "mask_token"),
    ("embed_audios.0.conv_layers.{i}.0.{p}",     "extractor.convs.{i}.{p}"),
    ("embed_audios.0.conv_layers.{i}.2.1.{p}",   "extractor.norms.{i}.{p}"),
    ("embed_audios.2.{p}",                   "norm.{p}"),
    ("embed_audios.3.{p}",                   "projection.{p}"),
    *((f"embed_positions.{i + 1}.0.{{p}}",   f"positions.{i}.conv.{{p}}") for i in range(MAX_POSITION_DEPTH)),
    ("rel_pos_table_list.{i}.weight",        "biases.{i}.table"),
)  # fmt: skip

HEADS: tuple[Row, ...] = (
    # top level                              heads
    ("logit_scale",                          "heads.align.log_scale"),
    ("{m}_proj.{p}",                         "heads.align.projections.{m}.{p}"),
    ("classify_head.attn_pooling_func.q",    "heads.classify.pool.query"),
    ("classify_head.attn_pooling_func.k_proj.{p}",   "heads.classify.pool.key.{p}"),
    ("classify_head.attn_pooling_func.v_proj.{p}",   "heads.classify.pool.value.{p}"),
    ("classify_head.attn_pooling_func.out_proj.{p}", "heads.classify.pool.out.{p}"),
    ("classify_head.norm.{p}",               "heads.classify.pool.norm.{p}"),
    ("classify_head.pooler.1.{p}",           "heads.classify.pooler.{p}"),
    ("classify_head.classifier.0.{p}",       "heads.classify.layers.0.{p}"),
    ("classify_head.classifier.1.{p}",       "heads.classify.layers.1.{p}"),
    ("classify_head.classifier.3.{p}",       "heads.classify.layers.4.{p}"),
)  # fmt: skip

VISION_HEADS: tuple[Row, ...] = (
    # top level                              heads
    ("fc_norm.{p}",                          "heads.classify.norm.{p}"),
    ("head.{p}",                             "heads.classify.layers.1.{p}"),
)  # fmt: skip


def under(theirs: str, ours: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Put a prefix before every name of either column."""
    return tuple(
        (theirs + left if isinstance(left, str) else tuple(theirs + part for part in left), ours + right)
        for left, right in rows
    )


ENCODER = "encoder_wrapper."
MODEL: tuple[Row, ...] = (
    *under(f"{ENCODER}fusion_model.", "trunk.", TRUNK),
    *under(f"{ENCODER}text_adapter.", "adapters.text.", TEXT),
    *under(f"{ENCODER}image_adapter.", "adapters.image.", IMAGE),
    *under(f"{ENCODER}audio_adapter.", "adapters.audio.", AUDIO),
    (f"{ENCODER}image_adapter.type_embedding_2", "views.image2"),
    *HEADS,
)
"""The full model and what is fine-tuned from it: everything but pretraining's decoder."""

VISION: tuple[Row, ...] = (
    *under("encoder.", "trunk.", TRUNK),
    *under("image_adapter.", "adapters.image.", IMAGE),
    *VISION_HEADS,
)
"""The vision branch, which keeps neither the final norm nor the projection."""

BUFFERS = r"(.+\.)?(rp_bucket|position_idx|version)"
"""What the reference stores beside its weights: bucket tables, position numbers, fairseq's format counter."""

DECODER = r"decoder_|(text|image|audio)_mask_(token|head)"
"""How the names of what only denoising pretraining uses begin (a pattern)."""

ALIASES: tuple[tuple[str, str], ...] = (
    (r"rel_pos_table\.weight$", "rel_pos_table_list.0.weight"),
    (r"^encoder\.image_adapter\.", "image_adapter."),
)
"""Older or other spellings (patterns) and the one that the tables know."""
