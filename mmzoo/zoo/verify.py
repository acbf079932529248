"""Checks weights that are here: bytes, sha256, layout, and what the model makes of a fixed input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mmzoo import zoo
from mmzoo.checkpoints import cards, files
from mmzoo.checkpoints.cards import Card
from mmzoo.checkpoints.disk import sha256_of
from mmzoo.checkpoints.download import fetched_sha256
from mmzoo.errors import CheckpointError
from mmzoo.zoo import fetch, foreign, golden


class Outcome(str, Enum):
    """What a check came to."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """nothing to compare with"""


@dataclass(frozen=True)
class Finding:
    """One check and what it found."""

    check: str
    outcome: Outcome
    said: str


def verify(source: str) -> list[Finding]:
    """Check what `source` names: a card's weights that are here, a folder, a run, a hub's repository."""
    card = cards.find(source) if not Path(source).exists() and cards.is_known(source) else None
    path = _here(card) if card else fetch.local(source)
    return list(_checks(path, card))


def _here(card: Card) -> Path:
    path = card.shipped or card.cached
    if not path.exists():
        raise CheckpointError.at(
            card.name, "not here", "weights to check", f"Run `mmzoo download {card.name}`."
        )
    return path


def _checks(path: Path, card: Card | None) -> Iterator[Finding]:
    folder = path / "export" if (path / "export").is_dir() else path
    weights = folder / files.WEIGHTS if folder.is_dir() else folder
    if not weights.is_file():
        found = f"no {weights.name}"
        raise CheckpointError.at(str(path), found, "exported weights", "Finish the run, or check the path.")
    yield _compare("bytes", f"{weights.stat().st_size:,}", f"{card.bytes:,}" if card and card.bytes else "")
    yield _hash(weights, card)
    if path.is_file() and path.suffix != ".ckpt":
        yield _foreign_layout(path, card)
        yield Finding("golden", Outcome.UNKNOWN, "nobody has published what the model makes of a known input")
        return
    try:
        model, _ = zoo.load_with_config(path)
    except CheckpointError as error:
        yield Finding("layout", Outcome.FAILED, str(error))
        return
    yield Finding("layout", Outcome.OK, f"{len(model.state_dict())} tensors, all of the model's and no other")
    kept = golden.read(folder) if folder.is_dir() else None
    if kept is None:
        yield Finding("golden", Outcome.UNKNOWN, "no golden output is kept with these weights")
        return
    for name, error in golden.errors(model, kept).items():
        outcome = Outcome.OK if error <= kept.tolerance else Outcome.FAILED
        yield Finding(f"golden {name}", outcome, f"largest error {error:.1e}, tolerance {kept.tolerance:.0e}")


def _foreign_layout(path: Path, card: Card | None) -> Finding:
    if card and card.layout not in foreign.OURS.values():
        return Finding("layout", Outcome.UNKNOWN, f"{card.layout.value}, which mmzoo does not build")
    try:
        count = foreign.count_onepeace(path, card.layout if card else None)
    except CheckpointError as error:
        return Finding("layout", Outcome.FAILED, str(error))
    return Finding("layout", Outcome.OK, f"{count} tensors, all of the model's and no other")


def _hash(weights: Path, card: Card | None) -> Finding:
    """Compare the sha256 with the card's, else that in config.json, else that of the day it was fetched."""
    found = sha256_of(weights)
    if card and card.sha256:
        return _compare("sha256", found, card.sha256)
    if (weights.parent / files.CONFIG).is_file():
        wanted = files.read_config(weights.parent).get("sha256")
        return _compare("sha256", found, wanted if isinstance(wanted, str) else "")
    before = fetched_sha256(weights)
    if before == found:
        return Finding("sha256", Outcome.UNKNOWN, f"{found}, as when it was fetched; nobody has published it")
    return _compare("sha256", found, before)


def _compare(check: str, found: str, wanted: str) -> Finding:
    if not wanted:
        return Finding(check, Outcome.UNKNOWN, f"{found}; nobody has published what it should be")
    if found == wanted:
        return Finding(check, Outcome.OK, found)
    return Finding(check, Outcome.FAILED, f"{found}; expected {wanted}")
