"""Manifests: a CSV, TSV or JSONL whose columns are modalities and labels; the way to bring one's own data."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.batch import NumericKind
from mmzoo.datamodules.files import KINDS, is_data, kind_of
from mmzoo.datamodules.karpathy import Row, read_karpathy
from mmzoo.datamodules.numbers import NumbersConfig, read_numbers
from mmzoo.datamodules.records import Label, Record
from mmzoo.datamodules.scores import read_scores
from mmzoo.datamodules.split import split_name
from mmzoo.errors import ConfigError, DataError, close_matches

CAPTIONS = ("caption", "captions")
"""Names of columns of text."""
RESERVED = ("id", "split", "subject")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl")


@dataclass(frozen=True)
class Columns:
    """What each column holds: `inputs` modality -> column, `targets` columns of class names, `multi` those
    with several, `scored` those where each has a score; `numbers` the labels that are numbers."""

    inputs: Mapping[str, str]
    targets: tuple[str, ...]
    multi: frozenset[str]
    separator: str
    scored: frozenset[str] = frozenset()
    numbers: Mapping[str, NumbersConfig] = field(default_factory=dict[str, NumbersConfig])

    def record(self, row: Row, number: int, path: Path) -> Record:
        """Turn a row of the manifest `path` into a record; an empty cell is an absent modality or label."""
        files: dict[str, str] = {}
        texts: dict[str, tuple[str, ...]] = {}
        for modality, column in self.inputs.items():
            if isinstance(entries := row.get(column), list):
                texts |= {modality: given} if (given := tuple(filter(None, map(cell_text, entries)))) else {}
                continue
            cell = cell_text(entries)
            if not cell:
                continue
            if is_data(cell) and (kind_of(cell) != "text" or (path.parent / cell).is_file()):
                files[modality] = cell
            else:
                texts[modality] = (cell,)
        labels = {
            t: label for t, label in self._labels(row, f"{path} row {number}", files) if label is not None
        }
        subject = cell_text(row.get("subject")) or None
        return Record(cell_text(row.get("id")) or f"row-{number}", files, texts, labels, subject)

    def _labels(self, row: Row, where: str, files: Mapping[str, str]) -> Iterator[tuple[str, Label | None]]:
        for target in self.targets:
            yield target, self._label(row.get(target), target, f"{where} {target}")
        for target, config in self.numbers.items():
            label = read_numbers(target, config, row, f"{where} {target}")
            if label is not None and config.kind is NumericKind.BOXES and config.of not in files:
                do = "Name the picture, empty the box, or set `of`."
                raise DataError.at(f"{where} {target}", f"a box, but no {config.of}", "both or none", do)
            yield target, label

    def _label(self, value: Any, target: str, where: str) -> Label | None:
        if isinstance(value, Mapping) or target in self.scored:
            return read_scores(value, self.separator, where)
        names = tuple(n for part in _parts(value) for n in self._split(part, target))
        if not names and not (isinstance(value, list) and target in self.multi):
            return None
        return names if target in self.multi else names[0]

    def _split(self, text: str, target: str) -> list[str]:
        pieces = text.split(self.separator) if target in self.multi else [text]
        return [p.strip() for p in pieces if p.strip()]


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a manifest, each a mapping from column names; raise DataError naming a bad line."""
    if path.suffix not in (*SUFFIXES, ".json"):
        raise DataError.at(
            str(path), f"a {path.suffix or 'nameless'} file", " or ".join(SUFFIXES), "Convert it."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError.at(
            str(path), f"byte {error.start} is not UTF-8", "UTF-8 text", "Save it as UTF-8."
        ) from error
    readers = {".jsonl": _read_json, ".json": read_karpathy}
    rows = readers.get(path.suffix, _read_csv)(text, path)
    if not rows:
        raise DataError.at(str(path), "no rows", "a header and a row for each sample", "Write the rows.")
    return rows


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the options say of the columns: see those of `Manifest`, which have the same names."""

    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    targets: Sequence[str] | None = None
    separator: str = "|"
    scored: Sequence[str] = ()
    numbers: Mapping[str, NumbersConfig] = field(default_factory=dict[str, NumbersConfig])
    apart: Sequence[str] = ()
    """modalities that are read from other columns, so that these may hold none"""

    @property
    def measured(self) -> list[str]:
        """Return the columns that hold numbers."""
        return [column for target, c in self.numbers.items() for column in c.columns or [target]]


def find_columns(rows: Sequence[Row], path: Path, told: Told) -> Columns:
    """Decide which column is what: as told, else by name (a kind) or by the files a column names."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for wanted in (*told.inputs.values(), *(told.targets or ()), *told.scored, *told.measured):
        if wanted not in names:
            raise ConfigError.at(str(path), f"no column {wanted!r}", "a column", close_matches(wanted, names))
    found = dict(told.inputs) or {m: n for n in names if (m := _modality(n, rows, path.parent))}
    if not found and not told.apart:
        expected = f"a column named {', '.join(KINDS)}, or one that names files"
        raise ConfigError.at(
            str(path), f"columns {', '.join(names)}", expected, "Set data.inputs={image: column}."
        )
    taken = {*found.values(), *RESERVED, *told.measured}
    given = told.targets if told.targets is not None else [n for n in names if n not in taken]
    classes = [n for n in given if n not in told.numbers]
    for name in told.scored:
        if name not in classes:
            do = "Drop it from data.scored, or add it to data.targets."
            raise ConfigError.at("data.scored", f"{name!r} is no label of names", ", ".join(classes), do)
    multi = {t for t in classes if any(_is_multi(row.get(t), told.separator) for row in rows)}
    several = frozenset({*multi, *told.scored})
    return Columns(found, tuple(classes), several, told.separator, frozenset(told.scored), told.numbers)


def cell_text(value: Any) -> str:
    """Return a cell as text; nothing where it is empty."""
    return "" if value is None else str(value).strip()


def rows_by_split(rows: Sequence[Row], path: Path) -> dict[str, list[int]]:
    """Return split -> row positions by the `split` column; empty where there is none."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if word := cell_text(row.get("split")):
            found.setdefault(split_name(word, f"{path} row {i + 1}"), []).append(i)
    if found and sum(map(len, found.values())) < len(rows):
        missing = next(i for i, row in enumerate(rows) if not cell_text(row.get("split")))
        do = "Fill the split column, or drop it."
        raise DataError.at(f"{path} row {missing + 1}", "no split", "train, val or test in every row", do)
    return found


def _modality(name: str, rows: Sequence[Row], root: Path) -> str | None:
    """Return the modality of a column: named as one (also `image_path`, `caption`, `captions`), or holding
    files of one."""
    if name in RESERVED:
        return None
    plain = name.lower()
    for ending in ("_path", "_file", "path", "file"):
        plain = plain.removesuffix(ending)
    if plain in KINDS or plain in CAPTIONS:
        return "text" if plain in CAPTIONS else plain
    first = next((cell for row in rows if (cell := cell_text(row.get(name)))), "")
    return kind_of(first) if first and is_data(first) and (root / first).is_file() else None


def _is_multi(value: Any, separator: str) -> bool:
    return isinstance(value, list | Mapping) or (isinstance(value, str) and separator in value)


def _parts(value: Any) -> list[str]:
    return [cell_text(v) for v in value] if isinstance(value, list) else [cell_text(value)]


def _read_json(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        rows.append(_json_row(line, f"{path} line {number}"))
    return rows


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError.at(where, str(error), "one JSON object a line", "Mend the line.") from error
    if not isinstance(row, dict):
        raise DataError.at(where, f"a {type(row).__name__}", "one JSON object a line", "Mend the line.")
    return row


def _read_csv(text: str, path: Path) -> list[Row]:
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=DELIMITERS[path.suffix])
    rows: list[Row] = []
    for row in reader:
        if None in row:
            found = f"{len(row) - 1 + len(row[None])} cells"
            expected = f"{len(reader.fieldnames or ())} as in the header"
            raise DataError.at(
                f"{path} line {reader.line_num}", found, expected, "Quote cells that hold commas."
            )
        rows.append(row)
    return rows
