"""Sentences: made from a class name, so that a labelled data set has text as well; or several, written by
people for one picture or sound."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from mmzoo import schema
from mmzoo.datamodules.naming import fields_of
from mmzoo.datamodules.order import Rank
from mmzoo.datamodules.records import Record, RecordSource
from mmzoo.datamodules.table import CAPTIONS, Row, cell_text
from mmzoo.errors import ConfigError, DataError, close_matches

FIELD = "label"
MODALITY = "text"
CAPTION = "caption"
"""Column that captions of several columns or rows are put into."""


def check_captions(captions: Sequence[str]) -> None:
    """Raise ConfigError where a sentence has no place, or one that nothing fills."""
    for text in captions:
        if fields_of(text) != {FIELD}:
            raise ConfigError.at(
                "captions", repr(text), "a sentence with {label}", "Put {label} for the class."
            )


def write_captions(captions: Sequence[str], label: str) -> tuple[str, ...]:
    """Fill a class name into each sentence; `_` in it reads as a space."""
    return tuple(text.format(label=label.replace("_", " ")) for text in captions)


class TrainOn(str, Enum):
    """What training makes of several captions of one thing."""

    ONE = "one"
    """a sample with one of them, drawn anew each epoch"""
    PAIRS = "pairs"
    """a sample with each of them: an epoch is as many times longer"""


class EvaluateOn(str, Enum):
    """What evaluation makes of them."""

    ALL = "all"
    """one sample with all of them: see the metric `retrieval`"""
    FIRST = "first"
    """one sample with the first of them"""


@runtime_checkable
class HasCaptions(Protocol):
    """A data set whose samples may have several captions."""

    @property
    def captions_shown(self) -> EvaluateOn:
        """Return what its evaluation makes of them."""
        ...


class Neighbours(str, Enum):
    """Whether two pairs of the same thing may come in one training batch, where a contrast would push the
    thing away from a caption of its own."""

    APART = "apart"
    """never: the order of an epoch keeps them apart"""
    ANY = "any"
    """as chance has it"""


@dataclass(kw_only=True)
class CaptionsConfig(schema.Config):
    """Several captions of one picture or sound; a JSONL cell that is a list has them without further ado."""

    columns: list[str] = field(default_factory=list[str])
    """Columns with one caption each (caption_1 … caption_5); they become one column `caption`"""
    by: str = ""
    """Column that tells what a row describes (its file), where each row has one caption of it; rows that
    agree there become one sample"""
    train: TrainOn = TrainOn.ONE
    """one: a caption drawn anew each epoch; pairs: each caption a sample by itself"""
    evaluate: EvaluateOn = EvaluateOn.ALL
    """all: every caption is a query and a candidate; first: the first alone"""
    # compat(onepeace): `any`, since it shuffles pairs without a look at whose they are
    neighbours: Neighbours = Neighbours.APART
    """of pairs: whether two of one thing may come in a batch; apart: never, any: by chance"""


def gather_captions(rows: Sequence[Row], config: CaptionsConfig, column: str, where: str) -> list[Row]:
    """Put the captions of several columns into one list, then those of several rows of one thing.

    column: the one that holds captions; empty: the one named so.
    """
    known = dict.fromkeys(name for row in rows for name in row)
    for name in (*config.columns, config.by):
        if name and name not in known:
            do = close_matches(name, known)
            raise ConfigError.at(f"{where}: captions", f"no column {name!r}", "a column", do)
    found = list(rows)
    column = column or next((name for name in known if name.lower() in (*CAPTIONS, MODALITY)), "")
    if config.columns:
        found, column = [_join_columns(row, config.columns) for row in rows], CAPTION
    return _join_rows(found, config.by, column, where) if config.by else found


def _join_columns(row: Row, columns: Sequence[str]) -> Row:
    rest = {name: cell for name, cell in row.items() if name not in columns}
    return {**rest, CAPTION: _texts([row.get(name) for name in columns])}


def _join_rows(rows: Sequence[Row], by: str, column: str, where: str) -> list[Row]:
    """Make one row of those that agree in the column `by`; their captions become a list, and the cell of `by`
    the id."""
    if not column:
        do = "Set data.inputs={text: COLUMN}."
        raise ConfigError.at(
            f"{where}: captions.by", "no column of captions", "one named caption or text", do
        )
    joined: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        thing = cell_text(row.get(by))
        if not thing:
            do = "Fill it, or leave the row out."
            raise DataError.at(f"{where} row {number} {by}", "nothing", "what the caption is of", do)
        own = joined.setdefault(thing, {**row, "id": thing, column: []})
        if cell_text(row.get("split")) != cell_text(own.get("split")):
            found = f"split {cell_text(row.get('split'))!r} of {thing!r}"
            expected = f"{cell_text(own.get('split'))!r} as in its first row"
            raise DataError.at(f"{where} row {number}", found, expected, "Put all its rows into one split.")
        cell = row.get(column)
        own[column] += _texts(cell if isinstance(cell, list) else [cell])
    return list(joined.values())


def _texts(cells: Sequence[Any]) -> list[str]:
    return [text for cell in cells if (text := cell_text(cell))]


def evaluated(records: Sequence[Record], config: CaptionsConfig) -> list[Record]:
    """Return the records as evaluation reads them: with all captions side by side, or with the first."""
    if config.evaluate is EvaluateOn.FIRST:
        return list(records)
    return [
        _side_by_side(record) if len(record.texts.get(MODALITY, ())) > 1 else record for record in records
    ]


def _side_by_side(record: Record) -> Record:
    texts = {m: t for m, t in record.texts.items() if m != MODALITY}
    several = {**record.several, MODALITY: record.texts[MODALITY]}
    return dataclasses.replace(record, texts=texts, several=several)


class PairSource(RecordSource):
    """Samples of one caption each, `id#0`, `id#1`, …, beside what they describe; see `Neighbours`.

    Why a sampler and no mask in the loss: the contrast stays the published one, whatever its form, and the
    batches of all ranks together are kept apart as well.
    """

    def __init__(self, records: Sequence[Record], *args: Any, batch_size: int = 0, **options: Any) -> None:
        """Make the pairs; `batch_size` samples of a process are kept apart, 0: none are."""
        self.things: list[int] = []
        pairs: list[Record] = []
        for number, record in enumerate(records):
            own = _pairs_of(record)
            pairs += own
            self.things += [number] * len(own)
        super().__init__(pairs, *args, **options)
        self.batch_size = batch_size

    def order(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Return an epoch: round after round, in each of which every thing comes once, with another of its
        captions, in an order of its own."""
        shuffled = torch.randperm(len(self), generator=generator).tolist()
        if not self.batch_size:
            return torch.tensor(shuffled, dtype=torch.int64)
        block = self.batch_size * Rank.current().world
        if block > (count := len(set(self.things))):
            found, do = f"batches of {block}", "Lower loader.batch_size, or set captions.neighbours=any."
            raise ConfigError.at("loader.batch_size", found, f"at most {count}, the things described", do)
        return torch.tensor(keep_apart(in_rounds(shuffled, self.things), self.things, block))


def in_rounds(order: Sequence[int], things: Sequence[int]) -> list[int]:
    """Return an order sorted by how many pairs of their thing come before them in the given one."""
    turns: list[int] = []
    seen: dict[int, int] = {}
    for pair in order:
        turns.append(seen.get(things[pair], 0))
        seen[things[pair]] = turns[-1] + 1
    return [order[at] for at in sorted(range(len(order)), key=turns.__getitem__)]


def keep_apart(order: Sequence[int], things: Sequence[int], block: int) -> list[int]:
    """Return an order in which no block of so many holds two pairs of one thing, as near to the given one as
    that allows.

    A pair that would clash waits for the next block. What no full block can take at the end is left out,
    except for the pairs of a last block that is not full.
    """
    waiting, placed = deque(order), list[int]()
    while waiting:
        chosen: list[int] = []
        later: list[int] = []
        held: set[int] = set()
        while waiting and len(chosen) < block:
            pair = waiting.popleft()
            (later if things[pair] in held else chosen).append(pair)
            held.add(things[pair])
        placed += chosen
        if len(chosen) < block:
            break
        waiting.extendleft(reversed(later))
    return placed


def _pairs_of(record: Record) -> list[Record]:
    captions = record.texts.get(MODALITY, ())
    if len(captions) < 2:
        return [record]
    return [
        dataclasses.replace(record, id=f"{record.id}#{i}", texts={**record.texts, MODALITY: (caption,)})
        for i, caption in enumerate(captions)
    ]
