"""Mod-Squad's golden files: routed feed-forward and mixture of attention by task, the losses of one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.layers.grouped_linear import sort_by_group
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.fork import fork
from mmzoo.trunk.moa import MixtureOfAttention
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.packing import pack
from mmzoo.trunk.plan import SeqInfo
from tests.parity.golden import Golden, Row

TOLERANCE = 1e-5
ROUTER = {"type": "task_topk", "weights": "full", "prob_offset": 1e-4}


def outputs(golden: Golden) -> set[str]:
    """Return the names of all outputs."""
    return {name for name in golden.tensors if name.startswith("out/")}


def rows(golden: Golden) -> Iterator[Row]:
    """Run all tasks in one buffer, as a trunk does after they part."""
    found = _run(golden)
    for name in sorted(outputs(golden) & set(found)):
        expected = golden.tensors[name]
        yield Row(name, found[name].reshape(expected.shape), expected, TOLERANCE)


def _run(golden: Golden) -> dict[str, Tensor]:
    x, tasks = golden.tensors["in/x"], [str(i) for i in range(golden.record["num_tasks"])]
    groups = [[TokenSequence(x, torch.ones(x.shape[:2], dtype=torch.bool), torch.arange(len(x)), "x")]]
    shared = pack(groups, ("x",))
    parting = fork(groups, shared, {task: [0] for task in tasks}, ("x",), 0)
    seq, tokens = parting.packed.seq, parting.copy(shared.buffer)
    with torch.no_grad():
        return {**_feed_forward(golden, tokens, seq), **_attention(golden, tokens, seq)}


def _feed_forward(golden: Golden, x: Tensor, seq: SeqInfo) -> dict[str, Tensor]:
    record, state = golden.record, golden.under("state/ffn.")
    balance = {
        "load_balance_weight": record["switchloss"],
        "z_weight": record["zloss"],
        "cv2_weight": record["cvloss"],
        "mutual_information_weight": record["w_MI"],
        "compat": "modsquad",
    }
    tree = {
        "num_experts": record["num_experts"],
        "hidden_dim": record["head_size"],
        "activation": "gelu",
        "sub_norm": False,
        "router": {**ROUTER, "top_k": record["k"]},
        "balance": balance,
    }
    tasks = tuple(dict.fromkeys(span.task for span in seq.task_spans))
    made = MoeFeedForward(
        schema.parse(MoeFeedForward.Config, tree), dim=record["dim"], modalities=("x",), tasks=tasks
    )
    weights = _experts(state, "experts.w_in", "experts.w_out")
    for ours, theirs, width in (("b_in", "experts.b", "head_size"), ("b_out", "output_experts.b", "dim")):
        none = torch.zeros(record["num_experts"], record[width])
        weights[f"experts.{ours}"] = state.get(theirs, none)
    made.load_state_dict({**weights, **_gates(state)}, strict=True)
    context = MixerContext()
    y, aux = made.eval()(x, seq=seq, ctx=context)
    probs = context.stats["0/routing"].probs_te
    found = {f"out/ffn_task{span.task}": y[span.start : span.end] for span in seq.task_spans}
    sums = [probs[span.start : span.end].sum(0) for span in seq.task_spans]
    return {
        **found,
        "out/task_expert_prob_sums": torch.stack(sums),
        "out/aux_loss": sum(aux.values(), torch.zeros(())),
    }


def _attention(golden: Golden, x: Tensor, seq: SeqInfo) -> dict[str, Tensor]:
    record, state = golden.record, golden.under("state/attn.")
    tree: dict[str, Any] = {
        "num_experts": record["num_experts"],
        "head_dim": record["head_size"],
        "router": ROUTER,
    }
    config = schema.parse(MixtureOfAttention.Config, tree)
    tasks = tuple(dict.fromkeys(span.task for span in seq.task_spans))
    made = MixtureOfAttention(config, dim=record["dim"], num_heads=record["k"], tasks=tasks)
    weights = {**_experts(state, "w_q", "w_out"), **_gates(state)}
    weights |= {k: v for k, v in made.state_dict().items() if k.startswith("kv.")}  # not in the file
    made.load_state_dict(weights, strict=True)
    found: dict[str, Tensor] = {}
    for task, start, end in seq.task_spans:
        own = dataclasses.replace(seq, task_spans=())
        routing = made.router(x[start:end], seq=own, ctx=MixerContext(task=task))
        order, _ = sort_by_group(routing.experts_tk, record["num_experts"])
        queries = made.map(x[start:end], order)
        found[f"out/attn_map_task{task}"] = queries
        found[f"out/attn_reduce_task{task}"] = made.reduce(queries.tanh(), routing, order)
    return found


def _experts(state: dict[str, Tensor], into: str, out: str) -> dict[str, Tensor]:
    return {
        into: state["experts.w"].transpose(1, 2).contiguous(),
        out: state["output_experts.w"].transpose(1, 2).contiguous(),
    }


def _gates(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [k for k in state if k.startswith("f_gate.")]
    return {f"router.gates.{k.split('.')[1]}.weight": state[k] for k in names}
