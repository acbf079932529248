"""Run golden files of reference implementations through mmzoo: `python -m tests.parity FILE.safetensors …`.

A file's family follows from its name, its model from the json beside it. Prints the worst error of every
output; leaves with 1 if one is past its tolerance, with 2 if a file cannot be run.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch

from tests.parity.golden import GoldenError, Row, compare


def line(row: Row, width: int) -> str:
    """Return what is printed of one output."""
    shape = "x".join(str(n) for n in row.expected.shape) or "scalar"
    kind = "relative" if row.relative else "absolute"
    word = "ok" if row.passed else "FAIL"
    return f"  {row.name.ljust(width)}  {shape:>14}  {row.error:9.2e} of {row.tolerance:.0e} {kind}  {word}"


def main(arguments: list[str] | None = None) -> int:
    """Compare every file and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.safetensors")
    parser.add_argument("-q", "--quiet", action="store_true", help="print a file's summary and failures only")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    code = 0
    for path in options.files:
        try:
            rows = compare(path)
        except GoldenError as error:
            sys.stderr.write(f"parity: error: {error}\n")
            return 2
        failed = [row for row in rows if not row.passed]
        shown = failed if options.quiet else rows
        width = max((len(row.name) for row in rows), default=0)
        worst = max((row.error for row in rows), default=0.0)
        told = (
            f"{len(failed)} of {len(rows)} outputs past tolerance" if failed else f"{len(rows)} outputs agree"
        )
        sys.stdout.write("\n".join([path.name, *(line(row, width) for row in shown)]) + "\n")
        sys.stdout.write(f"  {told}; worst error {worst:.2e}\n")
        code |= bool(failed) or not rows
    return code


if __name__ == "__main__":
    sys.exit(main())
