"""What the benchmarks share: variants timed side by side, their paired ratios, peak memory, a table or JSON.

Rounds interleave all variants in one process and reverse their order each time, so that a drift of the
machine hits all alike. A ratio is taken within a round (baseline / variant: above 1 is faster), then the
median over rounds, its interquartile range, and best/best. Clocks: process CPU time (with one thread the
gate: other load changes it least) and wall time. A comparison whose ratios spread by more than 15 % is
marked NOISY.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

NOISY = 0.15


@dataclass(frozen=True)
class Clock:
    """One clock's figures of one variant, against the baseline of the same rounds."""

    median_ms: float
    best_ms: float
    ratio: float
    ratio_iqr: float
    best_ratio: float

    @property
    def noisy(self) -> bool:
        """Say whether the ratios spread too much to be believed."""
        return self.ratio_iqr > NOISY * self.ratio


@dataclass
class Result:
    """One variant: its clocks, and whatever else is worth a column."""

    name: str
    cpu: Clock
    wall: Clock
    extra: dict[str, Any] = field(default_factory=dict)


def compare(variants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> list[Result]:
    """Time every variant once a round; the first is the baseline."""
    for _ in range(warmup):
        for run in variants.values():
            run()
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            variants[name]()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
    base = names[0]
    return [Result(name, _clock(cpu[base], cpu[name]), _clock(wall[base], wall[name])) for name in names]


def _clock(base: Sequence[float], own: Sequence[float]) -> Clock:
    ratios = [b / o for b, o in zip(base, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Clock(
        median_ms=1e3 * statistics.median(own),
        best_ms=1e3 * min(own),
        ratio=statistics.median(ratios),
        ratio_iqr=high - low,
        best_ratio=min(base) / min(own),
    )


def gemm_peak(dtype_name: str, *, repeats: int = 5) -> float:
    """Return the best GEMM speed of this process in GFLOP/s, over the shapes of performance.md section 6."""
    import torch

    dtype = getattr(torch, dtype_name)
    best = 0.0
    for m, k, n in [(4096, 384, 1536), (2048, 2048, 2048)]:
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
        a @ b
        for _ in range(repeats):
            start = time.process_time()
            a @ b
            best = max(best, 2e-9 * m * k * n / max(time.process_time() - start, 1e-9))
    return best


def peak_rss_mib(script: str, arguments: Sequence[str]) -> float:
    """Run `script` with `arguments` in a fresh process; return the number it prints last (see
    `print_growth`).
    """
    done = subprocess.run(
        [sys.executable, script, *arguments], check=True, capture_output=True, text=True, env={**os.environ}
    )
    return float(done.stdout.split()[-1])


def print_growth(run: Callable[[], object]) -> None:
    """Run once and print by how many MiB the peak resident set of this process grew above where it stood.

    The kernel's peak is reset first where it lets us (Linux): it would else hold what importing took,
    and what the parent process had.
    """
    peak = pathlib.Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")
    before = _resident_mib("VmRSS")
    run()
    print(_resident_mib("VmHWM") - before)


def _resident_mib(name: str) -> float:
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 1024
    )


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options all benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=9, help="interleaved rounds (7 or more for a claim)")
    made.add_argument("--quick", action="store_true", help="small sizes and three rounds: does it run at all")
    made.add_argument(
        "--threads", type=int, default=1, help="threads (1: CPU time is the gate; 2: read wall time)"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return made


def machine(threads: int) -> dict[str, Any]:
    """Say where and under which load the numbers were taken."""
    return {"threads": threads, "cores": os.cpu_count(), "load_average": os.getloadavg()}


def table(title: str, results: Sequence[Result]) -> str:
    """Format results as lines, the baseline first."""
    extras = list(dict.fromkeys(key for r in results for key in r.extra))
    head = ["variant", "cpu ms", "ratio", "IQR", "best/best", "wall ms", "ratio", *extras]
    rows = [
        [
            r.name,
            f"{r.cpu.median_ms:.0f}",
            f"{r.cpu.ratio:.2f}x",
            f"{r.cpu.ratio_iqr:.2f}{' NOISY' if r.cpu.noisy else ''}",
            f"{r.cpu.best_ratio:.2f}x",
            f"{r.wall.median_ms:.0f}",
            f"{r.wall.ratio:.2f}x",
            *(_show(r.extra.get(key)) for key in extras),
        ]
        for r in results
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([title, *lines])


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return results as plain values."""
    return [asdict(r) for r in results]


def finish(sections: Mapping[str, Sequence[Result]], about: Mapping[str, Any], *, as_object: bool) -> None:
    """Print all sections as tables, or as one JSON object."""
    if as_object:
        print(json.dumps({"about": dict(about), **{name: as_json(r) for name, r in sections.items()}}))
        return
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for name, results in sections.items():
        print("\n" + table(name, results))


def _show(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
