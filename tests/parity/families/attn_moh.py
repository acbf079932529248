"""MoH's golden files: the learned router of MoH-DiT, and the query-norm router of MoH-LLaMA3 (no RoPE)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.moh import MixtureOfHeads, head_balance
from mmzoo.trunk.packing import pack
from tests.parity.golden import Golden, GoldenError, Row

TOLERANCE = 1e-5
NAMES = {
    "qkv.weight": "qkv.weight",
    "qkv.bias": "qkv.bias",
    "proj.weight": "out.weight",
    "proj.bias": "out.bias",
}
NAMES |= {"wg.weight": "wg", "wg_0.weight": "wg_0", "wg_1.weight": "wg_1"}
NAMES |= {f"{n}_norm.{p}": f"{n}_norm.{p}" for n in "qk" for p in ("weight", "bias")}


def outputs(golden: Golden) -> set[str]:
    """Return the names of all outputs."""
    return {name for name in golden.tensors if name.startswith("out/")}


def rows(golden: Golden) -> Iterator[Row]:
    """Run the mixer on rows of equal length."""
    mixer = _mixer(golden)
    x = golden.tensors["in/x"]
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    llama = "heads" in golden.record  # a language model's attention is causal
    packed = pack([[TokenSequence(x, valid, torch.arange(len(x)), "x")]], ("x",), is_causal=llama)
    context = MixerContext()
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


def _mixer(golden: Golden) -> MixtureOfHeads:
    state, record = golden.under("sd/"), golden.record
    if "heads" in record:
        weights = {
            "qkv.weight": torch.cat([state[f"{n}_proj.weight"] for n in "qkv"]),
            "out.weight": state["o_proj.weight"],
        }
        options: dict[str, Any] = {
            "router": "query_norm",
            "shared_heads": record["shared"],
            "top_k": record["routed_topk"],
            "kv_heads": record["kv_heads"],
        }
        dim, heads = state["o_proj.weight"].shape[0], record["heads"]
    elif "num_heads" in record:
        weights = {NAMES[k]: v for k, v in state.items()}
        options = {
            "shared_heads": record["shared_head"],
            "top_k": record["routed_head"],
            "head_dim": record["head_dim"],
            "qk_norm": record["qk_norm"],
        }
        dim, heads = record["dim"], record["num_heads"]
    else:
        raise GoldenError(
            f"{golden.name}: neither MoH-DiT's nor MoH-LLaMA3's attention; expected one of them."
        )
    options |= {"sub_norm": False, "qkv_bias": "all" if "qkv.bias" in weights else "none"}
    config = schema.parse(MixtureOfHeads.Config, options)
    mixer = MixtureOfHeads(config, dim=dim, num_heads=heads).eval()
    weights.setdefault("out.bias", torch.zeros(dim))
    unread = {"wg", "wg_0", "wg_1"} - set(mixer.state_dict())  # of a model that routes no head
    mixer.load_state_dict({k: v for k, v in weights.items() if k not in unread}, strict=True)
    return mixer
