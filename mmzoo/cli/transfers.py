"""How a download is shown: a bar redrawn on a terminal, plain lines elsewhere, nothing beside JSON."""

from __future__ import annotations

import os
import shutil
import sys
import time

from mmzoo.cli import console

REDRAW_S, LINE_S = 0.1, 10.0
WIDTH = 24
"""Cells of the bar."""


class Bar:
    """Hears the bytes of one download after another; `name` says which, `close` ends the line."""

    def __init__(self, name: str) -> None:
        """Name what is fetched."""
        self.name = name
        self.is_drawn = console.is_terminal(sys.stderr) and not os.environ.get("MMZOO_NO_PROGRESS")
        self._start: tuple[float, int] | None = None
        self._shown = 0.0
        self._open = False

    def __call__(self, done: int, total: int | None) -> None:
        """Show how far it is, not too often."""
        now = time.monotonic()
        if self._start is None or done < self._start[1]:
            self._start, self._shown = (now, done), now if not self.is_drawn else 0.0
        whole = total is not None and done >= total
        if now - self._shown < (REDRAW_S if self.is_drawn else LINE_S) and not (whole and self.is_drawn):
            return
        self._shown = now
        text = self._text(done, total, now)
        if self.is_drawn:
            columns = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r{text[:columns]:<{columns}}")
            sys.stderr.flush()
            self._open = True
        else:
            console.note(text)

    def close(self) -> None:
        """End the line that is being redrawn."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False

    def _text(self, done: int, total: int | None, now: float) -> str:
        since, first = self._start or (now, done)
        rate = (done - first) / max(now - since, 1e-3)
        speed = console.short(rate, "B/s")
        if total is None:
            return f"{self.name}  {console.short(done, 'B')}  {speed}"
        share = done / total if total else 1.0
        cells = f"{'█' * round(share * WIDTH):░<{WIDTH}}  " if self.is_drawn else ""
        left = f"  left {console.clock((total - done) / rate)}" if rate > 0 and done < total else ""
        of = f"{console.short(done, 'B')} of {console.short(total, 'B')}"
        return f"{self.name}  {cells}{share:4.0%}  {of}  {speed}{left}"


def silent(done: int, total: int | None) -> None:
    """Show nothing."""
