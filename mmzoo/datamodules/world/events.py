"""The latent event, and which events belong to which split.

Splits are by combination of attributes: no combination of val or test ever occurs in train, every single
value does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from mmzoo import schema
from mmzoo.errors import ConfigError

ACTIONS = (
    "stand", "wave", "clap", "kick", "squat", "walk", "handshake", "push",
    "hug", "high five", "kick partner", "point", "approach", "depart", "punch", "hand over",
)  # fmt: skip
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
TEMPOS = ("slow", "steady", "fast")
SIDES = ("left", "right")
SETTINGS = ("beach", "street", "forest", "stage")
ATTRIBUTES = {"action": ACTIONS, "colour": COLOURS, "tempo": TEMPOS, "side": SIDES, "setting": SETTINGS}
"""Target name -> the names of its values, in index order."""

NUM_SOLO = 6
"""The first six actions have one person, the others two."""
SPLITS = ("train", "val", "test")
CLIP_S = 1.28
"""Length of an event in seconds: 32 frames at 25 Hz, 10,240 samples at 8 kHz."""

SENSES = ("image", "audio", "text", "fmri", "skeleton")
_CALIBRATION = len(SPLITS)
_STREAMS = ("motion", *SENSES, "missing", "combination")


@dataclass(kw_only=True)
class WorldConfig(schema.Config):
    """What the simulated world is made of; every field is part of the cache's key."""

    num_events: int = 4096
    """Events in all splits together; train has what val and test leave."""
    num_val: int = 256
    """Events of the validation split, each of another combination of attributes."""
    num_test: int = 256
    """Events of the test split, each of another combination of attributes."""
    world_seed: int = 0
    """Seed of the world; the seed of a training run does not change the data."""
    image_size: int = 64
    """Height and width of the images in pixels."""
    sample_rate_hz: int = 8000
    """Audio samples a second."""
    num_repeats: int = 3
    """How often each subject sees each image; the scans of the repeats differ in noise."""
    ncsnr: float = 1.0
    """Median over voxels of signal sd / noise sd in one scan; visual voxels of NSD lie near 0.45."""

    def __post_init__(self) -> None:
        """Refuse sizes that leave a split empty or repeat a held-out combination."""
        held, known = self.num_val + self.num_test, len(combinations())
        faults: list[str] = []
        if min(self.num_val, self.num_test) < 1 or held > known // 2:
            found = f"num_val {self.num_val} and num_test {self.num_test}"
            faults.append(
                _fault("num_test", found, f"at least 1 each, at most {known // 2} together", "Hold out less")
            )
        elif self.num_events <= held:
            faults.append(
                _fault("num_events", str(self.num_events), f"more than the {held} held out", "Raise it")
            )
        if self.image_size < 16:
            faults.append(_fault("image_size", str(self.image_size), "at least 16 pixels", "Raise it"))
        if self.sample_rate_hz < 4000:
            faults.append(_fault("sample_rate_hz", str(self.sample_rate_hz), "at least 4000 Hz", "Raise it"))
        if self.num_repeats < 1:
            faults.append(_fault("num_repeats", str(self.num_repeats), "at least 1", "Raise it"))
        if self.ncsnr <= 0:
            faults.append(_fault("ncsnr", str(self.ncsnr), "a number above 0", "Raise it"))
        if faults:
            raise ConfigError("\n".join(faults))

    def count(self, split: str) -> int:
        """Return the number of events of a split."""
        held = {"val": self.num_val, "test": self.num_test}
        return held.get(split, self.num_events - self.num_val - self.num_test)


@dataclass(frozen=True)
class Event:
    """Who does what: five attributes (indices into `ATTRIBUTES`), and where its random numbers come from.

    The last five are nuisance that all senses share, since they see one motion: tempo factor, phase (cycles),
    amplitude factor, extra distance between two persons (m), the partner's scale.
    """

    seed: int
    split: int
    index: int
    action: int
    colour: int
    tempo: int
    side: int
    setting: int
    rate: float = 1.0
    phase: float = 0.0
    amplitude: float = 1.0
    distance: float = 0.0
    partner_scale: float = 1.0

    @property
    def id(self) -> str:
        """Return the sample id."""
        return f"{SPLITS[self.split]}-{self.index:05d}"

    @property
    def is_pair(self) -> bool:
        """Tell whether two persons take part."""
        return self.action >= NUM_SOLO

    def name(self, attribute: str) -> str:
        """Return the value of an attribute in words."""
        return ATTRIBUTES[attribute][getattr(self, attribute)]

    def rng(self, stream: str, variant: int = 0) -> np.random.Generator:
        """Return the generator of one sense's noise; the same for the same event, whatever else is
        generated."""
        return keyed(self.seed, _STREAMS.index(stream), self.split, self.index, variant)


def keyed(*key: int) -> np.random.Generator:
    """Return a generator that depends on the numbers of `key` and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def combinations() -> list[tuple[int, ...]]:
    """Return all combinations of attribute values, in lexicographic order."""
    return list(itertools.product(*(range(len(names)) for names in ATTRIBUTES.values())))


def split_combinations(config: WorldConfig) -> dict[str, list[tuple[int, ...]]]:
    """Deal the combinations to the splits: disjoint, and each balanced over action and setting.

    Within each (action, setting) the combinations are shuffled; taking the first of each, then the second
    of each, … gives an order whose every stretch is balanced; test takes its head, then val, and train
    the rest.
    """
    rng = keyed(config.world_seed, _STREAMS.index("combination"))
    everything = combinations()
    strata: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for at in rng.permutation(len(everything)):
        combination = everything[at]
        strata.setdefault((combination[0], combination[-1]), []).append(combination)
    order = [c for layer in zip(*strata.values(), strict=True) for c in layer]
    held = config.num_test + config.num_val
    return {"test": order[: config.num_test], "val": order[config.num_test : held], "train": order[held:]}


def make_events(config: WorldConfig, split: str) -> list[Event]:
    """Return the events of a split; train goes round its combinations as often as it needs."""
    dealt = split_combinations(config)[split]
    return [
        _event(config.world_seed, SPLITS.index(split), i, dealt[i % len(dealt)])
        for i in range(config.count(split))
    ]


def calibration_events(config: WorldConfig) -> list[Event]:
    """Return events of no split, on which the voxels' responses are standardised: 128, fewer in tiny
    worlds."""
    dealt, number = split_combinations(config)["train"], min(128, config.num_events)
    return [_event(config.world_seed, _CALIBRATION, i, dealt[(7 * i) % len(dealt)]) for i in range(number)]


def _event(seed: int, split: int, index: int, combination: tuple[int, ...]) -> Event:
    event = Event(seed, split, index, *combination)
    rng = event.rng("motion")
    return Event(
        seed,
        split,
        index,
        *combination,
        rate=float(rng.uniform(0.94, 1.06)),
        phase=float(rng.uniform(-0.12, 0.12)),
        amplitude=float(rng.uniform(0.85, 1.15)),
        distance=float(rng.uniform(-0.04, 0.08)),
        partner_scale=float(rng.normal(1.0, 0.05)),
    )


def _fault(field: str, found: str, expected: str, do: str) -> str:
    return str(ConfigError.at(field, found, expected, f"{do}."))
