"""YAML only: model/ recipe/ data/ trainer/; and where such files are looked for.

Names are searched in `./configs`, `$MMZOO_CONFIG_DIR` and here, first match first. Reading them is work of
compose.py: this file stays free of OmegaConf, so that `mmzoo list` is instant.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmzoo.errors import ConfigError, close_matches

GROUPS = ("recipe", "model", "data", "trainer")
PACKAGE = Path(__file__).parent


def search_path() -> list[Path]:
    """Return the folders that may hold configs, first match first."""
    given = os.environ.get("MMZOO_CONFIG_DIR")
    return [Path("configs"), *([Path(given)] if given else []), PACKAGE]


def list_configs(group: str) -> dict[str, Path]:
    """Return name -> file of every config of a group that can be found."""
    found: dict[str, Path] = {}
    for folder in reversed(search_path()):
        for file in sorted((folder / group).rglob("*.yaml")):
            found[file.relative_to(folder / group).with_suffix("").as_posix()] = file
    return dict(sorted(found.items()))


def find(group: str, name: str, where: str = "") -> Path:
    """Return the file of a config by name or by path; an unknown name gets its close matches."""
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError.at(where or group, f"no file {name}", "a YAML file", "Check the path.")
    found = list_configs(group)
    if name not in found:
        expected = f"a {group} by name, or a .yaml file"
        do = close_matches(name, found, listing="mmzoo list")
        raise ConfigError.at(where or group, f"{name!r} is unknown", expected, do)
    return found[name]
