"""The benchmark harness: ratios are taken within rounds, and spread is reported."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import time
from typing import Any

import pytest

PATH = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "harness.py"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("harness", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "harness", module)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_paired_and_order_reversed(harness: Any, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    monkeypatch.setattr(time, "perf_counter", lambda: 2 * clock[0])
    calls: list[str] = []
    costs = {"base": iter([9.0, 4.0, 8.0, 12.0]), "fast": iter([9.0, 2.0, 2.0, 4.0])}

    def variant(name: str) -> Any:
        def run() -> None:
            calls.append(name)
            clock[0] += next(costs[name])

        return run

    base, fast = harness.compare({n: variant(n) for n in costs}, rounds=3)
    assert calls == ["base", "fast", "base", "fast", "fast", "base", "base", "fast"]
    assert (base.cpu.ratio, fast.cpu.ratio) == (1.0, 3.0)  # median of 4/2, 8/2, 12/4
    assert fast.cpu.best_ratio == 2.0  # 4/2
    assert fast.wall.median_ms == pytest.approx(2 * fast.cpu.median_ms)
    assert fast.cpu.ratio_iqr == pytest.approx(2.0)
    assert fast.cpu.noisy
    assert not base.cpu.noisy


def test_table_and_json(harness: Any, capsys: pytest.CaptureFixture[str]):
    results = harness.compare({"a": lambda: None, "b": lambda: None}, rounds=3)
    results[1].extra["MFU"] = 0.5
    harness.finish({"mild": results}, {"threads": 1}, as_object=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "threads 1"
    assert lines[3].split()[:2] == ["variant", "cpu"]
    assert lines[5].endswith("0.50")
    harness.finish({"mild": results}, {"threads": 1}, as_object=True)
    found = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in found["mild"]] == ["a", "b"]
    assert found["mild"][1]["extra"] == {"MFU": 0.5}


def test_peak_memory_of_a_fresh_process_is_in_mib(
    harness: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(PATH.parent))
    script = tmp_path / "script.py"
    script.write_text("import harness, sys\nharness.print_growth(lambda: b'x' * (int(sys.argv[1]) << 20))")
    assert harness.peak_rss_mib(str(script), ["200"]) == pytest.approx(200, rel=0.2)
