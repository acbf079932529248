"""Line charts as SVG text, written by hand: what the report needs, without any plotting package."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from mmzoo.cli.curves import Panel, Points

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 34
COLOURS = ("#3066be", "#e4572e", "#2e933c", "#8f5bb5", "#c78c06", "#119da4", "#d1495b", "#6b7280")
FONT = "font-family='system-ui,sans-serif' font-size='11'"


def chart(panel: Panel) -> str:
    """Draw the curves of a panel with axes, grid and legend."""
    points = [p for curve in panel.curves.values() for p in curve]
    x_ticks, y_ticks = ticks([x for x, _ in points]), ticks([y for _, y in points])
    frame = _Frame(x_ticks, y_ticks)
    parts = [
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' xmlns='http://www.w3.org/2000/svg' role='img' {FONT}>",
        f"<title>{html.escape(panel.title)}</title>",
        *_grid(frame, percent=panel.percent),
    ]
    colours = iter(COLOURS * 4)
    legend: list[tuple[str, str]] = []
    for name, curve in panel.curves.items():
        faint = name in panel.faint
        colour = COLOURS[0] if faint else next(colours)
        parts.append(_line(frame, curve, colour, faint=faint))
        if not faint:
            legend.append((name, colour))
    parts += _legend(legend) if len(legend) > 1 else []
    return "\n".join([*parts, "</svg>"])


def ticks(values: Sequence[float], wanted: int = 5) -> list[float]:
    """Return round numbers that span the values, about `wanted` of them.

    Math: the step is 1, 2 or 5 times a power of ten, the smallest that needs no more than `wanted` intervals.
    """
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def label(value: float, *, percent: bool = False) -> str:
    """Write a tick: 20 %, 1.5k, 3e-4."""
    if percent:
        return f"{100 * value:.3g} %"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}" if abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


class _Frame:
    """From numbers to places on the page."""

    def __init__(self, x_ticks: list[float], y_ticks: list[float]) -> None:
        self.x_ticks, self.y_ticks = x_ticks, y_ticks

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def _grid(frame: _Frame, *, percent: bool) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts: list[str] = []
    for value in frame.y_ticks:
        y = frame.y(value)
        ends = f"x1='{LEFT}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'"
        parts.append(f"<line {ends} stroke='currentColor' stroke-opacity='.12'/>")
        parts.append(_text(LEFT - 6, y + 4, label(value, percent=percent), "end"))
    parts += [_text(frame.x(v), bottom + 16, label(v), "middle") for v in frame.x_ticks]
    return [*parts, _text((LEFT + right) / 2, HEIGHT - 4, "step", "middle")]


def _text(x: float | int, y: float | int, text: str, anchor: str) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'"
    return f"<text {place} fill='currentColor' fill-opacity='.7'>{html.escape(text)}</text>"


def _line(frame: _Frame, curve: Points, colour: str, *, faint: bool) -> str:
    places = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in curve if math.isfinite(y)]
    width = "stroke-width='1' opacity='.3'" if faint else "stroke-width='2'"
    if len(places) == 1:
        x, y = places[0].split(",")
        return f"<circle cx='{x}' cy='{y}' r='3' fill='{colour}'/>"
    look = f"fill='none' stroke='{colour}' {width} stroke-linejoin='round'"
    return f"<polyline points='{' '.join(places)}' {look}/>"


def _legend(names: list[tuple[str, str]]) -> list[str]:
    width = 22 + 6.2 * max(len(name) for name, _ in names)
    x, parts = WIDTH - RIGHT - width, []
    for row, (name, colour) in enumerate(names):
        y = TOP + 8 + 15 * row
        parts.append(
            f"<line x1='{x:.0f}' x2='{x + 14:.0f}' y1='{y}' y2='{y}' stroke='{colour}' stroke-width='3'/>"
        )
        parts.append(f"<text x='{x + 19:.0f}' y='{y + 4}' fill='currentColor'>{html.escape(name)}</text>")
    return parts
