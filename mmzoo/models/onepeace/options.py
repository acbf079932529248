"""The options of the model that a reference file holds, read off the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmzoo.heads.choice import ChoiceMlpHead
from mmzoo.heads.classifier import LinearHead, MlpHead
from mmzoo.heads.contrastive import ContrastiveHead
from mmzoo.heads.pair import PairMlpHead
from mmzoo.heads.pooling import Pooling
from mmzoo.layers.positions import NUM_CLS_ENTRIES
from mmzoo.modalities.audio import WaveformAdapter
from mmzoo.modalities.image import ImageAdapter
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.text import Cleaning, TextAdapter, TextPreprocess
from mmzoo.modalities.tokenizers import Gpt2Bpe
from mmzoo.models.multimodal import HeadSpec, MultimodalModel
from mmzoo.models.onepeace.interop import MODALITIES, Layout, canonical, read_names
from mmzoo.trunk.trunk import FinalNorm, Trunk

Shapes = Mapping[str, tuple[int, ...]]
STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Strides of the audio extractor, which leave no trace in the weights."""
HEAD_DIM = 64
"""Width of an attention head where no table tells their number (released models)."""
TEXT_TOKENS = 71
"""Longest text: 70 pieces and the end mark."""


def options_of(shapes: Shapes) -> MultimodalModel.Config:
    """Return the options of the model whose tensors (the reference's names) have these shapes.

    A classifier is taken to read all of the file's modalities in one pass, as every released one does, and
    of a joint pass the tokens of text; one with a single logit there scores answers. Files do not tell where
    it reads those of the other modality (set `part`).
    """
    plan = read_names(shapes)
    found = {canonical(name): tuple(shape) for name, shape in shapes.items()}
    if plan.layout is Layout.VISION:
        found = {_as_full(name): shape for name, shape in found.items()}
    modalities = {m: made for m in MODALITIES if (made := _adapter(m, found)) is not None}
    heads = _heads(found, tuple(modalities))
    two = any("text+image2" in spec.passes for spec in heads.values())
    second = two or "encoder_wrapper.image_adapter.type_embedding_2" in found
    views = {"image2": "image"} if second else {}
    return MultimodalModel.Config(modalities=modalities, views=views, trunk=_trunk(found), heads=heads)


def _as_full(name: str) -> str:
    if name.startswith("image_adapter."):
        return f"encoder_wrapper.{name}"
    return name.replace("encoder.layers.", "encoder_wrapper.fusion_model.layers.", 1)


def _trunk(shapes: Shapes) -> Trunk.Config:
    prefix = "encoder_wrapper.fusion_model."
    own = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
    dim = own["layers.0.self_attn_layer_norm.weight"][0]
    normed = any(k.split(".")[0].endswith("_layer_norm") for k in own)
    options = Trunk.Config(
        dim=dim,
        depth=1 + max(int(k.split(".")[1]) for k in own if k.startswith("layers.")),
        num_heads=_num_heads(shapes, dim),
        layer_scale_init=1e-6 if "layers.0.gamma_1" in own else None,
        final_norm=FinalNorm.PER_MODALITY if normed else FinalNorm.NONE,
    )
    options.ffn.hidden_dim = next(s[0] for k, s in own.items() if k.endswith("_ffn.0.wi_0.weight"))
    options.mixer.head_gain = "layers.0.self_attn.c_attn" in own
    return options


def _num_heads(shapes: Shapes, dim: int) -> int:
    tables = [s for k, s in shapes.items() if ".rel_pos_table_list." in k]
    query = shapes.get("classify_head.attn_pooling_func.q")
    return tables[0][1] if tables else query[2] if query else max(1, dim // HEAD_DIM)


def _adapter(modality: str, shapes: Shapes) -> Any:
    prefix = f"encoder_wrapper.{modality}_adapter."
    own = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
    make = {"text": _text, "image": _image, "audio": _audio}[modality]
    return make(own, _tables(own)) if own else None


def _tables(own: Shapes) -> dict[str, Any]:
    count = sum(k.startswith("rel_pos_table_list.") for k in own)
    return {"num_bias_tables": count, "type_embedding": "type_embedding" in own}


def _text(own: Shapes, options: dict[str, Any]) -> TextAdapter.Config:
    positions = own["embed_positions.weight"][0]
    tokens = min(TEXT_TOKENS, positions - 1)
    tokenizer = Gpt2Bpe.Config(vocab_size=own["embed_tokens.weight"][0])
    if table := own.get("rel_pos_table_list.0.weight"):
        options["num_buckets"] = _buckets(table)
    preprocess = TextPreprocess.Config(tokenizer=tokenizer, max_tokens=tokens, clean=Cleaning.CAPTION)
    return TextAdapter.Config(preprocess=preprocess, max_positions=positions, **options)


def _image(own: Shapes, options: dict[str, Any]) -> ImageAdapter.Config:
    patch = own["embed_images.0.weight"][2] * 4
    grid = math.isqrt(own["pos_embed"][0] - 1)
    table = own.get("rel_pos_table_list.0.weight")
    side = (math.isqrt(table[0] - NUM_CLS_ENTRIES) + 1) // 2 if table else grid
    preprocess = ImagePreprocess.Config(size=(side * patch, side * patch))
    return ImageAdapter.Config(
        preprocess=preprocess, patch_size=patch, position_grid=grid, bias_grid=side, **options
    )


def _audio(own: Shapes, options: dict[str, Any]) -> WaveformAdapter.Config:
    kernels = {k: s for k, s in own.items() if ".conv_layers." in k and k.endswith(".0.weight")}
    convs = [kernels[k] for k in sorted(kernels, key=lambda name: int(name.split(".")[3]))]
    positions = [s for k, s in own.items() if k.startswith("embed_positions.") and k.endswith("weight")]
    strides = (*STRIDES, *(2 for _ in convs))
    if table := own.get("rel_pos_table_list.0.weight"):
        options["num_buckets"] = _buckets(table)
    if positions:
        options |= {"position_kernel": positions[0][2], "position_groups": positions[0][0] // positions[0][1]}
    return WaveformAdapter.Config(
        conv_layers=[(s[0], s[2], strides[i]) for i, s in enumerate(convs)],
        position_depth=len(positions),
        mask_token="mask_embedding" in own,
        **options,
    )


def _buckets(table: tuple[int, ...]) -> int:
    """Return how many buckets a side a 1-D table has: 2 b - 1 and three for CLS."""
    return (table[0] + 1 - NUM_CLS_ENTRIES) // 2


def _heads(shapes: Shapes, modalities: tuple[str, ...]) -> dict[str, HeadSpec]:
    heads: dict[str, HeadSpec] = {}
    projected = [m for m in modalities if f"{m}_proj.weight" in shapes]
    if projected:
        heads["align"] = HeadSpec(head=ContrastiveHead.Config(), passes=projected)
    if classifier := _classifier(shapes, joint=len(modalities) > 1):
        two = isinstance(classifier, PairMlpHead.Config)
        passes = ["text+image", "text+image2"] if two else ["+".join(modalities)]
        heads["classify"] = HeadSpec(head=classifier, passes=passes)
    return heads


def _classifier(shapes: Shapes, *, joint: bool) -> Any:
    if "head.weight" in shapes:
        return LinearHead.Config(num_classes=shapes["head.weight"][0], norm="fc_norm.weight" in shapes)
    first, last = (shapes.get(f"classify_head.classifier.{i}.weight") for i in (0, 3))
    if first is None or last is None:
        return None
    dim = shapes["encoder_wrapper.fusion_model.layers.0.self_attn_layer_norm.weight"][0]
    query = shapes.get("classify_head.attn_pooling_func.q")
    single = ChoiceMlpHead.Config if joint and last[0] == 1 else MlpHead.Config
    make = PairMlpHead.Config if first[1] == 2 * dim else single
    return make(
        num_classes=last[0],
        pooling=Pooling.ATTENTION if query else Pooling.CLS,
        pool_heads=query[2] if query else 1,
        ratio=first[0] / dim,
        pooler="classify_head.pooler.1.weight" in shapes,
    )
