"""MoH's variants that no golden file here has, as files of the same layout, made by a slow formula."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity import slow_moh
from tests.parity.__main__ import main
from tests.parity.golden import compare

CASES: dict[str, dict[str, Any]] = {
    "one_shared": {"shared_head": 1, "routed_head": 2, "cosine": True},
    "some_shared": {"shared_head": 2, "routed_head": 1, "cosine": True, "qkv_bias": False},
    "none_shared": {"shared_head": 0, "routed_head": 3, "cosine": True},
    "none_routed": {"shared_head": 4, "routed_head": 0, "cosine": True},
    "dit_none_routed": {"shared_head": 4, "routed_head": 0},
    "dit_wide_heads": {"shared_head": 2, "routed_head": 1, "head_dim": 7, "qkv_bias": False},
}
DIM, HEADS, GRID = 12, 4, (2, 3)


def noise(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def state_of(case: dict[str, Any]) -> dict[str, Tensor]:
    """Make random weights under the reference's names."""
    shared, routed = case["shared_head"], case["routed_head"]
    width = HEADS * (case.get("head_dim") or DIM // HEADS)
    shapes: dict[str, tuple[int, ...]] = {"qkv.weight": (3 * width, DIM), "proj.weight": (DIM, width)}
    shapes["proj.bias"] = (DIM,)
    if case.get("qkv_bias", True):
        shapes["qkv.bias"] = (3 * width,)
    if routed:
        shapes["wg.weight"] = (HEADS - shared, DIM)
        shapes |= {"wg_0.weight": (2, DIM)} if shared else {}
    if shared > 1:
        shapes["wg_1.weight"] = (shared, DIM)
    if case.get("cosine"):
        shapes |= {"temperature": (HEADS, 1, 1), "query_embedding": (HEADS, 1, width // HEADS)}
        shapes |= {"cpb_fc1.weight": (16, 2), "cpb_fc1.bias": (16,)}
        shapes |= {"cpb_fc2.weight": (HEADS, 16), "cpb_fc2.bias": (HEADS,)}
    return {name: noise(*shape, seed=i) * 0.5 for i, (name, shape) in enumerate(shapes.items())}


def write(folder: pathlib.Path, case: dict[str, Any], *, given: bool = True) -> pathlib.Path:
    """Write a golden file of one variant; `given`: with the table of offsets and the index."""
    state = state_of(case)
    heads = slow_moh.Heads(HEADS, case["shared_head"], case["routed_head"])
    x = noise(2, GRID[0] * GRID[1], DIM, seed=99)
    index, table = slow_moh.offsets_of(GRID) if case.get("cosine") else (None, None)
    found = [slow_moh.attention(state, heads, sample, index, table) for sample in x]
    tensors = {f"sd/{name}": value for name, value in state.items()}
    tensors |= {"in/x": x, "out/y": torch.stack([y for y, _ in found])}
    tensors["out/pre_proj"] = torch.stack([rows for _, rows in found])
    if heads.routed:
        tensors["out/aux"] = slow_moh.balance(state, heads, x)
    if index is not None and table is not None and given:
        tensors |= {"in/relative_pos_index": index.int(), "in/relative_coords_table": table}
    path = folder / "attn_moh_made.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    names = ("shared_head", "routed_head", "head_dim")
    record = {"dim": DIM, "num_heads": HEADS, "H": GRID[0], "W": GRID[1]} | {n: case.get(n) for n in names}
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_made_file_of_each_variant_agrees(name: str, tmp_path: pathlib.Path):
    path = write(tmp_path, CASES[name])
    rows = {row.name: row for row in compare(path)}
    assert {"out/y", "out/pre_proj"} <= rows.keys()
    assert [row.name for row in rows.values() if not row.passed] == []
    assert main([str(path)]) == 0


def test_offsets_of_a_grid_are_the_reference_table(tmp_path: pathlib.Path):
    """Without table and index in the file, the mixer's own, made from the grid, give the same outputs."""
    path = write(tmp_path, CASES["one_shared"], given=False)
    assert [row.name for row in compare(path) if not row.passed] == []


def test_a_permuted_table_is_followed(tmp_path: pathlib.Path):
    """The file's index and table count, not the grid's: rows in another order give the same outputs."""
    path = write(tmp_path, CASES["one_shared"])
    tensors = load_file(path)
    table = tensors["in/relative_coords_table"]
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    tensors["in/relative_coords_table"] = table[order].contiguous()
    tensors["in/relative_pos_index"] = order.argsort()[tensors["in/relative_pos_index"].long()].int()
    save_file(tensors, path)
    assert [row.name for row in compare(path) if not row.passed] == []


def test_an_index_that_does_not_fit_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, CASES["one_shared"])
    tensors = load_file(path)
    tensors["in/relative_pos_index"] = tensors["in/relative_pos_index"][:-1].contiguous()
    save_file(tensors, path)
    assert main([str(path)]) == 2
    assert "expected a table (m, 2) and an index of 6^2" in capsys.readouterr().err
