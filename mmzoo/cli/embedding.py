"""Embeddings to a file: in shards that survive a kill, joined and renamed into place at the end.

While it works, `OUT.parts/` holds job.json (what is embedded with what) and one .npz for each shard done;
the same command continues after the last of them, another command is refused.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmzoo import recipe, zoo
from mmzoo.batch import Sample
from mmzoo.cli.console import clock
from mmzoo.configs import list_configs
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.collate import collate
from mmzoo.datamodules.faults import Fault, FaultLog
from mmzoo.datamodules.loader import SampleSource
from mmzoo.errors import ConfigError, DataError, ShapeError, close_matches
from mmzoo.learners.progress import PLAIN_EVERY_S
from mmzoo.models.base import TaskModel
from mmzoo.run_folder import read_json, write_json

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
NO_RECIPE = {"trainer": {"max_steps": 1}}
"""Stands in where weights came without one: only its data are looked at."""
TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Options:
    """Where to write, and how much at once."""

    out: str
    head: str = ""
    shard_size: int = 1024
    batch_size: int = 64
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Rows:
    """Some embeddings: ids (n), modality (n), vectors (n, e)."""

    ids: np.ndarray
    modality: np.ndarray
    vectors: np.ndarray


def embed(source: str, data: str, overrides: Sequence[str], options: Options) -> dict[str, Any]:
    """Embed `data` with the model that `source` names; return what was written."""
    out = Path(options.out)
    if out.exists() and not options.overwrite:
        raise ConfigError.at(
            "mmzoo embed -o", f"{out} exists", "a new file", "Add --overwrite, or name another."
        )
    _check_writable(out)
    model, saved = zoo.load_with_config(source)
    model = model.to(_device(options.device))
    task = options.head if options.head and model.embeds else model.embedding_task()
    if task not in model.passes:
        raise ConfigError.at("--head", repr(task), "a head of the model", close_matches(task, model.passes))
    parts = open_data(data, model, saved, overrides)
    total = sum(len(part) for part in parts)
    job = {
        "weights": saved.get("sha256") or _fingerprint(model),
        "data": data,
        "overrides": list(overrides),
        "head": task,
        "shard_size": options.shard_size,
        "samples": total,
    }
    folder = _open_parts(out, job)
    try:
        _work(model, task, parts, folder, options)
    except DataError:
        if not _done(folder):
            shutil.rmtree(folder)
        raise
    rows = _done(folder)
    if not rows:
        shutil.rmtree(folder)
        found, do = f"nothing that the model embeds in {data}", "Look at it with `mmzoo data inspect`."
        raise DataError.at("mmzoo embed", found, f"some of {', '.join(model.modalities)}", do)
    whole = Rows(*(np.concatenate([getattr(r, f) for r in rows]) for f in ("ids", "modality", "vectors")))
    _write(out, whole)
    shutil.rmtree(folder)
    return {
        "out": str(out),
        "rows": len(whole.ids),
        "dim": int(whole.vectors.shape[1]),
        "samples": len(set(whole.ids.tolist())),
        "modalities": sorted(set(whole.modality.tolist())),
    }


def open_data(
    data: str, model: TaskModel, saved: dict[str, Any], overrides: Sequence[str]
) -> list[SampleSource]:
    """Return the samples that `data` means: a split, a data config, a path to files or to a manifest."""
    tree: dict[str, Any] = dict(saved.get("recipe") or NO_RECIPE)
    path = Path(data)
    if data not in SPLITS:
        if path.exists():
            tree["data"] = _describe(path)
        elif data in list_configs("data"):
            overrides = [f"data={data}", *overrides]
        else:
            known = [*SPLITS, *list_configs("data")]
            expected = "a path, a split or a data config"
            raise ConfigError.at(
                "mmzoo embed", f"no such data {data!r}", expected, close_matches(data, known)
            )
    elif "data" not in tree:
        do = "Give a path."
        raise ConfigError.at("mmzoo embed", f"{data!r} of a model without data", "a path to data", do)
    config = recipe.from_dict({**tree, "init_from": ""}, overrides)
    module: DataModule = config.data.build(model.preprocesses(), seed=config.seed)
    counts = module.info().counts
    wanted = [data] if data in SPLITS else [s for s in SPLITS if counts.get(s)]
    return [module.source(split) for split in wanted]


def _describe(path: Path) -> dict[str, Any]:
    """Return the options of a datamodule that reads every file below a path, or every row of a table."""
    whole = {"split": {"val_share": 0.0, "test_share": 0.0}}
    if path.suffix in TABLES:
        return {"type": "manifest", "path": str(path), **whole}
    return {"type": "folder", "root": str(path), "pattern": ".", "targets": [], **whole}


def _work(model: TaskModel, task: str, parts: Sequence[SampleSource], folder: Path, options: Options) -> None:
    """Embed every shard that is not there yet."""
    places = [(part, i) for part in parts for i in range(len(part))]
    shards = [places[i : i + options.shard_size] for i in range(0, len(places), options.shard_size)]
    done = sum(_shard(folder, n).is_file() for n in range(len(shards)))
    if done:
        log.info("%s: %d of %d shards are there already", folder, done, len(shards))
    faults = FaultLog("embed", 0.05)
    start = shown = time.monotonic()
    for number, shard in enumerate(shards):
        path = _shard(folder, number)
        if path.is_file():
            continue
        samples = list(_samples(shard, faults, len(places)))
        _save(path, _rows(model, task, samples, options.batch_size))
        if time.monotonic() - shown > PLAIN_EVERY_S:
            shown, done_now = time.monotonic(), (number + 1) * options.shard_size
            count = f"{min(done_now, len(places)):,} of {len(places):,} samples"
            sys.stderr.write(f"embedded {count}, {clock(shown - start)}\n")
    if faults.named:
        log.warning("%s", faults.summary())


def _samples(shard: Sequence[tuple[SampleSource, int]], faults: FaultLog, total: int) -> Iterator[Sample]:
    for source, index in shard:
        try:
            yield source.get(index, None).validate()
        except (DataError, ShapeError) as error:  # noqa: PERF203 one bad file is no reason to stop
            faults.add([Fault(f"{id(source)}/{index}", str(error))], total)


@torch.no_grad()
def _rows(model: TaskModel, task: str, samples: Sequence[Sample], batch_size: int) -> Rows:
    ids: list[str] = []
    modality: list[str] = []
    vectors: list[np.ndarray] = []
    known = set(model.modalities)
    usable = [s for s in samples if known & set(s.modalities)]
    for start in range(0, len(usable), batch_size):
        part = usable[start : start + batch_size]
        for name, found in model.embed(collate(part).to(model.device), task).items():
            ids += [part[i].id for i in found.index.tolist()]
            modality += [name] * len(found.index)
            vectors.append(found.values.float().cpu().numpy())
    whole = np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    return Rows(np.array(ids, dtype=str), np.array(modality, dtype=str), whole)


def _open_parts(out: Path, job: dict[str, Any]) -> Path:
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    kept = read_json(folder / "job.json")
    if kept and kept != job:
        names = ", ".join(k for k in job if kept.get(k) != job[k])
        do = f"Remove {folder}, or name another file."
        raise ConfigError.at(
            "mmzoo embed", f"{folder} belongs to another job ({names} differ)", "the same job", do
        )
    write_json(folder / "job.json", job)
    return folder


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _save(path: Path, rows: Rows) -> None:
    """Write a shard whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(file, ids=rows.ids, modality=rows.modality, vectors=rows.vectors)
    partial.replace(path)


def _done(folder: Path) -> list[Rows]:
    """Return the shards that hold something, in order."""
    return [part for path in sorted(folder.glob("*.npz")) if len((part := _read(path)).ids)]


def _read(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as file:
        return Rows(file["ids"], file["modality"], file["vectors"])


def _write(out: Path, rows: Rows) -> None:
    if out.suffix == ".npz":
        _save(out, rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = rows.vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(rows.vectors, dtype=np.float32).reshape(-1))
    columns = {
        "id": pa.array(rows.ids.tolist(), pa.string()),
        "modality": pa.array(rows.modality.tolist(), pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
    }
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    pq.write_table(pa.table(columns), partial)
    partial.replace(out)


def _check_writable(out: Path) -> None:
    """Fail before the work rather than after it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        try:
            importlib.import_module("pyarrow")
        except ImportError as error:
            do = "Install it with `pip install 'mmzoo[export]'`, or write .npz."
            raise ConfigError.at(
                "mmzoo embed -o", "pyarrow is not installed", "the extra `export`", do
            ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise ConfigError.at(
            "--device", f"{name!r} ({line})", "auto, cpu or cuda", "Leave it out."
        ) from error


def _fingerprint(model: TaskModel) -> str:
    """Return a short mark of the weights, for checkpoints, which carry no hash."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
