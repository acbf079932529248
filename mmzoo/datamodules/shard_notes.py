"""What is noted in `info.json` beside shards, so that nobody has to read them all to know what they hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmzoo import schema
from mmzoo.batch import Moments
from mmzoo.datamodules.captions import EvaluateOn
from mmzoo.datamodules.numbers import NumbersConfig, NumericLabel
from mmzoo.datamodules.shard_format import json_part, read_json

INFO_FILE = "info.json"


@dataclass(frozen=True)
class Notes:
    """What shards hold: class names by target; labels of numbers, None where nobody has looked; samples by
    shard; modalities in the json, None where nobody has looked.

    `several`: modality -> most entries side by side in a sample; `phrasings`: modality -> most phrasings of
    which one is read; `captions`: what evaluation makes of these; `own_ids`: samples are called what `id` in
    their json says; `moments`: mean and spread of labels of numbers in the training split.
    """

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, NumericLabel] = field(default_factory=dict[str, NumericLabel])
    samples: Mapping[str, int] = field(default_factory=dict)
    modalities: tuple[str, ...] | None = None
    several: Mapping[str, int] = field(default_factory=dict)
    phrasings: Mapping[str, int] = field(default_factory=dict)
    captions: EvaluateOn | None = None
    own_ids: bool = False
    moments: Mapping[str, Moments] = field(default_factory=dict[str, Moments])

    def beside(self, other: Notes) -> Notes:
        """Return both; what they disagree on is as the other says."""
        sides = (self.modalities, other.modalities)
        known = None if sides == (None, None) else tuple(dict.fromkeys(m for s in sides for m in s or ()))
        return Notes(
            {**self.labels, **other.labels},
            {**self.numbers, **other.numbers},
            {**self.samples, **other.samples},
            known,
            _most(self.several, other.several),
            _most(self.phrasings, other.phrasings),
            other.captions or self.captions,
            self.own_ids or other.own_ids,
            {**self.moments, **other.moments},
        )

    def seen(self, sample: Mapping[str, Any]) -> Notes:
        """Return the notes after a look at a sample; `modality` tells that of an extension."""
        meta = _meta(sample.get("json"))
        members, texts, several = (json_part(meta, key) for key in ("members", "texts", "several"))
        counts = {m: len(entries) for m, entries in {**several, **members}.items()}
        known = tuple(dict.fromkeys([*(self.modalities or ()), *texts, *several]))
        phrasings = {m: len(t) for m, t in texts.items()}
        if known == self.modalities and not counts and not phrasings:
            return self
        return dataclasses.replace(
            self,
            modalities=known,
            several=_most(self.several, counts),
            phrasings=_most(self.phrasings, phrasings),
        )

    @property
    def told(self) -> bool:
        """Whether labels are known without a look at every sample."""
        return bool(self.labels or self.numbers or self.own_ids)


def read_notes(folder: Path) -> Notes:
    """Return what `write_shards` noted beside the shards; empty where there is no note."""
    path = folder / INFO_FILE
    found = read_json(path.read_bytes(), str(path)) if path.is_file() else {}
    modalities = found.get("modalities")
    captions = found.get("captions")
    return Notes(
        {t: tuple(str(n) for n in names) for t, names in found.get("labels", {}).items()},
        {t: _numeric(about, f"{path}: {t}") for t, about in found.get("numbers", {}).items()},
        {str(shard): int(n) for shard, n in found.get("samples", {}).items()},
        None if modalities is None else tuple(map(str, modalities)),
        dict(found.get("several", {})),
        dict(found.get("phrasings", {})),
        None if captions is None else EvaluateOn(captions),
        bool(found.get("own_ids", False)),
        {
            t: Moments(int(m["count"]), tuple(m["mean"]), tuple(m["std"]))
            for t, m in found.get("moments", {}).items()
        },
    )


def write_notes(folder: Path, notes: Notes) -> None:
    """Write them, all at once."""
    info: dict[str, Any] = {
        "labels": {t: list(names) for t, names in notes.labels.items()},
        "samples": dict(notes.samples),
        "numbers": {t: _about(label) for t, label in notes.numbers.items()},
        "modalities": None if notes.modalities is None else list(notes.modalities),
        "several": dict(notes.several),
        "phrasings": dict(notes.phrasings),
        "captions": None if notes.captions is None else notes.captions.value,
        "own_ids": notes.own_ids,
        "moments": {t: dataclasses.asdict(m) for t, m in notes.moments.items()},
    }
    first = ("labels", "samples")
    info = {k: v for k, v in info.items() if k in first or v not in (None, {}, False)}
    part = folder / f"{INFO_FILE}.part"
    part.write_text(json.dumps(info, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(folder / INFO_FILE)


def _about(label: NumericLabel) -> dict[str, Any]:
    """Describe a label as the json of samples holds it: boxes as corners."""
    config = label.config
    return {
        "names": list(label.names),
        "kind": config.kind.value,
        "units": config.units.value,
        "of": config.of,
    }


def _numeric(about: Mapping[str, Any], where: str) -> NumericLabel:
    config = schema.parse(NumbersConfig, {k: v for k, v in about.items() if k != "names"}, where)
    return NumericLabel(config, tuple(map(str, about.get("names", ()))))


def _meta(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    return read_json(value if isinstance(value, bytes) else str(value).encode(), "json") if value else {}


def _most(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """Return the larger count of each key."""
    return {m: max(a.get(m, 0), b.get(m, 0)) for m in {**a, **b}}
