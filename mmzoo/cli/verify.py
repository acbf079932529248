"""Check weights that are here: bytes, sha256, layout, and what the model makes of a fixed input."""

from __future__ import annotations

import argparse

from mmzoo.cli import console, logs

EXAMPLES = [
    ("mmzoo verify five_senses_tiny", "the weights in the package"),
    ("mmzoo verify onepeace_4b --json", "weights fetched before, for a script"),
    ("mmzoo verify runs/five_senses/demo", "a run's export"),
]
NEXT = "mmzoo download NAME fetches again what is wrong, once the file is removed"
COLOURS = {"ok": "green", "failed": "red", "unknown": "yellow"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="NAME|hf://org/repo|PATH", help="a checkpoint, a folder or a file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every check; leave with 1 if one failed."""
    logs.setup()
    from mmzoo.zoo.verify import Outcome, verify

    found = verify(args.source)
    failed = [f for f in found if f.outcome is Outcome.FAILED]
    if args.json:
        rows = [{"check": f.check, "outcome": f.outcome.value, "said": f.said} for f in found]
        console.dump({"name": args.source, "ok": not failed, "checks": rows})
        return int(bool(failed))
    rows = [(f.check, console.style(f.outcome.value, COLOURS[f.outcome.value]), f.said) for f in found]
    console.say(console.table(("check", "outcome", "found"), rows))
    return int(bool(failed))
