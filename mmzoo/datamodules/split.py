"""Which samples train, select and report: shares drawn class by class or group by group, from a seed of
their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmzoo import schema
from mmzoo.errors import ConfigError, DataError, close_matches

SPLITS = ("train", "val", "test")
ALIASES = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
    "eval": "test",
}


@dataclass(kw_only=True)
class SplitConfig(schema.Config):
    """How to divide samples that come undivided. `val` selects, `test` is reported; neither is trained on."""

    val_share: float = 0.1
    """Share of the training samples carved out for selection, 0 to 1; not used where the data name their
    own."""
    test_share: float = 0.1
    """Share of all samples held out for the report, 0 to 1; not used where the data name their own."""
    by: str = ""
    """Name of what must not be on two sides of the line (a speaker, a trial); empty = samples one by one."""
    val_groups: list[str] = field(default_factory=list[str])
    """Groups of `by` that are the validation split; empty = draw them by val_share."""
    test_groups: list[str] = field(default_factory=list[str])
    """Groups of `by` that are the test split; empty = draw them by test_share."""
    seed: int = 0
    """Seed of the draw; apart from the run's seed, so that runs with other seeds are tested on the same
    samples."""

    def __post_init__(self) -> None:
        """Check the shares."""
        for name in ("val_share", "test_share"):
            share = getattr(self, name)
            if not 0.0 <= share < 1.0:
                raise ConfigError.at(
                    f"split.{name}", f"{share:g}", "a share of at least 0 and under 1", "Set 0.1."
                )
        if (self.val_groups or self.test_groups) and not self.by:
            raise ConfigError.at(
                "split.by", "empty", "the name of the groups", "Set split.by, or give no groups."
            )


def split_name(word: str, where: str) -> str:
    """Return train, val or test for a word that means one of them."""
    name = ALIASES.get(word.strip().lower(), word.strip().lower())
    if name not in SPLITS:
        raise DataError.at(
            where, f"split {word!r}", f"one of {', '.join(SPLITS)}", close_matches(name, SPLITS)
        )
    return name


def divide(
    strata: Sequence[str], groups: Sequence[str] | None, config: SplitConfig, *, parts: Sequence[str] = SPLITS
) -> dict[str, list[int]]:
    """Return the positions of each split in ascending order; `parts` are the splits wanted (train among
    them).

    With `groups`, whole groups go to one side: those named, else drawn until the share is reached.
    Without, each stratum (a class) gives the same share, rounded, and keeps at least one sample to train on.
    """
    rng = np.random.default_rng(config.seed)
    rest = list(range(len(strata)))
    taken: dict[str, list[int]] = {}
    total = len(rest)
    for part, share, named in (
        ("test", config.test_share, config.test_groups),
        ("val", config.val_share, config.val_groups),
    ):
        if part not in parts:
            continue
        size = share * (total if part == "test" else len(rest))
        if groups is not None:
            chosen = _named(groups, named, config.by) if named else _draw_groups(groups, rest, size, rng)
            part_of = {i for i in rest if groups[i] in chosen}
        else:
            part_of = _draw_samples(strata, rest, share, rng)
        taken[part] = sorted(part_of)
        rest = [i for i in rest if i not in part_of]
    return {"train": rest, **taken}


def _draw_samples(strata: Sequence[str], rest: list[int], share: float, rng: np.random.Generator) -> set[int]:
    of_stratum: dict[str, list[int]] = {}
    for i in rest:
        of_stratum.setdefault(strata[i], []).append(i)
    chosen: set[int] = set()
    for name in sorted(of_stratum):
        members = of_stratum[name]
        count = min(round(share * len(members)), len(members) - 1)
        chosen.update(members[j] for j in rng.permutation(len(members))[:count])
    return chosen


def _draw_groups(groups: Sequence[str], rest: list[int], size: float, rng: np.random.Generator) -> set[str]:
    counts: dict[str, int] = {}
    for i in rest:
        counts[groups[i]] = counts.get(groups[i], 0) + 1
    names = sorted(counts)
    chosen: set[str] = set()
    reached = 0
    for j in rng.permutation(len(names)):
        if reached >= size or len(chosen) >= len(names) - 1:
            break
        chosen.add(names[j])
        reached += counts[names[j]]
    return chosen


def _named(groups: Sequence[str], wanted: Sequence[str], by: str) -> set[str]:
    known = set(groups)
    for name in wanted:
        if name not in known:
            raise ConfigError.at(
                "split", f"no {by} {name!r}", f"a {by} of the data", close_matches(name, known)
            )
    return set(wanted)
