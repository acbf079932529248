"""Writes the resolved configuration of every shipped recipe: `python -m tests.golden.write [RECIPE …]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from mmzoo import configs, recipe

FOLDER = Path(__file__).parent / "configs"
FROM_ENVIRONMENT = ("MMZOO_DATA", "MMZOO_CONFIG_DIR")
"""Variables that may change what a recipe resolves to; goldens are made without them."""


def shipped(group: str) -> dict[str, Path]:
    """Return name -> file of every config that the package ships, whatever else can be found."""
    folder = configs.PACKAGE / group
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in sorted(folder.rglob("*.yaml"))}


def golden_text(name: str) -> str:
    """Return the whole resolved tree of a recipe as YAML."""
    tree = recipe.load(str(shipped("recipe")[name])).to_dict()
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def main(names: list[str]) -> None:
    """Write the named goldens, else all, and remove those of recipes that are gone."""
    for variable in FROM_ENVIRONMENT:
        os.environ.pop(variable, None)
    FOLDER.mkdir(exist_ok=True)
    for name in names or shipped("recipe"):
        (FOLDER / f"{name}.yaml").write_text(golden_text(name), encoding="utf-8")
        print(f"wrote {name}.yaml")
    for file in FOLDER.glob("*.yaml"):
        if file.stem not in shipped("recipe"):
            file.unlink()
            print(f"removed {file.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
