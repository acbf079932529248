"""Manifests: a CSV, TSV or JSONL whose columns are modalities and labels; the way to bring one's own data."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmzoo.datamodules.files import KINDS, is_data, kind_of
from mmzoo.datamodules.records import Label, Record
from mmzoo.datamodules.split import split_name
from mmzoo.errors import ConfigError, DataError, close_matches

RESERVED = ("id", "split", "subject")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """What each column holds: `inputs` modality -> column, `targets` label columns, `multi` those with
    several."""

    inputs: Mapping[str, str]
    targets: tuple[str, ...]
    multi: frozenset[str]
    separator: str

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Turn a row into a record; an empty cell is an absent modality or label."""
        files: dict[str, str] = {}
        texts: dict[str, tuple[str, ...]] = {}
        for modality, column in self.inputs.items():
            cell = cell_text(row.get(column))
            if not cell:
                continue
            if is_data(cell) and (kind_of(cell) != "text" or (root / cell).is_file()):
                files[modality] = cell
            else:
                texts[modality] = (cell,)
        labels = {t: label for t in self.targets if (label := self._label(row.get(t), t)) is not None}
        subject = cell_text(row.get("subject")) or None
        return Record(cell_text(row.get("id")) or f"row-{number}", files, texts, labels, subject)

    def _label(self, value: Any, target: str) -> Label | None:
        names = tuple(n for part in _parts(value) for n in self._split(part, target))
        if not names and not (isinstance(value, list) and target in self.multi):
            return None
        return names if target in self.multi else names[0]

    def _split(self, text: str, target: str) -> list[str]:
        pieces = text.split(self.separator) if target in self.multi else [text]
        return [p.strip() for p in pieces if p.strip()]


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a manifest, each a mapping from column names; raise DataError naming a bad line."""
    if path.suffix not in SUFFIXES:
        raise DataError.at(
            str(path), f"a {path.suffix or 'nameless'} file", " or ".join(SUFFIXES), "Convert it."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError.at(
            str(path), f"byte {error.start} is not UTF-8", "UTF-8 text", "Save it as UTF-8."
        ) from error
    rows = _read_json(text, path) if path.suffix == ".jsonl" else _read_csv(text, path)
    if not rows:
        raise DataError.at(str(path), "no rows", "a header and a row for each sample", "Write the rows.")
    return rows


def find_columns(
    rows: Sequence[Row], path: Path, inputs: Mapping[str, str], targets: Sequence[str] | None, separator: str
) -> Columns:
    """Decide which column is what: as told, else by name (a kind) or by the files a column names."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for wanted in (*inputs.values(), *(targets or ())):
        if wanted not in names:
            raise ConfigError.at(str(path), f"no column {wanted!r}", "a column", close_matches(wanted, names))
    found = dict(inputs) or {m: n for n in names if (m := _modality(n, rows, path.parent))}
    if not found:
        expected = f"a column named {', '.join(KINDS)}, or one that names files"
        raise ConfigError.at(
            str(path), f"columns {', '.join(names)}", expected, "Set data.inputs={image: column}."
        )
    rest = [n for n in names if n not in found.values() and n not in RESERVED] if targets is None else targets
    multi = frozenset(t for t in rest if any(_is_multi(row.get(t), separator) for row in rows))
    return Columns(found, tuple(rest), multi, separator)


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
    """Return the modality of a column: named as one (also `image_path`, `caption`), or holding files of
    one."""
    if name in RESERVED:
        return None
    plain = name.lower()
    for ending in ("_path", "_file", "path", "file"):
        plain = plain.removesuffix(ending)
    if plain in KINDS or plain == "caption":
        return "text" if plain == "caption" else plain
    first = next((cell for row in rows if (cell := cell_text(row.get(name)))), "")
    return kind_of(first) if first and is_data(first) and (root / first).is_file() else None


def _is_multi(value: Any, separator: str) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and separator in value)


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
