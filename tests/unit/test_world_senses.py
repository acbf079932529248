"""Pictures, sounds and captions: each shows what it should, where it should, the same each time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmzoo.datamodules.world import body, scene, sound
from mmzoo.datamodules.world.caption import caption
from mmzoo.datamodules.world.cast import PEOPLE
from mmzoo.datamodules.world.events import ACTIONS, ATTRIBUTES, CLIP_S, Event

RATE = 8000


def event(action="stand", **changes):
    number = action if isinstance(action, int) else ACTIONS.index(action)
    return dataclasses.replace(Event(0, 0, 5, number, 0, 0, 0, 1), **changes)


def picture(made, size=64):
    return scene.draw(made, body.pose([made]).joints[0], size)


def test_a_picture_is_the_same_each_time_and_has_its_size():
    first = picture(event("hug"), 48)
    assert first.shape == (48, 48, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(picture(event("hug"), 48), first)
    assert (picture(event("hug", index=6), 48) != first).any()


@pytest.mark.parametrize("colour", range(len(PEOPLE)))
@pytest.mark.parametrize("side", [0, 1])
def test_the_shirt_is_seen_on_its_side(colour, side):
    pixels = picture(event(colour=colour, side=side, setting=1)).astype(float)
    near = np.linalg.norm(pixels - PEOPLE[colour].shirt, axis=-1) < 60
    columns = np.nonzero(near[8:50])[1]
    assert len(columns) > 15
    assert (columns.mean() < 32) == (side == 0)


def test_ghosts_of_fast_motions_spread_wider():
    def trail(tempo):
        made = event("walk", tempo=tempo, setting=1)
        frame = scene.telling_frame(made)
        feet = body.pose([made]).joints[0, :, 0, [15, 19]]
        return np.abs(feet[:, frame] - feet[:, frame - scene.STROBE[0]]).sum()

    assert trail(0) < trail(1) < trail(2)


def test_dust_grows_with_tempo():
    changed = []
    for tempo in range(3):
        made = event("stand", tempo=tempo, setting=1)
        plain = dataclasses.replace(made, tempo=0)
        pixels = scene.draw(made, body.pose([plain]).joints[0], 64).astype(int)
        still = scene.draw(plain, body.pose([plain]).joints[0], 64).astype(int)
        changed.append(int((np.abs(pixels - still).max(axis=-1) > 30)[44:].sum()))
    assert changed[0] == 0 < changed[1] < changed[2]


def test_a_sound_is_the_same_each_time_and_fills_its_clip():
    wave = sound.hear(event("clap"), RATE)
    assert wave.dtype == np.int16
    assert len(wave) == round(CLIP_S * RATE)
    np.testing.assert_array_equal(sound.hear(event("clap"), RATE), wave)
    level = np.sqrt(np.mean((wave / 32768.0) ** 2))
    assert 0.08 < level < 0.25


@pytest.mark.parametrize("tempo", range(3))
def test_claps_are_heard_when_the_hands_meet(tempo):
    made = event("clap", tempo=tempo, phase=0.05)
    hands = body.pose([made]).joints[0, :, 0]
    apart = np.linalg.norm(hands[:, 7] - hands[:, 11], axis=-1)
    met = [t for t in range(1, len(apart) - 1) if apart[t - 1] > apart[t] <= apart[t + 1]]
    heard = sound.perform(dataclasses.replace(made, colour=0), RATE, made.rng("audio"))
    high = np.diff(heard) ** 2
    for frame in met:
        at = round(frame / len(apart) * len(heard))
        around, before = high[max(0, at - 300) : at + 500], high[max(0, at - 900) : max(1, at - 400)]
        assert around.max() > 20 * np.median(before + 1e-12)
    assert len(met) == (1, 2, 4)[tempo]


@pytest.mark.parametrize("colour", range(len(PEOPLE)))
def test_a_persons_hum_has_their_pitch(colour):
    wave = sound.perform(event("stand", colour=colour), RATE, event().rng("audio"))
    start = np.flatnonzero(wave)[0] + 400
    hum = wave[start : start + 2048]
    alike = [float(np.dot(hum[lag:], hum[:-lag]) / (len(hum) - lag)) for lag in range(1, 100)]
    first_dip = int(np.argmin(np.array(alike) > 0))
    repeats = np.flatnonzero(np.array(alike) > 0.85 * max(alike[first_dip:]))
    period = 1 + next(k for k in repeats if k > first_dip and alike[k] >= max(alike[k - 1], alike[k + 1]))
    assert abs(RATE / period / PEOPLE[colour].voice_hz - 1) < 0.07


def test_sounds_from_the_right_are_duller():
    def brightness(side):
        spectrum = np.abs(np.fft.rfft(sound._at_microphone(noise, event(side=side), RATE))) ** 2
        return spectrum[len(spectrum) // 2 :].sum() / spectrum.sum()

    noise = np.random.default_rng(0).normal(size=8000)
    assert brightness(1) < 0.1 * brightness(0)


def test_captions_name_what_happens():
    for name, values in ATTRIBUTES.items():
        said = [
            {word for variant in range(40) for word in caption(event(**{name: v}), variant).lower().split()}
            for v in range(len(values))
        ]
        for v, words in enumerate(said):
            others = set().union(*(w for k, w in enumerate(said) if k != v))
            assert words - others, f"{name} {values[v]} has a word of its own"


def test_captions_vary_and_sometimes_omit():
    texts = [caption(event("wave", index=i)) for i in range(300)]
    assert len(set(texts)) > 280
    assert texts == [caption(event("wave", index=i)) for i in range(300)]
    without_colour = sum(not any(w in t for w in ("red", "crimson", "scarlet")) for t in texts)
    assert 1 <= without_colour <= 25
    assert all(t[0].isupper() and t.endswith(".") and "  " not in t for t in texts)


def test_the_contact_sheet_is_a_picture_of_varied_events(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from mmzoo.datamodules.five_senses import FiveSenses
    from mmzoo.datamodules.world.sheet import contact_sheet, varied_events

    config = FiveSenses.fake(tmp_path)
    events = varied_events(config, 3, "train")
    assert len({(e.action, e.setting) for e in events}) == 3
    path = contact_sheet(tmp_path / "sheet.png", config, events)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape == (599, 1352, 3)
    columns = [pixels[:, 1352 * k // 5 : 1352 * (k + 1) // 5] for k in range(5)]
    assert all((c < 128).any(axis=-1).mean() > 0.005 for c in columns), "something is drawn in every column"
    again = contact_sheet(tmp_path / "again.png", config, events)
    np.testing.assert_array_equal(np.asarray(Image.open(again).convert("RGB")), pixels)


def test_the_contact_sheet_names_its_extra(tmp_path, monkeypatch):
    import sys

    from mmzoo.datamodules.five_senses import FiveSenses
    from mmzoo.datamodules.world.sheet import contact_sheet
    from mmzoo.errors import DataError

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(DataError, match=r"mmzoo\[report\]"):
        contact_sheet(tmp_path / "x.png", FiveSenses.fake(tmp_path), [])


def test_the_ground_rises_as_the_camera_rolls():
    made = event(setting=2)
    pixels = scene.backdrop(made, 128, made.rng("image"))
    sky = np.asarray(pixels, dtype=int)[..., 1] > 90
    feet = body.pose([event("handshake", setting=2, partner_scale=1.0)]).joints[0, 0]
    uphill = np.sign((feet[1, 0, 1] - feet[0, 0, 1]) * (feet[1, 0, 0] - feet[0, 0, 0]))
    assert uphill == 1.0, "who stands on the right stands higher"
    assert sky[64:, :20].mean() > sky[64:, -20:].mean(), "the horizon is higher on the right"
