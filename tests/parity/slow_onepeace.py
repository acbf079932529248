"""ONE-PEACE computed slowly from a state dict under the reference's names; shares no code with mmzoo.

Follows onepeace.md sections 1 to 3: one sample and one head at a time, unpadded, loops where a formula has an
index. Shapes: one sample's tokens (n d).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """Embedded tokens of one modality of one sample, and its additive logits of each layer (h n n)."""

    modality: str
    x: Tensor
    biases: list[Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Apply a linear map by name, with its bias where it has one."""
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Apply a layer norm by name."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def tables(state: State, prefix: str, depth: int) -> list[Tensor]:
    """Return the relative table of each layer, one for all where there is one."""
    found = [
        state[f"{prefix}rel_pos_table_list.{i}.weight"]
        for i in range(depth)
        if f"{prefix}rel_pos_table_list.{i}.weight" in state
    ]
    return found if len(found) == depth else found * depth


def with_type(state: State, prefix: str, x: Tensor) -> Tensor:
    """Add the type embedding where there is one."""
    return x + state[f"{prefix}type_embedding"][0, 0] if f"{prefix}type_embedding" in state else x


def text(state: State, ids: Tensor, depth: int) -> Tokens:
    """Embed the ids of one text without padding."""
    p = "encoder_wrapper.text_adapter."
    content = state[f"{p}embed_tokens.weight"][ids]
    x = (
        torch.cat([state[f"{p}cls_embedding"][0], content])
        + state[f"{p}embed_positions.weight"][: len(ids) + 1]
    )
    return Tokens("text", with_type(state, p, x), [sequence_bias(t, len(x)) for t in tables(state, p, depth)])


def image(state: State, pixels: Tensor, depth: int, second: bool = False) -> Tokens:
    """Embed one square image whose grid is that of the tables."""
    p = "encoder_wrapper.image_adapter."
    y = pixels[None]
    for i, normed in ((0, 1), (3, 4), (6, None)):
        weight = state[f"{p}embed_images.{i}.weight"]
        y = F.conv2d(y, weight, state[f"{p}embed_images.{i}.bias"], stride=weight.shape[-1])
        if normed is not None:
            y = F.gelu(norm(state, f"{p}embed_images.{normed}.layer_norm", y.movedim(1, -1)).movedim(-1, 1))
    side = y.shape[-1]
    x = torch.cat([state[f"{p}cls_embedding"][0], y[0].flatten(1).T]) + state[f"{p}pos_embed"]
    x = with_type(state, p, x)
    if second:
        x = x + state[f"{p}type_embedding_2"][0, 0]
    return Tokens("image", x, [grid_bias(t, side) for t in tables(state, p, depth)])


def audio(state: State, wave: Tensor, depth: int) -> Tokens:
    """Embed one clip without padding."""
    p = "encoder_wrapper.audio_adapter."
    y = wave[None, None]
    for i, stride in enumerate((5, 2, 2, 2, 2, 2, 2)):
        layer = f"{p}embed_audios.0.conv_layers.{i}"
        y = F.conv1d(y, state[f"{layer}.0.weight"], stride=stride)
        y = F.gelu(norm(state, f"{layer}.2.1", y.transpose(1, 2)).transpose(1, 2))
    content = linear(state, f"{p}embed_audios.3", norm(state, f"{p}embed_audios.2", y[0].T))
    place, layer = content, 1
    while f"{p}embed_positions.{layer}.0.weight" in state:
        weight, bias = (state[f"{p}embed_positions.{layer}.0.{end}"] for end in ("weight", "bias"))
        groups = content.shape[1] // weight.shape[1]
        made = F.conv1d(place.T[None], weight, bias, padding=weight.shape[-1] // 2, groups=groups)[0].T
        place = F.gelu(F.layer_norm(made[: len(content)], content.shape[1:]))
        layer += 1
    cls = state[f"{p}cls_embedding"][0] + state[f"{p}cls_pos_embed"][0]
    x = with_type(state, p, torch.cat([cls, content + place]))
    return Tokens("audio", x, [sequence_bias(t, len(x)) for t in tables(state, p, depth)])


def sequence_bias(table: Tensor, n: int) -> Tensor:
    """Return table[bucket(q - k)] as (h n n), CLS being position 0 with entries of its own."""
    b = (len(table) - 2) // 2
    m, last = b // 2, len(table)
    index = torch.zeros(n, n, dtype=torch.int64)
    for q in range(n):
        for k in range(n):
            d = q - k
            if abs(d) > m:
                d = int(math.copysign(m + math.ceil(math.log(abs(d) / m) / math.log(1023 / m) * (m - 1)), d))
            index[q, k] = d + b - 1
    return marked(table, index, last)


def grid_bias(table: Tensor, side: int) -> Tensor:
    """Return the 2-D bias (h n n) of a square grid behind CLS."""
    n = side * side + 1
    index = torch.zeros(n, n, dtype=torch.int64)
    for q in range(side * side):
        for k in range(side * side):
            down, right = q // side - k // side + side - 1, q % side - k % side + side - 1
            index[q + 1, k + 1] = down * (2 * side - 1) + right
    return marked(table, index, len(table))


def marked(table: Tensor, index: Tensor, last: int) -> Tensor:
    """Gather, with the last three entries for CLS asking, CLS asked, and both."""
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return table[index].permute(2, 0, 1)


def trunk(state: State, parts: list[Tokens], depth: int, heads: int) -> tuple[list[Tensor], list[Tensor]]:
    """Run one sample's parts jointly; return the state after each layer and the normed parts."""
    p = "encoder_wrapper.fusion_model."
    x = torch.cat([part.x for part in parts])
    ends = torch.tensor([len(part.x) for part in parts]).cumsum(0).tolist()
    slices = [slice(end - len(part.x), end) for part, end in zip(parts, ends, strict=True)]
    states: list[Tensor] = []
    for layer in range(depth):
        own = f"{p}layers.{layer}."
        h = norm(state, f"{own}self_attn_layer_norm", x)
        q, k, v = (linear(state, f"{own}self_attn.{w}_proj", h) for w in "qkv")
        outs = []
        for head in range(heads):
            cut = slice(head * x.shape[1] // heads, (head + 1) * x.shape[1] // heads)
            logits = q[:, cut] * (x.shape[1] // heads) ** -0.5 @ k[:, cut].T
            for part, place in zip(parts, slices, strict=True):
                logits[place, place] += part.biases[layer][head]
            outs.append(logits.softmax(1) @ v[:, cut])
        y = linear(state, f"{own}self_attn.out_proj", norm(state, f"{own}self_attn.ln", torch.cat(outs, 1)))
        x = x + state[f"{own}gamma_1"] * y
        h = norm(state, f"{own}final_layer_norm", x)
        fed = [
            feed_forward(state, f"{own}{part.modality}_ffn", h[place])
            for part, place in zip(parts, slices, strict=True)
        ]
        x = x + state[f"{own}gamma_2"] * torch.cat(fed)
        states.append(x)
    normed = [
        norm(state, f"{p}{part.modality}_layer_norm", x[place])
        for part, place in zip(parts, slices, strict=True)
    ]
    return states, normed


def feed_forward(state: State, name: str, h: Tensor) -> Tensor:
    """GeGLU, norm, linear."""
    gated = F.gelu(h @ state[f"{name}.0.wi_0.weight"].T) * (h @ state[f"{name}.0.wi_1.weight"].T)
    return linear(state, f"{name}.3", norm(state, f"{name}.2", gated))


def attention_pool(state: State, tokens: Tensor) -> Tensor:
    """Pool the tokens behind CLS with a learned query for each head, logits unscaled."""
    body, q = tokens[1:], state["classify_head.attn_pooling_func.q"][0, 0]
    keys = linear(state, "classify_head.attn_pooling_func.k_proj", body)
    values = linear(state, "classify_head.attn_pooling_func.v_proj", body)
    width = q.shape[1]
    pooled = []
    for head, query in enumerate(q):
        cut = slice(head * width, (head + 1) * width)
        weights = torch.stack([(key * query).sum() for key in keys[:, cut]]).softmax(0)
        pooled.append(sum(w * value for w, value in zip(weights, values[:, cut], strict=True)))
    out = linear(state, "classify_head.attn_pooling_func.out_proj", torch.cat(pooled))
    return norm(state, "classify_head.norm", out)


def classify(state: State, sequences: list[Tensor], attention: bool, pooler: bool) -> Tensor:
    """Return the logits of one sample given the tokens (CLS first) of each of its passes."""
    vectors = []
    for tokens in sequences:
        vector = attention_pool(state, tokens) if attention else tokens[0]
        vectors.append(linear(state, "classify_head.pooler.1", vector).tanh() if pooler else vector)
    hidden = norm(
        state, "classify_head.classifier.1", linear(state, "classify_head.classifier.0", torch.cat(vectors))
    )
    return linear(state, "classify_head.classifier.3", F.gelu(hidden))
