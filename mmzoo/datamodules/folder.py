"""Files of any modality in class folders or tars; labels from the folder or the file name."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.batch import DataInfo
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.files import Files, MemoryFiles, open_files, require
from mmzoo.datamodules.naming import NamedRecords, Naming, fields_of
from mmzoo.datamodules.records import Cache, RecordSource, Vocabulary, count_voxels
from mmzoo.datamodules.split import ALIASES, SPLITS, SplitConfig, divide
from mmzoo.errors import ConfigError, DataError, close_matches

log = logging.getLogger(__name__)


class Folder(DataModule):
    """Class folders or tars: `root/class/file`, or labels read from file names by a regular expression.

    Why: the layout in which most data lie about. Files that share a path up to the extension (`a/1.jpg`,
    `a/1.txt`) are one sample of several modalities. Class names become text through `captions`.
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """Options."""

        root: str
        """Folder (or one .tar) that holds the data set."""
        train: str | None = None
        """Training part below root, a folder or .tar; null = root's own train/ or train.tar, else all of
        root."""
        val: str | None = None
        """Part that selects; null = carved from the training part."""
        test: str | None = None
        """Part that is reported; null = root's own test part (else its val part) if train is null, else
        carved."""
        modality: str | None = None
        """Modality that all files become; null = the kind that the extension tells."""
        pattern: str = ""
        """Regular expression with named groups, searched in each file's path below the part; a file
        without a match is left out. Empty = `label` is the first folder of the path."""
        targets: list[str] = field(default_factory=lambda: ["label"])
        """Named groups that become labels; the first decides how the splits are balanced."""
        class_names: dict[str, str] = field(default_factory=dict[str, str])
        """First target: name in the files -> name to show and to write in captions; empty = as in the
        files."""
        captions: list[str] = field(default_factory=list[str])
        """Sentences with {group} places (`a photo of a {label}`), made a text modality: one at random in
        training, the first in evaluation. Empty = no text."""
        caption_modality: str = "text"
        """Name of the modality that captions become."""
        split: SplitConfig = field(default_factory=SplitConfig)
        """How to carve parts that the data do not name."""
        cache: Cache = Cache.NONE
        """bytes: files stay in memory, read once; decoded: each process also keeps what it decoded."""

        def __post_init__(self) -> None:
            """Check pattern, targets and captions against each other."""
            try:
                groups = set(re.compile(self.pattern).groupindex) if self.pattern else {"label"}
            except re.error as error:
                found, do = f"{self.pattern!r} ({error})", "Mend it."
                raise ConfigError.at("pattern", found, "a regular expression", do) from error
            wanted = [("targets", t) for t in self.targets] + [("split.by", self.split.by)] * bool(
                self.split.by
            )
            wanted += [("captions", f) for text in self.captions for f in sorted(fields_of(text))]
            for where, name in wanted:
                if name not in groups:
                    known = f"a named group of the pattern ({', '.join(sorted(groups)) or 'it has none'})"
                    raise ConfigError.at(where, f"{name!r}", known, close_matches(name, groups))

    def __init__(self, config: Any, preprocesses: Any, *, seed: int = 0) -> None:
        """List nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self._parts: dict[str, tuple[Files, NamedRecords]] | None = None
        self._vocabulary: Vocabulary | None = None

    def info(self) -> DataInfo:
        """List the files; read one scan of each subject."""
        parts = self._open()
        modalities = dict.fromkeys(m for _, records in parts.values() for m in records.modalities())
        found = tuple(modalities)
        self.check_modalities(found, f"data ({self.config.root})")
        return DataInfo(
            labels=self._labels().labels,
            subjects=count_voxels(parts.values(), self.preprocesses),
            modalities=found,
            counts={split: len(records) for split, (_, records) in parts.items()},
        )

    def source(self, split: str) -> RecordSource:
        """Return the samples of a split."""
        files, records = self._open()[split]
        name = f"{Path(self.config.root).name}/{split}"
        if self.config.cache is not Cache.NONE:
            files = MemoryFiles(files, (n for record in records for n in record.files.values()))
        return RecordSource(
            records, files, self.preprocesses, self._labels(), name=name, cache=self.config.cache
        )

    def _labels(self) -> Vocabulary:
        if self._vocabulary is None:
            records = (record for _, part in self._open().values() for record in part)
            self._vocabulary = Vocabulary.of(records, order=tuple(self.config.class_names.values()))
        return self._vocabulary

    def _naming(self) -> Naming:
        config = self.config
        return Naming(
            modality=config.modality,
            pattern=re.compile(config.pattern) if config.pattern else None,
            targets=tuple(config.targets),
            class_names=config.class_names,
            captions=tuple(config.captions),
            caption_modality=config.caption_modality,
        )

    def _open(self) -> dict[str, tuple[Files, NamedRecords]]:
        if self._parts is None:
            self._parts = self._divide(find_parts(self.config))
        return self._parts

    def _divide(self, paths: dict[str, Path]) -> dict[str, tuple[Files, NamedRecords]]:
        """Open the parts that the data name and carve the rest from the training part."""
        config, naming = self.config, self._naming()
        opened = {split: self._read_part(path) for split, path in paths.items()}
        files, everything = opened["train"]
        first = config.targets[0] if config.targets else ""
        strata = [str(record.labels.get(first, "")) for record in everything]
        groups = None
        if config.split.by:
            groups = [naming.groups(names[0]).get(config.split.by, "") for names in everything.samples]
        wanted = ["train", *(s for s in ("val", "test") if s not in opened)]
        for split, rows in divide(strata, groups, config.split, parts=wanted).items():
            opened[split] = (files, everything.take(rows))
        return {split: opened[split] for split in SPLITS}

    def _read_part(self, path: Path) -> tuple[Files, NamedRecords]:
        files = open_files(path, self.config.get)
        records = NamedRecords.read(files, self._naming())
        if not len(records):
            expected = "images, sounds, texts or arrays" + f" that match {self.config.pattern!r}" * bool(
                self.config.pattern
            )
            do = "Look at it with `mmzoo data inspect`."
            raise DataError.at(str(path), "no such file", expected, do)
        return files, records

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write 2 classes of 24 small pictures."""
        from PIL import Image

        rng = np.random.default_rng(0)
        for i in range(48):
            path = folder / "pictures" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)
        return cls.Config(root=str(folder / "pictures"), captions=["a photo of a {label}", "one {label}"])


def find_parts(config: Folder.Config) -> dict[str, Path]:
    """Return split -> path of the parts that the data name; always one for `train`.

    Where options name none, `train`, `val` (or valid, validation) and `test` folders or tars are looked
    for below root; a `val` part without a `test` part is what is reported, since it comes with the data.
    """
    root = require(Path(config.root), config.get)
    named = {s: p for s in SPLITS if (p := getattr(config, s)) is not None}
    if named:
        named.setdefault("train", "")
        return {s: require(root / p if p else root, config.get) for s, p in named.items()}
    found = {s: p for s in SPLITS if (p := _own_part(root, s)) is not None}
    if "train" not in found:
        return {"train": root}
    if "test" not in found and "val" in found:
        log.info("%s: no test part, so %s is what is reported", root, found["val"].name)
        found["test"] = found.pop("val")
    return found


def _own_part(root: Path, split: str) -> Path | None:
    words = [split, *(word for word, meant in ALIASES.items() if meant == split)]
    candidates = [root / f"{word}{suffix}" for word in words for suffix in ("", ".tar")]
    return next((p for p in candidates if root.is_dir() and p.exists()), None)
