"""Which format a path is of, told by names alone, and the options that read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmzoo import registry, schema
from mmzoo.batch import Sample
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.files import extension, is_data, require
from mmzoo.datamodules.loader import SampleSource
from mmzoo.datamodules.shard_format import split_member
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.table import SUFFIXES
from mmzoo.datamodules.tar import IndexedTar, is_tar
from mmzoo.errors import DataError
from mmzoo.modalities.base import Preprocess

SKELETON_FILES = ("npz", "pkl")
SCANS = (".nii", ".nii.gz")
LOOK_AT = 10_000
"""How many names of a folder or tar are looked at before the format is decided."""
META = ("cls", "json")
INFOS = "nuscenes_infos_10sweeps_train.pkl"
"""Tells a nuScenes folder."""


@dataclass(frozen=True)
class Guess:
    """What a path seems to hold: the format in words, and the row and options that read it."""

    format: str
    row: str
    options: Mapping[str, Any]

    def config(self, *, whole: bool) -> Any:
        """Return the typed options; `whole` = no share is carved out, so that all samples are in some
        split."""
        cls = registry.find("datamodules", self.row).Config
        options = dict(self.options)
        if whole and self.row in ("folder", "manifest", "skeletons"):
            options["split"] = {"val_share": 0.0, "test_share": 0.0}
        if whole and self.row == "webdataset":
            options |= {"val_share": 0.0, "test_share": 0.0, "read": "index"}
        return schema.parse(cls, options, f"data ({self.row})")


def sniff(path: Path) -> Guess:
    """Guess the format of a file or folder; raise DataError where nothing in it is known."""
    require(path, "Check the path.")
    guess = _sniff_folder(path) if path.is_dir() else _sniff_file(path)
    if guess is None:
        expected = "images, sounds, texts, arrays, tars, a manifest, NIfTI scans or skeleton files"
        do = "Convert the data, or name another path."
        raise DataError.at(str(path), "nothing that mmzoo reads", expected, do)
    return guess


def open_path(path: str | Path, preprocesses: Mapping[str, Preprocess]) -> SampleSource:
    """Return all samples at a path, whatever its format, as the model's Preprocesses read them."""
    data: DataModule = sniff(Path(path)).config(whole=True).build(preprocesses, seed=0)
    counts = data.info().counts
    parts = [data.source(split) for split in SPLITS if counts.get(split)]
    if not parts:
        do = "Look at it with `mmzoo data inspect`."
        raise DataError.at(str(path), "no sample that the model reads", "at least one", do)
    return parts[0] if len(parts) == 1 else Joined(parts, name=str(path))


class Joined:
    """Several sources one after the other."""

    def __init__(self, parts: list[SampleSource], *, name: str) -> None:
        """Number them through."""
        self.parts, self.name = parts, name

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(map(len, self.parts))

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Load one sample."""
        for part in self.parts:
            if index < len(part):
                return part.get(index, generator)
            index -= len(part)
        raise IndexError(index)


def _sniff_file(path: Path) -> Guess | None:
    if path.suffix in (*SUFFIXES, ".json"):
        return Guess("manifest", "manifest", {"path": str(path)})
    if is_tar(path):
        if _is_shard(path):
            return Guess("webdataset", "webdataset", {"root": str(path.parent), "train": path.name})
        return Guess("tar", "folder", {"root": str(path)})
    if extension(path.name) in SKELETON_FILES:
        return Guess("skeleton file", "skeletons", {"root": str(path)})
    if is_data(path.name):
        pattern = rf"^{_literal(path.name)}$"
        one = {"root": str(path.parent), "train": "", "pattern": pattern, "targets": []}
        return Guess("file", "folder", one)
    return None


def _sniff_layout(path: Path) -> Guess | None:
    """Guess by the folders of a published data set."""
    if (path / "gt_sets").is_dir() and (path / "images").is_dir():
        return Guess("NYUD-v2 layout", "nyud", {"root": str(path)})
    if (path / "ImageSets" / "Context").is_dir() and (path / "JPEGImages").is_dir():
        return Guess("PASCAL-Context layout", "pascal_context", _pascal(path))
    if (path / "samples").is_dir() and (path / INFOS).is_file():
        return Guess("nuScenes layout", "nuscenes", {"root": str(path)})
    return None


def _sniff_folder(path: Path) -> Guess | None:
    if published := _sniff_layout(path):
        return published
    listed = [f"manifest{suffix}" for suffix in SUFFIXES if (path / f"manifest{suffix}").is_file()]
    if len(listed) == 1:
        return _sniff_file(path / listed[0])
    names = _look(path)
    if any(name.endswith(SCANS) for name in names):
        return Guess("bids", "bids", {"root": str(path), **_run_image(names)})
    if any(extension(name) == "skeleton" for name in names):
        return Guess("skeleton folder", "skeletons", {"root": str(path)})
    tars = sorted(name for name in names if extension(name) == "tar")
    if any(is_data(name) for name in names) and not tars:
        return Guess("folder", "folder", {"root": str(path)})
    if tars and _is_shard(path / tars[0]):
        return Guess("webdataset", "webdataset", {"root": str(path), **_shard_splits(tars)})
    if len(tars) == 1:
        return Guess("tar", "folder", {"root": str(path / tars[0])})
    if tars:
        return Guess("folder of tars", "folder", {"root": str(path)})
    return _only_file(path, names)


def _pascal(path: Path) -> dict[str, str]:
    """Return the options of a PASCAL-Context folder: all normals where the lists of names are absent."""
    lists = {"context_names": "names/context.txt", "nyu_names": "names/nyu.txt"}
    has_lists = all((path / name).is_file() for name in lists.values())
    return {"root": str(path), **(lists if has_lists else {"normals_of": "all"})}


def _run_image(names: list[str]) -> dict[str, str]:
    """Return the option that names a run's image, where it is not the usual `bold`."""
    runs = [n for n in names if n.endswith(SCANS) and ("/BOLD/" in f"/{n}" or "/func/" in f"/{n}")]
    stems = Counter(n.rpartition("/")[2].removesuffix(".gz").removesuffix(".nii") for n in runs)
    if not stems or any(stem == "bold" or stem.endswith("_bold") for stem in stems):
        return {}
    return {"image": min(stems, key=lambda stem: (-stems[stem], stem))}


def _only_file(path: Path, names: list[str]) -> Guess | None:
    """Guess by the one manifest or skeleton file that a folder holds."""
    known = [n for n in names if Path(n).suffix in SUFFIXES or extension(n) in SKELETON_FILES]
    return _sniff_file(path / known[0]) if len(known) == 1 else None


def _look(path: Path) -> list[str]:
    """Return some of the file names below a folder, hidden ones left out."""
    found: list[str] = []
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if not any(part.startswith(".") for part in name.split("/")) and file.is_file():
            found.append(name)
        if len(found) >= LOOK_AT:
            break
    return found


def _is_shard(path: Path) -> bool:
    """Say whether a tar is a WebDataset shard: it has label members, or keys with several members and no
    folders."""
    members = IndexedTar(path).names()[:LOOK_AT]
    parts = [p for name in members if (p := split_member(name))]
    if any(ending in META for _, ending in parts):
        return True
    keys = {key for key, _ in parts}
    return len(keys) < len(parts) and not any("/" in key for key in keys)


def _shard_splits(tars: list[str]) -> dict[str, str]:
    """Return a pattern for each split that the shards' names tell (`train-0000.tar`, `val-0000.tar`)."""
    found: dict[str, str] = {}
    for split in SPLITS:
        if any(Path(name).name.startswith(split) for name in tars):
            found[split] = f"{split}*.tar"
    return found if "train" in found else {"train": "*.tar"}


def _literal(text: str) -> str:
    return "".join(c if c.isalnum() else rf"\{c}" for c in text)
