"""The sound: impacts and voices at the motion's peaks, the wearer's timbre, the place's ambience, one
microphone.

The microphone stands at the left edge of the scene: what happens on the right comes to it weaker, duller
and with echoes. Foreground sounds are placed in time by the same clock that moves the body.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int16

from mmzoo.datamodules.world import actions
from mmzoo.datamodules.world.cast import PARTNER, PEOPLE, Person
from mmzoo.datamodules.world.events import CLIP_S, Event

LEVEL = 0.16
"""Root mean square of a clip before its random gain, relative to full scale."""
AMBIENCE = 0.35
"""Level of the ambience relative to the foreground."""
_TABLE = 2048

Wave = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Impact:
    """A struck or scraped sound: noise around `centre_hz` (share `band` of it wide) and a ring, decaying
    in `decay_s`."""

    centre_hz: float
    band: float
    decay_s: float
    ring: float
    gain: float


@dataclass(frozen=True)
class Voice:
    """A call: pitch from `start` to `end` (factors on the person's) over `length` of a repetition; vowel
    (Hz, Hz)."""

    start: float
    end: float
    length: float
    vowel: tuple[float, float]
    gain: float = 1.0


@dataclass(frozen=True)
class Score:
    """What an action sounds like in each repetition: (cycles, sound) pairs; `partner` marks the other's
    voice."""

    impacts: tuple[tuple[float, Impact], ...] = ()
    voices: tuple[tuple[float, Voice], ...] = ()
    partner: tuple[tuple[float, Voice], ...] = ()
    swell: float = 0.0


_CLAP = Impact(2300.0, 1.2, 0.018, 0.0, 1.6)
_SLAP = Impact(1300.0, 0.5, 0.030, 0.6, 2.0)
_SMACK = Impact(700.0, 0.7, 0.035, 0.3, 2.0)
_THUD = Impact(140.0, 0.8, 0.070, 1.4, 2.2)
_STEP = Impact(420.0, 1.0, 0.022, 0.2, 1.3)
_PAT = Impact(300.0, 0.6, 0.045, 0.3, 1.0)
_WHOOSH = Impact(1000.0, 0.9, 0.140, 0.0, 0.8)
_RATTLE = Impact(3000.0, 0.15, 0.050, 1.2, 1.2)
_RUSTLE = Impact(2000.0, 1.5, 0.110, 0.0, 0.6)

_A, _E, _I = (750.0, 1250.0), (520.0, 1850.0), (300.0, 2300.0)
_O, _U, _M = (480.0, 850.0), (330.0, 700.0), (250.0, 1050.0)

SCORES: tuple[Score, ...] = (
    Score(voices=((0.15, Voice(1.0, 1.0, 0.8, _M, 0.9)),)),
    Score(voices=((0.15, Voice(0.9, 1.5, 0.25, _E)), (0.5, Voice(1.5, 0.9, 0.25, _O)))),
    Score(impacts=((0.5, _CLAP),), voices=((0.6, Voice(1.2, 1.2, 0.12, _A, 0.6)),)),
    Score(impacts=((0.38, _WHOOSH),), voices=((0.5, Voice(1.3, 0.8, 0.2, _A)),)),
    Score(impacts=((0.25, _RUSTLE), (0.75, _RUSTLE)), voices=((0.2, Voice(1.1, 0.6, 0.6, _U)),)),
    Score(impacts=((0.25, _STEP), (0.75, _STEP)), voices=((0.3, Voice(1.0, 1.0, 0.2, _O, 0.7)),)),
    Score(
        impacts=((0.25, _PAT), (0.75, _PAT)),
        voices=((0.15, Voice(1.1, 0.9, 0.3, _E)),),
        partner=((0.55, Voice(1.1, 0.9, 0.3, _E, 0.8)),),
    ),
    Score(impacts=((0.5, _RUSTLE), (0.56, _THUD)), voices=((0.38, Voice(0.8, 1.1, 0.18, _U)),)),
    Score(impacts=((0.5, _PAT),), voices=((0.15, Voice(1.25, 0.85, 0.8, _O)),)),
    Score(impacts=((0.5, _SLAP),), voices=((0.58, Voice(1.2, 1.7, 0.25, _I)),)),
    Score(
        impacts=((0.38, _WHOOSH), (0.52, _THUD)),
        voices=((0.5, Voice(1.3, 0.8, 0.15, _A)),),
        partner=((0.66, Voice(1.6, 1.0, 0.25, _A)),),
    ),
    Score(voices=((0.42, Voice(1.4, 1.4, 0.1, _E)), (0.56, Voice(1.0, 1.0, 0.22, _A)))),
    Score(impacts=((0.25, _STEP), (0.75, _STEP)), voices=((0.3, Voice(0.9, 1.2, 0.3, _E, 0.8)),), swell=1.0),
    Score(impacts=((0.25, _STEP), (0.75, _STEP)), voices=((0.3, Voice(1.2, 0.8, 0.3, _A, 0.8)),), swell=-1.0),
    Score(
        impacts=((0.5, _SMACK),),
        voices=((0.42, Voice(0.9, 0.7, 0.12, _U)),),
        partner=((0.6, Voice(1.2, 0.8, 0.2, _O)),),
    ),
    Score(
        impacts=((0.44, _RATTLE), (0.5, _RATTLE), (0.56, _RATTLE)),
        voices=((0.15, Voice(1.0, 1.3, 0.25, _I)),),
        partner=((0.65, Voice(1.2, 1.0, 0.25, _A)),),
    ),
)
"""In the order of `events.ACTIONS`."""


def hear(event: Event, rate_hz: int) -> Int16[np.ndarray, " n"]:
    """Record an event as 16-bit mono."""
    rng = event.rng("audio")
    length = round(CLIP_S * rate_hz)
    front = _at_microphone(perform(event, rate_hz, rng), event, rate_hz)
    front /= np.sqrt(np.mean(front**2)) + 1e-9
    back = ambience(event.setting, length, rate_hz, rng)
    back /= np.sqrt(np.mean(back**2)) + 1e-9
    mixed = front + AMBIENCE * (1.35 if event.side else 0.85) * back
    mixed *= LEVEL * 10 ** (rng.uniform(-2, 2) / 20) / (np.sqrt(np.mean(mixed**2)) + 1e-9)
    return np.rint(np.clip(np.tanh(mixed), -1, 1) * 32767).astype(np.int16)


def perform(event: Event, rate_hz: int, rng: np.random.Generator) -> Wave:
    """Play the action's score: all its impacts and voices, as near the persons."""
    score, period = SCORES[event.action], CLIP_S / actions.cycles(event)
    out = np.zeros(round(CLIP_S * rate_hz))
    for at, impact in score.impacts:
        for time in actions.peak_times(event, at):
            _add(out, strike(impact, rate_hz, rng), time, rate_hz)
    for person, calls in ((PEOPLE[event.colour], score.voices), (PARTNER, score.partner)):
        for at, voice in calls:
            tone = _timbre(person, voice, rate_hz)
            for time in actions.peak_times(event, at):
                _add(out, _call(person, voice, tone, (period, rate_hz), rng), time, rate_hz)
    if score.swell:
        out *= np.exp(score.swell * np.linspace(-1.1, 1.1, len(out)))
    return out


def strike(impact: Impact, rate_hz: int, rng: np.random.Generator) -> Wave:
    """Return one impact: band noise that decays, and a damped ring at its centre."""
    length = max(16, round(4 * impact.decay_s * rate_hz))
    time = np.arange(length) / rate_hz
    spectrum = np.fft.rfft(rng.normal(size=length))
    hertz = np.fft.rfftfreq(length, 1 / rate_hz)
    centre = impact.centre_hz * rng.uniform(0.94, 1.06)
    spectrum *= np.exp(-(((hertz - centre) / (impact.band * centre + 40.0)) ** 2))
    noise = np.fft.irfft(spectrum, length)
    noise /= np.sqrt(np.mean(noise**2)) + 1e-9
    ring = impact.ring * np.sin(2 * np.pi * centre * time)
    attack = np.minimum(1.0, time / (0.004 if impact.decay_s < 0.1 else 0.06))
    return impact.gain * (noise + ring) * np.exp(-time / impact.decay_s) * attack


def ambience(setting: int, length: int, rate_hz: int, rng: np.random.Generator) -> Wave:
    """Return the place's own sound: surf; engines and a horn; leaves and birds; a hall's hum and murmur."""
    hertz, time = np.fft.rfftfreq(length, 1 / rate_hz), np.arange(length) / rate_hz
    centre, width = ((500.0, 900.0), (90.0, 130.0), (2900.0, 700.0), (420.0, 160.0))[setting]
    spectrum = np.fft.rfft(rng.standard_normal(length, dtype=np.float32)) * np.exp(
        -(((hertz - centre) / width) ** 2)
    )
    noise = np.fft.irfft(spectrum, length)
    noise /= np.sqrt(np.mean(noise**2)) + 1e-9
    phase = rng.uniform(0, 2 * np.pi)
    if setting == 0:
        return noise * (1.0 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.5, 0.9) * time + phase))
    if setting == 1:
        pitch = rng.uniform(52, 60)
        return noise + sum(np.sin(2 * np.pi * k * pitch * time + phase * k) / k for k in (1, 2, 3, 4))
    if setting == 2:
        return 0.6 * noise + _birds(time, rng)
    return noise + 0.8 * np.sin(2 * np.pi * 100.0 * time + phase) + 0.5 * np.sin(2 * np.pi * 200.0 * time)


def _birds(time: Wave, rng: np.random.Generator) -> Wave:
    out = np.zeros_like(time)
    for start in rng.uniform(0, CLIP_S - 0.15, 4):
        pitch = 2800 + rng.uniform(-200, 200)
        sings = slice(*np.searchsorted(time, (start, start + 0.12)))
        u = (time[sings] - start) / 0.12
        phase = 2 * np.pi * pitch * time[sings] + 3.0 * np.sin(2 * np.pi * 3 * u)
        out[sings] += 3.0 * np.sin(np.pi * u) * np.sin(phase)
    return out


@functools.cache
def _timbre(person: Person, voice: Voice, rate_hz: int) -> Float[np.ndarray, " period"]:
    """Return one period of the person's vowel: harmonics with slope 1/k under two formants and a third at
    2.7 kHz."""
    harmonics = np.arange(1, max(2, int(0.45 * rate_hz / (person.voice_hz * 1.7))))
    hertz = harmonics * person.voice_hz
    level = np.full(len(harmonics), 0.05)
    for formant, weight in zip((*voice.vowel, 2700.0), (1.0, 0.6, 0.3), strict=True):
        level += weight / (1.0 + ((hertz - formant * person.formant) / (0.09 * formant + 50.0)) ** 2)
    phase = 2 * np.pi * np.arange(_TABLE) / _TABLE
    return (level / np.sqrt(harmonics)) @ np.sin(harmonics[:, None] * phase)


def _call(
    person: Person,
    voice: Voice,
    tone: Float[np.ndarray, " period"],
    pace: tuple[float, int],
    rng: np.random.Generator,
) -> Wave:
    """Return one call: the period read at a gliding pitch with a little vibrato, fading in and out."""
    period, rate_hz = pace
    length = max(24, round(max(0.09, voice.length * period) * rate_hz))
    glide = np.linspace(voice.start, voice.end, length) * person.voice_hz * rng.uniform(0.97, 1.03)
    vibrato = 1.0 + 0.01 * np.sin(2 * np.pi * 5.5 * np.arange(length) / rate_hz)
    phase = np.cumsum(glide * vibrato) / rate_hz
    wave = tone[((phase % 1.0) * _TABLE).astype(np.int64) % _TABLE]
    wave = wave / (np.sqrt(np.mean(wave**2)) + 1e-9)
    fade = np.minimum(1.0, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.02 * rate_hz))
    return 0.8 * voice.gain * wave * fade


def _at_microphone(wave: Wave, event: Event, rate_hz: int) -> Wave:
    """Leave sounds on the left as they are; dull those on the right above 900 Hz and echo them."""
    if event.side == 0:
        return wave
    spectrum = np.fft.rfft(wave)
    spectrum /= 1.0 + (np.fft.rfftfreq(len(wave), 1 / rate_hz) / 900.0) ** 2
    far = np.fft.irfft(spectrum, len(wave))
    out = far.copy()
    for delay_s, gain in ((0.037, 0.5), (0.071, 0.4), (0.113, 0.3), (0.171, 0.2)):
        shift = round(delay_s * rate_hz)
        out[shift:] += gain * far[:-shift]
    return out


def _add(out: Wave, wave: Float[np.ndarray, " m"], time_s: float, rate_hz: int) -> None:
    start = round(time_s * rate_hz)
    stop = min(len(out), start + len(wave))
    out[start:stop] += wave[: stop - start]
