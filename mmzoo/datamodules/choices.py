"""Rows with answers to choose from: each becomes an entry beside the sound or picture it is about."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mmzoo import schema
from mmzoo.datamodules.files import is_data
from mmzoo.datamodules.naming import fields_of
from mmzoo.datamodules.records import Record
from mmzoo.datamodules.table import CAPTIONS, Row, cell_text
from mmzoo.errors import ConfigError, DataError, close_matches

CHOICE = "choice"
"""Field of the template that stands for the answer."""


class AnswerIs(str, Enum):
    """How the right answer is written."""

    EITHER = "either"
    """as a text or as a number; refused where both could be meant"""
    TEXT = "text"
    """as one of the answers"""
    NUMBER = "number"
    """as the place of one of them, from 0"""


@dataclass(kw_only=True)
class ChoicesConfig(schema.Config):
    """Questions with several answers, one of them right."""

    column: str = ""
    """Column with the answers to choose from: a list in JSONL, a|b|c elsewhere; empty: there are none"""
    answer: str = "answer"
    """Column with the right answer, and the name of the label, its number from 0; empty cells: not known"""
    answer_is: AnswerIs = AnswerIs.EITHER
    """whether the right answer is written as text or as number"""
    modality: str = "text"
    """Modality that the answers are read as: text, or one of whose files they are the names"""
    template: str = "{choice}"
    """Sentence made of each answer; {choice} is the answer, other names are columns: {question} {choice}"""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the modality of the answers, none where there are no answers."""
        return (self.modality,) if self.column else ()

    def __post_init__(self) -> None:
        """Check that the sentence holds the answer."""
        if CHOICE not in fields_of(self.template):
            do = "Write e.g. '{question} answer: {choice}'."
            raise ConfigError.at("choices.template", repr(self.template), "a sentence with {choice}", do)


class Choices:
    """Takes the answers out of a manifest's rows, and puts them into its records."""

    def __init__(self, config: ChoicesConfig, separator: str) -> None:
        """Keep the options; `separator` stands between answers in one cell."""
        self.config, self.separator = config, separator
        self.fields = sorted(fields_of(config.template) - {CHOICE})

    def own_columns(self, rows: Sequence[Row], named: Iterable[str], where: str) -> set[str]:
        """Return the columns that are used up here, those `named` elsewhere left out; check that they are
        there."""
        if not self.config.column:
            return set()
        known = dict.fromkeys(name for row in rows for name in row)
        for option, name in (("column", self.config.column), *(("template", f) for f in self.fields)):
            if name not in known:
                do = close_matches(name, known)
                raise ConfigError.at(f"{where}: choices.{option}", f"no column {name!r}", "a column", do)
        return {self.config.column, self.config.answer, *self.fields} - set(named)

    def add(self, records: Sequence[Record], rows: Sequence[Row], path: Path) -> list[Record]:
        """Return the records with the answers of their rows of the manifest `path`."""
        if not self.config.column:
            return list(records)
        pairs = zip(records, rows, strict=True)
        return [self._with(record, row, path, i) for i, (record, row) in enumerate(pairs, 1)]

    def places(self, records: Iterable[Record]) -> list[Record]:
        """Return a record whose label holds every number that an answer may have, for the vocabulary."""
        most = max((len(r.several.get(self.config.modality, ())) for r in records), default=0)
        if not self.config.column or not most:
            return []
        return [Record("", labels={self.config.answer: tuple(str(i) for i in range(most))})]

    def _with(self, record: Record, row: Row, path: Path, number: int) -> Record:
        where = f"{path} row {number}"
        given, answer = self._answers(row.get(self.config.column)), row.get(self.config.answer)
        modality = self.config.modality
        if not given and not cell_text(answer):
            return record
        if len(given) < 2:
            do = "Add the wrong answers, or leave the row out."
            raise DataError.at(f"{where} {self.config.column}", f"{len(given)} answers", "two or more", do)
        if modality in record.modalities:
            do = f"Set data.inputs without {modality}, or another choices.modality."
            raise ConfigError.at(where, f"{modality} from another column too", "from the answers alone", do)
        words = {field: cell_text(row.get(field)) for field in self.fields}
        entries = tuple(self.config.template.format(**words, choice=choice) for choice in given)
        labels = dict(record.labels)
        if cell_text(answer):
            labels[self.config.answer] = str(self._place(answer, given, f"{where} {self.config.answer}"))
        files = all(is_data(entry) and (path.parent / entry).is_file() for entry in entries)
        several = {**record.several, modality: entries}
        filed = record.filed | ({modality} if files else set())
        return dataclasses.replace(record, several=several, labels=labels, filed=filed)

    def _answers(self, cell: Any) -> list[str]:
        parts = cell if isinstance(cell, list) else cell_text(cell).split(self.separator)
        return [text for part in parts if (text := cell_text(part))]

    def _place(self, answer: Any, given: Sequence[str], where: str) -> int:
        """Return the number of the right answer."""
        text = cell_text(answer)
        as_text = {i for i, choice in enumerate(given) if choice == text}
        as_number = {int(text)} if text.isdecimal() and int(text) < len(given) else set[int]()
        found = {
            AnswerIs.TEXT: as_text,
            AnswerIs.NUMBER: as_number,
            AnswerIs.EITHER: as_text | as_number,
        }[self.config.answer_is]
        if len(found) == 1:
            return found.pop()
        shown = ", ".join(itertools.islice((repr(choice) for choice in given), 8))
        if not found:
            expected = f"one of {shown}, or its number from 0"
            raise DataError.at(where, repr(text), expected, "Mend the answer or the choices.")
        if len(as_text) > 1 and self.config.answer_is is not AnswerIs.NUMBER:
            raise DataError.at(where, f"{text!r} twice in {shown}", "each answer once", "Drop one of them.")
        do = "Set data.choices.answer_is=text or number."
        raise DataError.at(where, f"{text!r}, one of {shown} and a number too", "one or the other", do)


def guess_choices(rows: Sequence[Row], separator: str = "|") -> dict[str, Any]:
    """Return the options `choices` where a column named `choices` or `options` and one named `answer` fit
    together in all rows, and no other column is read as text; {} otherwise."""
    names = dict.fromkeys(name for row in rows for name in row)
    column = next((name for name in ("choices", "options") if name in names), "")
    if not column or "answer" not in names or names.keys() & {"text", *CAPTIONS}:
        return {}
    told = {"column": column}
    told |= {"template": "{question} answer: {choice}"} if "question" in names else {}
    options = schema.parse(ChoicesConfig, told)
    try:
        found = Choices(options, separator).add([Record("") for _ in rows], rows, Path("rows"))
    except (DataError, ConfigError):
        return {}
    return told if any(record.several for record in found) else {}
