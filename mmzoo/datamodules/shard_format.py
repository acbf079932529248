"""What the members of a WebDataset tar mean: `key.extension`, one key a sample.

`0001.jpg`, `0001.txt`, `0001.wav` are modalities by extension, `0001.fmri.npy` names its own; `0001.cls`
is a class number or name; `0001.json` may hold

    labels   target -> class, list of classes or class -> score
    numbers  target -> number or list of numbers; of a box what `NumbersConfig` says, else x1 y1 x2 y2
    texts    modality -> phrasings, of which one is read
    several  modality -> texts that are all read, side by side
    members  modality -> extensions of its members that are all read, side by side
    subject  whose scan it is

Pickles are refused: reading one runs its code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmzoo.datamodules.files import ARRAYS, KIND_OF, extension
from mmzoo.datamodules.numbers import NumbersConfig, read_numbers
from mmzoo.datamodules.records import Label, Record
from mmzoo.errors import DataError

PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "joblib")


@dataclass(frozen=True)
class Fields:
    """How to read members: `names` extension -> modality; extensions not to read; class names by target; how
    labels of numbers are written; whether `id` in the json is the sample's."""

    names: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, NumbersConfig] = field(default_factory=dict[str, NumbersConfig])
    own_ids: bool = False

    def record(self, sample_id: str, members: Mapping[str, str], read: Callable[[str], bytes]) -> Record:
        """Make a record of one key's members, extension -> member name; reads its json and cls."""
        for ending in members:
            if extension(f".{ending}") in PICKLES and ending not in self.ignore:
                do = f"Write it as .npy, .json or .txt, or set data.ignore=[{ending}]."
                raise DataError.at(
                    members[ending], "a pickle", "data that can be read without running code", do
                )
        where = members.get("json", sample_id)
        meta = read_json(read(where), where) if "json" in members else {}
        filed = {m: _members_of(m, given, members, where) for m, given in json_part(meta, "members").items()}
        claimed = {name for names in filed.values() for name in names}
        files = {m: n for e, n in members.items() if n not in claimed and (m := self.modality(e))}
        several = {m: tuple(map(str, t)) for m, t in json_part(meta, "several").items()}
        subject = meta.get("subject")
        return Record(
            str(meta["id"]) if self.own_ids and meta.get("id") else sample_id,
            files,
            {m: tuple(t) for m, t in json_part(meta, "texts").items()},
            {**self._labels(meta, members, read), **dict(self._numbers(meta, where))},
            None if subject is None else str(subject),
            {**several, **filed},
            frozenset(filed),
        )

    def modality(self, ending: str) -> str | None:
        """Return the modality of a member by its extension; None for what is no data."""
        if ending in self.names:
            return self.names[ending]
        last = extension(f".{ending}")
        if ending in self.ignore or last not in KIND_OF | dict.fromkeys(ARRAYS):
            return None
        return ending.split(".")[0] if "." in ending else KIND_OF.get(last)

    def _labels(
        self, meta: Mapping[str, Any], members: Mapping[str, str], read: Callable[[str], bytes]
    ) -> dict[str, Label]:
        labels = {t: _label(v) for t, v in json_part(meta, "labels").items() if v is not None}
        if "cls" in members:
            word = read(members["cls"]).decode("utf-8", "replace").strip()
            names = self.labels.get("label", ())
            labels["label"] = names[int(word)] if word.isdigit() and int(word) < len(names) else word
        return labels

    def _numbers(self, meta: Mapping[str, Any], where: str) -> Iterator[tuple[str, Label]]:
        """Yield the labels of numbers; one that nothing describes is plain numbers."""
        for target, value in json_part(meta, "numbers").items():
            config = dataclasses.replace(self.numbers.get(target) or NumbersConfig(), columns=[])
            label = read_numbers(target, config, {target: value}, f"{where} {target}")
            if label is not None:
                yield target, label


def split_member(name: str) -> tuple[str, str] | None:
    """Return (key, extension) of a member: cut at the first dot of the file name; None for hidden and odd
    ones."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return (f"{folder}{slash}{stem}", ending.lower()) if stem and dot and not stem.startswith("__") else None


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """Return a JSON object; raise DataError where it is none."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError.at(where, f"not JSON ({error})", "a JSON object", "Write it again.") from error
    if not isinstance(found, dict):
        raise DataError.at(where, f"a {type(found).__name__}", "a JSON object", "Write it again.")
    return found


def json_part(meta: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what a sample's json holds under a key; nothing where other programs mean something else."""
    found = meta.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _members_of(modality: str, given: Any, members: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return the members whose extensions the json names for a modality."""
    endings = [str(ending) for ending in (given if isinstance(given, list) else [given])]
    for ending in endings:
        if ending not in members:
            found, do = f"members {modality}: {ending!r}", f"Add it, or drop it from the json's {modality}."
            raise DataError.at(where, found, f"a member of the sample ({', '.join(members)})", do)
    return tuple(members[ending] for ending in endings)


def _label(value: Any) -> Label:
    if isinstance(value, dict):
        return {str(name): float(score) for name, score in value.items()}
    return tuple(str(v) for v in value) if isinstance(value, list) else str(value)
