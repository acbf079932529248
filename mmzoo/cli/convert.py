"""Turn weights from one layout into another: released files to an export, an export to a released layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmzoo.cli import console, logs

EXAMPLES = [
    ("mmzoo convert one-peace.pt onepeace/", "a released file to model.safetensors and config.json"),
    ("mmzoo convert runs/mine out.pt --to onepeace", "weights as the reference loads them"),
    ("mmzoo convert run/checkpoints/last.ckpt export/", "a training checkpoint to an export"),
    ("mmzoo convert edge_moe/weights edge_moe/", "Edge-MoE's folder of raw float32 files to an export"),
    (
        "mmzoo convert runs/moe one/ --extract-task semseg",
        "one task of a routed model, unused experts left out",
    ),
    ("mmzoo convert runs/mine moe/ --upcycle experts=8,top_k=2", "a dense model to one with experts"),
]
NEXT = "mmzoo verify DST, mmzoo eval DST, mmzoo train RECIPE init_from=DST"
TARGETS = ("mmzoo", "onepeace")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source", metavar="SRC", help="a run, an export, a checkpoint, a released file, a name"
    )
    parser.add_argument("target", metavar="DST", help="what to write; must not exist")
    parser.add_argument("--to", choices=TARGETS, default="mmzoo", help="the layout to write (default: mmzoo)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--upcycle",
        metavar="NAME=VALUE,…",
        help="replace each feed-forward by copies of itself and a router: experts, top_k, every, router",
    )
    how.add_argument(
        "--extract-task",
        metavar="TASK",
        help="one task of a routed run: its head, its gates and the experts that its tokens choose",
    )
    parser.add_argument(
        "--min-share",
        type=float,
        default=0.0,
        help="with --extract-task: leave out experts with a smaller share of its choices (default: 0)",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="a folder of raw weights may lack files: those parts get random numbers, and are listed",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Convert and say what was written."""
    logs.setup()
    from mmzoo.models.moe.upcycle import parse_options
    from mmzoo.zoo.convert import Target, check_target, convert, write

    target, to = Path(args.target).expanduser(), Target(args.to)
    lines: list[str] = []
    if args.extract_task is None:
        experts = None if args.upcycle is None else parse_options(args.upcycle)
        written = convert(args.source, target, to, experts, allow_partial=args.allow_partial)
    else:
        from mmzoo.cli.extract import extract

        check_target(target)
        found = extract(args.source, args.extract_task, args.min_share)
        written, lines = write(found.config, found.state, target, to), found.lines
    if args.json:
        console.dump({"source": args.source, "target": str(written), "to": args.to, "kept": lines})
    else:
        for line in lines:
            console.say(line)
        console.say(f"{written}: {args.to}")
    return 0
