"""Shards written: from samples made by hand, or from what a folder's or manifest's source holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.batch import Moments
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.captions import EvaluateOn, HasCaptions, PairSource
from mmzoo.datamodules.faults import decoding
from mmzoo.datamodules.files import ARRAYS, KIND_OF, extension
from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.datamodules.numbers import Numbers
from mmzoo.datamodules.records import Label, Record, RecordSource, subject_in
from mmzoo.datamodules.shard_format import Fields
from mmzoo.datamodules.shard_notes import Notes, read_notes, write_notes
from mmzoo.datamodules.split import SPLITS
from mmzoo.errors import DataError


@dataclass(frozen=True)
class Packed:
    """The samples of a source as `write_shards` takes them: files as they are, the rest as JSON.

    `captions` is what evaluation makes of several captions, where the source has some, `moments` what is
    known of its labels of numbers; samples that have none of the modalities in `reads` are left out.
    """

    source: RecordSource
    captions: EvaluateOn | None = None
    moments: Mapping[str, Moments] = field(default_factory=dict[str, Moments])
    reads: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield sample after sample."""
        for number, record in enumerate(self.records()):
            yield _packed(record, number, self.source)

    def records(self) -> Iterator[Record]:
        """Yield the records that are packed."""
        for number in range(len(self.source)):
            record = self.source.records[number]
            if not self.reads or self.reads & {*record.modalities}:
                yield record

    def notes(self) -> Notes:
        """Return what labels are, of all samples."""
        vocabulary = self.source.vocabulary
        names = {t: n for t, n in vocabulary.labels.items() if t not in vocabulary.numeric}
        return Notes(names, vocabulary.numeric, captions=self.captions, own_ids=True, moments=self.moments)


def pack(source: Any, captions: EvaluateOn | None = None) -> Packed:
    """Return what `write_shards` takes; raise DataError where shards could not give the same samples."""
    if not isinstance(source, RecordSource):
        found = f"{getattr(source, 'name', type(source).__name__)}, whose samples are not read from files"
        do = "Train from it directly."
        raise DataError.at("shards", found, "a folder, a manifest or shards", do)
    if isinstance(source, PairSource) and source.batch_size:
        do = "Set data.captions.train=one, or data.captions.neighbours=any."
        found = f"{source.name}: pairs kept apart in a batch"
        raise DataError.at("shards", found, "an order that a stream can keep", do)
    return Packed(source, captions)


@into_new_folder
def pack_data(
    folder: Path, data: DataModule, *, per_shard: int = 1000, reads: Iterable[str] = ()
) -> dict[str, int]:
    """Write every split of a data set as `train-000000.tar`, `val-…`, `test-…`; return split -> samples.

    `reads` names the modalities of which a sample must have one to be packed; none: any will do.
    """
    captions = data.captions_shown if isinstance(data, HasCaptions) else None
    held = data.info().counts
    packed = {split: pack(data.source(split), captions) for split in SPLITS if held.get(split)}
    counts: dict[str, int] = {}
    for split, samples in packed.items():
        own = dataclasses.replace(samples, reads=frozenset(reads))
        if not (count := sum(1 for _ in own.records())):
            continue
        if split == SPLITS[0]:
            own = dataclasses.replace(own, moments=own.source.vocabulary.moments(own.records()))
        write_shards(folder, own, per_shard=per_shard, prefix=split)
        counts[split] = count
    return counts


def write_shards(
    folder: Path,
    samples: Iterable[Mapping[str, Any]],
    *,
    per_shard: int = 1000,
    prefix: str = "train",
    labels: Mapping[str, Iterable[str]] | None = None,
) -> list[Path]:
    """Write samples, `{"__key__": …, extension: bytes, text or JSON value}`, as `prefix-000000.tar` and so
    on.

    `info.json` beside them keeps the class names (in index order; those that `pack` knows, else `labels`),
    what labels of numbers are, which modalities there are, and how many samples each shard holds.
    """
    from webdataset.writer import ShardWriter

    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    told = samples.notes() if isinstance(samples, Packed) else Notes()
    notes = read_notes(folder).beside(told).beside(Notes(labels=_as_tuples(labels or {}, told)))
    pattern = str(folder / f"{prefix}-%06d.tar")
    with ShardWriter(pattern, maxcount=per_shard, encoder=False, verbose=0, mtime=0.0) as writer:
        for sample in samples:
            notes = notes.seen(sample)
            writer.write({k: _bytes(k, v) for k, v in sample.items()})
            name = Path(writer.fname or "").name
            counts[name] = counts.get(name, 0) + 1
    write_notes(folder, notes.beside(Notes(samples=counts)))
    return [folder / name for name in counts]


def _as_tuples(labels: Mapping[str, Iterable[str]], told: Notes) -> dict[str, tuple[str, ...]]:
    """Return the class names given beside what `pack` knows, those of labels of numbers left out."""
    return {target: tuple(names) for target, names in labels.items() if target not in told.numbers}


def _packed(record: Record, number: int, source: RecordSource) -> dict[str, Any]:
    sample: dict[str, Any] = {"__key__": f"{number:08d}"}
    members: dict[str, list[str]] = {}
    for modality, name in record.files.items():
        sample[_ending(modality, name, record.id)] = _read(source, name)
    for modality in sorted(record.filed):
        names = record.several[modality]
        members[modality] = [_ending(modality, name, record.id, str(i)) for i, name in enumerate(names)]
        sample |= dict(zip(members[modality], (_read(source, name) for name in names), strict=True))
    numbers = {t: label.values for t, label in record.labels.items() if isinstance(label, Numbers)}
    meta = {
        "id": record.id,
        "labels": {t: _written(v) for t, v in record.labels.items() if not isinstance(v, Numbers)},
        "numbers": {t: list(values) for t, values in numbers.items()},
        "texts": {m: list(t) for m, t in record.texts.items()},
        "several": {m: list(t) for m, t in record.several.items() if m not in record.filed},
        "members": members,
        "subject": _subject(record),
    }
    return {**sample, "json": {k: v for k, v in meta.items() if v}}


def _read(source: RecordSource, name: str) -> bytes:
    with decoding(name):
        return source.files.read(name)


def _ending(modality: str, name: str, where: str, place: str = "") -> str:
    """Return the extension of a modality's member, from which readers tell the modality again."""
    last = extension(name)
    if not place and KIND_OF.get(last) == modality:
        return last
    ending = ".".join(filter(None, (modality, place, last)))
    if ending != ending.lower() or Fields().modality(ending) != modality:
        do = "Rename it (data.inputs)."
        raise DataError.at(where, f"modality {modality!r}", "a name in lower case, without a dot", do)
    return ending


def _subject(record: Record) -> str | None:
    """Return whose scan it is: as told, else as the names of its arrays tell, which members have no more."""
    if record.subject is not None:
        return record.subject
    names = [*record.files.values(), *(n for m in record.filed for n in record.several[m])]
    found = dict.fromkeys(s for n in names if extension(n) in ARRAYS and (s := subject_in(n)))
    if len(found) > 1:
        do = "Make them samples of their own."
        raise DataError.at(record.id, f"scans of {' and '.join(found)}", "one subject a sample", do)
    return next(iter(found), None)


def _written(label: Label) -> str | list[str] | dict[str, float]:
    if isinstance(label, Mapping):
        return dict(label)
    return label if isinstance(label, str) else [str(name) for name in label]  # pyright: ignore[reportGeneralTypeIssues]


def _bytes(name: str, value: Any) -> Any:
    if name == "__key__" or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value, ensure_ascii=False).encode()
