"""The house rules that a machine can see: sizes, names, what is said twice, what must not be written down."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "mmzoo").rglob("*.py"))
EVERYTHING = sorted(p for folder in ("mmzoo", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


def test_no_file_is_too_long_to_hold():
    long = {
        p.relative_to(ROOT).as_posix(): n for p in EVERYTHING if (n := len(p.read_text().splitlines())) > 600
    }
    assert not long


def test_no_file_has_a_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert not [p for p in EVERYTHING if p.stem in empty or p.parent.name in empty]


def test_constructors_and_functions_take_at_most_eight_parameters():
    wide: list[str] = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([n for n in names if n not in ("self", "cls")]) > 8:
                    wide.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not wide


def test_every_config_field_has_a_line_under_it():
    silent: list[str] = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith("Config") for b in node.bases):
                for here, after in zip(node.body, [*node.body[1:], None], strict=True):
                    explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    if (
                        isinstance(here, ast.AnnAssign)
                        and "ClassVar" not in ast.unparse(here.annotation)
                        and not explained
                    ):
                        silent.append(f"{path.relative_to(ROOT)}:{here.lineno} {ast.unparse(here.target)}")
    assert not silent


def test_no_unfinished_words_and_no_asserts_for_users():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [f"{p.relative_to(ROOT)}" for p in SOURCES if words.search(p.read_text())]
    for path in SOURCES:
        found += [
            f"{path.relative_to(ROOT)}:{n.lineno} assert"
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Assert)
        ]
    assert not found


def test_no_machine_paths_or_package_hosts_are_written_down():
    pattern = re.compile(r"(?<![\w.])/(work|root|home|farm)/|index-url|pythonhosted|/simple/")
    suffixes = {".py", ".toml", ".yaml", ".yml", ".md", ".txt", ".json", ".cfg", ""}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    files = [
        ROOT / f
        for f in listed
        if f and pathlib.Path(f).suffix in suffixes and not f.endswith("test_house.py")
    ]
    assert files or not (ROOT / ".git").exists()
    found = [
        p.relative_to(ROOT).as_posix()
        for p in files
        if p.is_file() and pattern.search(p.read_text(errors="ignore"))
    ]
    assert not found


@pytest.mark.parametrize("module", ["torch", "pytorch_lightning", "timm", "numpy", "yaml", "omegaconf"])
def test_importing_the_package_and_its_tables_imports_nothing_heavy(module: str):
    code = (
        "import sys, mmzoo; from mmzoo import registry\n"
        "for name in registry.ROOMS: registry.table(name)\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_floors_hold():
    found = subprocess.run(
        [str(pathlib.Path(sys.executable).with_name("lint-imports"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_every_row_of_every_table_points_at_a_documented_class():
    from mmzoo import registry

    for name in registry.ROOMS:
        for key in registry.table(name):
            cls = registry.find(name, key)
            assert isinstance(cls, type), f"{name}/{key}"
            assert cls.__doc__, f"{name}/{key}"
            assert registry.name_of(name, cls) == key
