"""Streams of shards through webdataset: the same order for the same (seed, epoch), and a place to go on from.

Each worker of each process reads a stream of its own: whole shards where there are enough for all, else
every n-th sample of all of them. Batches come from the streams in turn, so the batches yielded tell how
far each stream is.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils import data as torch_data

from mmzoo.batch import Sample
from mmzoo.datamodules.faults import Fault
from mmzoo.datamodules.loader import (
    AUGMENT,
    ORDER,
    Loaded,
    LoaderConfig,
    ResumableLoader,
    join,
    open_reader,
    single_threaded,
)
from mmzoo.datamodules.order import Rank, generator_for
from mmzoo.errors import DataError, ShapeError

Raw = Mapping[str, Any]
"""One sample as webdataset gives it: `__key__`, `__url__`, and extension -> bytes."""
Make = Callable[[Raw, torch.Generator | None], Sample]


@dataclass(frozen=True)
class Shards:
    """What to stream: the shards' addresses, which keys of them, and how many samples are shuffled
    together."""

    urls: tuple[str, ...]
    keep: Callable[[Raw], bool]
    buffer: int
    num_samples: int


@dataclass(frozen=True)
class Stream:
    """One of `total` streams that share the shards of an epoch."""

    index: int
    total: int


def raw_samples(shards: Shards, seed: int, epoch: int, stream: Stream, faults: list[Fault]) -> Iterator[Raw]:
    """Yield one stream's samples without end, undecoded: shards in a new order each time round, then
    shuffled."""
    from webdataset.filters import shuffle

    for around in count():
        key = (ORDER, seed, epoch, around)
        order = torch.randperm(len(shards.urls), generator=generator_for(*key)).tolist()
        by_shard = len(order) >= stream.total
        mine = order[stream.index :: stream.total] if by_shard else order
        found = filter(shards.keep, read_shards([shards.urls[i] for i in mine], faults))
        if not by_shard:
            found = islice(found, stream.index, None, stream.total)
        rng = random.Random(generator_for(*key, stream.index).initial_seed())
        empty = True
        for sample in shuffle(shards.buffer, initial=shards.buffer, rng=rng)(found):
            empty = False
            yield sample
        if empty:
            return


def read_shards(urls: Sequence[str], faults: list[Fault]) -> Iterator[Raw]:
    """Yield the samples of shards one after the other; a cut shard gives what it has and is a fault."""
    from webdataset import tariterators
    from webdataset.gopen import gopen

    reading = ""

    def note(error: Exception) -> bool:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        faults.append(Fault(reading, f"{reading}: {reason}"))
        return True

    def opened() -> Iterator[dict[str, Any]]:
        nonlocal reading
        for reading in urls:
            try:
                stream = gopen(reading)
            except (OSError, ValueError) as error:
                note(error)
                continue
            with stream:
                yield {"url": reading, "stream": stream}

    members = tariterators.tar_file_expander(opened(), handler=note)
    yield from tariterators.group_by_keys(members, handler=note)


class StreamReader(torch_data.IterableDataset[Loaded]):
    """Makes batches of a stream; DataLoader runs one in each worker. `place` is shared memory."""

    def __init__(self, shards: Shards, make: Make, batch_size: int, seed: int) -> None:
        """Keep what to read; `place` holds epoch, first batch, number of batches, rank and world."""
        self.shards, self.make, self.batch_size, self.seed = shards, make, batch_size, seed
        self.place = torch.zeros(5, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Loaded]:
        """Yield this worker's batches from the place on; those before it are read, not decoded."""
        epoch, start, batches, rank, world = self.place.tolist()
        info = torch_data.get_worker_info()
        workers = info.num_workers if info else 1
        # Batch j is of stream j % workers; DataLoader asks its workers from 0 on: a resumed epoch turns them.
        turn = ((info.id if info else 0) + start) % workers
        stream = Stream(rank * workers + turn, world * workers)
        faults: list[Fault] = []
        samples = raw_samples(self.shards, self.seed, epoch, stream, faults)
        done = len(range(turn, start, workers))
        drawn = done * self.batch_size
        for _ in islice(samples, drawn):
            pass
        faults.clear()
        for _ in range(len(range(turn, batches, workers)) - done):
            keys = ((AUGMENT, self.seed, epoch, stream.index, drawn + i) for i in range(self.batch_size))
            yield self._load(zip(islice(samples, self.batch_size), keys, strict=False), faults)
            drawn += self.batch_size
            faults.clear()

    def _load(self, drawn: Iterable[tuple[Raw, tuple[int, ...]]], faults: list[Fault]) -> Loaded:
        good: dict[str, Sample] = {}
        with single_threaded():
            for raw, key in drawn:
                made = self._make(raw, key)
                if isinstance(made, Fault):
                    faults.append(made)
                else:
                    good.setdefault(made.id, made)
        return Loaded(join(good, faults), tuple(faults))

    def _make(self, raw: Raw, key: tuple[int, ...]) -> Sample | Fault:
        try:
            sample = self.make(raw, generator_for(*key))
            return sample if sample.inputs else sample.validate()
        except (DataError, ShapeError) as error:
            return Fault(str(raw.get("__key__")), str(error))


class StreamLoader(ResumableLoader):
    """The training loader over streamed shards, with the same interface and the same promise as its base.

    Every rank gets as many batches; a stream that ends early goes round again. The number of workers is
    part of the order, so a run resumes with the same number.
    """

    def __init__(self, shards: Shards, make: Make, config: LoaderConfig, *, name: str, seed: int) -> None:
        """Read nothing yet."""
        super().__init__(Counted(shards.num_samples, name), config, train=True, seed=seed)
        self.shards = shards
        self._stream = StreamReader(shards, make, self.batch_size, seed)

    def __len__(self) -> int:
        """Return the number of batches of an epoch on each rank."""
        whole = self.batch_size * Rank.current().world
        batches = self.shards.num_samples / whole
        return max(int(batches) if self.config.drop_last else -int(-batches // 1), 1 if batches else 0)

    def _depends_on(self) -> dict[str, int]:
        shards = zlib.crc32("\n".join(self.shards.urls).encode())
        return {
            **super()._depends_on(),
            "world": Rank.current().world,
            "num_workers": self.config.num_workers,
            "shards": shards,
        }

    def _begin(self) -> int:
        rank = Rank.current()
        place = [self.epoch, self.batches, len(self), rank.index, rank.world]
        self._stream.place.copy_(torch.tensor(place))
        return len(self) * self.batch_size

    def _open(self) -> torch_data.DataLoader[Loaded]:
        if self._reader is None:
            self._reader = open_reader(self._stream, self.config)
        return self._reader


class Counted:
    """Stands for a stream where a source is asked for: it has a length and a name, and no samples by
    number."""

    def __init__(self, length: int, name: str) -> None:
        """Keep both."""
        self.length, self.name = length, name

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Refuse: a stream has no order to ask for."""
        del generator
        do = "Set data.read=index for local shards."
        raise DataError.at(self.name, f"sample {index} of a stream asked for", "iteration", do)


def expand(patterns: Sequence[str], folder: str) -> list[str]:
    """Return addresses: braces are expanded, patterns of local files matched; relative ones lie below
    `folder`."""
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for pattern in patterns:
        for url in expand_urls(pattern):
            if url.startswith("pipe:"):
                raise DataError.at(
                    "data", f"{url!r} runs a shell command", "files or addresses", "Fetch the shards first."
                )
            if "://" in url:
                found.append(url)
                continue
            base, below = (Path(url).anchor, url.lstrip("/")) if url.startswith("/") else (folder, url)
            wild = any(c in below for c in "*?[")
            found.extend(sorted(map(str, Path(base).glob(below))) if wild else [str(Path(base) / below)])
    return found
