"""Inspect data on disk before training on it, pack them into shards, or make synthetic data to try things
with."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmzoo.cli import console, logs, words
from mmzoo.errors import ConfigError, close_matches

EXAMPLES = [
    ("mmzoo data inspect photos/", "modalities, counts, shapes, classes, faults"),
    ("mmzoo data inspect samples.csv --json", "a manifest, for a script"),
    ("mmzoo data make manifest out/", "a small synthetic data set in that format"),
    ("mmzoo data make nyud --n 16 out/", "rooms with dense labels in NYUD-v2's folders"),
    ("mmzoo data make haxby --n 48 out/", "twelve runs of each of four simulated people, as Haxby's"),
    (
        "mmzoo data pack grounding shards/ data.path=out/manifest.csv",
        "what a recipe reads, as WebDataset shards",
    ),
]
NEXT = "mmzoo train RECIPE data.root=PATH --dry-run"
ACTIONS = {
    "inspect": ["ACTION", "PATH"],
    "make": ["ACTION", "KIND", "PATH"],
    "pack": ["ACTION", "RECIPE", "PATH"],
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    shown = "inspect PATH | make KIND PATH | pack RECIPE PATH key=value"
    parser.add_argument("words", nargs="*", metavar=shown, help="what to do")
    parser.add_argument("--samples", "--n", type=int, default=32, help="make: how many samples (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="make: seed of what is made (default: 0)")
    parser.add_argument("--per-shard", type=int, default=1000, help="pack: samples a shard (default: 1000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Do what the first word says."""
    action = args.words[0] if args.words else ""
    if action not in ACTIONS:
        found = repr(action) if action else "nothing to do"
        raise ConfigError.at("mmzoo data", found, "inspect, make or pack", close_matches(action, ACTIONS))
    names, overrides = words.required(args.words, f"mmzoo data {action}", ACTIONS[action])
    logs.setup()
    if action == "pack":
        return _pack(names[1], Path(names[2]), overrides, args)
    return _inspect(names[1], as_json=args.json) if action == "inspect" else _make(names[1], names[2], args)


def _inspect(path: str, *, as_json: bool) -> int:
    from mmzoo.datamodules.inspect import inspect_path

    report = inspect_path(path)
    if as_json:
        console.dump(report.to_dict())
    else:
        console.say(str(report))
    return 0


def _make(kind: str, path: str, args: argparse.Namespace) -> int:
    from mmzoo.datamodules.make import make

    report = make(kind, path, args.samples, seed=args.seed)
    if args.json:
        console.dump({"path": path, "made": report})
    else:
        console.say(f"{path}: {report}")
        manifest = Path(path) / "manifest.csv"
        console.note(f"next: mmzoo data inspect {manifest if manifest.is_file() else path}")
    return 0


def _pack(name: str, folder: Path, overrides: list[str], args: argparse.Namespace) -> int:
    from mmzoo.cli.sources import recipe_config
    from mmzoo.datamodules.shard_write import pack_data
    from mmzoo.learners.tasks import modalities_of, with_heads

    if args.per_shard < 1:
        raise ConfigError.at("--per-shard", str(args.per_shard), "1 or more", "Leave it out for 1000.")
    config = recipe_config(name, overrides)
    options = with_heads(config.model, config.tasks)
    reads = modalities_of(config.tasks, tuple(options.modalities), tuple(options.inputs))
    data = config.data.build({}, seed=config.seed)
    counts = pack_data(folder, data, per_shard=args.per_shard, reads=reads)
    if args.json:
        console.dump({"path": str(folder), "samples": counts})
        return 0
    console.say(f"{folder}: {', '.join(f'{count} samples of {split}' for split, count in counts.items())}")
    parts = ", ".join(f"{split}: '{split}-*.tar'" for split in counts)
    console.note(f'next: mmzoo train {name} "data={{type: webdataset, root: {folder}, {parts}}}"')
    return 0
