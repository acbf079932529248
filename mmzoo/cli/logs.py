"""Logging of the commands: short lines on stderr, everything in the run's log file, rank zero only.

What other packages say (Lightning's banners, warnings of libraries) goes to the file; the console shows what
mmzoo itself says, and errors. `MMZOO_LOG_LEVEL` (debug, info, warning, error) sets how much.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path

from mmzoo.errors import ConfigError, close_matches
from mmzoo.home import home
from mmzoo.run_folder import rank

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _State:
    file: Path | None = None


def level() -> int:
    """Return the level that MMZOO_LOG_LEVEL asks for."""
    name = os.environ.get("MMZOO_LOG_LEVEL", "info").lower()
    if name not in LEVELS:
        raise ConfigError.at("MMZOO_LOG_LEVEL", repr(name), ", ".join(LEVELS), close_matches(name, LEVELS))
    return LEVELS[name]


def setup() -> None:
    """Send log lines to stderr. Called again, it follows the level and the stream of now."""
    _State.file = None
    wanted = level()
    root = logging.getLogger()
    root.setLevel(min(wanted, logging.INFO))
    for old in [h for h in root.handlers if isinstance(h, _Console)]:
        root.removeHandler(old)
    console = _Console(wanted)
    console.setFormatter(_Short())
    root.addHandler(console)
    logging.captureWarnings(capture=True)


class RunLog(logging.handlers.MemoryHandler):
    """All log lines of rank zero from the moment it is made: in memory until the run has a file for them."""

    def __init__(self) -> None:
        """Begin to listen."""
        super().__init__(capacity=1, flushOnClose=False)
        self.setLevel(logging.DEBUG)
        self.addFilter(lambda _: rank() == 0)
        self._file: logging.FileHandler | None = None
        logging.getLogger().addHandler(self)

    def to_file(self, path: Path) -> None:
        """Write what was held and what follows to `path`; tracebacks of crashes end there too."""
        self._file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        self.setTarget(self._file)
        self.flush()
        _State.file = path

    def close(self) -> None:
        """Stop writing. A crash on its way out still finds the file."""
        logging.getLogger().removeHandler(self)
        super().close()
        if self._file is not None:
            self._file.close()


def crash_file() -> Path:
    """Return where a traceback belongs: the run's log, else a new file under MMZOO_HOME."""
    if _State.file is not None:
        return _State.file
    return home() / "logs" / f"crash-{os.getpid()}.log"


class _Console(logging.StreamHandler):  # type: ignore[type-arg] generic only in type stubs
    """stderr, for mmzoo's own lines and everybody's errors, on rank zero."""

    def __init__(self, wanted: int) -> None:
        super().__init__(sys.stderr)
        self.setLevel(wanted)
        self.addFilter(self._is_ours)

    @staticmethod
    def _is_ours(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        if getattr(record, "quiet", False):  # somebody has shown it already
            return False
        return rank() == 0 and (record.name.startswith("mmzoo") or level() == logging.DEBUG)


class _Short(logging.Formatter):
    """The bare message; a level's name before it from warning upwards."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
