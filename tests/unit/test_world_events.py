"""The latent events: splits by combination, keyed randomness, options."""

from __future__ import annotations

import collections

import pytest

from mmzoo.datamodules.world.events import (
    ATTRIBUTES,
    SPLITS,
    WorldConfig,
    calibration_events,
    combinations,
    make_events,
    split_combinations,
)
from mmzoo.errors import ConfigError


def values(event):
    return tuple(getattr(event, name) for name in ATTRIBUTES)


def test_no_combination_is_in_two_splits_and_every_value_is_in_train():
    config = WorldConfig()
    seen = {split: {values(e) for e in make_events(config, split)} for split in SPLITS}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    for at, names in enumerate(ATTRIBUTES.values()):
        assert {combination[at] for combination in seen["train"]} == set(range(len(names)))
    assert {len(s) for s in (seen["val"], seen["test"])} == {256}, "held-out events are all different"


def test_the_splits_take_all_combinations_and_counts_add_up():
    config = WorldConfig(num_events=700, num_val=60, num_test=100)
    dealt = split_combinations(config)
    assert sorted(c for part in dealt.values() for c in part) == combinations()
    assert {s: len(make_events(config, s)) for s in SPLITS} == {"train": 540, "val": 60, "test": 100}


def test_the_test_split_is_balanced_over_action_and_setting():
    counts = collections.Counter((e.action, e.setting) for e in make_events(WorldConfig(), "test"))
    assert len(counts) == 64
    assert set(counts.values()) == {4}


def test_an_event_depends_on_its_seed_and_number_only():
    short = make_events(WorldConfig(num_events=600), "train")
    longer = make_events(WorldConfig(num_events=700), "train")
    assert short == longer[: len(short)]
    assert [e.rng("image").integers(1 << 30) for e in short[:4]] == [
        e.rng("image").integers(1 << 30) for e in longer[:4]
    ]
    other = make_events(WorldConfig(num_events=600, world_seed=1), "train")
    assert [values(e) for e in other] != [values(e) for e in short]


def test_streams_of_an_event_and_of_its_neighbours_differ():
    first, second = make_events(WorldConfig(), "test")[:2]
    held = make_events(WorldConfig(), "val")[0]
    streams = [first.rng("image"), first.rng("image", 1), first.rng("audio")]
    draws = [rng.integers(1 << 60) for rng in (*streams, second.rng("image"), held.rng("image"))]
    assert len(set(draws)) == len(draws)


def test_calibration_shows_no_held_out_combination():
    config = WorldConfig()
    dealt = split_combinations(config)
    held = set(dealt["test"]) | set(dealt["val"])
    assert not held & {values(e) for e in calibration_events(config)}
    assert not {e.id for e in make_events(config, "train")} & {"calibration-00000"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_events": 512}, "num_events: 512; expected more than the 512 held out. Raise it."),
        ({"num_test": 2000}, "num_test: num_val 256 and num_test 2000; expected at least 1 each"),
        ({"image_size": 8}, "image_size: 8; expected at least 16 pixels. Raise it."),
        ({"sample_rate_hz": 100}, "sample_rate_hz: 100; expected at least 4000 Hz. Raise it."),
        ({"num_repeats": 0}, "num_repeats: 0; expected at least 1. Raise it."),
        ({"ncsnr": 0.0}, "ncsnr: 0.0; expected a number above 0. Raise it."),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError) as error:
        WorldConfig(**options)
    assert str(error.value).startswith(message)


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as error:
        WorldConfig(image_size=1, num_repeats=0)
    assert len(str(error.value).splitlines()) == 2
