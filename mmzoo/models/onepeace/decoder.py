"""The reference's pretraining decoder <-> our denoising head: options off shapes, weights there and back.

Released files do not hold it (their loaders want none); checkpoints of pretraining do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmzoo.checkpoints.key_map import KeyMap, Row, stack
from mmzoo.models.denoising import DecoderConfig, DecoderPadding, DenoisingHead
from mmzoo.models.onepeace import keys

HEAD_DIM = 64
"""Width of an attention head of the released decoder; no tensor tells it."""

ROWS: tuple[Row, ...] = (
    # top level                                                    heads.denoise
    ("{m}_mask_token",                                             "mask_tokens.{m}"),
    ("decoder_{m}_embed.{p}",                                      "embeds.{m}.{p}"),
    ("{m}_mask_head.{p}",                                          "mask_heads.{m}.{p}"),
    ("decoder_wrapper.text_adapter.embed_positions.weight",        "positions.text.table"),
    ("decoder_wrapper.image_adapter.pos_embed",                    "positions.image.table"),
    ("decoder_wrapper.audio_adapter.embed_positions.weight",       "positions.audio.table"),
    ("decoder_wrapper.{m}_adapter.cls_embedding",                  "unread.{m}_cls"),
    ("decoder_wrapper.{m}_adapter.mask_embedding",                 "unread.{m}_mask"),
    *keys.under("decoder_wrapper.fusion_model.", "trunk.", keys.TRUNK),
)  # fmt: skip
KEYS = KeyMap("ONE-PEACE decoder weights", ROWS)


def decoder_names(state: Mapping[str, Any]) -> list[str]:
    """Name the decoder's weights in a reference file, buffers left out."""
    own = [name for name in state if re.match(keys.DECODER, name)]
    return [name for name in own if not re.fullmatch(keys.BUFFERS, name)]


def decoder_from_onepeace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a denoising head's weights from a whole reference state dict."""
    plan = KEYS.plan(decoder_names(state))
    return {ours: stack([state[part] for part in parts]) for ours, parts in plan.items()}


def decoder_to_onepeace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a denoising head's weights under the reference's names."""
    return KEYS.to_theirs(state)


def decoder_options_of(
    shapes: Mapping[str, tuple[int, ...]], *, num_heads: int | None = None, **options: Any
) -> DenoisingHead.Config:
    """Return the options of the decoder whose tensors (the reference's names) have these shapes.

    It attends to padding, as the reference's does; `options` are the head's others.
    """
    prefix = "decoder_wrapper.fusion_model.layers."
    layers = {int(k.removeprefix(prefix).partition(".")[0]) for k in shapes if k.startswith(prefix)}
    width = shapes[f"{prefix}0.self_attn_layer_norm.weight"][0]
    decoder = DecoderConfig(dim=width, depth=len(layers), num_heads=num_heads or max(1, width // HEAD_DIM))
    decoder.ffn.hidden_dim = next(s[0] for k, s in shapes.items() if re.match(rf"{prefix}0\..+wi_0", k))
    unread = any(k.endswith("_adapter.cls_embedding") for k in decoder_names(shapes))
    return DenoisingHead.Config(
        decoder=decoder, padding=DecoderPadding.REFERENCE, unread_tokens=unread, **options
    )
