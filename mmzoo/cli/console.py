"""What the commands write: tables, JSON, a touch of colour on a terminal.

Standard library only, so it is instant. Results go to stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@runtime_checkable
class Stream(Protocol):
    """What is asked of stdout and stderr, and of what stands in for them."""

    def isatty(self) -> bool:
        """Say whether it is a terminal."""
        ...


def is_terminal(stream: Stream) -> bool:
    """Say whether a person is likely to watch this stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def style(text: str, name: str, stream: Stream | None = None) -> str:
    """Colour `text` where the stream is a terminal and NO_COLOR is unset or empty."""
    if not is_terminal(stream or sys.stdout) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{STYLES[name]}m{text}\x1b[0m"


def say(text: str = "") -> None:
    """Write one result line to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line that is no result to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def dump(value: Any) -> None:
    """Write one JSON document to stdout; numbers that JSON lacks (NaN, infinity) become null."""
    say(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[int] = (),
    stream: Stream | None = None,
) -> str:
    """Lay out rows under a head, columns in `right` to the right; a terminal's width cuts the last one."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(_bare(row[i])) for row in [list(head), *body]) for i in range(len(head))]
    if is_terminal(stream or sys.stdout):
        room = shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(widths) - 1)
        last = min(widths[-1], max(24, room))
        body = [[*row[:-1], _cut(row[-1], last)] for row in body]
        widths[-1] = last
    lines = [style(_row(head, widths, right), "bold", stream)]
    lines += [_row(row, widths, right) for row in body]
    return "\n".join(lines)


def pairs(items: Mapping[str, Any], indent: str = "") -> str:
    """Lay out `name  value` lines with the values under one another."""
    width = max((len(k) for k in items), default=0)
    return "\n".join(f"{indent}{style(k.ljust(width), 'cyan')}  {v}" for k, v in items.items())


def short(number: float | int | None, unit: str = "") -> str:
    """Write a number in three digits with a decimal prefix: 12.3M; nothing known is a dash."""
    if number is None:
        return "–"
    for size, prefix in UNITS:
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{prefix}{unit}"
    return f"{number:.3g}{unit}"


def clock(seconds: float | int) -> str:
    """Write a duration as 42s, 3m05s or 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    return (
        f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    )


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    padded = [
        " " * (w - len(_bare(c))) + c if i in right else c + " " * (w - len(_bare(c)))
        for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _bare(text: str) -> str:
    return ANSI.sub("", text)


def _cut(text: str, width: int) -> str:
    return text if len(_bare(text)) <= width else _bare(text)[: width - 1] + "…"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
