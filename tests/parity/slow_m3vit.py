"""M3ViT computed slowly from a state dict under the reference's names; shares no code with mmzoo.

Follows multitask.md section 4: one image and one task at a time, one token at a time where experts are
concerned. Shapes: one image's tokens (n d).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """What weights do not tell: attention heads, experts a token."""

    num_heads: int
    top_k: int


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Apply a linear map by name."""
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Apply a layer norm by name."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x)."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def tokens(state: State, image: Tensor) -> Tensor:
    """Cut an image (c h w) into patches, project them, put CLS first and add the positions."""
    weight = state["backbone.patch_embed.proj.weight"]
    side = weight.shape[-1]
    rows: list[Tensor] = []
    for top in range(0, image.shape[1], side):
        for left in range(0, image.shape[2], side):
            patch = image[:, top : top + side, left : left + side]
            rows.append((weight * patch).sum((1, 2, 3)) + state["backbone.patch_embed.proj.bias"])
    return torch.stack([state["backbone.cls_token"][0, 0], *rows]) + state["backbone.pos_embed"][0]


def attention(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    """Plain multi-head attention."""
    q, k, v = linear(state, f"{name}.qkv", x).chunk(3, dim=1)
    width = x.shape[1] // heads
    outs: list[Tensor] = []
    for h in range(heads):
        cut = slice(h * width, (h + 1) * width)
        outs.append((q[:, cut] @ k[:, cut].T / math.sqrt(width)).softmax(1) @ v[:, cut])
    return linear(state, f"{name}.proj", torch.cat(outs, 1))


def task_vector(state: State, place: int) -> Tensor:
    """Return the vector of a task by its place."""
    part = "backbone.gate_task_represent"
    one_hot = torch.eye(state[f"{part}.fc1.weight"].shape[1])[place]
    return norm(
        state, f"{part}.norm", linear(state, f"{part}.fc2", gelu(linear(state, f"{part}.fc1", one_hot)))
    )


def experts(
    state: State, name: str, h: Tensor, place: int, top_k: int
) -> tuple[Tensor, list[list[int]], list[list[Tensor]]]:
    """Return what the chosen experts give each token, which they are, and their weights."""
    joint = f"{name}.gate.w_gate"
    gate = state[joint] if joint in state else state[f"{name}.gate.{place}.w_gate"]
    rows: list[Tensor] = []
    chosen: list[list[int]] = []
    scores: list[list[Tensor]] = []
    for token in h:
        seen = torch.cat([token, task_vector(state, place)]) if joint in state else token
        probs = (seen @ gate).softmax(0)
        best = probs.argsort(descending=True)[:top_k].tolist()
        total = torch.zeros_like(token)
        for e in best:
            inner = state[f"{name}.experts.htoh4.weight"][e] @ token + state[f"{name}.experts.htoh4.bias"][e]
            outer = state[f"{name}.experts.h4toh.weight"][e] @ gelu(inner)
            total = total + probs[e] * (outer + state[f"{name}.experts.h4toh.bias"][e])
        rows.append(total)
        chosen.append(best)
        scores.append([probs[e] for e in best])
    return torch.stack(rows), chosen, scores


def backbone(state: State, x: Tensor, place: int, sizes: Sizes) -> dict[str, Tensor]:
    """Run all blocks for one task; return every block's output and what is known of the experts."""
    found: dict[str, Tensor] = {}
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("backbone.blocks."))
    for i in range(depth):
        block = f"backbone.blocks.{i}"
        x = x + attention(state, f"{block}.attn", norm(state, f"{block}.norm1", x), sizes.num_heads)
        h = norm(state, f"{block}.norm2", x)
        if i % 2:
            y, chosen, scores = experts(state, f"{block}.mlp", h, place, sizes.top_k)
            found |= {f"moe{i}_in": h, f"moe{i}_out": y}
            found[f"block{i}_topk_idx"] = torch.tensor(chosen, dtype=torch.int32)
            found[f"block{i}_topk_score"] = torch.stack([torch.stack(row) for row in scores])
        else:
            y = linear(state, f"{block}.mlp.fc2", gelu(linear(state, f"{block}.mlp.fc1", h)))
        x = x + y
        found[f"block{i}"] = x
    return found


def decode(state: State, task: str, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a task's prediction (c h w) at the image's size; evaluation mode."""
    part = f"decoders.{task}."
    side = state["backbone.patch_embed.proj.weight"].shape[-1]
    y = norm(state, f"{part}norm", x)[1:].T.reshape(1, -1, size[0] // side, size[1] // side)
    last = max(
        int(k.removeprefix(f"{part}conv_").split(".")[0]) for k in state if k.startswith(f"{part}conv_")
    )

    def doubled(z: Tensor) -> Tensor:
        return F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)

    for i in range(last):
        y = F.conv2d(y, state[f"{part}conv_{i}.weight"], state[f"{part}conv_{i}.bias"], padding=1)
        bn = {
            n: state[f"{part}syncbn_fc_{i}.{n}"][:, None, None]
            for n in ("weight", "bias", "running_mean", "running_var")
        }
        y = (y - bn["running_mean"]) / (bn["running_var"] + 1e-5).sqrt() * bn["weight"] + bn["bias"]
        y = y.clamp(min=0)
        y = doubled(y) if last > 1 else y
    y = F.conv2d(y, state[f"{part}conv_{last}.weight"], state[f"{part}conv_{last}.bias"])
    return F.interpolate(y, size, mode="bilinear", align_corners=False)[0]


def forward(state: State, images: Tensor, tasks: Sequence[str], sizes: Sizes) -> dict[str, Tensor]:
    """Return every output under the golden files' names, without `out/`."""
    found: dict[str, list[Tensor]] = {}
    for image in images:
        for place, task in enumerate(tasks):
            own = backbone(state, tokens(state, image), place, sizes)
            last = max(
                (name for name in own if name.startswith("block") and "_" not in name),
                key=lambda n: int(n[5:]),
            )
            own["pred"] = decode(state, task, own[last], (image.shape[1], image.shape[2]))
            for name, value in own.items():
                found.setdefault(f"{task}/{name}", []).append(value)
    return {name: torch.cat(v) if "_topk_" in name else torch.stack(v) for name, v in found.items()}


def noisy_gate(weights: State, x: Tensor, top_k: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return choices, weights and CV^2 loss of the gate with learned noise; `noise` None in evaluation."""
    clean = x @ weights["w_gate"]
    std = torch.log1p((x @ weights["w_noise"]).exp()) + 1e-2
    logits = clean if noise is None else clean + noise * std
    count = logits.shape[1]
    chosen = torch.stack([row.argsort(descending=True)[:top_k] for row in logits])
    kept = torch.stack([row[own].softmax(0) for row, own in zip(logits, chosen, strict=True)])
    importance, load = torch.zeros(count), torch.zeros(count)
    for t in range(len(x)):
        order = logits[t].sort(descending=True).values
        for place, e in enumerate(chosen[t].tolist()):
            importance[e] += kept[t, place]
        for e in range(count):
            if noise is None:
                load[e] += float(e in chosen[t].tolist())
                continue
            bar = order[top_k] if e in chosen[t].tolist() else order[top_k - 1]
            load[e] += 0.5 * (1 + torch.erf((clean[t, e] - bar) / std[t, e] / math.sqrt(2)))
    return chosen.int(), kept, variation(importance) + variation(load)


def variation(x: Tensor) -> Tensor:
    """Return the squared coefficient of variation, unbiased."""
    mean = x.mean()
    return (x - mean).square().sum() / (len(x) - 1) / (mean.square() + 1e-10)
