"""Publish a run, an export or a checkpoint on the hub: weights, configs, golden output, README."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmzoo.cli import console, logs
from mmzoo.errors import ConfigError

EXAMPLES = [
    ("mmzoo push runs/five_senses/demo hf://me/five", "make the repository if need be, and upload"),
    ("mmzoo push runs/five_senses/demo hf://me/five@v2 --private", "to a branch of a private one"),
    ("mmzoo push five_senses_tiny hf://me/five --dry-run -o five/", "write the folder and upload nothing"),
]
NEXT = 'mmzoo verify hf://org/repo, mmzoo.create_model("hf://org/repo"), init_from=hf://org/repo'


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="RUN|EXPORT|NAME", help="what to publish")
    parser.add_argument("repo", metavar="hf://org/repo[@branch]", help="where to")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--licence", default="apache-2.0", help="the hub's word for it (default: apache-2.0)")
    parser.add_argument("--dry-run", action="store_true", help="write the folder, upload nothing")
    parser.add_argument(
        "-o", "--out", metavar="PATH", help="the folder that --dry-run writes (default: the name)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Write the folder, upload it, say where it is."""
    if args.out and not args.dry_run:
        raise ConfigError.at("mmzoo push -o", "no --dry-run", "both or neither", "Add --dry-run.")
    logs.setup()
    from mmzoo import run_folder
    from mmzoo.zoo import hub, publish

    repo = hub.parse(args.repo)
    evaluation = run_folder.read_json(Path(args.source) / "eval.json")
    about = publish.Publication(repo.name, args.licence, evaluation)
    if args.dry_run:
        folder = publish.write(args.source, Path(args.out or repo.name.rsplit("/", 1)[-1]), about)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        found = {"repo": repo.name, "folder": str(folder), "files": files, "commit": None}
        said = f"{folder}: {', '.join(files)}"
    else:
        said = publish.push(args.source, repo, about, private=args.private)
        found = {"repo": repo.name, "folder": None, "files": [], "commit": said}
    if args.json:
        console.dump(found)
    else:
        console.say(said)
    return 0
