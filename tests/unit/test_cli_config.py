"""`mmzoo config`: what it prints is a recipe again, and says what an override did."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmzoo import configs
from mmzoo.cli import main

SHIPPED = sorted(p.stem for p in (configs.PACKAGE / "recipe").glob("*.yaml"))


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main.main(["config", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_printed_is_a_recipe_of_its_own(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = printed(capsys, name, "seed=5")
    mine = tmp_path / "mine.yaml"
    mine.write_text(whole, encoding="utf-8")
    assert printed(capsys, str(mine)) == whole
    assert yaml.safe_load(whole)["seed"] == 5


def test_an_override_changes_its_option_and_nothing_else(capsys: pytest.CaptureFixture[str]):
    before = printed(capsys, "five_senses").splitlines()
    after = printed(capsys, "five_senses", "learner.optim.lr=0.5").splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [b.strip() for _, b in changed] == ["lr: 0.5"]


def test_a_folder_that_is_no_run_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(["config", str(tmp_path)]) == 2
    assert f"data.root={tmp_path}" in capsys.readouterr().err


def test_a_run_folder_gives_what_it_ran_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tree = yaml.safe_load(printed(capsys, "five_senses", "seed=9", "run_dir=there", "overwrite=true"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    again = yaml.safe_load(printed(capsys, str(tmp_path), "tag=b"))
    assert again == {**tree, "run_dir": "", "overwrite": False, "tag": "b"}
