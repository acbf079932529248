"""What a path holds: format, modalities, counts, shapes, classes, faults, and the options to train on it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo import registry
from mmzoo.batch import IGNORE, DataInfo, DenseKind, Item, Sample, SceneKind
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.files import KINDS
from mmzoo.datamodules.guess_labels import guess_labels
from mmzoo.datamodules.loader import SampleSource
from mmzoo.datamodules.numbers import Numbers
from mmzoo.datamodules.records import RecordSource, names_of
from mmzoo.datamodules.scene import INPUTS
from mmzoo.datamodules.sniff import Guess, open_path, sniff
from mmzoo.datamodules.split import SPLITS
from mmzoo.errors import DataError, ShapeError
from mmzoo.modalities.base import Preprocess

__all__ = ["ModalityReport", "Report", "inspect_path", "open_path"]

PROBES = 2000
"""Samples that are read to measure them and to find faults, evenly spread."""
SCENE_PROBES = 60
"""Of scenes, whose samples are seven files and more."""
SHOWN = 12
MEASURED = (DenseKind.NORMALS, DenseKind.EDGE, DenseKind.DEPTH)
"""Dense labels without classes."""
UNITS = {"s": "s", "hz": "Hz"}


@dataclass(frozen=True)
class ModalityReport:
    """One modality: how many samples have it, how many were read, and what they look like.

    shapes: shape -> how often (`480x640`, frames x joints, …); numbers: name -> (least, median, most).
    """

    count: int
    read: int
    shapes: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    example: str = ""


@dataclass(frozen=True)
class Report:
    """What `inspect_path` found. `config` are the options of `data` that read it; `hints` say what to try
    next.

    `counted` tells whether modalities and classes were counted over all samples, or over those read.
    `numbers` has, for each label of numbers, the least, median and most of each as written.
    """

    path: str
    format: str
    samples: int
    splits: Mapping[str, int]
    modalities: Mapping[str, ModalityReport]
    classes: Mapping[str, Mapping[str, int]]
    subjects: Mapping[str, int]
    read: int
    faults: tuple[str, ...]
    config: Mapping[str, Any]
    hints: tuple[str, ...] = ()
    counted: bool = True
    numbers: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "faults": list(self.faults), "hints": list(self.hints)}

    def __str__(self) -> str:
        """Return the report as lines of text."""
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        lines = [f"{self.path}: {self.format}, {self.samples} samples ({splits})"]
        lines += [_line(name, part) for name, part in self.modalities.items()]
        for target, counts in self.classes.items():
            part = "" if self.counted else " (among those read)"
            lines.append(f"  {target}: {len(counts)} classes{part}: {_some(counts)}")
        for target, ranges in self.numbers.items():
            lines.append(f"  {target}: {'; '.join(_range(n, *r) for n, r in ranges.items())}")
        if self.subjects:
            lines.append(f"  subjects: {_some(self.subjects)} (voxels)")
        faults = f"{len(self.faults)} faults" if self.faults else "no faults"
        lines.append(f"  {faults} in {self.read} samples read")
        lines += [f"    {fault}" for fault in self.faults[:SHOWN]]
        lines += [f"    … and {len(self.faults) - SHOWN} more"] * (len(self.faults) > SHOWN)
        lines += [f"  {hint}" for hint in self.hints]
        lines.append("To train on it, put this into a recipe:")
        lines.append("data:")
        lines += [f"  {key}: {_yaml(value)}" for key, value in self.config.items()]
        return "\n".join(lines)


class Probe(Preprocess):
    """Decodes as the modality does, measures what it gets, and hands nothing on."""

    def __init__(self, kind: str) -> None:
        """Take the decoder of a kind of data."""
        self.kind = kind
        files = kind in KINDS  # views of scenes come as arrays
        row = registry.find("modalities", kind) if files else None
        self.decoder: Preprocess = row.Config().preprocess.build() if row else Preprocess()
        self.shapes: Counter[str] = Counter()
        self.numbers: dict[str, list[float]] = {}
        self.subjects: dict[str, int] = {}
        self.example = ""

    def decode(self, data: bytes, name: str) -> Any:
        """Read a file's bytes."""
        return self.decoder.decode(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Measure."""
        del generator
        values = np.asarray(getattr(raw, "values", raw[0] if self.kind == "audio" else raw))
        if self.kind == "text":
            self._note(characters=len(raw))
            self.example = self.example or raw[:80]
        elif self.kind == "audio":
            self._note(duration_s=len(values) / raw[1], sample_rate_hz=raw[1])
        elif self.kind == "image":
            self.shapes[f"{values.shape[0]}x{values.shape[1]}"] += 1
        else:
            self.shapes["x".join(map(str, values.shape))] += 1
        if subject := getattr(raw, "subject", None):
            self.subjects[subject] = values.shape[-1]
        if values.dtype.kind == "f" and self.kind == "audio" and not np.isfinite(values).all():
            raise DataError.at(self.kind, "NaN or infinity", "finite values", "Mend or drop the file.")
        return Item(torch.zeros(1))

    def check_boxes(self) -> None:
        """Take any: nothing is done to a picture."""

    def place_boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
        """Return them as they are."""
        del size
        return boxes

    def report(self, count: int) -> ModalityReport:
        """Sum up."""
        numbers = {k: _spread(v) for k, v in self.numbers.items()}
        read = max(sum(self.shapes.values()), *(len(v) for v in self.numbers.values()), 0)
        return ModalityReport(count, read, dict(self.shapes.most_common(SHOWN)), numbers, self.example)

    def _note(self, **values: float | int) -> None:
        for name, value in values.items():
            self.numbers.setdefault(name, []).append(float(value))


def inspect_path(path: str | Path, probes: int = PROBES) -> Report:
    """Look at a file or folder: list it all, read up to `probes` samples of it."""
    guess = _with_labels(sniff(Path(path)))
    scenes = guess.row == "nuscenes"
    used = {kind: Probe(kind) for kind in (INPUTS if scenes else KINDS)}
    data: DataModule = guess.config(whole=False).build(used, seed=0)
    info = data.info()
    sources = [data.source(split) for split in SPLITS if info.counts.get(split)]
    seen = _probe(sources, info, min(probes, SCENE_PROBES) if scenes else probes)
    known = _count_records(sources)
    labels = known.labels or seen.labels
    counts = known.modalities or seen.modalities
    modalities = {m: used[m].report(counts[m]) for m in info.modalities if m in used}
    return Report(
        path=str(path),
        format=guess.format,
        samples=sum(info.counts.values()),
        splits=dict(info.counts),
        modalities=modalities,
        classes={
            t: {n: labels[t][n] for n in names}
            for t, names in info.labels.items()
            if t in labels and info.dense.get(t) not in MEASURED and t not in info.numeric
        },
        subjects=dict(info.subjects) or {s: n for probe in used.values() for s, n in probe.subjects.items()},
        read=seen.read,
        faults=tuple(seen.faults),
        config={"type": guess.row, **guess.options},
        hints=_hint_dense(info, seen) if info.labels else hint_labels(_stems(sources)),
        numbers={t: _spreads(info.labels[t], rows) for t, rows in known.numbers.items()},
        counted=bool(known.modalities) or not sources or seen.read == sum(map(len, sources)),
    )


def _with_labels(guess: Guess) -> Guess:
    """Add what the cells of a manifest tell of labels that are no names."""
    if guess.row != "manifest":
        return guess
    return dataclasses.replace(guess, options={**guess.options, **guess_labels(Path(guess.options["path"]))})


@dataclass
class Tally:
    """What reading samples showed."""

    read: int = 0
    faults: list[str] = field(default_factory=list[str])
    modalities: Counter[str] = field(default_factory=Counter[str])
    labels: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    numbers: dict[str, list[tuple[float, ...]]] = field(default_factory=dict[str, list[tuple[float, ...]]])

    def add(self, source: SampleSource, index: int, info: DataInfo) -> None:
        """Read one sample."""
        self.read += 1
        try:
            sample = source.get(index, None)
        except (DataError, ShapeError) as error:
            self.faults.append(str(error))
            return
        self.modalities.update(sample.modalities)
        for target, shown in _shown_scene(sample, info).items():
            self.labels.setdefault(target, Counter()).update(shown)
        for target, value in sample.targets.items():
            names = info.labels[target]
            if target in info.numeric or target in info.scene:
                continue
            if target in info.dense:
                self.labels.setdefault(target, Counter()).update(_shown(value, info.dense[target], names))
                continue
            held = [int(value)] if value.ndim == 0 else value.nonzero().flatten().tolist()
            self.labels.setdefault(target, Counter()).update(names[i] for i in held)


def _shown(values: Tensor, kind: DenseKind, names: Sequence[str]) -> list[str]:
    """Return the names of what the labels of an image's pixels show: its classes, or that there are any."""
    if kind in (DenseKind.CLASSES, DenseKind.SALIENCY):
        return [names[int(i)] for i in values[values != IGNORE].unique()]
    none = 0 if kind is DenseKind.DEPTH else IGNORE
    return list(names) if bool((values != none).any()) else []


def _shown_scene(sample: Sample, info: DataInfo) -> dict[str, list[str]]:
    """Return the names of what a scene's labels show: every box, and the classes of map and voxels."""
    found: dict[str, list[str]] = {}
    for target, value in {**sample.targets, **sample.lists}.items():
        if kind := info.scene.get(target):
            if kind is SceneKind.BOXES_3D:
                numbers = value[:, -1]
            elif kind is SceneKind.GROUND_MAP:
                numbers = value.flatten(1).any(dim=1).nonzero()
            else:
                numbers = value[value != IGNORE].unique()
            found[target] = [info.labels[target][int(n)] for n in numbers]
    return found


def _probe(sources: Sequence[SampleSource], info: DataInfo, probes: int) -> Tally:
    tally = Tally()
    step = max(1, -(-sum(map(len, sources)) // probes))
    for source in sources:
        for index in range(0, len(source), step):
            tally.add(source, index, info)
    return tally


def _count_records(sources: Sequence[SampleSource]) -> Tally:
    """Count modalities and labels of all records, without reading a file."""
    tally = Tally()
    for source in sources:
        if isinstance(source, RecordSource):
            for record in source.records:
                tally.modalities.update(record.modalities)
                for target, label in record.labels.items():
                    if isinstance(label, Numbers):
                        tally.numbers.setdefault(target, []).append(label.values)
                    else:
                        tally.labels.setdefault(target, Counter()).update(names_of(label))
    return tally


def _hint_dense(info: DataInfo, seen: Tally) -> tuple[str, ...]:
    """Say which labels of every pixel there are, and on how many of the images read."""
    found = [f"{t} {max(seen.labels.get(t, Counter[str]()).values(), default=0)}" for t in info.dense]
    return (f"labels of every pixel, images read that have any: {', '.join(found)}",) if found else ()


def hint_labels(stems: Sequence[str]) -> tuple[str, ...]:
    """Say which part of file names like `a_b_c` could be the class: one that takes few values, each often."""
    parts = [re.split(r"[_-]", stem) for stem in stems]
    width = len(parts[0]) if parts else 0
    if width < 2 or any(len(p) != width for p in parts):
        return ()
    hints: list[str] = []
    for at, values in enumerate(zip(*parts, strict=True)):
        kinds = sorted(set(values))
        if 2 <= len(kinds) <= max(2, len(stems) // 5):
            pattern = rf"^{'[^_-]+[_-]' * at}(?P<label>[^_-]+?)(?:[_.-]|$)"
            shown = ", ".join(kinds[:8]) + (" …" if len(kinds) > 8 else "")
            hints.append(f"classes may be in the names ({shown}): pattern: '{pattern}'")
    return tuple(hints)


def _stems(sources: Sequence[SampleSource]) -> list[str]:
    """Return the names of samples that lie in no folder."""
    records = (r for s in sources if isinstance(s, RecordSource) for r in s.records)
    return [record.id for record in records if record.files and "/" not in record.id]


def _yaml(value: Any) -> str:
    """Return a value as YAML reads it: plain where no character is special, else as JSON."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./ -]+", value) and not value[0].isdigit()
    return value if plain else json.dumps(value, ensure_ascii=False)


def _line(name: str, part: ModalityReport) -> str:
    facts = [_some(part.shapes, "of")] if part.shapes else []
    facts += [_range(key, *numbers) for key, numbers in part.numbers.items()]
    facts += [repr(part.example)] if part.example else []
    return f"  {name}: {part.count} samples; " + "; ".join(facts)


def _spreads(
    names: Sequence[str], rows: Sequence[tuple[float, ...]]
) -> dict[str, tuple[float, float, float]]:
    return {name: _spread(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), float(np.median(values)), max(values)


def _range(name: str, least: float, median: float, most: float) -> str:
    words, _, unit = name.rpartition("_")
    words, unit = (words.replace("_", " "), f" {UNITS[unit]}") if unit in UNITS else (name, "")
    if least == most:
        return f"{words} {least:g}{unit}"
    return f"{words} {least:.4g} to {most:.4g}{unit} (median {median:.4g})"


def _some(counts: Mapping[str, int], joint: str = "") -> str:
    shown = [f"{n} {joint} {name}" if joint else f"{name} {n}" for name, n in list(counts.items())[:SHOWN]]
    return ", ".join(shown) + (" …" if len(counts) > SHOWN else "")
