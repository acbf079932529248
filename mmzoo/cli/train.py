"""Train a recipe. Leaves a complete run folder: config, log, metrics, checkpoints, export, plots, report."""

from __future__ import annotations

import argparse

from mmzoo.cli import logs, words

EXAMPLES = [
    ("mmzoo train", "the demo: five senses, one model"),
    ("mmzoo train cifar10 learner.optim.lr=3e-4 tag=lr3e-4", "with overrides"),
    ("mmzoo train cifar10 data.root=photos --dry-run", "sizes, speed and data first; nothing is written"),
    ("mmzoo train fsdd init_from=runs/five_senses/demo", "fine-tune what another run learned"),
    ("mmzoo train five_senses resume=auto", "continue the newest run that did not finish"),
]
NEXT = "mmzoo eval RUN, mmzoo report RUN"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help="default recipe: five_senses")
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, read one batch, say what it costs"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Plan or train."""
    names, overrides = words.split(args.words, "mmzoo train", ["RECIPE"])
    logs.setup()
    from mmzoo.cli import plan, sources, training

    name = names[0] if names else sources.DEFAULT_RECIPE
    config = sources.recipe_config(name, overrides)
    if args.dry_run:
        return plan.run(name, config, overrides, as_json=args.json)
    return training.train(name, config, overrides, as_json=args.json)
