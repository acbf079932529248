"""Dividing motion windows so that no frame is on two sides: by recording if there are several, else by time.

Windows cut from one recording overlap and resemble each other; drawn at random, a test window would have its
neighbours in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np

from mmzoo.datamodules.records import natural_key
from mmzoo.datamodules.split import SplitConfig
from mmzoo.errors import ConfigError, DataError, close_matches


class Within(str, Enum):
    """What is held out of an action that has one recording: a stretch of it, or windows drawn one by one."""

    STRETCH = "stretch"
    WINDOWS = "windows"


def divide_windows(
    labels: Sequence[str],
    trials: Sequence[str],
    config: SplitConfig,
    gap: int,
    within: Within = Within.STRETCH,
) -> dict[str, list[int]]:
    """Return the window numbers of train, val and test; windows of a trial come in order of time.

    A class with several trials gives whole trials: those that the config names, else the largest that still
    fits the share, then the next (of equals the one that `config.seed` draws), the smallest where none fits;
    one always stays in training. A class with one trial left gives a stretch at one end of it (which end,
    the seed draws), and `gap` windows beside the stretch are used by nobody. Why: frames are never shared,
    but stretches of one recording remain more alike than two recordings would be. With `within` windows,
    those of a class's only recording are drawn one by one instead: they share frames with their neighbours
    in training, so that accuracy on them flatters.
    """
    for name in (*config.test_groups, *config.val_groups):
        if name not in trials:
            raise ConfigError.at(
                "split", f"no trial {name!r}", "a trial of the data", close_matches(name, trials)
            )
    rng = np.random.default_rng(config.seed)
    found: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in sorted(set(labels), key=natural_key):
        own = [i for i, name in enumerate(labels) if name == label]
        alone = within is Within.WINDOWS and len({trials[i] for i in own}) == 1
        groups = list(trials)
        if alone:  # each window counts as a recording
            for place, i in enumerate(own):
                groups[i] = f"{trials[i]}w{place:03d}"
        windows = _Windows(own, groups, rng)
        found["test"] += windows.hold_out(config.test_share, config.test_groups, gap)
        found["val"] += windows.hold_out(config.val_share, config.val_groups, gap)
        if not windows.rest:
            do = "Leave the class out (min_per_class), or lower the shares or the gap."
            raise DataError.at(f"class {label!r}", "no window left to train on", "more windows", do)
        found["train"] += windows.rest
    return {part: sorted(numbers) for part, numbers in found.items()}


class _Windows:
    """The windows of one class that are not held out yet."""

    def __init__(self, rest: list[int], trials: Sequence[str], rng: np.random.Generator) -> None:
        self.rest, self.trials, self.rng = rest, trials, rng

    def hold_out(self, share: float, named: Sequence[str], gap: int) -> list[int]:
        """Take windows out and return them."""
        chosen = {self.trials[i] for i in self.rest} & set(named)
        if not chosen and (share == 0.0 or len(self.rest) < 2):
            return []
        sizes: dict[str, int] = {}
        for i in self.rest:
            sizes[self.trials[i]] = sizes.get(self.trials[i], 0) + 1
        if chosen or len(sizes) > 1:
            chosen = chosen or self._draw(sizes, share * len(self.rest))
            held = [i for i in self.rest if self.trials[i] in chosen]
            self.rest = [i for i in self.rest if self.trials[i] not in chosen]
            return held
        count = max(1, round(share * len(self.rest)))
        in_time = self.rest if self.rng.random() < 0.5 else self.rest[::-1]
        border = len(in_time) - count
        self.rest = in_time[: max(border - gap, 0)]
        return in_time[border:]

    def _draw(self, sizes: dict[str, int], budget: float) -> set[str]:
        names = sorted(sizes)
        drawn = [names[i] for i in self.rng.permutation(len(names))]
        chosen: set[str] = set()
        for name in sorted(drawn, key=lambda n: -sizes[n]):  # stable: equal sizes stay in the order drawn
            if sizes[name] <= budget + 1e-9 and len(chosen) < len(names) - 1:
                chosen.add(name)
                budget -= sizes[name]
        return chosen or {min(drawn, key=lambda n: sizes[n])}
