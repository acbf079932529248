"""Mod-Squad's layers by a slow formula: equal to the golden file, and files of other sizes made by it."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.__main__ import main
from tests.parity.golden import compare, read

State = Mapping[str, Tensor]
BASE: dict[str, Any] = {
    "cvloss": 0.1,
    "switchloss": 0.01,
    "zloss": 0.001,
    "w_MI": 0.005,
    "noisy_gating": False,
}
CASES: dict[str, dict[str, Any]] = {
    "more_choices": {**BASE, "dim": 10, "head_size": 7, "num_experts": 5, "k": 4, "num_tasks": 2},
    "one_choice_no_bias": {**BASE, "dim": 6, "head_size": 4, "num_experts": 3, "k": 1, "num_tasks": 4},
    "other_losses": {
        "cvloss": 0.0, "switchloss": 0.5, "zloss": 0.0, "w_MI": 2.0, "noisy_gating": False,
        "dim": 8, "head_size": 5, "num_experts": 4, "k": 2, "num_tasks": 3,
    },
}  # fmt: skip


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probs_of(state: State, task: int, token: Tensor) -> Tensor:
    return (state[f"f_gate.{task}.0.weight"] @ token).softmax(0) + 1e-4


def best_of(probs: Tensor, k: int) -> list[int]:
    return probs.argsort(descending=True)[:k].tolist()


def expert(state: State, part: str, e: int, x: Tensor) -> Tensor:
    y = x @ state[f"{part}.w"][e]
    return y + state[f"{part}.b"][e] if f"{part}.b" in state else y


def feed_forward(state: State, task: int, token: Tensor, k: int) -> Tensor:
    probs, total = probs_of(state, task, token), torch.zeros_like(token)
    for e in best_of(probs, k):
        inner = expert(state, "experts", e, token)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        total = total + probs[e] * expert(state, "output_experts", e, inner)
    return total


def attention(state: State, task: int, token: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the queries of the chosen experts, and what these make of the queries' tanh."""
    probs, total = probs_of(state, task, token), torch.zeros_like(token)
    queries = [expert(state, "experts", e, token) for e in best_of(probs, k)]
    for e, query in zip(best_of(probs, k), queries, strict=True):
        total = total + probs[e] * expert(state, "output_experts", e, query.tanh())
    return torch.stack(queries), total


def losses(state: State, x: Tensor, record: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what is accumulated after one pass of every task, and the sums of probabilities by task."""
    tasks, experts, k = record["num_tasks"], record["num_experts"], record["k"]
    mass, gates, counts = torch.zeros(tasks, experts), torch.zeros(experts), torch.zeros(experts)
    squares, tokens = torch.zeros(()), x.flatten(0, 1)
    for task in range(tasks):
        for token in tokens:
            probs = probs_of(state, task, token)
            mass[task] += probs
            squares = squares + (state[f"f_gate.{task}.0.weight"] @ token).exp().sum().log() ** 2
            for e in best_of(probs, k):
                gates[e] += probs[e]
                counts[e] += 1
    share = gates / gates.sum()
    variation = share.var() / share.mean() ** 2
    switch = (mass.sum(0) / mass.sum() * counts / counts.sum()).sum() * experts
    joint = mass / (tasks * len(tokens))
    information = torch.zeros(())
    for task in range(tasks):
        for e in range(experts):
            expected = (joint[task].sum() + 1e-4) * (joint[:, e].sum() + 1e-4)
            information = information + joint[task, e] * (joint[task, e] / expected + 1e-4).log()
    total = record["cvloss"] * variation + record["switchloss"] * switch
    total = total + record["zloss"] * squares / (tasks * len(tokens)) - record["w_MI"] * information
    return total, mass


def slow(tensors: State, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every output under the golden file's names."""
    x, k = tensors["in/x"], record["k"]
    ffn, attn = (
        {n.removeprefix(p): v for n, v in tensors.items() if n.startswith(p)}
        for p in ("state/ffn.", "state/attn.")
    )
    total, mass = losses(ffn, x, record)
    found = {"out/aux_loss": total[None], "out/task_expert_prob_sums": mass}
    for task in range(record["num_tasks"]):
        found[f"out/ffn_task{task}"] = torch.stack(
            [torch.stack([feed_forward(ffn, task, t, k) for t in row]) for row in x]
        )
        both = [[attention(attn, task, t, k) for t in row] for row in x]
        found[f"out/attn_map_task{task}"] = torch.stack([torch.stack([q for q, _ in row]) for row in both])
        found[f"out/attn_reduce_task{task}"] = torch.stack([torch.stack([y for _, y in row]) for row in both])
    return found


def weights(case: Mapping[str, Any], *, bias: bool) -> dict[str, Tensor]:
    experts, dim, width = case["num_experts"], case["dim"], case["head_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("ffn", "attn"):
        shapes |= {
            f"{part}.experts.w": (experts, dim, width),
            f"{part}.output_experts.w": (experts, width, dim),
        }
        shapes |= {f"{part}.f_gate.{t}.0.weight": (experts, dim) for t in range(case["num_tasks"])}
    if bias:
        shapes |= {"ffn.experts.b": (experts, width), "ffn.output_experts.b": (experts, dim)}
    return {f"state/{name}": noise(*shape, seed=i) * 0.4 for i, (name, shape) in enumerate(shapes.items())}


def test_the_slow_formula_is_the_golden_file(shared: pathlib.Path):
    golden = read(shared / "parity" / "modsquad_a.safetensors")
    found = slow(golden.tensors, golden.record)
    wanted = {name: value for name, value in golden.tensors.items() if name.startswith("out/")}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_made_file_of_each_variant_agrees(name: str, tmp_path: pathlib.Path):
    case = CASES[name]
    tensors = weights(case, bias="no_bias" not in name) | {"in/x": noise(2, 5, case["dim"], seed=99)}
    tensors |= slow(tensors, case)
    path = tmp_path / "modsquad_made.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(case))
    assert [f"{row.name} {row.error}" for row in compare(path) if not row.passed] == []
    assert main([str(path)]) == 0
