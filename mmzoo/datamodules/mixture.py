"""Several data sets as one: how often each is drawn, whose labels are whose, and where each sample comes
from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import IGNORE, DataInfo, DenseKind, Moments, NumericKind, Sample, SceneKind
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.loader import SampleSource
from mmzoo.datamodules.order import Rank
from mmzoo.datamodules.split import SPLITS
from mmzoo.errors import ConfigError, close_matches
from mmzoo.modalities.base import Preprocess


class Sampling(str, Enum):
    """How often each set is drawn in training, before weights.

    proportional: by its number of samples n; uniform: all sets equally; temperature: by n^(1/T); square_root:
    by n^(1/2); annealed: by n^a, a falling from 1 to 0.2 over `anneal_epochs` (Stickland & Murray 2019);
    round_robin: one sample (or batch) of each set in turn, w of a set of weight w.
    """

    PROPORTIONAL = "proportional"
    UNIFORM = "uniform"
    TEMPERATURE = "temperature"
    SQUARE_ROOT = "square_root"
    ANNEALED = "annealed"
    ROUND_ROBIN = "round_robin"


class Batches(str, Enum):
    """What a batch holds: samples of all sets, or of one, the same on all ranks."""

    MIXED = "mixed"
    ONE_SET = "one_set"


LabelKind = DenseKind | NumericKind | SceneKind
"""What a label is that is no class."""
ANNEALED_TO = 0.2
"""Power of a set's size where annealing ends."""
GOLDEN = (5**0.5 - 1) / 2
"""Its multiples modulo 1 fill the unit interval evenly from the first few on."""


class Targets(str, Enum):
    """What labels are called: `set/target` each by itself, or by one name with the class names of all
    sets."""

    NAMESPACED = "namespaced"
    SHARED = "shared"


class Mixture(DataModule):
    """Draws samples of several data sets into the same batches; `Batch.source` says which is whose.

    Why: one model for several sets, each of which has some of the modalities. A batch holds nearly the
    same share of each set all through an epoch, or with `batches=one_set` one set only: the k-th batches of
    all ranks come from the same set. Validation and test go through every set, one after the other.
    """

    @dataclass(kw_only=True)
    class Config(DataModule.Config):
        """Options. The sets' own `loader` is not used; this one's is."""

        sets: dict[str, Any] = schema.many("datamodules")
        """Name -> data set; the name stands before ids (`name/id`) and, if namespaced, labels."""
        sampling: Sampling = Sampling.PROPORTIONAL
        """How often each set is drawn."""
        temperature: float = 2.0
        """T of temperature sampling: 1 = proportional, towards uniform as it grows."""
        anneal_epochs: int = 10
        """Epochs over which annealed sampling goes from proportional towards uniform."""
        batches: Batches = Batches.MIXED
        """What a training batch holds: mixed, or one_set."""
        weights: dict[str, float] = field(default_factory=dict[str, float])
        """Set -> factor on how often it is drawn; sets not named have 1."""
        epoch_samples: int | None = None
        """Samples in a training epoch; null = as many as the sets have together."""
        targets: Targets = Targets.NAMESPACED
        """What labels are called."""

        def __post_init__(self) -> None:
            """Check the sets and the numbers."""
            if not self.sets:
                raise ConfigError.at(
                    "sets", "none", "at least one data set", "Write sets: {name: {type: …}}."
                )
            for name, weight in self.weights.items():
                if name not in self.sets:
                    raise ConfigError.at("weights", f"{name!r}", "a set", close_matches(name, self.sets))
                if weight < 0:
                    raise ConfigError.at(
                        f"weights.{name}", f"{weight:g}", "0 or more", "Set 0 to leave it out."
                    )
            if self.anneal_epochs < 1:
                raise ConfigError.at("anneal_epochs", str(self.anneal_epochs), "at least 1", "Set 10.")
            if self.temperature <= 0 or (self.epoch_samples is not None and self.epoch_samples < 1):
                found = f"temperature {self.temperature:g}, epoch_samples {self.epoch_samples}"
                raise ConfigError.at(
                    "mixture", found, "numbers above 0", "Set temperature=2 epoch_samples=null."
                )

    def __init__(self, config: Any, preprocesses: Mapping[str, Preprocess], *, seed: int = 0) -> None:
        """Build the sets; read nothing yet."""
        super().__init__(config, preprocesses, seed=seed)
        self.sets: dict[str, DataModule] = {
            n: c.build(preprocesses, seed=seed) for n, c in config.sets.items()
        }
        self._infos: dict[str, DataInfo] | None = None

    def infos(self) -> dict[str, DataInfo]:
        """Ask each set."""
        if self._infos is None:
            self._infos = {name: data.info() for name, data in self.sets.items()}
        return self._infos

    def info(self) -> DataInfo:
        """Merge what the sets say of themselves."""
        infos = self.infos()
        subjects: dict[str, int] = {}
        for name, info in infos.items():
            for subject, voxels in info.subjects.items():
                if subjects.setdefault(subject, voxels) != voxels:
                    found = f"subject {subject!r} with {voxels} voxels in {name}"
                    do = "Rename the subject in one of the sets."
                    raise ConfigError.at("data.sets", found, f"{subjects[subject]} as in another set", do)
        modalities = dict.fromkeys(m for info in infos.values() for m in info.modalities)
        counts = {split: sum(info.counts.get(split, 0) for info in infos.values()) for split in SPLITS}
        kinds = self._kinds()
        several: dict[str, int] = {}
        for m, count in ((m, n) for info in infos.values() for m, n in info.several.items()):
            several[m] = max(several.get(m, 0), count)
        return DataInfo(
            labels=self._labels(),
            subjects=subjects,
            modalities=tuple(modalities),
            counts=counts,
            dense={t: k for t, k in kinds.items() if isinstance(k, DenseKind)},
            numeric={t: k for t, k in kinds.items() if isinstance(k, NumericKind)},
            several=several,
            scene={t: k for t, k in kinds.items() if isinstance(k, SceneKind)},
            moments=self._moments(),
            class_counts=self._class_counts(),
        )

    def _moments(self) -> dict[str, Moments]:
        """Join mean and spread of labels of numbers; how often sets are drawn changes nothing."""
        merged: dict[str, Moments] = {}
        for name, info in self.infos().items():
            for target, own in info.moments.items():
                key = self._name(name, target)
                merged[key] = merged[key].merge(own) if key in merged else own
        return merged

    def _class_counts(self) -> dict[str, dict[str, float]]:
        """Add up how often classes stand in labels, where every set that has a label knows."""
        merged: dict[str, dict[str, float]] = {}
        for name, info in self.infos().items():
            for target, own in info.class_counts.items():
                counts = merged.setdefault(self._name(name, target), {})
                for word, count in own.items():
                    counts[word] = counts.get(word, 0.0) + count
        for name, info in self.infos().items():
            for target in info.labels.keys() - info.class_counts.keys():
                merged.pop(self._name(name, target), None)
        return merged

    def _kinds(self) -> dict[str, LabelKind | None]:
        """Say of each label what it is, None where it is classes; sets that give one name to two kinds, or to
        different numbers or scenes of different classes, do not mix.

        Why not scenes: a class that one set does not know would count as absent from its ground and boxes.
        """
        merged: dict[str, tuple[LabelKind | None, tuple[str, ...]]] = {}
        for name, info in self.infos().items():
            for target, names in info.labels.items():
                kind = info.dense.get(target) or info.numeric.get(target) or info.scene.get(target)
                fixed = target in info.numeric or target in info.scene
                key, own = self._name(name, target), names if fixed else ()
                if merged.setdefault(key, (kind, own)) != (kind, own):
                    found = f"label {key!r} is {_shown(kind, own)} in {name}"
                    do = "Set data.targets=namespaced."
                    raise ConfigError.at("data.sets", found, f"{_shown(*merged[key])} as in another set", do)
        return {key: kind for key, (kind, _) in merged.items()}

    def source(self, split: str) -> Mixed:
        """Return the samples of a split of all sets."""
        return self._mixed(split, lambda data: data.source(split))

    def reference(self) -> Mixed:
        """Return the training samples of all sets as evaluation sees them."""
        return self._mixed("train", lambda data: data.reference())

    def _mixed(self, split: str, source: Callable[[DataModule], SampleSource]) -> Mixed:
        held = [name for name in self.sets if self.infos()[name].counts.get(split)]
        parts = {name: self._part(name, source(self.sets[name])) for name in held}
        return Mixed(parts, self.config, name=f"mixture/{split}")

    def _part(self, name: str, source: SampleSource) -> Part:
        labels, merged = self.infos()[name].labels, self._labels()
        names = {target: self._name(name, target) for target in labels}
        index = {
            target: torch.tensor([merged[names[target]].index(c) for c in classes], dtype=torch.int64)
            for target, classes in labels.items()
        }
        sizes = {t: len(merged[n]) for t, n in names.items()}
        info = self.infos()[name]
        return Part(name, source, names, index, sizes, {**info.dense, **info.numeric, **info.scene})

    def _labels(self) -> dict[str, tuple[str, ...]]:
        merged: dict[str, tuple[str, ...]] = {}
        for name, info in self.infos().items():
            for target, classes in info.labels.items():
                key = self._name(name, target)
                merged[key] = tuple(dict.fromkeys((*merged.get(key, ()), *classes)))
        return merged

    def _name(self, set_name: str, target: str) -> str:
        return f"{set_name}/{target}" if self.config.targets is Targets.NAMESPACED else target

    @classmethod
    def fake(cls, folder: Path) -> Config:
        """Write a folder of pictures and a manifest."""
        from mmzoo.datamodules.folder import Folder
        from mmzoo.datamodules.manifest import Manifest

        sets = {"pictures": Folder.fake(folder / "a"), "rows": Manifest.fake(folder / "b")}
        return cls.Config(sets=sets, sampling=Sampling.UNIFORM)


@dataclass(frozen=True)
class Part:
    """One set's share of a split: its samples, and what its labels are called and numbered in the mixture."""

    name: str
    source: SampleSource
    names: Mapping[str, str]
    index: Mapping[str, Int[Tensor, " classes"]]
    sizes: Mapping[str, int]
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Load a sample, named and labelled as in the mixture."""
        sample = self.source.get(index, generator)
        targets = {self.names[t]: self._renumber(t, v) for t, v in sample.targets.items()}
        lists = {self.names[t]: value for t, value in sample.lists.items()}
        name = f"{self.name}/{sample.id}"
        return dataclasses.replace(sample, id=name, targets=targets, lists=lists, source=self.name)

    def _renumber(self, target: str, label: Shaped[Tensor, ...]) -> Shaped[Tensor, ...]:
        index = self.index[target]
        if target in self.kinds:
            if self.kinds[target] is not DenseKind.CLASSES:
                return label
            missing = label == IGNORE
            return index[label.masked_fill(missing, 0)].masked_fill(missing, IGNORE)
        if label.ndim == 0:
            return index[label]
        return label.new_zeros(self.sizes[target]).index_copy_(0, index, label)


class Mixed:
    """The sets' samples one after the other, with a training order that draws from all of them."""

    def __init__(self, parts: Mapping[str, Part], config: Mixture.Config, *, name: str) -> None:
        """Number the samples through."""
        self.parts, self.config, self.name = list(parts.values()), config, name
        self.sizes = [len(part.source) for part in self.parts]
        self.ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        """Return the number of samples of all sets."""
        return sum(self.sizes)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        """Load one sample."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[at].get(index - int(self.ends[at]) + self.sizes[at], generator)

    def counts(self, epoch: int = 0, unit: int = 1, offset: float | None = None) -> list[int]:
        """Return how many samples of each set an epoch draws, in whole units where asked.

        Why: shares of a unit add up over epochs, so that a set too small for a unit an epoch has its turn.
        Math: set i has as many units as points u, u + 1, u + 2, … lie in [c_{i-1}, c_i), c the running sum of
        total * p, u = 1/2 + epoch * golden ratio modulo 1 unless given (so the first epoch rounds c to the
        nearest); less than one unit in all makes one unit.
        Ref: systematic sampling, Madow & Madow 1944.
        """
        ends = np.cumsum(self._exact(epoch, unit))
        first = (0.5 + epoch * GOLDEN) % 1.0 if offset is None else offset
        marks = np.ceil(np.round(ends, 6) - first)
        return (np.diff(marks, prepend=0.0).astype(int) * unit).tolist()

    def _exact(self, epoch: int, unit: int) -> Float[np.ndarray, " sets"]:
        """Return each set's share of an epoch, in units."""
        total = max(1, (self.config.epoch_samples or len(self)) // unit)
        power = self._power(epoch)
        weights = [self.config.weights.get(part.name, 1.0) for part in self.parts]
        wanted = np.array([w * float(n) ** power for w, n in zip(weights, self.sizes, strict=True)])
        if not wanted.sum():
            raise ConfigError.at("weights", "all sets have 0", "one above 0", "Give a set a weight.")
        return total * wanted / wanted.sum()

    def order(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Return an order with the first epoch's shares (for a mixture within another, which goes through it
        more or less than once an epoch)."""
        return self._order(0, float(torch.rand((), generator=generator)), generator)

    def order_at(self, epoch: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Return one epoch: each set's samples shuffled round after round, spread evenly over the epoch.

        Where a batch holds one set, what is spread are blocks of as many samples as all ranks' batches hold
        together (`order.train_draws` then gives every rank its share of each block).
        """
        return self._order(epoch, None, generator)

    def _order(self, epoch: int, offset: float | None, generator: torch.Generator) -> Int[Tensor, " n"]:
        whole = self.config.batches is Batches.ONE_SET
        unit = self.config.loader.batch_size * Rank.current().world if whole else 1
        in_turn = self.config.sampling is Sampling.ROUND_ROBIN
        shares = self._exact(epoch, unit)
        indices: list[Tensor] = []
        times: list[Tensor] = []
        for at, samples in enumerate(self.counts(epoch, unit, offset)):
            start, count = int(self.ends[at]) - self.sizes[at], samples // unit
            indices.append((start + rounds(self.parts[at].source, samples, generator)).reshape(count, unit))
            place = torch.arange(count, dtype=torch.float64)
            if in_turn:  # shares rather than counts, whose rounding would put equal sets out of step
                times.append((place + at / len(self.parts)) / max(1.0, float(shares[at])))
            else:
                times.append((place + torch.rand(count, generator=generator, dtype=torch.float64)) / count)
        order = torch.cat(indices)[torch.cat(times).argsort(stable=True)].flatten()
        return shuffled(order, Rank.current().world, generator) if in_turn and not whole else order

    def _power(self, epoch: int) -> float:
        """Return the power of a set's size that its draws are proportional to."""
        done = min(1.0, epoch / max(1, self.config.anneal_epochs - 1))
        powers = {
            Sampling.PROPORTIONAL: 1.0,
            Sampling.TEMPERATURE: 1.0 / self.config.temperature,
            Sampling.SQUARE_ROOT: 0.5,
            Sampling.ANNEALED: 1.0 - (1.0 - ANNEALED_TO) * done,
        }
        return powers.get(self.config.sampling, 0.0)


def rounds(source: SampleSource, count: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return `count` indices of a set: shuffled anew (or in its own order) each time it has been gone
    through."""
    own_order = getattr(source, "order", None)
    drawn: list[Tensor] = []
    while sum(map(len, drawn)) < count:
        drawn.append(own_order(generator) if own_order else torch.randperm(len(source), generator=generator))
    # numbers beyond a set's length (further draws of balanced skeletons) mean the sample itself
    return torch.cat([*drawn, torch.zeros(0, dtype=torch.int64)])[:count] % max(len(source), 1)


def shuffled(order: Int[Tensor, " n"], size: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return an order shuffled within each group of `size`.

    Why: ranks take samples in turn, so that where sets take turns too a rank would see the same sets always.
    """
    if size == 1:
        return order
    group = torch.arange(len(order), dtype=torch.float64) // size
    chance = torch.rand(len(order), generator=generator, dtype=torch.float64)
    return order[(group + chance).argsort(stable=True)]


def _shown(kind: LabelKind | None, names: tuple[str, ...]) -> str:
    """Return what a label is, in words."""
    return "classes" if kind is None else f"{kind.value} ({', '.join(names)})" if names else kind.value
