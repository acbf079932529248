"""The picture: the place, the same bodies at a telling moment, two ghosts of the moments before, dust at
their feet.

Drawn at twice the size and averaged down. The ghosts are a strobe of fixed pace, so a fast motion spreads
them wider; the dust a motion raises grows with its tempo.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from mmzoo.datamodules.world import actions
from mmzoo.datamodules.world.cast import PARTNER, PEOPLE, PLACES, RGB, Person
from mmzoo.datamodules.world.events import CLIP_S, Event

STROBE = (4, 2, 0)
"""Frames before the telling one at which the strobe flashes, oldest first."""
FADE = (0.25, 0.45, 1.0)
"""Opacity of each flash."""
FOCAL = 1.4
"""Focal length in units of the picture's height."""
SUPERSAMPLE = 2

_SKIN, _TROUSERS, _PARCEL = (232, 190, 160), (45, 48, 70), (196, 130, 50)
_LEGS = ((12, 13), (13, 14), (14, 15), (16, 17), (17, 18), (18, 19))
_ARMS = (((4, 5), (5, 6), (6, 7)), ((8, 9), (9, 10), (10, 11)))
_HANDS = (7, 11)
_FEET = (15, 19)
_TORSO = (4, 8, 16, 12)

Canvas = ImageDraw.ImageDraw
Points = Float[np.ndarray, "25 2"]


def telling_frame(event: Event) -> int:
    """Return the frame of the motion's peak nearest to the middle of the clip."""
    name = event.name("action")
    at = 0.25 if name in ("stand", "wave", "walk", "approach", "depart", "handshake") else 0.5
    if name == "hand over":
        at = 0.44
    times = actions.peak_times(event, at)
    if len(times) == 0:
        return actions.NUM_FRAMES // 2
    middle = times[np.argmin(np.abs(times - CLIP_S / 2))]
    return int(np.clip(round(middle / CLIP_S * actions.NUM_FRAMES), STROBE[0], actions.NUM_FRAMES - 1))


def draw(event: Event, joints: Float[np.ndarray, "t 2 25 3"], size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw an event as a square picture of `size` pixels."""
    rng = event.rng("image")
    large = size * SUPERSAMPLE
    picture = backdrop(event, large, rng)
    moment = telling_frame(event)
    points = _project(joints, large)
    for back, opacity in zip(STROBE, FADE, strict=True):
        layer = picture.copy()
        _people(ImageDraw.Draw(layer), event, points[moment - back], joints[moment - back])
        picture = Image.blend(picture, layer, opacity)
    _dust(picture, event, points[moment], rng)
    pixels = np.asarray(picture.reduce(SUPERSAMPLE), dtype=np.float32)
    pixels = pixels * np.float32(rng.uniform(0.9, 1.06))
    pixels += 3.0 * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def backdrop(event: Event, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw the place without anyone in it: sky and floor, tilted with the camera, and what stands there."""
    place = PLACES[event.setting]
    horizon = 0.52 - 0.42 * place.pitch + rng.normal(0.0, 0.015)
    light = rng.normal(1.0, 0.04)
    rows = np.arange(size) / size
    sky = light * _gradient(np.clip(rows / max(horizon, 0.1), 0, 1), place.sky)
    floor = light * _gradient(np.clip((rows - horizon) / (1 - horizon), 0, 1), place.floor)
    bands = np.clip((sky, floor), 0, 255).astype(np.uint8)
    above = rows[:, None] < horizon - np.tan(place.roll) * (rows - 0.5)
    picture = Image.fromarray(np.where(above[..., None], bands[0][:, None], bands[1][:, None]))
    ground = _Ground(size, horizon, -float(np.tan(place.roll)))
    _FURNITURE[event.setting](ImageDraw.Draw(picture), ground, rng)
    return picture


class _Ground:
    """Where the horizon lies, to put things on it."""

    def __init__(self, size: int, horizon: float, slope: float) -> None:
        self.size, self.horizon, self.slope = size, horizon, slope

    def y(self, x: float) -> float:
        """Return the horizon's row at a column share, as a share of the height."""
        return self.horizon + self.slope * (x - 0.5)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """Turn shares into pixels."""
        return left * self.size, top * self.size, right * self.size, bottom * self.size


def _beach(canvas: Canvas, ground: _Ground, rng: np.random.Generator) -> None:
    canvas.rectangle(ground.box(0.0, ground.y(0.5) - 0.10, 1.0, ground.y(0.5)), fill=(40, 120, 190))
    for _ in range(5):
        x, y = rng.uniform(0, 1), ground.y(0.5) - rng.uniform(0.01, 0.09)
        canvas.line(ground.box(x, y, x + 0.15, y), fill=(225, 240, 250))
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.16)
    canvas.ellipse(ground.box(x - 0.07, y - 0.07, x + 0.07, y + 0.07), fill=(255, 236, 150))


def _street(canvas: Canvas, ground: _Ground, rng: np.random.Generator) -> None:
    x = -rng.uniform(0, 0.15)
    while x < 1:
        width, top = rng.uniform(0.16, 0.28), ground.y(0.5) - rng.uniform(0.22, 0.44)
        grey = int(rng.integers(95, 145))
        canvas.rectangle(ground.box(x, top, x + width, ground.y(0.5)), fill=(grey + 22, grey, grey - 12))
        for wx in np.arange(x + 0.03, x + width - 0.04, 0.07):
            for wy in np.arange(top + 0.04, ground.y(0.5) - 0.06, 0.1):
                canvas.rectangle(ground.box(wx, wy, wx + 0.035, wy + 0.05), fill=(236, 220, 150))
        x += width + 0.01
    y = ground.horizon + rng.uniform(0.30, 0.38)
    for x in np.arange(-rng.uniform(0, 0.2), 1, 0.25):
        canvas.rectangle(ground.box(x, y, x + 0.13, y + 0.02), fill=(226, 226, 218))


def _forest(canvas: Canvas, ground: _Ground, rng: np.random.Generator) -> None:
    for x in np.sort(rng.uniform(-0.02, 1.0, 7)):
        foot, width = ground.y(x) + rng.uniform(0.0, 0.05), rng.uniform(0.025, 0.05)
        trunk = ground.box(x, foot, x + ground.slope * (foot + 0.1), -0.1)
        canvas.line(trunk, fill=(74, 52, 34), width=round(width * ground.size))
        for _ in range(3):
            cx, cy, r = x + rng.normal(0, 0.06), rng.uniform(-0.02, 0.18), rng.uniform(0.07, 0.12)
            green = int(rng.integers(70, 120))
            canvas.ellipse(ground.box(cx - r, cy - r, cx + r, cy + r), fill=(30, green, 38))


def _stage(canvas: Canvas, ground: _Ground, rng: np.random.Generator) -> None:
    for x in np.arange(-rng.uniform(0, 0.08), 1, 0.16):
        canvas.rectangle(ground.box(x, 0.0, x + 0.07, ground.y(0.5)), fill=(116, 34, 44))
    x = 0.5 + rng.normal(0, 0.05)
    canvas.ellipse(ground.box(x - 0.46, 0.56, x + 0.46, 0.96), fill=(226, 186, 130))
    for y in (0.45, 0.62, 0.86):
        canvas.line(ground.box(0.0, y, 1.0, y), fill=(128, 84, 48))


_FURNITURE = (_beach, _street, _forest, _stage)
"""In the order of `events.SETTINGS`."""


def _gradient(share: Float[np.ndarray, " h"], ends: tuple[RGB, RGB]) -> Float[np.ndarray, "h 3"]:
    first, last = np.array(ends[0], dtype=float), np.array(ends[1], dtype=float)
    return first + share[:, None] * (last - first)


def _project(joints: Float[np.ndarray, "t 2 25 3"], size: int) -> Float[np.ndarray, "t 2 25 2"]:
    depth = np.maximum(-joints[..., 2], 0.5)
    x = 0.5 + FOCAL * joints[..., 0] / depth
    y = 0.5 - FOCAL * joints[..., 1] / depth
    return np.stack([x, y], axis=-1) * size


def _people(
    canvas: Canvas, event: Event, points: Float[np.ndarray, "2 25 2"], joints: Float[np.ndarray, "2 25 3"]
) -> None:
    people = (PEOPLE[event.colour], PARTNER)
    present = [0, 1] if event.is_pair else [0]
    far_first = sorted(present, key=lambda slot: joints[slot, 0, 2])
    for slot in far_first:
        _person(canvas, people[slot], points[slot], joints[slot])
    if event.name("action") == "hand over":
        _parcel(canvas, points)


def _person(canvas: Canvas, who: Person, points: Points, joints: Float[np.ndarray, "25 3"]) -> None:
    """Draw the far arm, the legs, the torso, the head, then the near arm."""
    metre = float(np.linalg.norm(points[20] - points[0]) / max(np.linalg.norm(joints[20] - joints[0]), 1e-6))
    thick = 0.085 * who.girth * who.scale * metre
    near = 0 if joints[4, 2] > joints[8, 2] else 1
    _arm(canvas, who, points, 1 - near, thick)
    for a, b in _LEGS:
        _bone(canvas, points, a, b, (_TROUSERS, thick * 1.25))
    torso = [tuple(points[j]) for j in _TORSO]
    canvas.polygon(torso, fill=who.shirt)
    for a, b in ((4, 8), (8, 16), (16, 12), (12, 4), (20, 0)):
        _bone(canvas, points, a, b, (who.shirt, thick * 1.3))
    radius = 0.115 * who.scale * metre
    _disc(canvas, points[3] - (0, 0.35 * radius), radius * 1.08, who.hair)
    _disc(canvas, points[3] + (0, 0.15 * radius), radius * 0.88, _SKIN)
    _arm(canvas, who, points, near, thick)


def _arm(canvas: Canvas, who: Person, points: Points, which: int, thick: float) -> None:
    upper, fore, hand = _ARMS[which]
    _bone(canvas, points, *upper, (who.shirt, thick))
    _bone(canvas, points, *fore, (who.shirt, thick * 0.9))
    _bone(canvas, points, *hand, (_SKIN, thick * 0.8))
    _disc(canvas, points[_HANDS[which]], thick * 0.62, _SKIN)


def _bone(canvas: Canvas, points: Points, a: int, b: int, pen: tuple[RGB, float]) -> None:
    colour, width = pen
    canvas.line([*points[a].tolist(), *points[b].tolist()], fill=colour, width=max(1, round(width)))
    _disc(canvas, points[b], width / 2, colour)


def _disc(canvas: Canvas, centre: Float[np.ndarray, " 2"], radius: float, colour: RGB) -> None:
    x, y = float(centre[0]), float(centre[1])
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _parcel(canvas: Canvas, points: Float[np.ndarray, "2 25 2"]) -> None:
    x, y = points[0, list(_HANDS)].mean(axis=0)
    half = 0.09 * float(np.linalg.norm(points[0, 20] - points[0, 0])) / 0.5
    canvas.rectangle((x - half, y - half, x + half, y + half), fill=_PARCEL, outline=(110, 66, 20))


def _dust(
    picture: Image.Image, event: Event, points: Float[np.ndarray, "2 25 2"], rng: np.random.Generator
) -> None:
    """Raise a cloud at the actor's feet: none, some or much, by tempo."""
    puffs = (0, 3, 9)[event.tempo]
    if not puffs:
        return
    size = picture.height
    feet = points[0, list(_FEET)].mean(axis=0)
    layer = Image.new("L", picture.size, 0)
    canvas = ImageDraw.Draw(layer)
    for _ in range(puffs):
        x = feet[0] + rng.normal(0, 0.05 + 0.012 * puffs) * size
        y = feet[1] + rng.uniform(-0.012 * puffs, 0.02) * size
        r = size * rng.uniform(0.02, 0.03 + 0.004 * puffs)
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=170)
    picture.paste((222, 212, 196), (0, 0), layer)
