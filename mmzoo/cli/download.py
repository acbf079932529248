"""Fetch weights by name, from the hub or from any address: resumed, verified, whole or not at all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmzoo.checkpoints import cards
from mmzoo.checkpoints.disk import sha256_of
from mmzoo.checkpoints.download import Receipt, Wanted, download
from mmzoo.checkpoints.transfer import Watch
from mmzoo.cli import console, logs, transfers
from mmzoo.errors import CheckpointError, ConfigError

EXAMPLES = [
    ("mmzoo download onepeace_4b", "the default weights of a model that `mmzoo list` shows"),
    ("mmzoo download hf://org/repo@v1 -o model/", "a model from the hub, at a revision"),
    ("mmzoo download https://host/w.pt --sha256 1f2e…", "any file, checked"),
    ("mmzoo download file:old.ckpt -o new.ckpt", "a copy, whole or not at all"),
]
NEXT = "mmzoo verify NAME, mmzoo info NAME, mmzoo train RECIPE init_from=NAME"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="NAME|hf://org/repo[@rev]|https://…|file:…", help="what to fetch")
    parser.add_argument("--sha256", default="", metavar="HEX", help="what the file must hash to")
    parser.add_argument("-o", "--out", metavar="PATH", help="where to (default: the cache under MMZOO_HOME)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Fetch and say what came, from where, and what was checked."""
    logs.setup()
    bar = transfers.Bar(args.source)
    try:
        found = _fetch(args, transfers.silent if args.json else bar)
    except KeyboardInterrupt:
        bar.close()
        console.note("stopped; what came so far is kept, and the same command continues")
        raise
    finally:
        bar.close()
    if args.json:
        console.dump(found)
        return 0
    for file in found["files"]:
        console.say(f"{file['path']}  {console.short(file['size'], 'B')}  {_said(file)}")
    return 0


def _fetch(args: argparse.Namespace, watch: Watch) -> dict[str, Any]:
    from mmzoo.zoo import fetch, hub

    source, out = args.source, Path(args.out).expanduser() if args.out else None
    if hub.is_reference(source):
        folder, receipts = hub.fetch(hub.parse(source), watch)
        _same(source, args.sha256, folder / "model.safetensors")
        return _listed(source, _copied(folder, out) if out else receipts or _copied(folder, folder))
    if fetch.is_address(source):
        wanted = Wanted([source], sha256=args.sha256)
        if out is None and source.startswith("file:"):
            do = "Add -o PATH."
            raise ConfigError.at("mmzoo download", "file:… without -o", "where to copy it", do)
        return _listed(source, [download(wanted, _target(args.out, fetch.cached(source)), watch)])
    card = cards.find(source)
    if card.shipped:
        _same(source, args.sha256, card.shipped / "model.safetensors")
        return _listed(card.name, _copied(card.shipped, out or card.shipped))
    if args.sha256 and card.sha256 not in ("", args.sha256):
        do = "Leave --sha256 out: the card has it."
        raise ConfigError.at("--sha256", args.sha256, f"{card.sha256}, as on the card", do)
    return _listed(card.name, [fetch.receipt_of(card, watch, _target(args.out, card.cached), args.sha256)])


def _target(out: str | None, cached: Path) -> Path:
    """Return the file to write: -o itself, or the file's own name in it where -o is a folder."""
    if out is None:
        return cached
    path = Path(out).expanduser()
    return path / cached.name if path.is_dir() or out.endswith("/") else path


def _same(source: str, sha256: str, weights: Path) -> None:
    """Compare weights that are here with what --sha256 says."""
    found = sha256_of(weights) if sha256 else ""
    if found != Wanted([], sha256=sha256).sha256:
        raise CheckpointError.at(source, f"sha256 {found}", sha256, "Check where the sha256 is from.")


def _copied(folder: Path, target: Path) -> list[Receipt]:
    """Copy every file of a folder, whole or not at all; in place, say what is there."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return [download(Wanted([p.as_uri()], sha256=sha256_of(p)), target / p.name) for p in files]


def _listed(name: str, receipts: list[Receipt]) -> dict[str, Any]:
    return {"name": name, "files": [receipt.to_dict() for receipt in receipts]}


def _said(file: dict[str, Any]) -> str:
    checked = ", ".join(file["checked"]) or "nothing to check it with"
    return f"sha256 {file['sha256']}  checked: {checked}" + ("  (was here)" if file["cached"] else "")
