"""Text: a small grammar of captions that names the attributes with synonyms, in varying order, now and
then omitting one."""

from __future__ import annotations

import numpy as np

from mmzoo.datamodules.world.events import Event

OMIT_PROB = 0.1
"""Share of captions that leave out colour, tempo, side or setting (never the action)."""

_SOMEONE = ("someone", "a person", "somebody", "a performer")
_GARMENT = ("shirt", "jumper", "top")
_COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "grass-green"),
    "blue": ("blue", "navy", "azure"),
    "purple": ("purple", "violet", "lilac"),
    "white": ("white", "snow-white", "ivory"),
}
_OTHER = ("a partner", "another person", "a friend", "the one in grey")
_ACTIONS = {
    "stand": ("stands swaying", "stands on the spot", "just stands there"),
    "wave": ("waves", "waves a hand", "waves hello"),
    "clap": ("claps", "claps both hands", "applauds"),
    "kick": ("kicks the air", "kicks at nothing", "practises a kick"),
    "squat": ("squats", "does squats", "bends the knees deep"),
    "walk": ("walks in place", "marches on the spot", "walks without moving on"),
    "handshake": ("shakes hands with {o}", "gives {o} a handshake", "greets {o} by the hand"),
    "push": ("pushes {o}", "shoves {o}", "gives {o} a push"),
    "hug": ("hugs {o}", "embraces {o}", "gives {o} a hug"),
    "high five": ("high-fives {o}", "gives {o} a high five", "slaps palms with {o}"),
    "kick partner": ("kicks {o}", "lands a kick on {o}", "gives {o} a kick"),
    "point": ("points at {o}", "points a finger at {o}", "points out {o}"),
    "approach": ("walks up to {o}", "approaches {o}", "comes towards {o}"),
    "depart": ("walks away from {o}", "leaves {o}", "departs from {o}"),
    "punch": ("punches {o}", "throws a punch at {o}", "boxes {o}"),
    "hand over": ("hands {o} a parcel", "hands a box over to {o}", "passes a parcel to {o}"),
}
_TEMPOS = {
    "slow": ("slowly", "at a slow pace", "unhurriedly"),
    "steady": ("steadily", "at a steady pace", "evenly"),
    "fast": ("quickly", "at a fast pace", "rapidly"),
}
_SIDES = {
    "left": ("on the left", "from the left", "on the left side"),
    "right": ("on the right", "from the right", "on the right side"),
}
_SETTINGS = {
    "beach": ("on the beach", "by the sea", "on the sand"),
    "street": ("in the street", "in town", "by the houses"),
    "forest": ("in the forest", "among the trees", "in the woods"),
    "stage": ("on stage", "in the theatre", "in the spotlight"),
}
_OPTIONAL = ("colour", "tempo", "side", "setting")


def caption(event: Event, variant: int = 0) -> str:
    """Describe an event; each variant draws other words and another order."""
    rng = event.rng("text", variant)
    omitted = _pick(rng, _OPTIONAL) if rng.random() < OMIT_PROB else ""
    who = _pick(rng, _SOMEONE)
    if omitted != "colour":
        colour = _pick(rng, _COLOURS[event.name("colour")])
        wearing = ("in {c}", "wearing {c}", "in {a} {c} {g}", "with {a} {c} {g}")
        article = "an" if colour[0] in "aeiou" else "a"
        who += " " + _pick(rng, wearing).format(c=colour, a=article, g=_pick(rng, _GARMENT))
    does = _pick(rng, _ACTIONS[event.name("action")]).format(o=_pick(rng, _OTHER))
    phrases = {"tempo": _TEMPOS, "side": _SIDES, "setting": _SETTINGS}
    extras = [_pick(rng, words[event.name(name)]) for name, words in phrases.items() if name != omitted]
    extras = [extras[k] for k in rng.permutation(len(extras))]
    if rng.random() < 0.3:
        first = extras.pop()
        text = f"{first}, {who} {does} {' '.join(extras)}"
    else:
        text = f"{who} {does} {' '.join(extras)}"
    return f"{text[0].upper()}{text[1:].rstrip()}."


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
