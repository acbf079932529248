"""Every golden file of every family the runner knows agrees, output by output."""

from __future__ import annotations

import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import main
from tests.parity.golden import FAMILIES, Row, compare

HERE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "parity"
FILES = sorted(p for prefix in FAMILIES for p in HERE.glob(f"{prefix}_*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_file(path: pathlib.Path):
    rows = compare(path)
    assert rows
    assert {row.name: row.error for row in rows if not row.passed} == {}


@pytest.mark.parametrize("prefix", sorted(FAMILIES))
def test_every_family_has_golden_files(prefix: str, shared: pathlib.Path):
    assert list((shared / "parity").glob(f"{prefix}_*.safetensors"))


def test_a_wrong_output_fails_the_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    if not FILES:
        pytest.skip("../shared (real data, golden tensors) is absent")
    source = FILES[0]
    tensors = load_file(source)
    name = compare(source)[0].name
    tensors[name] = tensors[name] + 1
    save_file(tensors, tmp_path / source.name)
    (tmp_path / source.with_suffix(".json").name).write_text(source.with_suffix(".json").read_text())
    assert main([str(tmp_path / source.name)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_unknown_family_and_missing_file_are_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "what_a.safetensors")]) == 2
    assert "unknown family" in capsys.readouterr().err
    assert main([str(tmp_path / f"{min(FAMILIES)}_z.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_row_error_is_the_worst_entry():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert Row("x", a, b, 1e-3).error == 0.5
    assert Row("x", a, b, 1e-3, relative=True).error == 0.2
    assert Row("x", a, b[:1], 1e9).error == float("inf")
    assert Row("x", torch.tensor([torch.nan, 1.0]), b, 1e9).error == float("inf")
