"""A record says where a sample's parts lie; a RecordSource reads, decodes and preprocesses them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmzoo.batch import Item, Moments, NumericKind, Sample
from mmzoo.datamodules.faults import decoding
from mmzoo.datamodules.files import Files
from mmzoo.datamodules.numbers import Numbers, NumericLabel, moments_of
from mmzoo.errors import DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.fmri import SUBJECT_IN_NAME, FmriPreprocess
from mmzoo.modalities.pixels import picture_size

Label = str | tuple[str, ...] | Mapping[str, float] | Numbers
"""A class name; the names of all classes that hold (multi-label), or how far each does (0 … 1); numbers."""


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before it is read: files and phrasings by modality, labels by target.

    A phrasing is one of several ways to say the same, of which one is read; `several` holds texts, or (of the
    modalities in `filed`) names of files, of which all are read, side by side.
    """

    id: str
    files: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[str, Label] = field(default_factory=dict)
    subject: str | None = None
    several: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    filed: frozenset[str] = frozenset()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the names of the modalities it has."""
        return (*self.files, *self.texts, *self.several)


@runtime_checkable
class Records(Protocol):
    """Records by number."""

    def __len__(self) -> int:
        """Return how many."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Return one."""
        ...


class Cache(str, Enum):
    """What stays in memory between epochs."""

    NONE = "none"
    BYTES = "bytes"
    DECODED = "decoded"


class Vocabulary:
    """Class names by target, and what labels of numbers are: turns a label into the tensor that a Sample
    carries."""

    def __init__(
        self, labels: Mapping[str, tuple[str, ...]], numeric: Mapping[str, NumericLabel] | None = None
    ) -> None:
        """Number the names in the order given; labels of numbers have their own."""
        self.numeric = dict(numeric or {})
        self.labels = {**labels, **{t: n.names for t, n in self.numeric.items()}}
        self._index = {t: {name: i for i, name in enumerate(names)} for t, names in labels.items()}

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        order: Sequence[str] = (),
        numeric: Mapping[str, NumericLabel] | None = None,
    ) -> Vocabulary:
        """Collect the names that records use: those in `order` first, then in natural order (2 before 10)."""
        found: dict[str, set[str]] = {}
        for record in records:
            for target, label in record.labels.items():
                if not isinstance(label, Numbers):
                    found.setdefault(target, set()).update(names_of(label))
        rank = {name: i for i, name in enumerate(order)}

        def place(name: str) -> tuple[int, list[tuple[int, int, str]]]:
            return rank.get(name, len(rank)), natural_key(name)

        return cls({t: tuple(sorted(names, key=place)) for t, names in found.items()}, numeric)

    @property
    def kinds(self) -> dict[str, NumericKind]:
        """Return what each label of numbers is."""
        return {t: n.config.kind for t, n in self.numeric.items()}

    def moments(self, records: Iterable[Record]) -> dict[str, Moments]:
        """Return mean and spread of each label of plain numbers, over records to train on."""
        plain = [t for t, kind in self.kinds.items() if kind is NumericKind.NUMBERS]
        given: dict[str, list[Numbers]] = {target: [] for target in plain}
        for record in records if plain else ():
            for target in plain:
                if isinstance(label := record.labels.get(target), Numbers):
                    given[target].append(label)
        return {t: found for t, labels in given.items() if (found := moments_of(labels))}

    def tensor(self, target: str, label: Label, where: str) -> Tensor:
        """Return the class index () int64; for several names a vector (classes,) of their scores, 1 where
        none is given, 0 for all others; or the numbers (n,)."""
        if isinstance(label, Numbers):
            return self.numeric[target].tensor(label, where)
        index = self._index[target]
        names = names_of(label)
        for name in names:
            if name not in index:
                expected = f"one of its {len(index)} classes"
                raise DataError.at(where, f"{target} {name!r}", expected, "Add the class, or mend the label.")
        if isinstance(label, str):
            return torch.tensor(index[label])
        vector = torch.zeros(len(index))
        scores = [label[name] for name in names] if isinstance(label, Mapping) else 1.0
        vector[[index[name] for name in names]] = torch.tensor(scores)
        return vector


class RecordSource:
    """The samples of one split as records over files; modalities without a Preprocess are not read."""

    def __init__(
        self,
        records: Records,
        files: Files,
        preprocesses: Mapping[str, Preprocess],
        vocabulary: Vocabulary,
        *,
        name: str = "",
        cache: Cache = Cache.NONE,
    ) -> None:
        """Read nothing yet, unless the cache wants bytes: `MemoryFiles` does that for the caller."""
        self.records, self.files, self.preprocesses = records, files, preprocesses
        self.vocabulary, self.name, self.cache = vocabulary, name, cache
        self._decoded: dict[str, Any] = {}

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Read one sample."""
        return self.build(self.records[index], generator)

    def build(self, record: Record, generator: torch.Generator | None) -> Sample:
        """Read the parts of a record; the first that cannot be read raises DataError."""
        return build_sample(record, self._raw, self.preprocesses, self.vocabulary, generator)

    def _raw(self, preprocess: Preprocess, name: str) -> Any:
        if name in self._decoded:
            return self._decoded[name]
        raw = preprocess.decode(self.files.read(name), name)
        if self.cache is Cache.DECODED:
            if hasattr(raw, "load"):
                raw.load()  # PIL decodes at the first use: once, here
            self._decoded[name] = raw
        return raw


def build_sample(
    record: Record,
    read: Callable[[Preprocess, str], Any],
    preprocesses: Mapping[str, Preprocess],
    vocabulary: Vocabulary,
    generator: torch.Generator | None,
) -> Sample:
    """Make the sample of a record; `read` returns the raw form of a file. Boxes go where the Preprocess of
    their picture takes them."""
    inputs: dict[str, Item] = {}
    boxes = {t: n for t, n in vocabulary.numeric.items() if n.config.kind is NumericKind.BOXES}
    sizes: dict[str, tuple[int, int]] = {}
    for modality, preprocess in preprocesses.items():
        if modality in record.files:
            name = record.files[modality]
            with decoding(name):
                raw = _of_subject(read(preprocess, name), record)
                inputs[modality] = preprocess(raw, generator=generator)
                if any(box.config.of == modality for box in boxes.values()):
                    sizes[modality] = picture_size(raw)
        elif modality in record.texts:
            inputs[modality] = preprocess(choose(record.texts[modality], generator), generator=generator)
    known = {t: label for t, label in record.labels.items() if t in vocabulary.labels}
    targets: dict[str, Tensor] = {}
    for target, label in known.items():
        if target not in boxes or not isinstance(label, Numbers):
            targets[target] = vocabulary.tensor(target, label, record.id)
        elif (of := boxes[target].config.of) in sizes:
            where = f"{record.id}/{target}"
            targets[target] = boxes[target].box(label, sizes[of], preprocesses[of], where)
    several = {
        m: tuple(preprocess(raw, generator=generator) for raw in _entries(record, m, preprocess, read))
        for m, preprocess in preprocesses.items()
        if m in record.several
    }
    return Sample(record.id, inputs, targets, several=several)


def _entries(
    record: Record, modality: str, preprocess: Preprocess, read: Callable[[Preprocess, str], Any]
) -> Iterator[Any]:
    """Yield several entries of a modality: texts as they are, or what the files hold that they name."""
    for entry in record.several[modality]:
        if modality not in record.filed:
            yield entry
            continue
        with decoding(entry):
            yield _of_subject(read(preprocess, entry), record)


def _of_subject(raw: Any, record: Record) -> Any:
    """Return a scan as that of the record's subject, anything else as it is."""
    if record.subject is None or not hasattr(raw, "subject"):
        return raw
    return dataclasses.replace(raw, subject=record.subject)


def names_of(label: str | tuple[str, ...] | Mapping[str, float]) -> tuple[str, ...]:
    """Return the class names in a label."""
    return (label,) if isinstance(label, str) else tuple(label)


def choose(phrasings: Sequence[str], generator: torch.Generator | None) -> str:
    """Return one phrasing at random in training, the first in evaluation."""
    if generator is None or len(phrasings) == 1:
        return phrasings[0]
    return phrasings[int(torch.randint(len(phrasings), (), generator=generator))]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key by which numbers inside names count as numbers."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def count_voxels(
    parts: Iterable[tuple[Files, Iterable[Record]]], preprocesses: Mapping[str, Preprocess]
) -> dict[str, int]:
    """Return fMRI subject -> number of voxels, read from one scan of each subject."""
    brains = [m for m, p in preprocesses.items() if isinstance(p.core, FmriPreprocess)]
    found: dict[str, int] = {}
    for files, records in parts if brains else ():
        for record in records:
            for modality in brains:
                name = record.files.get(modality)
                subject = record.subject or subject_in(name) if name else None
                if name and subject and subject not in found:
                    with decoding(name):
                        found[subject] = (
                            preprocesses[modality].decode(files.read(name), name).values.shape[-1]
                        )
    return found


def subject_in(name: str) -> str | None:
    """Return the subject that the name of a scan's file tells."""
    match = SUBJECT_IN_NAME.search(name)
    return match[0] if match else None
