"""Where runs live: what is refused, continued, replaced; what is written down."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from mmzoo import run_folder
from mmzoo.errors import ConfigError
from mmzoo.run_folder import CHOSEN, Existing, RunFolder, Status


@pytest.fixture(autouse=True)
def fresh_environment(monkeypatch: pytest.MonkeyPatch):
    for name in (CHOSEN, *run_folder.RANKS):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop(CHOSEN, None)


def make(path: Path, status: Status, *, last: bool = True) -> RunFolder:
    folder = RunFolder(path)
    folder.record({"name": "x"}, [])
    folder.mark(status)
    if last:
        folder.last.write_bytes(b"weights")
    return folder


def test_a_new_run_is_named_by_time_and_tag(tmp_path: Path):
    folder = run_folder.choose("demo", str(tmp_path), tag="big")
    assert folder.path.parent == tmp_path / "demo"
    date, clock = folder.path.name.removesuffix("_big").split("_")
    assert [len(part) for part in date.split("-")] == [4, 2, 2]
    assert [len(part) for part in clock.split("-")] == [2, 2, 2]
    assert folder.path.name.endswith("_big")


def test_two_runs_of_one_second_do_not_share_a_folder(tmp_path: Path):
    first = run_folder.choose("demo", str(tmp_path))
    first.record({}, [])
    second = run_folder.choose("demo", str(tmp_path))
    assert first.path != second.path


def test_a_folder_with_something_in_it_is_refused_with_the_three_ways_out(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"is not empty.*resume=auto.*overwrite=true.*run_dir="):
        run_folder.choose("demo", "runs", run_dir=str(tmp_path))


@pytest.mark.parametrize("existing", [Existing.RESUME, Existing.OVERWRITE])
def test_it_is_taken_where_the_user_says_so(tmp_path: Path, existing: Existing):
    (tmp_path / "file").write_text("x")
    assert run_folder.choose("demo", "runs", run_dir=str(tmp_path), existing=existing).path == tmp_path


def test_an_empty_or_absent_folder_needs_no_leave(tmp_path: Path):
    assert run_folder.choose("demo", "runs", run_dir=str(tmp_path)).path == tmp_path
    assert run_folder.choose("demo", "runs", run_dir=str(tmp_path / "new")).path == tmp_path / "new"


def test_a_file_is_no_run_folder(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"is a file; expected a folder"):
        run_folder.choose("demo", "runs", run_dir=str(tmp_path / "file"), existing=Existing.RESUME)


def test_resume_takes_the_newest_run_that_can_go_on(tmp_path: Path):
    parent = tmp_path / "demo"
    make(parent / "2026-01-01_00-00-00", Status.INTERRUPTED)
    wanted = make(parent / "2026-01-02_00-00-00", Status.FAILED)
    make(parent / "2026-01-03_00-00-00", Status.RUNNING, last=False)
    make(parent / "2026-01-04_00-00-00", Status.FINISHED)
    for day, name in enumerate(sorted(p.name for p in parent.iterdir())):
        os.utime(parent / name / "config.yaml", (1000 + day, 1000 + day))
    assert run_folder.choose("demo", str(tmp_path), existing=Existing.RESUME).path == wanted.path


def test_resume_without_such_a_run_starts_a_new_one(tmp_path: Path):
    make(tmp_path / "demo" / "old", Status.FINISHED)
    assert run_folder.choose("demo", str(tmp_path), existing=Existing.RESUME).path.name != "old"


def test_other_ranks_take_what_the_first_one_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run_folder.choose("demo", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder.choose("demo", str(tmp_path)).path == first.path.absolute()
    monkeypatch.setenv("LOCAL_RANK", "0")
    run_folder.forget_choice()
    assert CHOSEN not in os.environ


def test_a_rank_that_nobody_told_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match=r"rank 3 was not told; .* need run_dir="):
        run_folder.choose("demo", "runs")
    assert run_folder.choose("demo", "runs", run_dir=str(tmp_path)).path == tmp_path


def test_clearing_removes_a_runs_files_and_nothing_else(tmp_path: Path):
    folder = make(tmp_path, Status.FINISHED)
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "plots" / "loss.png").write_bytes(b"")
    folder.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_ran_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/mmzoo", "train", "x y", "a=1"])
    monkeypatch.setenv("MMZOO_HOME", "here")
    folder = RunFolder(tmp_path / "run")
    folder.record({"b": {"c": [1, 2.5, None]}, "a": "ü"}, ["a=1", "b.c=[1]"])
    assert yaml.safe_load(folder.config.read_text()) == {"b": {"c": [1, 2.5, None]}, "a": "ü"}
    assert (folder.path / "overrides.txt").read_text() == "a=1\nb.c=[1]\n"
    assert (folder.path / "command.txt").read_text() == "mmzoo train 'x y' a=1\n"
    env = json.loads((folder.path / "env.json").read_text())
    assert env["versions"]["mmzoo"]
    assert env["versions"]["torch"]
    assert env["variables"]["MMZOO_HOME"] == "here"
    assert env["cpu_count"] == os.cpu_count()


def test_the_command_of_a_module_can_be_typed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/site-packages/mmzoo/__main__.py", "train", "demo"])
    folder = RunFolder(tmp_path / "run")
    folder.record({}, [])
    assert (folder.path / "command.txt").read_text() == "python -m mmzoo train demo\n"


def test_status_survives_and_a_broken_one_is_empty(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.mark(Status.FINISHED, step=7)
    assert (folder.status()["status"], folder.status()["step"]) == ("finished", 7)
    (tmp_path / "status.json").write_text('{"status": "fin')
    assert folder.status() == {}


def test_writing_leaves_no_partial_files(tmp_path: Path):
    run_folder.write_text(tmp_path / "a.txt", "one")
    run_folder.write_text(tmp_path / "a.txt", "two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "two")]


def test_a_run_is_found_by_path_or_by_the_name_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = make(Path("runs") / "demo" / "one", Status.FINISHED)
    assert run_folder.find("runs/demo/one").path == run.path
    assert run_folder.find("demo").path == run.path
    with pytest.raises(
        ConfigError, match=r"'runs/demo/on' holds no config.yaml.*Did you mean 'runs/demo/one'"
    ):
        run_folder.find("runs/demo/on")
