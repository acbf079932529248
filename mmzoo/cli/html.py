"""One self-contained HTML page: cards, tables, coloured matrices, pictures inside it, nothing fetched."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmzoo.cli.results import Matrix

STYLE = Path(__file__).with_name("report.css")


def page(title: str, body: Iterable[str]) -> str:
    """Return the whole document."""
    inner = "\n".join(body)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>\n{inner}\n</main></body></html>\n"
    )


def escape(text: object) -> str:
    """Make text safe to stand in HTML."""
    return html.escape(str(text))


def section(title: str, *inner: str) -> str:
    """Return a heading and what belongs under it; nothing where there is nothing."""
    filled = [part for part in inner if part]
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(filled) if filled else ""


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Return a row of big numbers with what they are."""
    inner = "".join(
        f"<div class='card'><b>{escape(v)}</b><span class='soft'>{escape(k)}</span></div>" for k, v in items
    )
    return f"<div class='cards'>{inner}</div>" if items else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a plain table; columns in `right` hold numbers."""
    marks = [" class='n'" if i in right else "" for i in range(len(head))]
    top = "".join(f"<th{m}>{escape(c)}</th>" for m, c in zip(marks, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{escape(c)}</td>" for m, c in zip(marks, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f"<div class='scroll'><table><tr>{top}</tr>\n{body}</table></div>" if body else ""


def heat(matrix: Matrix, *, percent: bool, corner: str = "") -> str:
    """Return a matrix whose cells are the darker the larger; by row where it holds counts."""
    size = " small" if len(matrix.rows) > 12 else ""
    top = "".join(f"<th>{escape(c)}</th>" for c in matrix.columns)
    body: list[str] = []
    largest = max((v for row in matrix.values for v in row if not math.isnan(v)), default=0.0)
    for name, row in zip(matrix.rows, matrix.values, strict=True):
        scale = largest if percent else sum(v for v in row if not math.isnan(v))
        cells = "".join(_cell(v, scale, percent=percent) for v in row)
        body.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    rows = "\n".join([f"<tr><th>{escape(corner)}</th>{top}</tr>", *body])
    return f"<div class='scroll'><table class='heat{size}'>{rows}</table></div>"


def picture(path: Path, caption: str = "") -> str:
    """Return a PNG as part of the page."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return figure(f"<img src='data:image/png;base64,{data}' alt='{escape(caption)}'>", caption)


def figure(inner: str, caption: str = "", title: str = "") -> str:
    """Return a framed picture with its title and caption."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    foot = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{head}{inner}{foot}</figure>"


def grid(figures: Iterable[str]) -> str:
    """Return figures beside one another."""
    inner = "\n".join(figures)
    return f"<div class='grid'>{inner}</div>" if inner else ""


def details(title: str, text: str) -> str:
    """Return long text that opens on a click."""
    return (
        f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
        if text.strip()
        else ""
    )


def _cell(value: float, scale: float, *, percent: bool) -> str:
    if math.isnan(value):
        return "<td class='soft'>–</td>"
    share = min(1.0, max(0.0, value / scale)) if scale > 0 else 0.0
    text = f"{100 * value:.1f}" if percent else f"{value:g}"
    ink = "color:#fff;" if share > 0.6 else ""
    return f"<td style='{ink}background:rgb(var(--heat) / {0.9 * share:.2f})'>{text}</td>"
