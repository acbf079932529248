"""Write the embeddings of any data, a row for each sample and sense. Continues where it was stopped."""

from __future__ import annotations

import argparse

from mmzoo.cli import console, logs, words
from mmzoo.errors import ConfigError

EXAMPLES = [
    ("mmzoo embed runs/five_senses/demo test -o test.npz", "a split of the data the model was trained on"),
    ("mmzoo embed runs/cifar10/best photos/ -o photos.npz", "a folder or tar of files"),
    ("mmzoo embed runs/five_senses/demo rows.csv -o rows.parquet", "a CSV or JSONL manifest"),
    ("mmzoo embed run/export shards -o out.npz data=fsdd", "data described by a config"),
]
NEXT = 'numpy.load("out.npz"): ids, modality, vectors, one row for each'
SUFFIXES = (".npz", ".parquet")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "words", nargs="*", metavar="MODEL DATA key=value", help="a run, checkpoint or model; data"
    )
    parser.add_argument("-o", "--out", help="the file to write: .npz or .parquet (extra: export)")
    parser.add_argument(
        "--head", default="", help="task whose outputs to write (default: the contrastive one)"
    )
    parser.add_argument("--shard-size", type=int, default=1024, help="samples between saves (default: 1024)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples at once (default: 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Embed and say what was written."""
    names, overrides = words.required(args.words, "mmzoo embed", ["MODEL", "DATA"])
    if not args.out or not args.out.endswith(SUFFIXES):
        found = repr(args.out) if args.out else "no output file"
        raise ConfigError.at("mmzoo embed -o", found, "a name in .npz or .parquet", "Add -o out.npz.")
    if min(args.shard_size, args.batch_size) < 1:
        found = str(min(args.shard_size, args.batch_size))
        raise ConfigError.at("mmzoo embed", found, "sizes of 1 or more", "Leave them out.")
    logs.setup()
    from mmzoo.cli import embedding

    options = embedding.Options(
        out=args.out,
        head=args.head,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        device=args.device,
        overwrite=args.overwrite,
    )
    summary = embedding.embed(names[0], names[1], overrides, options)
    if args.json:
        console.dump(summary)
    else:
        shape = f"{summary['rows']:,} vectors of {summary['dim']} numbers"
        console.say(
            f"{summary['out']}: {shape} ({summary['samples']:,} samples, {', '.join(summary['modalities'])})"
        )
    return 0
