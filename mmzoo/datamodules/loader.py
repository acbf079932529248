"""The loader: batches in an order fixed by (seed, epoch), whose place can be saved and found again.

Lightning saves and restores the state of any loader object that has `state_dict` and `load_state_dict`, and
calls `set_epoch` on what `loader.sampler` returns; both are the loader itself here. Batches are made in
worker processes by `torch.utils.data.DataLoader`, one whole batch a task.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils import data as torch_data

from mmzoo import schema
from mmzoo.batch import Batch, Sample
from mmzoo.datamodules.collate import collate
from mmzoo.datamodules.faults import Fault, FaultLog
from mmzoo.datamodules.order import Draws, Rank, eval_draws, generator_for, train_draws
from mmzoo.errors import ConfigError, DataError, ShapeError

ORDER, AUGMENT = 0, 1
"""First part of the random keys: the order of an epoch, and what happens to one sample."""
SPARE = 8
"""Samples tried in place of a batch unreadable as a whole, so that every rank keeps its number of batches."""


@runtime_checkable
class SampleSource(Protocol):
    """The samples of one split, by number. `get` may run in a worker process: keep open files per process.

    A source may also have `order(generator) -> Int[Tensor, "n"]`, the indices of one training epoch (default:
    a random permutation), or `order_at(epoch, generator)` where epochs differ in more than chance, and
    `name`, what the log calls it.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Load one sample; no generator means no augmentation. Raise DataError where it is unreadable."""
        ...


@dataclass(kw_only=True)
class LoaderConfig(schema.Config):
    """How batches are made; the same for every data set."""

    batch_size: int = 64
    """Samples in a training batch, per process."""
    eval_batch_size: int | None = None
    """Samples in a validation or test batch, per process; null = batch_size."""
    num_workers: int = 0
    """Worker processes that load samples; 0 = in the training process."""
    prefetch: int = 2
    """Batches each worker prepares ahead."""
    pin_memory: bool = True
    """Copy batches into page-locked memory where there is a CUDA device (no effect elsewhere)."""
    drop_last: bool = True
    """Leave out a training epoch's incomplete last batch (kept where it is the only one)."""
    max_bad_share: float = 0.05
    """Largest share of unreadable samples in an epoch, 0 to 1; past it the run fails."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0), ("prefetch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError.at(
                    f"loader.{name}", f"{value}", f"at least {least}", f"Set loader.{name}={least}."
                )
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ConfigError.at(
                "loader.max_bad_share", f"{self.max_bad_share:g}", "a share in 0..1", "Set e.g. 0.05."
            )


@dataclass(frozen=True)
class Loaded:
    """What a worker hands over: the batch (None where no sample of it was readable) and what was skipped."""

    batch: Batch | None
    faults: tuple[Fault, ...] = ()

    def pin_memory(self) -> Loaded:
        """Copy with the batch in page-locked memory (DataLoader calls this)."""
        return Loaded(self.batch.pin_memory() if self.batch is not None else None, self.faults)


@dataclass(frozen=True)
class Task:
    """One batch to load: (index, repeat) of each draw, and draws to fall back on if none is readable."""

    epoch: int
    draws: tuple[tuple[int, int], ...]
    spare: tuple[tuple[int, int], ...] = ()


@contextlib.contextmanager
def single_threaded() -> Generator[None]:
    """Keep torch to one thread: what one sample needs is too small to be worth waiting for the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BatchReader(torch_data.Dataset[Loaded]):
    """Loads whole batches; DataLoader runs it in the workers."""

    def __init__(self, source: SampleSource, seed: int, *, augment: bool) -> None:
        """Keep the source; `augment` gives each draw its own generator."""
        self.source, self.seed, self.augment = source, seed, augment

    def __getitem__(self, task: Task) -> Loaded:
        """Load the draws of a task, leaving out what is unreadable and what the batch already holds."""
        samples: dict[str, Sample] = {}
        faults: list[Fault] = []
        with single_threaded():
            for draw in task.draws:
                self._read(draw, task.epoch, samples, faults)
            for draw in task.spare:
                if samples:
                    break
                self._read(draw, task.epoch, samples, faults)
        return Loaded(join(samples, faults), tuple(faults))

    def _read(
        self, draw: tuple[int, int], epoch: int, samples: dict[str, Sample], faults: list[Fault]
    ) -> None:
        index, repeat = draw
        generator = generator_for(AUGMENT, self.seed, epoch, index, repeat) if self.augment else None
        try:
            sample = self.source.get(index, generator)
            if not sample.inputs:
                sample.validate()
        except (DataError, ShapeError) as error:
            faults.append(Fault(str(index), str(error)))
        else:
            samples.setdefault(sample.id, sample)


def join(samples: dict[str, Sample], faults: list[Fault]) -> Batch | None:
    """Collate samples by id; a batch that fails its check is collated again without the samples at fault."""
    if not samples:
        return None
    try:
        return collate(list(samples.values())).validate()
    except ShapeError:
        bad = {name: fault for name, sample in samples.items() if (fault := _fault_of(sample))}
        if not bad:
            raise  # each is sound by itself: they do not fit together, which is no damage
        faults.extend(bad.values())
        return join({name: s for name, s in samples.items() if name not in bad}, faults)


def _fault_of(sample: Sample) -> Fault | None:
    try:
        sample.validate()
    except ShapeError as error:
        return Fault(sample.id, str(error))
    return None


class Remaining(torch_data.Sampler[Task]):
    """The batches of an epoch still to come; its place is set before each iteration."""

    def __init__(self, batch_size: int) -> None:
        """Hold nothing yet."""
        self.batch_size, self.epoch, self.start = batch_size, 0, 0
        self.draws: Draws | None = None

    def __iter__(self) -> Iterator[Task]:
        """Yield a task for each batch from `start` on; the next few draws after a batch are its spare."""
        draws = self.draws
        if draws is None:
            return
        for first in range(self.start * self.batch_size, len(draws), self.batch_size):
            end = first + self.batch_size
            spare = (
                (torch.arange(end, end + SPARE) % len(draws)) if len(draws) > self.batch_size else slice(0)
            )
            batch = draws.take(slice(first, end)).pairs()
            yield Task(self.epoch, tuple(batch), tuple(draws.take(spare).pairs()))


class ResumableLoader:
    """Iterates over the batches of an epoch; each new iteration is the next epoch's, or that of `set_epoch`.

    Why: an interrupted run that resumes must see exactly the batches it has not seen, augmentation included,
    whatever the number of workers. The place is (epoch, batches yielded); everything random is keyed by
    (seed, epoch, index). Under torch.distributed each rank reads its share: see `order.train_draws`.
    """

    def __init__(self, source: SampleSource, config: LoaderConfig, *, train: bool, seed: int) -> None:
        """Read nothing yet; `train` turns shuffling and augmentation on."""
        self.source, self.config, self.train, self.seed = source, config, train, seed
        self.epoch, self.batches = 0, 0
        self.batch_size = config.batch_size if train else config.eval_batch_size or config.batch_size
        name = getattr(source, "name", "") or ("train" if train else "eval")
        self.faults = FaultLog(name, config.max_bad_share)
        self.batch_sampler = None
        self._remaining = Remaining(self.batch_size)
        self._reader: torch_data.DataLoader[Loaded] | None = None
        self._planned: tuple[int, Rank, Draws] | None = None
        self._started = self._resumed = self._epoch_set = False

    @property
    def sampler(self) -> ResumableLoader:
        """Return self: Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return -(-len(self._plan()) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that epoch's; a place restored within it is kept."""
        if epoch != self.epoch:
            self.epoch, self.batches, self._resumed = epoch, 0, False
        self._epoch_set = True

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that remain of the epoch; nothing happens before the first is asked for."""
        if not self._resumed:
            self.epoch += self._started and not self._epoch_set
            self.batches = 0
        self._started, self._resumed, self._epoch_set = True, False, False
        self.faults.start_epoch()
        total = self._begin()
        for loaded in self._open():
            self.faults.add(loaded.faults, total)
            self.batches += 1
            if self.batches == len(self):  # said here: Lightning never asks for more than the last batch
                self.faults.end_epoch(total)
            if loaded.batch is not None:
                yield loaded.batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data, and what it depends on."""
        return {"epoch": self.epoch, "batches": self.batches, **self._depends_on()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved place; raise DataError where data, seed or batch size are no longer the same."""
        for name, now in self._depends_on().items():
            if state[name] != now:
                do = (
                    f"Resume with the same data and loader options, or start anew ({name} was {state[name]})."
                )
                raise DataError.at(f"resume of {self.faults.split}", f"{name} {now}", f"{state[name]}", do)
        self.epoch, self.batches, self._resumed = state["epoch"], state["batches"], True

    def close(self) -> None:
        """Stop the workers."""
        self._reader = None

    def _depends_on(self) -> dict[str, int]:
        samples = self.batch_size * Rank.current().world
        return {"seed": self.seed, "samples": len(self.source), "global_batch_size": samples}

    def _begin(self) -> int:
        """Tell the reader where to go on; return how many samples this rank draws in the epoch."""
        draws = self._plan()
        self._remaining.draws, self._remaining.epoch, self._remaining.start = draws, self.epoch, self.batches
        return len(draws)

    def _plan(self) -> Draws:
        """Return this rank's draws of the current epoch, remembered until it changes."""
        rank = Rank.current()
        if self._planned is None or self._planned[:2] != (self.epoch, rank):
            self._planned = (self.epoch, rank, self._draw(rank))
        return self._planned[2]

    def _draw(self, rank: Rank) -> Draws:
        if not self.train:
            return eval_draws(len(self.source), rank)
        generator = generator_for(ORDER, self.seed, self.epoch)
        order_at, own_order = (getattr(self.source, n, None) for n in ("order_at", "order"))
        if order_at:
            order = order_at(self.epoch, generator)
            return train_draws(order, self.batch_size, rank, drop_last=self.config.drop_last)
        order = own_order(generator) if own_order else torch.randperm(len(self.source), generator=generator)
        return train_draws(order, self.batch_size, rank, drop_last=self.config.drop_last)

    def _open(self) -> torch_data.DataLoader[Loaded]:
        """Return the DataLoader, made once so that its workers live on between epochs."""
        if self._reader is None:
            reader = BatchReader(self.source, self.seed, augment=self.train)
            self._reader = open_reader(reader, self.config, self._remaining)
        return self._reader


def open_reader(
    reader: torch_data.Dataset[Loaded], config: LoaderConfig, sampler: Remaining | None = None
) -> torch_data.DataLoader[Loaded]:
    """Return the DataLoader that runs a reader of whole batches, in workers that live on between epochs."""
    workers = config.num_workers
    return torch_data.DataLoader(
        reader,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=config.prefetch if workers else None,
        persistent_workers=workers > 0,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
        collate_fn=_same,  # pyright: ignore[reportArgumentType] typed for lists
        generator=torch.Generator(),  # else DataLoader draws a seed from the global one each epoch
    )


def _same(loaded: Loaded) -> Loaded:
    return loaded
