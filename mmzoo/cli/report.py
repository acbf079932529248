"""Rebuild a run's plots and its report.html from the files in its folder."""

from __future__ import annotations

import argparse

from mmzoo.cli import console, logs, words

EXAMPLES = [
    ("mmzoo report runs/five_senses/demo", "draw everything again"),
    ("mmzoo report five_senses", "the newest run of that name below ./runs"),
]
NEXT = "open RUN/report.html in a browser"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "words", nargs="*", metavar="RUN", help="a run folder, or a recipe's name for its newest run"
    )
    parser.add_argument("--json", action="store_true", help="print the paths as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Draw and write."""
    names, _ = words.required(args.words, "mmzoo report", ["RUN"])
    logs.setup()
    from mmzoo import run_folder
    from mmzoo.cli import page, plots

    folder = run_folder.find(names[0])
    plots.draw_all(folder)
    page.write(folder)
    pictures = sorted(str(p) for p in folder.plots.iterdir())
    if args.json:
        console.dump({"report": str(folder.report), "plots": pictures})
    else:
        console.say(str(folder.report))
    return 0
