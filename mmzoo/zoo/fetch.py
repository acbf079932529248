"""From whatever names a model to a path on this machine: names, cards, the hub, addresses, files."""

from __future__ import annotations

import hashlib
import logging
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from mmzoo.checkpoints import cards
from mmzoo.checkpoints.cards import Card
from mmzoo.checkpoints.download import Receipt, Wanted, download, local_path
from mmzoo.checkpoints.transfer import Watch
from mmzoo.errors import CheckpointError
from mmzoo.home import home
from mmzoo.zoo import foreign, hub

log = logging.getLogger(__name__)
EVERY_S = 10.0


@dataclass
class Told:
    """Says in the log, every ten seconds, how far a download is."""

    name: str
    last: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, total: int | None) -> None:
        """Hear the bytes that are there."""
        if time.monotonic() - self.last >= EVERY_S:
            self.last = time.monotonic()
            of = f" of {total / 1e6:,.1f}" if total else ""
            log.info("%s: %.1f%s MB", self.name, done / 1e6, of)


def is_address(text: str) -> bool:
    """Say whether a source is written as an address."""
    return urllib.parse.urlsplit(text).scheme in ("http", "https", "file")


def is_elsewhere(text: str) -> bool:
    """Say whether a source is written as an address or names a hub's repository or a folder."""
    return is_address(text) or hub.is_reference(text) or text.startswith("local-dir:")


def local(source: str | Path) -> Path:
    """Return the file or folder that a source names, fetched if it is elsewhere."""
    text = str(source)
    if hub.is_reference(text):
        return hub.fetch(hub.parse(text), Told(text))[0]
    if text.startswith("local-dir:"):
        return Path(text.removeprefix("local-dir:")).expanduser()
    if text.startswith("file:"):
        return local_path(text)
    if is_address(text):
        return download(Wanted([text]), cached(text), Told(text)).path
    if Path(text).exists() or not cards.is_known(text):
        return _existing(text)
    return of_card(cards.find(text), Told(text))


def here(source: str | Path) -> Path | None:
    """Return what a source names if it is on this machine, None where it would be fetched; raise where it is
    nothing."""
    text = str(source)
    if hub.is_reference(text):
        hub.parse(text)
        return None
    for prefix in ("local-dir:", "file:"):
        if text.startswith(prefix):
            return _existing(str(local(text)))
    if is_address(text):
        return None
    if Path(text).exists() or not cards.is_known(text):
        return _existing(text)
    card = cards.find(text)
    return card.shipped or (card.cached if card.cached.is_file() else None)


def of_card(card: Card, watch: Watch | None = None) -> Path:
    """Return the folder of shipped weights, or the file of others, fetched unless it is here."""
    return card.shipped or receipt_of(card, watch, card.cached).path


def receipt_of(card: Card, watch: Watch | None, target: Path, sha256: str = "") -> Receipt:
    """Fetch the file of a card to `target` unless it is there; `sha256` is what a person knows of it."""
    if not card.urls:
        do = "Install a version of mmzoo that has them."
        raise CheckpointError.at(card.name, "a card without weights", "weights in the package", do)
    known = card.sha256 or sha256
    if not known:
        how = "size and layout are" if card.bytes else "layout is"
        log.warning("%s: nobody has published its sha256, so only its %s checked", card.name, how)
    urls = [card.cached.as_uri()] if card.cached.is_file() and card.cached != target else card.urls
    checks = foreign.checks(card.layout)
    return download(Wanted(urls, card.bytes, known, checks=checks), target, watch)


def cached(url: str) -> Path:
    """Return where the file of an address is kept: by a hash of the address, under its own name."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]) or "file"
    return home() / "zoo" / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        expected = "a run folder, an export folder, a .ckpt file, hf://org/repo or a checkpoint's name"
        raise CheckpointError.at(text, "no such thing", expected, cards.neighbours(text))
    return path
