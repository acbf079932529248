"""MoH's golden files: the learned router of MoH-DiT, the same on TransNeXt's cosine attention (MoH-ViT), and
the query-norm router of MoH-LLaMA3 (no RoPE).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.cosine import RELATIVE, Relative
from mmzoo.trunk.moh import MixtureOfHeads, head_balance
from mmzoo.trunk.packing import pack
from tests.parity.golden import Golden, GoldenError, Row

State = dict[str, Tensor]
TOLERANCE = 1e-5
NORMS = {f"{n}_norm.{p}": f"{n}_norm.{p}" for n in "qk" for p in ("weight", "bias")}
POSITIONS = {
    f"cpb_fc{i}.{p}": f"cosine.bias_{end}.{p}"
    for i, end in ((1, "in"), (2, "out"))
    for p in ("weight", "bias")
}
NAMES = {
    "qkv.weight": "qkv.weight",
    "qkv.bias": "qkv.bias",
    "proj.weight": "out.weight",
    "proj.bias": "out.bias",
    "wg.weight": "wg",
    "wg_0.weight": "wg_0",
    "wg_1.weight": "wg_1",
    "temperature": "cosine.temperature",
    "query_embedding": "cosine.query_embedding",
    **NORMS,
    **POSITIONS,
}


def outputs(golden: Golden) -> set[str]:
    """Return the names of all outputs."""
    return {name for name in golden.tensors if name.startswith("out/")}


def rows(golden: Golden) -> Iterator[Row]:
    """Run the mixer on rows of equal length."""
    mixer = _mixer(golden)
    x = golden.tensors["in/x"]
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    llama = "sd/q_proj.weight" in golden.tensors  # a language model's attention is causal
    grids = (_grid(golden.record, x.shape[1]),) * len(x)
    sequence = TokenSequence(x, valid, torch.arange(len(x)), "x", grids)
    packed = pack([[sequence]], ("x",), is_causal=llama)
    context = MixerContext()
    given = None if mixer.cosine is None else _relative(golden, x.shape[1])
    if given is not None:
        packed.seq.cache[RELATIVE] = given
    with torch.no_grad():
        mixer.prepare(packed.seq, 0)
        heads, _ = mixer.weighted(packed.buffer, packed.seq, context)
        y, _ = mixer(packed.buffer, seq=packed.seq, ctx=context)
        q = mixer._project(packed.buffer)[:, : mixer.num_heads * mixer.head_dim]
        gates, routing = mixer.gates(packed.buffer, q.unflatten(1, (-1, mixer.head_dim)))
    found: dict[str, Tensor] = {"out/y": y, "out/pre_proj": heads, "out/mask": gates}
    if routing is not None:
        found["out/aux"] = head_balance(routing)
    elif "out/aux" in golden.tensors:
        found["out/aux"] = torch.zeros(())
    for name in sorted(outputs(golden) & set(found)):
        expected = golden.tensors[name]
        yield Row(name, found[name].reshape(expected.shape), expected, TOLERANCE)


def _relative(golden: Golden, tokens: int) -> Relative | None:
    """Find the table of offsets (m, 2) and which of them each pair of tokens has, whatever their names; None
    where neither is given and the grid says both.
    """
    given = {name: value for name, value in golden.under("in/").items() if name != "x"}
    if not given:
        return None
    tables = [v for v in given.values() if v.is_floating_point() and v.ndim == 2 and v.shape[1] == 2]
    index = [v for v in given.values() if not v.is_floating_point() and v.numel() == tokens**2]
    if len(tables) != 1 or len(index) != 1:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
        raise GoldenError(
            f"{golden.name}: {found} beside x; expected a table (m, 2) and an index of {tokens}^2."
        )
    return Relative(tables[0], (index[0].long().reshape(1, tokens, tokens),))


def _grid(record: dict[str, Any], tokens: int) -> tuple[int, int]:
    """Return rows and columns of the tokens: what the record says, else a square or a line."""
    if "H" in record and "W" in record:
        return record["H"], record["W"]
    if "input_resolution" in record:
        return tuple(record["input_resolution"])
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (tokens, 1)


def _count(golden: Golden, *names: str) -> int:
    """Return the first number the record has under one of these names."""
    for name in names:
        if name in golden.record:
            return int(golden.record[name])
    raise GoldenError(f"{golden.name}: no {names[0]} in the json; expected one of {', '.join(names)}.")


def _mixer(golden: Golden) -> MixtureOfHeads:
    state = golden.under("sd/")
    if "q_proj.weight" in state:
        dim, heads, weights, options = _llama(state, golden)
    elif "qkv.weight" in state:
        dim, heads, weights, options = _fused(state, golden)
    else:
        raise GoldenError(
            f"{golden.name}: neither a fused qkv (MoH-DiT, MoH-ViT) nor q_proj (MoH-LLaMA3); expected one."
        )
    options |= {"sub_norm": False, "qkv_bias": "all" if "qkv.bias" in weights else "none"}
    config = schema.parse(MixtureOfHeads.Config, options)
    mixer = MixtureOfHeads(config, dim=dim, num_heads=heads).eval()
    weights.setdefault("out.bias", torch.zeros(dim))
    unread = {"wg", "wg_0", "wg_1"} - set(mixer.state_dict())  # of a model that routes no head
    mixer.load_state_dict({k: v for k, v in weights.items() if k not in unread}, strict=True)
    return mixer


def _llama(state: State, golden: Golden) -> tuple[int, int, State, dict[str, Any]]:
    """Return width, heads, weights and options of MoH-LLaMA3's attention."""
    weights = {"out.weight": state["o_proj.weight"]}
    for kind in ("weight", "bias"):
        if f"q_proj.{kind}" in state:
            weights[f"qkv.{kind}"] = torch.cat([state[f"{n}_proj.{kind}"] for n in "qkv"])
    heads = _count(golden, "heads", "num_heads")
    options = {
        "router": "query_norm",
        "shared_heads": _count(golden, "shared", "shared_head"),
        "top_k": _count(golden, "routed_topk", "routed_head"),
        "kv_heads": _count(golden, "kv_heads"),
        "head_dim": state["q_proj.weight"].shape[0] // heads,
    }
    return state["o_proj.weight"].shape[0], heads, weights, options


def _fused(state: State, golden: Golden) -> tuple[int, int, State, dict[str, Any]]:
    """Return width, heads, weights and options of MoH-DiT's attention, or of MoH-ViT's."""
    weights = {NAMES[k]: v for k, v in state.items()}
    options: dict[str, Any] = {
        "shared_heads": _count(golden, "shared_head", "shared"),
        "top_k": _count(golden, "routed_head", "routed_topk"),
        "head_dim": golden.record.get("head_dim"),
        "qk_norm": "q_norm.weight" in state,
    }
    heads = _count(golden, "num_heads", "heads")
    if "temperature" in state:
        options |= {"similarity": "cosine", "position_dim": len(state["cpb_fc1.weight"])}
        weights["cosine.temperature"] = weights["cosine.temperature"].reshape(heads)
        weights["cosine.query_embedding"] = weights["cosine.query_embedding"].reshape(heads, -1)
    return state["proj.weight"].shape[0], heads, weights, options
