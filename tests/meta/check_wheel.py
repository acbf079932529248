"""Checks that the built wheel holds every Python file, config and data file of the package: `check_wheel.py
DIST`."""

from __future__ import annotations

import pathlib
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def missing_from(wheel: pathlib.Path) -> list[str]:
    """Return the package's files that the wheel lacks."""
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = (p for p in (ROOT / "mmzoo").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted(name for p in files if (name := p.relative_to(ROOT).as_posix()) not in held)


if __name__ == "__main__":
    wheels = sorted(pathlib.Path(sys.argv[1]).glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{sys.argv[1]}: {len(wheels)} wheels; expected one. Run `make wheel`.")
    lacking = missing_from(wheels[0])
    if lacking:
        sys.exit(f"{wheels[0].name} lacks: {', '.join(lacking)}")
    print(f"{wheels[0].name} holds the whole package")
