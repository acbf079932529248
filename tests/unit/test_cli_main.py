"""The command itself: verbs, help, errors and exit codes; what must be instant imports nothing heavy."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmzoo.cli import console, main, words
from mmzoo.errors import ConfigError

VERBS = list(main.VERBS)
HEAVY = ("torch", "pytorch_lightning", "numpy", "timm", "omegaconf")


def mmzoo(*args: str) -> int:
    return main.main(list(args))


def err_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_no_words_prints_the_commands_and_leaves_with_zero(capsys: pytest.CaptureFixture[str]):
    assert mmzoo() == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} ", text, re.MULTILINE) for verb in VERBS)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    from mmzoo import __version__

    assert mmzoo("--version") == 0
    assert capsys.readouterr().out == f"mmzoo {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_ends_with_examples_and_what_comes_next(
    verb: str, capsys: pytest.CaptureFixture[str]
):
    assert mmzoo(verb, "-h") == 0
    text = capsys.readouterr().out
    examples = text.split("\nexamples:\n")[1].split("\n\nnext: ")[0].splitlines()
    assert len(examples) >= 2
    assert all(
        line.startswith(f"  mmzoo {verb} ") or line.split("#")[0].strip() == f"mmzoo {verb}"
        for line in examples
    )
    assert text.rstrip().splitlines()[-1].startswith("next: ")


def test_help_of_a_verb_is_also_spelled_help_verb(capsys: pytest.CaptureFixture[str]):
    assert mmzoo("help", "list") == 0
    assert capsys.readouterr().out.startswith("usage: mmzoo list")


MISTYPED = {
    "trian": "mmzoo: 'trian' is unknown; expected a command. Did you mean 'train'?",
    "list --jsn": "mmzoo list: '--jsn' is unknown; expected an option of this command. Did you mean '--json'",
    "train --trainer.max_steps=3": "mmzoo train: '--trainer.max_steps=3'; expected key=value without dashes. "
    "Write trainer.max_steps=3.",
    "list --sort age": "mmzoo list --sort: 'age'; expected one of ",
    "info": "mmzoo info: no NAME; expected NAME. See `mmzoo info -h`.",
    "embed m d --batch-size x": "mmzoo embed --batch-size: 'x'; expected int. See `mmzoo embed -h`.",
    "list --kind modells": "--kind: 'modells' is unknown; expected a kind of thing. Did you mean 'models'",
    "list retreival": "mmzoo list: nothing like 'retreival'; expected a name or pattern. "
    "Did you mean 'retrieval'",
    "list --modality smell": "--modality: nothing has 'smell'; expected one of the modalities.",
    "list --task cooking": "--task: nothing has 'cooking'; expected one of the tasks.",
    "info five_sences": "mmzoo info: 'five_sences' is unknown; expected a name that `mmzoo list` shows. "
    "Did you mean 'five_senses'",
    "data": "mmzoo data: nothing to do; expected inspect, make or pack.",
    "data inspekt x": "mmzoo data: 'inspekt'; expected inspect, make or pack. Did you mean 'inspect'?",
    "data inspect": "mmzoo data inspect: no PATH; expected ACTION PATH.",
    "eval": "mmzoo eval: no RUN; expected RUN. See the examples of `mmzoo eval -h`.",
    "embed model": "mmzoo embed: no DATA; expected MODEL DATA.",
    "embed model data": "mmzoo embed -o: no output file; expected a name in .npz or .parquet. Add -o out",
    "embed m d -o x.csv": "mmzoo embed -o: 'x.csv'; expected a name in .npz or .parquet.",
    "embed m d -o x.npz --batch-size 0": "mmzoo embed: 0; expected sizes of 1 or more.",
    "train a b": "mmzoo train: 'b' after 'a'; expected key=value. To change an option write its dotted key",
}


@pytest.mark.parametrize("args", MISTYPED)
def test_what_is_mistyped_gets_one_line_and_code_two(args: str, capsys: pytest.CaptureFixture[str]):
    assert mmzoo(*args.split()) == 2
    found = err_lines(capsys)
    assert len(found) == 1
    assert found[0].startswith(f"mmzoo: error: {MISTYPED[args]}")


def test_a_recipes_name_in_place_of_a_verb_is_understood(capsys: pytest.CaptureFixture[str]):
    assert mmzoo("five_senses") == 2
    expected = (
        "mmzoo: error: mmzoo: 'five_senses' is a recipe; expected a command. Type `mmzoo train five_senses`."
    )
    assert err_lines(capsys) == [expected]


def test_all_config_errors_are_told_at_once(capsys: pytest.CaptureFixture[str]):
    assert (
        mmzoo(
            "config", "five_senses", "learner.optim.lrr=1", "trainer.max_step=3", "data.loader.batch_sise=2"
        )
        == 2
    )
    found = err_lines(capsys)
    assert [("'lr'" in found[0]), ("'max_steps'" in found[1]), ("'batch_size'" in found[2])] == [True] * 3


def test_flags_stand_before_or_after_the_overrides(capsys: pytest.CaptureFixture[str]):
    assert mmzoo("config", "--json", "five_senses", "seed=7") == 0
    before = json.loads(capsys.readouterr().out)
    assert mmzoo("config", "five_senses", "seed=7", "--json") == 0
    assert json.loads(capsys.readouterr().out) == before
    assert before["seed"] == 7


def test_an_unexpected_failure_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from mmzoo.cli import list as listing

    def fail(args: object) -> int:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(listing, "run", fail)
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path))
    assert mmzoo("list") == 1
    (line,) = err_lines(capsys)
    (file,) = (tmp_path / "logs").iterdir()
    assert line.startswith(f"mmzoo: failed: RuntimeError: the disk is on fire. The traceback is in {file}")
    assert file.read_text().startswith("Traceback")
    assert 'raise RuntimeError("the disk is on fire")' in file.read_text()


def test_ctrl_c_leaves_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from mmzoo.cli import list as listing

    def stop(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "run", stop)
    assert mmzoo("list") == 130
    assert err_lines(capsys) == ["mmzoo: interrupted"]


def test_a_wrong_log_level_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("MMZOO_LOG_LEVEL", "debugg")
    assert mmzoo("eval", "nothing") == 2
    (line,) = err_lines(capsys)
    told = "MMZOO_LOG_LEVEL: 'debugg'; expected debug, info, warning, error. Did you mean 'debug'?"
    assert line == f"mmzoo: error: {told}"


@pytest.mark.parametrize(
    "args", [["--help"], ["list"], ["list", "--json"], ["info", "five_senses"], ["info", "metrics/retrieval"]]
)
def test_looking_around_imports_nothing_heavy(args: list[str], tmp_path: Path):
    code = (
        "import sys\nfrom mmzoo.cli.main import main\n"
        f"code = main({args!r})\n"
        f"sys.exit(code or [m for m in {HEAVY!r} if m in sys.modules] or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_package_runs_as_a_module(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "mmzoo", "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout[:6]) == (0, "mmzoo ")


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path):
    code = f"{sys.executable} -m mmzoo list | head -1"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("given", "names", "overrides"),
    [
        (["five_senses", "a.b=1"], ["five_senses"], ["a.b=1"]),
        (["a.b=1", "five_senses", "~c", "+d=x=y"], ["five_senses"], ["a.b=1", "~c", "+d=x=y"]),
        (["data=esc50"], [], ["data=esc50"]),
        ([], [], []),
    ],
)
def test_words_divide_into_names_and_overrides(given: list[str], names: list[str], overrides: list[str]):
    assert words.split(given, "mmzoo train", ["RECIPE"]) == (names, overrides)


def test_a_missing_name_is_an_error():
    with pytest.raises(ConfigError, match="no DATA; expected MODEL DATA"):
        words.required(["model"], "mmzoo embed", ["MODEL", "DATA"])


def test_tables_align_numbers_to_the_right():
    text = console.table(("name", "n"), [("a", "1"), ("longer", "1,000")], right=(1,))
    assert text == "name        n\na           1\nlonger  1,000"


def test_a_terminals_width_cuts_the_last_column_only(monkeypatch: pytest.MonkeyPatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("a" * 10, "b" * 50), ("c", "d")]
    lines = console.table(("x", "y"), rows, stream=Terminal()).splitlines()
    assert lines[1] == "a" * 10 + "  " + "b" * 27 + "…"
    narrow = console.table(("x", "n"), [("a", "1"), ("b", "10")], right=(1,), stream=Terminal())
    assert narrow.splitlines() == ["x   n", "a   1", "b  10"]
    monkeypatch.delenv("NO_COLOR")
    assert console.style("x", "bold", Terminal()) == "\x1b[1mx\x1b[0m"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0"),
        (12, "12"),
        (999, "999"),
        (999.9, "1k"),
        (1234, "1.23k"),
        (3_575_706, "3.58M"),
        (1.3e10, "13G"),
    ],
)
def test_short_numbers_have_three_digits(number: float | None, text: str):
    assert console.short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_clock(seconds: float, text: str):
    assert console.clock(seconds) == text


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]):
    console.dump({"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize(
    "args", [("data", "make", "manifest", "{}/deeper/out"), ("convert", "five_senses_tiny", "{}/deeper/out")]
)
def test_a_place_that_cannot_be_written_is_one_line_and_the_users_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
):
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert mmzoo(*(a.format(file) for a in args)) == 2
    (line,) = (text for text in err_lines(capsys) if "error" in text)
    assert str(file) in line
    assert "expected a path that can be read or written" in line
    assert file.read_text() == "not a folder"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def full(argv: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(main, "_dispatch", full)
    assert mmzoo("list") == 2
    (line,) = err_lines(capsys)
    assert line == (
        "mmzoo: error: disk: cannot write (No space left on device); expected free space. "
        "Make room, or name a path on another disk."
    )
