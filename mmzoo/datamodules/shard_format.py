"""What the members of a WebDataset tar mean, read and written: `key.extension`, one key a sample.

`0001.jpg`, `0001.txt`, `0001.wav` are modalities by extension, `0001.fmri.npy` names its own; `0001.cls`
is a class number or name; `0001.json` may hold `labels` (target -> class, list of classes or class -> score),
`texts` (modality -> phrasings) and `subject`. Pickles are refused: reading one runs its code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.datamodules.files import ARRAYS, KIND_OF, extension
from mmzoo.datamodules.numbers import Numbers
from mmzoo.datamodules.records import Label, Record, RecordSource
from mmzoo.errors import DataError

PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "joblib")
INFO_FILE = "info.json"


@dataclass(frozen=True)
class Fields:
    """How to read members: `names` extension -> modality; extensions not to read; class names by target."""

    names: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def record(self, sample_id: str, members: Mapping[str, str], read: Callable[[str], bytes]) -> Record:
        """Make a record of one key's members, extension -> member name; reads its json and cls."""
        for ending in members:
            if extension(f".{ending}") in PICKLES and ending not in self.ignore:
                do = f"Write it as .npy, .json or .txt, or set data.ignore=[{ending}]."
                raise DataError.at(
                    members[ending], "a pickle", "data that can be read without running code", do
                )
        meta = _json(read(members["json"]), members["json"]) if "json" in members else {}
        labels = {t: _label(v) for t, v in dict(meta.get("labels", {})).items() if v is not None}
        if "cls" in members:
            word = read(members["cls"]).decode("utf-8", "replace").strip()
            names = self.labels.get("label", ())
            labels["label"] = names[int(word)] if word.isdigit() and int(word) < len(names) else word
        files = {m: name for ending, name in members.items() if (m := self.modality(ending))}
        texts = {m: tuple(t) for m, t in dict(meta.get("texts", {})).items()}
        subject = meta.get("subject")
        return Record(sample_id, files, {**texts}, labels, None if subject is None else str(subject))

    def modality(self, ending: str) -> str | None:
        """Return the modality of a member by its extension; None for what is no data."""
        if ending in self.names:
            return self.names[ending]
        last = extension(f".{ending}")
        if ending in self.ignore or last not in KIND_OF | dict.fromkeys(ARRAYS):
            return None
        return ending.split(".")[0] if "." in ending else KIND_OF.get(last)


def split_member(name: str) -> tuple[str, str] | None:
    """Return (key, extension) of a member: cut at the first dot of the file name; None for hidden and odd
    ones."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return (f"{folder}{slash}{stem}", ending.lower()) if stem and dot and not stem.startswith("__") else None


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

    `info.json` beside them keeps the class names (in index order) and how many samples each shard holds.
    """
    from webdataset.writer import ShardWriter

    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    pattern = str(folder / f"{prefix}-%06d.tar")
    with ShardWriter(pattern, maxcount=per_shard, encoder=False, verbose=0, mtime=0.0) as writer:
        for sample in samples:
            writer.write({k: _bytes(k, v) for k, v in sample.items()})
            name = Path(writer.fname or "").name
            counts[name] = counts.get(name, 0) + 1
    known = read_info(folder)
    info = {
        "labels": {**known.get("labels", {}), **{t: list(names) for t, names in (labels or {}).items()}},
        "samples": {**known.get("samples", {}), **counts},
    }
    part = folder / f"{INFO_FILE}.part"
    part.write_text(json.dumps(info, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(folder / INFO_FILE)
    return [folder / name for name in counts]


def pack(source: RecordSource) -> Iterator[dict[str, Any]]:
    """Yield what `write_shards` takes from a folder's or manifest's source: files as they are, labels as
    JSON."""
    for number in range(len(source)):
        record = source.records[number]
        if record.several:
            found = f"several entries of {', '.join(record.several)}"
            do = "Set data.captions.evaluate=first, or train from the manifest."
            raise DataError.at(record.id, found, "one of each, which is what shards keep", do)
        sample: dict[str, Any] = {"__key__": f"{number:08d}"}
        for modality, name in record.files.items():
            last = extension(name)
            sample[last if KIND_OF.get(last) == modality else f"{modality}.{last}"] = source.files.read(name)
        meta = {
            "id": record.id,
            "labels": {t: _written(v, f"{record.id}/{t}") for t, v in record.labels.items()},
            "texts": {m: list(t) for m, t in record.texts.items()},
            "subject": record.subject,
        }
        yield {**sample, "json": {k: v for k, v in meta.items() if v}}


def read_info(folder: Path) -> dict[str, Any]:
    """Return what `write_shards` noted beside the shards; empty where there is no note."""
    path = folder / INFO_FILE
    return _json(path.read_bytes(), str(path)) if path.is_file() else {}


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError.at(where, f"not JSON ({error})", "a JSON object", "Write it again.") from error
    if not isinstance(found, dict):
        raise DataError.at(where, f"a {type(found).__name__}", "a JSON object", "Write it again.")
    return found


def _written(label: Label, where: str) -> str | list[str] | dict[str, float]:
    if isinstance(label, Numbers):
        do = "Leave the label out of data.numbers, or train from the manifest."
        raise DataError.at(where, "a label of numbers", "classes, which is what shards keep", do)
    if isinstance(label, Mapping):
        return dict(label)
    return label if isinstance(label, str) else list(label)


def _label(value: Any) -> Label:
    if isinstance(value, dict):
        return {str(name): float(score) for name, score in value.items()}
    return tuple(str(v) for v in value) if isinstance(value, list) else str(value)


def _bytes(name: str, value: Any) -> Any:
    if name == "__key__" or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value, ensure_ascii=False).encode()
