"""Local shards by index: member headers are read once, then any sample of any shard in any order."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmzoo.batch import Sample
from mmzoo.datamodules.captions import CaptionsConfig, EvaluateOn, evaluated
from mmzoo.datamodules.files import require
from mmzoo.datamodules.records import Record, Vocabulary, build_sample
from mmzoo.datamodules.shard_format import Fields, split_member
from mmzoo.datamodules.shard_stream import Raw
from mmzoo.datamodules.tar import IndexedTar
from mmzoo.errors import DataError
from mmzoo.modalities.base import Preprocess


class ShardFiles:
    """The members of several shards, named `shard.tar/key.ext`."""

    def __init__(self, paths: Sequence[Path], get: str = "") -> None:
        """Open nothing yet; a missing shard is one clear line with `get`, how to come by it."""
        self.tars = {path.name: IndexedTar(require(path, get)) for path in paths}
        self.root = paths[0].parent

    def names(self) -> list[str]:
        """List the members, shard by shard."""
        return [f"{shard}/{member}" for shard, tar in self.tars.items() for member in tar.members]

    def read(self, name: str) -> bytes:
        """Read a member."""
        shard, _, member = name.partition("/")
        return self.tars[shard].read(member)


class ShardRecords:
    """Samples by number: the members that share a key, with labels read from the shard when asked for."""

    def __init__(self, files: ShardFiles, samples: Sequence[Mapping[str, str]], fields: Fields) -> None:
        """Hold, for each sample, extension -> member name."""
        self.files, self.samples, self.fields = files, samples, fields

    @classmethod
    def scan(cls, files: ShardFiles, fields: Fields) -> ShardRecords:
        """Group members by shard and key."""
        by_key: dict[str, dict[str, str]] = {}
        for name in files.names():
            if parts := split_member(name.partition("/")[2]):
                by_key.setdefault(f"{name.partition('/')[0]}/{parts[0]}", {})[parts[1]] = name
        return cls(files, list(by_key.values()), fields)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Record:
        """Return one record; raise DataError where its labels are damaged."""
        members = self.samples[index]
        return self.fields.record(self.name(index), members, self.files.read)

    def __iter__(self) -> Iterator[Record]:
        """Go through the records whose labels can be read."""
        return (record for index in range(len(self)) if (record := self._try(index)))

    def name(self, index: int) -> str:
        """Return the name of a sample: its shard without `.tar`, and its key."""
        shard, _, member = next(iter(self.samples[index].values())).partition("/")
        parts = split_member(member)
        return sample_name(shard, parts[0] if parts else member)

    def where(self, keep: Callable[[str], bool]) -> ShardRecords:
        """Return the samples with certain names."""
        kept = [members for i, members in enumerate(self.samples) if keep(self.name(i))]
        return ShardRecords(self.files, kept, self.fields)

    def firsts(self) -> Iterator[Record]:
        """Go through the first sample of each shard that has a json, where it can be read."""
        seen: set[str] = set()
        for index, members in enumerate(self.samples):
            shard = members.get("json", "").partition("/")[0]
            if shard and shard not in seen:
                seen.add(shard)
                if record := self._try(index):
                    yield record

    def modalities(self) -> list[str]:
        """Name the modalities that the members of any sample are of."""
        endings = dict.fromkeys(ending for members in self.samples for ending in members)
        return list(dict.fromkeys(m for ending in endings if (m := self.fields.modality(ending))))

    def _try(self, index: int) -> Record | None:
        try:
            return self[index]
        except DataError:
            return None


class Evaluated:
    """The records of shards as evaluation reads them: several captions side by side, or the first of them."""

    def __init__(self, records: ShardRecords, captions: EvaluateOn) -> None:
        """Read nothing yet."""
        self.records, self.config = records, CaptionsConfig(evaluate=captions)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        """Return one record; raise DataError where its labels are damaged."""
        return evaluated([self.records[index]], self.config)[0]

    def __iter__(self) -> Iterator[Record]:
        """Go through the records whose labels can be read."""
        return iter(evaluated(list(self.records), self.config))


@dataclass(frozen=True)
class Carve:
    """Which samples of the training shards belong to a split: decided by a hash of each name."""

    split: str
    val_share: float
    test_share: float

    def __call__(self, name: str) -> bool:
        """Say whether a sample is of the split."""
        place = zlib.crc32(name.encode()) / 2**32
        if place < self.test_share:
            return self.split == "test"
        return self.split == ("val" if place < self.test_share + self.val_share else "train")

    def raw(self, raw: Raw) -> bool:
        """Say it of a streamed sample."""
        return self(name_of(raw))


@dataclass(frozen=True)
class RawReader:
    """Makes a Sample of what the stream gives."""

    fields: Fields
    preprocesses: Mapping[str, Preprocess]
    vocabulary: Vocabulary

    def __call__(self, raw: Raw, generator: torch.Generator | None) -> Sample:
        """Read one sample, the same as by index."""
        shard = Path(str(raw["__url__"])).name
        content = {f"{shard}/{raw['__key__']}.{k}": v for k, v in raw.items() if not k.startswith("__")}
        members = {k: f"{shard}/{raw['__key__']}.{k}" for k in raw if not k.startswith("__")}
        record = self.fields.record(name_of(raw), members, content.__getitem__)

        def decode(preprocess: Preprocess, name: str) -> object:
            return preprocess.decode(content[name], name)

        return build_sample(record, decode, self.preprocesses, self.vocabulary, generator)


def name_of(raw: Raw) -> str:
    """Return the name of a streamed sample, the same as by index."""
    return sample_name(Path(str(raw["__url__"])).name, str(raw["__key__"]))


def sample_name(shard: str, key: str) -> str:
    """Return what a sample is called."""
    return f"{shard.removesuffix('.tar')}/{key}"
