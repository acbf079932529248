"""What file names tell: modality, labels, groups and captions; records made from them when asked for."""

from __future__ import annotations

import io
import logging
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmzoo.datamodules.faults import decoding
from mmzoo.datamodules.files import ARRAYS, KINDS, Files, extension, is_data, kind_of
from mmzoo.datamodules.records import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Naming:
    """How to read file names: see the options of `Folder`, which have the same names."""

    modality: str | None = None
    pattern: re.Pattern[str] | None = None
    targets: tuple[str, ...] = ("label",)
    class_names: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    caption_modality: str = "text"

    def groups(self, name: str) -> dict[str, str]:
        """Return what a path tells: the groups of the pattern, or its first folder as `label`."""
        if self.pattern is not None:
            match = self.pattern.search(name)
            groups = {k: v for k, v in match.groupdict().items() if v is not None} if match else {}
        else:
            folder, slash, _ = name.partition("/")
            groups = {"label": folder} if slash else {}
        first = next(iter(self.targets), "")
        if first in groups:
            groups[first] = self.class_names.get(groups[first], groups[first])
        return groups

    def sentences(self, groups: Mapping[str, str]) -> tuple[str, ...]:
        """Return the captions that can be written with these groups; `_` in a name reads as a space."""
        words = {k: v.replace("_", " ") for k, v in groups.items()}
        return tuple(text.format(**words) for text in self.captions if fields_of(text) <= words.keys())


class NamedRecords:
    """Records by number, made from file names on demand: a million files cost their names only."""

    def __init__(self, samples: Sequence[tuple[str, ...]], naming: Naming, array: str | None = None) -> None:
        """Hold the file names of each sample; `array` is the modality of `.npy` files that do not name
        theirs."""
        self.samples, self.naming, self.array = samples, naming, array

    @classmethod
    def read(cls, files: Files, naming: Naming) -> NamedRecords:
        """List files; those that differ in their extension only (`a/1.jpg`, `a/1.txt`) are one sample."""
        by_stem: dict[str, list[str]] = {}
        skipped = 0
        for name in files.names():
            if is_data(name) and (naming.pattern is None or naming.pattern.search(name)):
                by_stem.setdefault(name if naming.modality else stem_of(name), []).append(name)
            else:
                skipped += 1
        if skipped:
            log.info("%s: %d files are no samples and are left out", files.root, skipped)
        samples = [tuple(names) for names in by_stem.values()]
        return cls(samples, naming, None if naming.modality else array_kind(files, samples))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __iter__(self) -> Iterator[Record]:
        """Go through the records."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        """Return one record."""
        names = self.samples[index]
        groups = self.naming.groups(names[0])
        labels = {t: groups[t] for t in self.naming.targets if t in groups}
        files = {m: n for n in names if (m := self.modality_of(n))}
        sentences = self.naming.sentences(groups)
        texts = {self.naming.caption_modality: sentences} if sentences else {}
        return Record(stem_of(names[0]), files, texts, labels, groups.get("subject"))

    def take(self, rows: Sequence[int]) -> NamedRecords:
        """Return some of the records."""
        return NamedRecords([self.samples[i] for i in rows], self.naming, self.array)

    def modalities(self) -> list[str]:
        """Name the modalities that any record has."""
        found = dict.fromkeys(m for names in self.samples for n in names if (m := self.modality_of(n)))
        if self.naming.captions:
            found.setdefault(self.naming.caption_modality)
        return list(found)

    def modality_of(self, name: str) -> str | None:
        """Return the modality that a file is of."""
        return self.naming.modality or kind_of(name) or self.array


def stem_of(name: str) -> str:
    """Return a path without its extension and without the kind before it (`a/1.skeleton.npy` -> `a/1`)."""
    folder, slash, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    before, _, kind = stem.rpartition(".")
    return f"{folder}{slash}{before if before and kind in KINDS else stem}"


def fields_of(text: str) -> set[str]:
    """Return the names in the {places} of a sentence."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def array_kind(files: Files, samples: Sequence[tuple[str, ...]]) -> str | None:
    """Tell from the first unnamed array what such files hold: three axes or more a motion, fewer a scan."""
    for names in samples:
        for name in names:
            if extension(name) in ARRAYS and not kind_of(name):
                with decoding(name):
                    array = np.load(io.BytesIO(files.read(name)), allow_pickle=False)
                return "skeleton" if array.ndim >= 3 else "fmri"
    return None
