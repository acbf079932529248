"""CSV or JSONL with a column for each modality and label: the documented way to bring one's own data."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.batch import DataInfo
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.captions import (
    MODALITY,
    CaptionsConfig,
    EvaluateOn,
    Neighbours,
    PairSource,
    TrainOn,
    evaluated,
    gather_captions,
)
from mmzoo.datamodules.choices import Choices, ChoicesConfig
from mmzoo.datamodules.files import Files, FolderFiles, MemoryFiles, require
from mmzoo.datamodules.numbers import Numbers, NumbersConfig, NumericLabel, describe
from mmzoo.datamodules.records import Cache, Record, RecordSource, Vocabulary, count_voxels
from mmzoo.datamodules.split import SPLITS, SplitConfig, divide
from mmzoo.datamodules.table import Row, Told, cell_text, find_columns, read_rows, rows_by_split
from mmzoo.errors import ConfigError, DataError, close_matches
from mmzoo.modalities.base import Preprocess


class Manifest(DataModule):
    """One row a sample. Cells: a file's path relative to the manifest, literal text, a class name, `a|b`
    for several labels; an empty cell is an absent modality or label. Columns `id`, `split` and `subject`
    mean what they say. A list of texts is several captions of what else the row names; answers to choose from
    are told by `choices`.
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """Options."""

        path: str
        """The .csv, .tsv or .jsonl file, or the .json of COCO's and Flickr30k's Karpathy splits."""
        inputs: dict[str, str] = field(default_factory=dict[str, str])
        """Modality -> column; empty = columns named as a kind of data (image, audio, text, caption, fmri,
        skeleton), or that name files of one."""
        targets: list[str] | None = None
        """Columns that are labels; null = all that are neither inputs nor id, split, subject."""
        separator: str = "|"
        """Between several labels in a cell; a column with one such cell is multi-label."""
        scored: list[str] = field(default_factory=list[str])
        """Columns of several labels each of which may have a score (0 … 1): red:1|orange:0.3; one without has
        1. A JSON object of scores needs no mention."""
        numbers: dict[str, NumbersConfig] = field(default_factory=dict[str, NumbersConfig])
        """Label -> how it is written, for labels that are numbers or boxes instead of names."""
        captions: CaptionsConfig = field(default_factory=CaptionsConfig)
        """Several captions of one picture or sound."""
        choices: ChoicesConfig = field(default_factory=ChoicesConfig)
        """Answers to choose from."""
        split: SplitConfig = field(default_factory=SplitConfig)
        """How to carve splits that the `split` column does not name; `by` names a column."""
        cache: Cache = Cache.NONE
        """bytes: files stay in memory, read once; decoded: each process also keeps what it decoded."""

    def __init__(self, config: Any, preprocesses: Any, *, seed: int = 0) -> None:
        """Read nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self._splits: dict[str, list[Record]] | None = None
        self._vocabulary = Vocabulary({})

    def info(self) -> DataInfo:
        """Read the manifest and one scan of each subject."""
        splits = self._open()
        everything = [record for records in splits.values() for record in records]
        shown = evaluated(everything, self.config.captions)
        return DataInfo(
            labels=self._vocabulary.labels,
            subjects=count_voxels([(self._files(), everything)], self.preprocesses),
            modalities=tuple(dict.fromkeys(m for record in everything for m in record.modalities)),
            counts={split: self._count(split) for split in splits},
            numeric=self._vocabulary.kinds,
            several=most_entries(shown, self.preprocesses),
            moments=self._vocabulary.moments(splits["train"]),
        )

    def source(self, split: str) -> RecordSource:
        """Return the samples of a split."""
        records, captions = self._open()[split], self.config.captions
        if split != "train":
            return self._source(evaluated(records, captions), split)
        if captions.train is TrainOn.ONE:
            return self._source(records, split)
        apart = captions.neighbours is Neighbours.APART
        size = self.config.loader.batch_size if apart else 0
        return self._source(records, split, partial(PairSource, batch_size=size))

    @property
    def captions_shown(self) -> EvaluateOn:
        """Return what evaluation makes of several captions."""
        return self.config.captions.evaluate

    def reference(self) -> RecordSource:
        """Return the training samples with their captions as in evaluation."""
        return self._source(evaluated(self._open()["train"], self.config.captions), "train")

    def _source(
        self, records: Sequence[Record], split: str, make: Callable[..., RecordSource] = RecordSource
    ) -> RecordSource:
        files, path, cache = self._files(), Path(self.config.path), self.config.cache
        if cache is not Cache.NONE:
            files = MemoryFiles(files, (n for record in records for n in record.files.values()))
        name = f"{path.name}/{split}"
        return make(records, files, self.preprocesses, self._vocabulary, name=name, cache=cache)

    def _count(self, split: str) -> int:
        """Return how many samples a split has: where training takes pairs, one for each caption."""
        records = self._open()[split]
        if split != "train" or self.config.captions.train is TrainOn.ONE:
            return len(records)
        return sum(max(1, len(record.texts.get(MODALITY, ()))) for record in records)

    def _files(self) -> Files:
        return FolderFiles(Path(self.config.path).parent)

    def _open(self) -> dict[str, list[Record]]:
        if self._splits is None:
            self._splits = self._read(require(Path(self.config.path), self.config.get))
        return self._splits

    def _read(self, path: Path) -> dict[str, list[Record]]:
        """Read the rows, drop those that the model can read nothing of, and divide the rest."""
        config: Manifest.Config = self.config
        column = config.inputs.get(MODALITY, "")
        rows = gather_captions(read_rows(path), config.captions, column, str(path))
        choices = Choices(config.choices, config.separator)
        given = (*config.inputs.values(), *(config.targets or ()))
        used = choices.own_columns(rows, given, str(path))
        plain = [{k: v for k, v in row.items() if k not in used} for row in rows] if used else rows
        told = Told(
            inputs=config.inputs,
            targets=config.targets,
            separator=config.separator,
            scored=config.scored,
            numbers=config.numbers,
            apart=config.choices.modalities,
        )
        columns = find_columns(plain, path, told)
        records = [columns.record(row, i + 1, path) for i, row in enumerate(plain)]
        records = choices.add(records, rows, path)
        self.check_modalities((*columns.inputs, *config.choices.modalities), str(path))
        check_ids(records, path)
        named = [*records, *choices.places(records)]
        self._vocabulary = Vocabulary.of(named, numeric=self._numeric(records, path))
        by_split = rows_by_split(rows, path)
        groups = group_column(rows, config.split.by, path) if config.split.by else None
        strata = [str(r.labels.get(columns.targets[0], "")) if columns.targets else "" for r in records]
        if not by_split:
            by_split = divide(strata, groups, config.split)
        elif "val" not in by_split:
            at = by_split.get("train", [])
            part = divide(
                [strata[i] for i in at],
                groups and [groups[i] for i in at],
                config.split,
                parts=("train", "val"),
            )
            by_split |= {split: [at[i] for i in rows] for split, rows in part.items()}
        return {s: [r for i in by_split.get(s, []) if self._usable(r := records[i])] for s in SPLITS}

    def _numeric(self, records: Sequence[Record], path: Path) -> dict[str, NumericLabel]:
        """Describe the labels of numbers that the model can use."""
        found: dict[str, NumericLabel] = {}
        for target, config in self.config.numbers.items():
            rows = enumerate((record.labels.get(target) for record in records), 1)
            given = ((f"{path} row {i}", label) for i, label in rows if isinstance(label, Numbers))
            label = describe(target, config, given, str(path))
            if label.read_by(self.preprocesses):
                found[target] = label
        return found

    def _usable(self, record: Record) -> bool:
        return not self.preprocesses or any(m in self.preprocesses for m in record.modalities)

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write 48 rows of pictures with captions, a class and several tags; every fourth row has no
        picture."""
        from PIL import Image

        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image", "text", "label", "tags", "split"])
            for i in range(48):
                name = f"{i}.png" if i % 4 else ""
                if name:
                    Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / name)
                split = "test" if i >= 40 else "train"
                writer.writerow(
                    [f"s{i}", name, f"picture, number {i}", "ab"[i % 2], "red|big" if i % 3 else "", split]
                )
        return cls.Config(path=str(folder / "rows.csv"))


def most_entries(records: Sequence[Record], preprocesses: Mapping[str, Preprocess]) -> dict[str, int]:
    """Return the largest number of entries of each modality that some record has several of."""
    found: dict[str, int] = {}
    for record in records:
        for modality, entries in record.several.items():
            if modality in preprocesses or not preprocesses:
                found[modality] = max(found.get(modality, 0), len(entries))
    return found


def check_ids(records: Sequence[Record], path: Path) -> None:
    """Raise DataError where two rows have one id."""
    seen: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        if record.id in seen:
            found = f"id {record.id!r} as in row {seen[record.id]}"
            raise DataError.at(f"{path} row {number}", found, "an id for each row", "Change one of them.")
        seen[record.id] = number


def group_column(rows: Sequence[Row], name: str, path: Path) -> list[str]:
    """Return the cells of the column that must not be on two sides of a split."""
    if all(name not in row for row in rows):
        known = {column for row in rows for column in row}
        raise ConfigError.at(
            "split.by", f"no column {name!r} in {path.name}", "a column", close_matches(name, known)
        )
    return [cell_text(row.get(name)) for row in rows]
