"""Cards: what is known of each published checkpoint, one YAML file `arch.tag.yaml` under models/cards.

Read without importing torch, so that `mmzoo list`, `info` and `download` start at once. The first comment
line of a card is its summary.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from mmzoo import schema
from mmzoo.errors import CheckpointError, ConfigError, close_matches
from mmzoo.home import home

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent.parent
FOLDER = PACKAGE / "models" / "cards"
SHIPPED = PACKAGE / "weights"
"""Weights that come with the package: a folder `arch.tag` each."""


class Layout(str, Enum):
    """Whose names and files a checkpoint uses."""

    MMZOO = "mmzoo"
    """model.safetensors with config.json"""
    ONEPEACE = "onepeace"
    """ONE-PEACE's whole model, a pickle of `model` and `cfg`"""
    ONEPEACE_VISION = "onepeace_vision"
    """ONE-PEACE's vision branch, a pickle"""
    MMDETECTION = "mmdetection"
    """the vision branch inside a model of mmdetection, which mmzoo does not build"""
    MMSEGMENTATION = "mmsegmentation"
    """the vision branch inside a model of mmsegmentation, which mmzoo does not build"""
    MMACTION = "mmaction"
    """the vision branch inside a video model, which mmzoo does not build"""


@dataclass(kw_only=True)
class Metric(schema.Config):
    """One measured figure and how it was measured."""

    data: str
    """data set and split"""
    metric: str
    """name of the figure"""
    value: float
    """the figure, in the unit that the metric's name has in the literature (per cent for shares)"""
    protocol: str = ""
    """how it was measured"""


@dataclass(kw_only=True)
class Card(schema.Config):
    """One checkpoint."""

    arch: str
    """architecture: the model preset that it fits, or the family's name for it"""
    tag: str
    """which weights of it: {pretraining data}[_ft_{data}][_{resolution}]"""
    summary: str = ""
    """one line; the card's first comment"""
    default: bool = False
    """the tag meant where only the architecture is named"""
    licence: str = ""
    """licence of the weights"""
    origin: str = ""
    """where they come from"""
    paper: str = ""
    """what describes them"""
    layout: Layout = Layout.MMZOO
    """whose names and files"""
    modalities: list[str] = field(default_factory=list)
    """what the model takes"""
    tasks: list[str] = field(default_factory=list)
    """what it was trained for"""
    urls: list[str] = field(default_factory=list)
    """addresses of the one file, tried in order; none where the weights come with the package"""
    bytes: int | None = None
    """size of the weights; null where nobody has published it"""
    sha256: str = ""
    """of the weights; empty where nobody has published it: then size and layout are all that is checked"""
    metrics: list[Metric] = field(default_factory=list)
    """what was measured"""
    fine_tune: dict[str, list[str]] = field(default_factory=dict)
    """modality -> overrides recommended to recipes that read it alone and say `model=ARCH.TAG`"""
    training: dict[str, Any] = field(default_factory=dict)
    """commands, commit and an excerpt of the log"""
    deprecated_names: list[str] = field(default_factory=list)
    """former or foreign names, which still work with a warning"""

    @property
    def name(self) -> str:
        """The name people type."""
        return f"{self.arch}.{self.tag}"

    @property
    def shipped(self) -> Path | None:
        """The folder of the weights in the package, or None."""
        folder = SHIPPED / self.name
        return folder if folder.is_dir() else None

    @property
    def cached(self) -> Path:
        """Where the file is, or will be, once fetched."""
        file = self.urls[0].rsplit("/", 1)[-1].replace("%2B", "+") if self.urls else "model.safetensors"
        return home() / "zoo" / self.name / file


@functools.cache
def cards() -> dict[str, Card]:
    """Return every card by name, those of one architecture with the default first."""
    found = [_read(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return {c.name: c for c in sorted(found, key=lambda c: (c.arch, not c.default, c.tag))}


def find(name: str) -> Card:
    """Return the card of `arch.tag`, of `arch` (its default tag) or of a former name; else its neighbours."""
    known = cards()
    if name in known:
        return known[name]
    of_arch = [card for card in known.values() if card.arch == name]
    if of_arch:
        return of_arch[0]
    for card in known.values():
        if name in card.deprecated_names:
            log.warning("%r is a former name; write %r", name, card.name)
            return card
    raise CheckpointError.at(
        "zoo", f"no checkpoint {name!r}", "a name that `mmzoo list` shows", neighbours(name)
    )


def is_known(name: str) -> bool:
    """Say whether a name, default tags and former names included, has a card."""
    return any(name in (c.name, c.arch, *c.deprecated_names) for c in cards().values())


def neighbours(name: str) -> str:
    """Return the sentence that proposes names: tags of the same architecture, else what sounds alike."""
    arch, _, tag = name.partition(".")
    tags = [card.tag for card in cards().values() if card.arch == arch]
    if tag and tags:
        said = close_matches(tag, tags)
        return said.replace("Choose one of", f"Tags of {arch}")
    names = [n for c in cards().values() for n in (c.arch, c.name)]
    return close_matches(name, names, listing="mmzoo list")


def _read(path: Path) -> Card:
    text = path.read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        tree = yaml.load(text, Loader=loader)  # noqa: S506,RUF100 both loaders are safe
    except yaml.YAMLError as error:
        do = "Mend the file."
        raise ConfigError.at(str(path), f"not YAML ({error})", "a card", do) from error
    summary = text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""
    card: Card = schema.parse(Card, {"summary": summary, **tree}, f"card {path.stem}")
    if card.name != path.stem:
        raise ConfigError.at(str(path), f"the card of {card.name}", f"{path.stem}", "Rename the file.")
    return card
