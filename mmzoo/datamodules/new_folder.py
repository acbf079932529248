"""A new folder with a data set in it, whole or not at all."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from mmzoo.errors import DataError

P = ParamSpec("P")
R = TypeVar("R")


def into_new_folder(write: Callable[Concatenate[Path, P], R]) -> Callable[Concatenate[Path, P], R]:
    """Let `write(folder, …)` fill a temporary folder, whose content goes to `folder` once it is whole.

    Why: an error midway leaves nothing that could be taken for a data set. A folder that exists and is empty
    stays the one it is, as it may be a mount or where the user stands; the temporary one is then inside it.
    Raises DataError where something is there already.
    """

    @functools.wraps(write)
    def written(folder: Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            do = "Choose another name."
            raise DataError.at(str(folder), "something is there already", "a new folder", do)
        beside = folder if folder.exists() else folder.parent
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mmzoo-", dir=beside) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            result = write(made, *args, **kwargs)
            if not folder.exists():
                made.replace(folder)
            else:
                for entry in made.iterdir():
                    entry.replace(folder / entry.name)
        return result

    return written
