"""Print a recipe's resolved configuration: every option of every part, defaults included."""

from __future__ import annotations

import argparse

import yaml

from mmzoo.cli import console, words

EXAMPLES = [
    ("mmzoo config five_senses", "all of it, as YAML"),
    ("mmzoo config cifar10 learner.optim.lr=3e-4", "with overrides applied and checked"),
    ("mmzoo config cifar10 > mine.yaml; mmzoo train mine.yaml", "a recipe of one's own"),
    ("mmzoo config runs/five_senses/demo", "of a run"),
]
NEXT = "mmzoo train RECIPE --dry-run"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "words", nargs="*", metavar="RECIPE key=value", help="recipe by name, file or run; overrides"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")


def run(args: argparse.Namespace) -> int:
    """Print the tree."""
    names, overrides = words.split(args.words, "mmzoo config", ["RECIPE"])
    from mmzoo.cli import sources

    tree = sources.recipe_config(names[0] if names else sources.DEFAULT_RECIPE, overrides).to_dict()
    if args.json:
        console.dump(tree)
    else:
        console.say(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip())
    return 0
