"""The pictures in a run's `plots/`: curves and matrices, as PNG through matplotlib or as SVG without it."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from mmzoo.cli import curves, results, svg
from mmzoo.cli.curves import Panel
from mmzoo.cli.results import Matrix, Results
from mmzoo.learners.history import read_history
from mmzoo.run_folder import RunFolder, write_text

log = logging.getLogger(__name__)
DPI = 150
AXES = {results.is_retrieval: ("given", "found"), results.is_routing: ("from", "expert")}
"""Matrices that hold shares, and what their rows and columns are."""
MOST_NUMBERS = 20
"""Cells of larger matrices carry no number."""


def draw_all(folder: RunFolder) -> None:
    """Draw what the run's history and results hold; without matplotlib the curves become SVG files."""
    folder.plots.mkdir(parents=True, exist_ok=True)
    panels = curves.panels(read_history(folder.metrics))
    try:
        import matplotlib
    except ImportError:
        log.info("plots: SVG curves only; `pip install 'mmzoo[report]'` (matplotlib) adds PNGs and matrices")
        for panel in panels:
            write_text(folder.plots / f"{panel.name}.svg", svg.chart(panel))
        return
    with matplotlib.rc_context(_look()):
        for panel in panels:
            _save(_curves(panel), folder, panel.name)
        for found in results.load(folder.evaluation).values():
            _matrices(found, folder)


def _matrices(found: Results, folder: RunFolder) -> None:
    for name, matrix in found.matrices.items():
        stem = name.replace("/", "_") + ("" if found.split == "test" else f"_{found.split}")
        axes = next((own for says, own in AXES.items() if says(name)), ("true", "predicted"))
        _save(_matrix(matrix, results.title(name), axes), folder, stem)


def _look() -> dict[Any, Any]:
    return {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "figure.dpi": DPI,
        "svg.fonttype": "none",
    }


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, folder: RunFolder, name: str) -> None:
    figure.savefig(folder.plots / f"{name}.png", dpi=DPI)


def _curves(panel: Panel) -> Any:
    from matplotlib.ticker import PercentFormatter

    figure = _figure(6.4, 3.8)
    axes = figure.add_subplot()
    colours = iter(svg.COLOURS * 4)
    for name, points in panel.curves.items():
        faint = name in panel.faint
        colour = svg.COLOURS[0] if faint else next(colours)
        steps, values = zip(*points, strict=True)
        mark = "o" if len(points) < 12 and not faint else None
        axes.plot(
            steps,
            values,
            color=colour,
            alpha=0.3 if faint else 1.0,
            lw=1 if faint else 1.8,
            marker=mark,
            ms=3,
            label="_" if faint else name,
        )
    axes.set_xlabel("step")
    axes.set_title(panel.title, loc="left", fontweight="bold")
    axes.margins(x=0.01)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    if len(panel.curves) - len(panel.faint) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _matrix(matrix: Matrix, title: str, names: tuple[str, str]) -> Any:
    values = np.array(matrix.values, dtype=float)
    in_shares = names in AXES.values()
    shares = values if in_shares else values / np.maximum(np.nansum(values, axis=1, keepdims=True), 1)
    size = len(matrix.columns)
    side = min(12.0, 2.2 + (0.75 if size <= MOST_NUMBERS else 0.12) * size)
    figure = _figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=max(float(np.nanmax(shares)), 1e-9))
    axes.set_xticks(range(size), matrix.columns, rotation=0 if size <= 6 else 90)
    axes.set_yticks(range(len(matrix.rows)), matrix.rows)
    axes.tick_params(length=0)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.set_xlabel(names[1])
    axes.set_ylabel(names[0])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if size <= MOST_NUMBERS:
        _numbers(axes, values, shares, retrieval=in_shares)
    return figure


def _numbers(axes: Any, values: np.ndarray, shares: np.ndarray, *, retrieval: bool) -> None:
    dark = 0.6 * float(np.nanmax(shares))
    for (row, column), value in np.ndenumerate(values):
        text = "–" if math.isnan(value) else f"{100 * value if retrieval else value:.0f}"
        colour = "white" if shares[row, column] > dark else "#1b1f24"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
