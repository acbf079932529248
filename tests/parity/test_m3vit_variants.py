"""M3ViT's variants that no golden file here has, as files of the same layout, made by a slow formula."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity import slow_m3vit
from tests.parity.__main__ import main
from tests.parity.golden import compare, read

TASKS = ("semseg", "depth", "normals")
C, PATCH, SIZE, DEPTH = 12, 8, (16, 24), 4
CASES: dict[str, dict[str, Any]] = {
    "task_conditioned": {"experts": 5, "top_k": 3, "vector": 6, "ratio": 2, "convs": 2},
    "multi_gate_pup_head": {"experts": 4, "top_k": 1, "vector": -1, "ratio": 1, "convs": 4},
}


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    """Make a state dict from the layout in the specification."""
    experts, vector, hidden = case["experts"], case["vector"], int(C * case["ratio"])
    grid = (SIZE[0] // PATCH) * (SIZE[1] // PATCH)
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.cls_token": (1, 1, C),
        "backbone.pos_embed": (1, 1 + grid, C),
        "backbone.patch_embed.proj.weight": (C, 3, PATCH, PATCH),
        "backbone.patch_embed.proj.bias": (C,),
    }
    for i in range(DEPTH):
        block = f"backbone.blocks.{i}."
        shapes |= {f"{block}{n}.{p}": (C,) for n in ("norm1", "norm2") for p in ("weight", "bias")}
        linears = {"attn.qkv": (3 * C, C), "attn.proj": (C, C)}
        if i % 2 == 0:
            linears |= {"mlp.fc1": (4 * C, C), "mlp.fc2": (C, 4 * C)}
        else:
            shapes |= {f"{block}mlp.experts.htoh4.weight": (experts, hidden, C)}
            shapes |= {f"{block}mlp.experts.htoh4.bias": (experts, hidden)}
            shapes |= {f"{block}mlp.experts.h4toh.weight": (experts, C, hidden)}
            shapes |= {f"{block}mlp.experts.h4toh.bias": (experts, C)}
            gates = ["gate."] if vector > 0 else [f"gate.{n}." for n in range(len(TASKS))]
            shapes |= {f"{block}mlp.{gate}w_gate": (C + max(vector, 0), experts) for gate in gates}
        shapes |= {f"{block}{n}.weight": shape for n, shape in linears.items()}
        shapes |= {f"{block}{n}.bias": shape[:1] for n, shape in linears.items()}
    if vector > 0:
        part = "backbone.gate_task_represent."
        shapes |= {f"{part}fc1.weight": (vector, len(TASKS)), f"{part}fc2.weight": (vector, vector)}
        shapes |= {f"{part}{n}.bias": (vector,) for n in ("fc1", "fc2", "norm")}
        shapes |= {f"{part}norm.weight": (vector,)}
    shapes |= decoders(case["convs"])
    made = {name: noise(*shape, seed=i) * 0.3 for i, (name, shape) in enumerate(shapes.items())}
    return {
        name: value.abs() + 0.5 if name.endswith("running_var") else value for name, value in made.items()
    }


def decoders(convs: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for n, task in enumerate(TASKS):
        part = f"decoders.{task}."
        shapes |= {f"{part}norm.{p}": (C,) for p in ("weight", "bias")}
        last = convs - 1 if convs == 2 else convs
        for i in range(last):
            shapes |= {f"{part}conv_{i}.weight": (7, C if i == 0 else 7, 3, 3), f"{part}conv_{i}.bias": (7,)}
            names = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{part}syncbn_fc_{i}.{name}": (7,) for name in names}
        shapes |= {f"{part}conv_{last}.weight": (n + 1, 7, 1, 1), f"{part}conv_{last}.bias": (n + 1,)}
    return shapes


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder: pathlib.Path, case: dict[str, Any]) -> pathlib.Path:
    """Write a golden file of one variant, with the gate of learned noise by itself."""
    state, images = weights(case), noise(2, 3, *SIZE, seed=500)
    sizes = slow_m3vit.Sizes(num_heads=3, top_k=case["top_k"])
    tensors = {f"state/{name}": value for name, value in state.items()} | {"in/image": images}
    tensors |= {f"out/{k}": v for k, v in slow_m3vit.forward(state, images, TASKS, sizes).items()}
    gate = {"w_gate": noise(C, case["experts"], seed=600), "w_noise": noise(C, case["experts"], seed=601)}
    x, draw = noise(20, C, seed=602), noise(20, case["experts"], seed=603)
    tensors |= {f"state/noisy_gate.{name}": value for name, value in gate.items()}
    tensors |= {"in/noisy_gate_x": x, "in/noisy_gate_noise": draw}
    for mode, drawn in (("eval", None), ("train", draw)):
        found = slow_m3vit.noisy_gate(gate, x, case["top_k"], drawn)
        for name, value in zip(("topk_idx", "topk_score", "loss"), found, strict=True):
            tensors[f"out/noisy_gate_{mode}/{name}"] = value
    path = folder / "m3vit_made.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    record = {
        "tasks": TASKS,
        "img_size": SIZE,
        "num_heads": 3,
        "moe_top_k": case["top_k"],
        "moe_gate_type": "noisy_vmoe",
        "multi_gate": case["vector"] < 0,
        "gate_task_specific_dim": case["vector"],
        "moe_mlp_ratio": case["ratio"],
    }
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def test_the_slow_formula_is_the_golden_file(shared: pathlib.Path):
    golden = read(shared / "parity" / "m3vit_a.safetensors")
    sizes = slow_m3vit.Sizes(golden.record["num_heads"], golden.record["moe_top_k"])
    with torch.no_grad():
        found = slow_m3vit.forward(
            golden.under("state/"), golden.tensors["in/image"], golden.record["tasks"], sizes
        )
    wanted = {k: v for k, v in golden.under("out/").items() if not k.startswith("train_gate")}
    assert wanted.keys() <= found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_made_file_of_each_variant_agrees(name: str, tmp_path: pathlib.Path):
    with torch.no_grad():
        path = write(tmp_path, CASES[name])
    rows = compare(path)
    assert [f"{row.name} {row.error}" for row in rows if not row.passed] == []
    assert len(rows) > 20
    assert main([str(path)]) == 0
