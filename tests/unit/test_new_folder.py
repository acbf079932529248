"""A data set is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.errors import DataError


@into_new_folder
def write(folder: Path, rows: int) -> str:
    """Write a file a row; the fourth cannot be written."""
    for row in range(rows):
        if row == 3:
            raise DataError.at("row 3", "no colour", "one", "Draw again.")
        (folder / f"{row}.txt").write_text(str(row))
    return f"{rows} rows"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_new_folder_holds_what_was_written(tmp_path: Path) -> None:
    assert write(tmp_path / "a" / "b", 2) == "2 rows"
    assert names(tmp_path / "a") == ["b"]
    assert names(tmp_path / "a" / "b") == ["0.txt", "1.txt"]


def test_an_empty_folder_stays_the_one_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    number = (tmp_path / "real").stat().st_ino
    write(tmp_path / "link", 2)
    assert names(tmp_path / "real") == ["0.txt", "1.txt"]
    assert (tmp_path / "real").stat().st_ino == number
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_midway_leaves_nothing(tmp_path: Path, *, exists: bool) -> None:
    folder = tmp_path / "new"
    if exists:
        folder.mkdir()
    with pytest.raises(DataError, match="no colour"):
        write(folder, 5)
    assert names(tmp_path) == (["new"] if exists else [])
    assert not exists or not names(folder)


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(DataError, match="something is there already; expected a new folder"):
            write(taken, 2)
    assert names(tmp_path) == ["file"]
