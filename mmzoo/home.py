"""Where mmzoo keeps what it makes and fetches, and whether it may use the network."""

from __future__ import annotations

import os
from pathlib import Path

NO = frozenset(("", "0", "false", "no", "off"))


def home() -> Path:
    """Return the folder of mmzoo's caches: MMZOO_HOME, else mmzoo under the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MMZOO_HOME") or Path(cache) / "mmzoo").expanduser()


def is_offline() -> bool:
    """Say whether MMZOO_OFFLINE (or the hub's own HF_HUB_OFFLINE) forbids the network."""
    return any(os.environ.get(name, "").lower() not in NO for name in ("MMZOO_OFFLINE", "HF_HUB_OFFLINE"))
