"""Writes events of the simulated world as files of the formats that users bring; what `mmzoo data make` does.

Why: so that every reader can be tried, and tested, on files whose content is known.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.datamodules import ntu, scan_files
from mmzoo.datamodules.dense_make import write_nyud, write_pascal_context
from mmzoo.datamodules.five_senses import EventSource, FiveSenses
from mmzoo.datamodules.haxby_make import write_haxby, write_haxby_known
from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.datamodules.nuscenes.write import write_nuscenes
from mmzoo.datamodules.scans import Event as Shown
from mmzoo.datamodules.shapes_make import write_grounding, write_vqa
from mmzoo.datamodules.shard_write import write_shards
from mmzoo.datamodules.split import SPLITS
from mmzoo.datamodules.world import brain
from mmzoo.datamodules.world.events import ACTIONS, ATTRIBUTES, Event
from mmzoo.errors import ConfigError, close_matches

MIN_SAMPLES = 12
"""Fewer would leave a split or a run empty."""
PERFORMERS = (1, 3, 2, 6, 4, 5)
"""NTU performer of each shirt colour, so that X-Sub has both sides (3 and 6 are test performers)."""
EVENTS_PER_RUN = 8
SPACING_S, SHOWN_S, TR_S = 10.0, 4.0, 2.0
"""Of the written scans: from onset to onset, length of an event, repetition time."""


class Kind(str, Enum):
    """The formats that can be written."""

    MANIFEST = "manifest"
    WEBDATASET = "webdataset"
    BIDS = "bids"
    NTU = "ntu"
    PYSKL = "pyskl"
    NYUD = "nyud"
    PASCAL_CONTEXT = "pascal_context"
    GROUNDING = "grounding"
    VQA = "vqa"
    HAXBY = "haxby"
    HAXBY_KNOWN = "haxby_known"
    NUSCENES = "nuscenes"


@dataclass(frozen=True)
class Made:
    """One event of the world, raw, seen by all senses; `fmri` (repeats voxels) is of `subject`."""

    event: Event
    split: str
    subject: str
    senses: Mapping[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """Return the value of each attribute in words."""
        return {name: self.event.name(name) for name in ATTRIBUTES}


def make(kind: str, path: str, samples: int, *, seed: int = 0) -> str:
    """Write `samples` events to the new folder `path` in the format `kind`; say what was written."""
    known = [k.value for k in Kind]
    if kind not in known:
        raise ConfigError.at("data make", repr(kind), "a format it can write", close_matches(kind, known))
    if kind in APART:
        return APART[Kind(kind)](Path(path), samples, seed=seed)
    return write_five_senses(Path(path), samples, Kind(kind), seed=seed)


@into_new_folder
def write_five_senses(folder: Path, samples: int, kind: Kind, *, seed: int = 0) -> str:
    """Write events of the world of that seed; three quarters train, an eighth each is validation and test."""
    if samples < MIN_SAMPLES:
        do = f"Ask for {MIN_SAMPLES}."
        raise ConfigError.at("data make", f"{samples} samples", f"at least {MIN_SAMPLES}", do)
    with tempfile.TemporaryDirectory(prefix="mmzoo-") as cache:
        return WRITERS[kind](folder, see_events(samples, seed, Path(cache)))


def see_events(samples: int, seed: int, cache: Path) -> Iterator[Made]:
    """Yield events of all splits in order, each with the scans of one subject, the subjects by turns."""
    held = max(1, samples // 8)
    config = FiveSenses.Config(
        num_events=samples, num_val=held, num_test=held, world_seed=seed, cache_dir=str(cache)
    )
    data = FiveSenses(config, {})
    subjects = tuple(brain.SUBJECTS)
    for split in SPLITS:
        source = data.source(split)
        for at, event in enumerate(source.events):
            number = at % len(subjects)
            yield Made(event, split, subjects[number], _senses(source, at, number))


def _senses(source: EventSource, at: int, subject: int) -> dict[str, Any]:
    found = {sense: source.raw(sense, at) for sense in ("image", "audio", "text", "skeleton")}
    return {**found, "fmri": source.raw("fmri", at, subject).values}


def write_manifest(folder: Path, events: Iterator[Made]) -> str:
    """Write manifest.csv with a file of each sense but text; every seventh row lacks its sound."""
    rows: list[dict[str, str]] = []
    for number, made in enumerate(events):
        row = {"id": made.event.id, "text": made.senses["text"], "subject": made.subject, "split": made.split}
        for name, data in _files(made).items():
            kind, _, ending = name.partition(".")
            if kind == "audio" and number % 7 == 6:
                continue
            path = folder / kind / f"{made.event.id}.{ending}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            row[kind] = path.relative_to(folder).as_posix()
        rows.append({**row, **made.labels})
    columns = ["id", "image", "audio", "text", "fmri", "skeleton", "subject", "split", *ATTRIBUTES]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return f"{len(rows)} rows in manifest.csv, their files in image, audio, fmri and skeleton"


def _files(made: Made) -> dict[str, bytes]:
    """Return the content of each file of an event by `sense.ending`."""
    import soundfile
    from PIL import Image

    image, audio = io.BytesIO(), io.BytesIO()
    Image.fromarray(made.senses["image"]).save(image, format="PNG")
    wave, rate = made.senses["audio"]
    soundfile.write(audio, wave, rate, format="WAV")
    arrays = {f"{k}.npy": _npy(made.senses[k]) for k in ("fmri", "skeleton")}
    return {"image.png": image.getvalue(), "audio.wav": audio.getvalue(), **arrays}


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float32))
    return file.getvalue()


def write_webdataset(folder: Path, events: Iterator[Made]) -> str:
    """Write a shard of each split: png, wav, txt, fmri.npy, skeleton.npy and json (labels, subject)."""
    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for made in events:
        files = _files(made)
        about = {"labels": made.labels, "subject": made.subject}
        sample = {"__key__": made.event.id, "txt": made.senses["text"], "json": json.dumps(about)}
        sample |= {"png": files["image.png"], "wav": files["audio.wav"]}
        sample |= {f"{k}.npy": files[f"{k}.npy"] for k in ("fmri", "skeleton")}
        by_split[made.split].append(sample)
    for split, samples in by_split.items():
        write_shards(folder, samples, prefix=split)
    return ", ".join(f"{len(samples)} samples of {split}" for split, samples in by_split.items())


def write_bids(folder: Path, events: Iterator[Made]) -> str:
    """Write the scans of all subjects as NIfTI runs; labels are the actions, all voxels are in the mask."""
    by_subject: dict[str, list[Made]] = {}
    for made in events:
        by_subject.setdefault(made.subject, []).append(made)
    runs = 0
    for number, (subject, seen) in enumerate(sorted(by_subject.items())):
        name = subject.removeprefix("sub-")
        rng = np.random.default_rng([brain.SUBJECTS[subject], number])
        mask = _round_mask(brain.SUBJECTS[subject])
        scan_files.write_mask(folder, name, "brain", mask)
        count = max(3, len(seen) // EVENTS_PER_RUN)
        for run in range(count):
            part = seen[run::count]
            shown = [Shown(4.0 + SPACING_S * i, SHOWN_S, m.labels["action"]) for i, m in enumerate(part)]
            volumes = round((4.0 + SPACING_S * len(part) + 10.0) / TR_S)
            responses = np.stack([m.senses["fmri"].mean(axis=0) for m in part])
            values = scan_files.simulate_run(responses, shown, (volumes, TR_S), rng)
            entities = scan_files.RunName(name, "view", run + 1)
            scan_files.write_run(folder, entities, scan_files.on_grid(values, mask), shown, TR_S)
            runs += 1
    return f"{runs} runs of {len(by_subject)} subjects, mask `brain`"


def _round_mask(voxels: int) -> np.ndarray:
    """Return the grid points nearest the middle, as many as there are voxels."""
    side = int(np.ceil((2.0 * voxels) ** (1 / 3)))
    at = np.indices((side, side, side)).reshape(3, -1) - (side - 1) / 2
    mask = np.zeros(side**3, bool)
    mask[np.argsort((at**2).sum(axis=0), kind="stable")[:voxels]] = True
    return mask.reshape(side, side, side)


def _ntu_names() -> Callable[[Event], ntu.Name]:
    """Return a function that names events: setup is the setting, performer the colour, the rest counts."""
    counts: dict[tuple[int, ...], int] = {}

    def name(event: Event) -> ntu.Name:
        key = (event.setting, event.side, event.colour, event.action)
        counts[key] = counts.get(key, 0) + 1
        performer = PERFORMERS[event.colour]
        return ntu.Name(event.setting + 1, event.side + 1, performer, counts[key], event.action + 1)

    return name


def write_ntu(folder: Path, events: Iterator[Made]) -> str:
    """Write one `.skeleton` text file an event; action A001 is the world's first."""
    name, count = _ntu_names(), 0
    for made in events:
        (folder / f"{name(made.event)}.skeleton").write_text(ntu.write(made.senses["skeleton"]))
        count += 1
    return f"{count} .skeleton files"


def write_pyskl(folder: Path, events: Iterator[Made]) -> str:
    """Write a pyskl pickle of plain containers, five_senses.pkl, with X-Sub and X-Set splits."""
    name = _ntu_names()
    split: dict[str, list[str]] = {f"{p}_{part}": [] for p in ("xsub", "xset") for part in ("train", "val")}
    annotations: list[dict[str, Any]] = []
    for made in events:
        called, motion = name(made.event), made.senses["skeleton"]
        present = np.isfinite(motion).all(axis=0).any(axis=(0, 1))
        keypoint = np.nan_to_num(motion).transpose(3, 1, 2, 0)[present].astype(np.float16)
        frames = keypoint.shape[1]
        clip = {
            "frame_dir": str(called),
            "label": made.event.action,
            "total_frames": frames,
            "keypoint": keypoint,
        }
        annotations.append(clip)
        for protocol in (ntu.Protocol.XSUB, ntu.Protocol.XSET):
            part = "train" if called.in_train(protocol) else "val"
            split[f"{protocol.value}_{part}"].append(str(called))
    content = {"split": split, "annotations": annotations, "classes": list(ACTIONS)}
    (folder / "five_senses.pkl").write_bytes(pickle.dumps(content))
    return f"{len(annotations)} annotations in five_senses.pkl"


WRITERS: dict[Kind, Callable[[Path, Iterator[Made]], str]] = {
    Kind.MANIFEST: write_manifest,
    Kind.WEBDATASET: write_webdataset,
    Kind.BIDS: write_bids,
    Kind.NTU: write_ntu,
    Kind.PYSKL: write_pyskl,
}
APART: dict[Kind, Callable[..., str]] = {
    Kind.NYUD: write_nyud,
    Kind.PASCAL_CONTEXT: write_pascal_context,
    Kind.GROUNDING: write_grounding,
    Kind.VQA: write_vqa,
    Kind.HAXBY: write_haxby,
    Kind.HAXBY_KNOWN: write_haxby_known,
    Kind.NUSCENES: write_nuscenes,
}
"""Formats that hold something else: the indoor world, coloured shapes, brains of new people or of the
world's (`samples` counts runs), and streets."""
