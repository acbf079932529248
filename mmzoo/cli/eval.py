"""Measure a run, a checkpoint or a model on a split of its data (or of other data, by overrides)."""

from __future__ import annotations

import argparse

from mmzoo.cli import console, logs, words

EXAMPLES = [
    ("mmzoo eval runs/five_senses/demo", "the best weights of a run, on its test split"),
    ("mmzoo eval runs/five_senses/demo --split val --json", "one JSON object: metrics by task/metric"),
    ("mmzoo eval run/checkpoints/last.ckpt", "a particular checkpoint"),
    ("mmzoo eval runs/cifar10/best data.root=elsewhere", "on other data of the same kind"),
]
NEXT = "mmzoo report RUN, mmzoo embed RUN DATA -o out.npz"
SPLITS = ("test", "val", "train")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("words", nargs="*", metavar="RUN|CHECKPOINT|MODEL key=value", help="what to measure")
    parser.add_argument("--split", choices=SPLITS, help="default: test, or val where there is no test split")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; without overrides the figures are also kept in the run's eval.json."""
    names, overrides = words.required(args.words, "mmzoo eval", ["RUN"])
    logs.setup()
    from mmzoo.cli import finish, results, sources

    found = sources.trained(names[0], overrides)
    result = finish.measure(found.built, args.split or finish.report_split(found.built), found.source)
    if found.folder is not None and not overrides:
        results.save(found.folder.evaluation, result)
    if args.json:
        console.dump(result.to_dict())
        return 0
    console.say(results.text(result))
    console.note(
        f"\nnext: mmzoo {'report' if found.folder else 'embed'} {names[0]}"
        + ("" if found.folder else " DATA")
    )
    return 0
