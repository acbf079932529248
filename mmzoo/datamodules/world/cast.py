"""Who and where: the six persons, one a shirt colour, and the four places, one camera and one ambience
each."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Person:
    """One person: shirt and hair (RGB), build (factors on D3's rest offsets), stance (rad), voice (Hz,
    factor).

    scale: the whole body; shoulders, legs, arms: those parts; stoop: torso bent forward; splay: arms held
    off the body; straddle: legs apart; girth: drawn thickness; voice_hz: fundamental; formant: vocal
    tract (1 = adult).
    """

    shirt: RGB
    hair: RGB
    scale: float
    shoulders: float
    legs: float
    arms: float
    stoop: float
    splay: float
    straddle: float
    girth: float
    voice_hz: float
    formant: float


@dataclass(frozen=True)
class Place:
    """One place: its camera's pitch (rad, positive looks down) and roll (rad), and the floor and sky
    drawn there."""

    pitch: float
    roll: float
    sky: tuple[RGB, RGB]
    floor: tuple[RGB, RGB]


PEOPLE = (
    Person((214, 40, 40), (40, 30, 25), 1.18, 1.10, 1.05, 1.00, 0.00, 0.06, 0.04, 1.05, 92.0, 0.86),
    Person((245, 205, 40), (120, 80, 40), 0.84, 0.90, 0.92, 0.92, 0.05, 0.20, 0.02, 0.85, 330.0, 1.28),
    Person((40, 160, 70), (60, 45, 30), 1.00, 1.35, 0.86, 1.05, 0.16, 0.34, 0.20, 1.35, 122.0, 0.94),
    Person((45, 85, 215), (25, 22, 25), 1.08, 0.86, 1.14, 1.12, -0.06, 0.04, 0.02, 0.80, 205.0, 1.10),
    Person((150, 60, 190), (190, 190, 195), 0.92, 1.00, 1.00, 1.00, 0.34, 0.14, 0.10, 1.00, 158.0, 1.00),
    Person((240, 240, 240), (170, 70, 30), 1.02, 1.05, 0.98, 0.86, -0.14, 0.44, 0.30, 1.00, 262.0, 1.18),
)
"""In the order of `events.COLOURS`."""

PARTNER = Person((120, 120, 125), (70, 60, 50), 1.00, 1.00, 1.00, 1.00, 0.04, 0.12, 0.06, 1.00, 140.0, 1.03)
"""The second person of two-person actions: always in grey."""

PLACES = (
    Place(-0.22, 0.0, ((120, 190, 240), (215, 235, 250)), ((238, 214, 160), (222, 190, 130))),
    Place(0.08, 0.0, ((150, 158, 170), (196, 200, 206)), ((92, 94, 100), (70, 72, 78))),
    Place(0.08, 0.24, ((58, 98, 62), (110, 150, 90)), ((92, 82, 46), (62, 62, 34))),
    Place(0.46, 0.0, ((58, 30, 40), (96, 46, 52)), ((176, 122, 74), (140, 92, 54))),
)
"""In the order of `events.SETTINGS`: looks up from the shore, level in the street, tilted on a hillside,
down at a stage."""
