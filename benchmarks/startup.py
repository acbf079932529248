"""CPU seconds of the commands that must be instant, against importing what a model zoo usually starts with.

Each round runs every variant once, in an order reversed every round; the median is printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys

VARIANTS = {
    "mmzoo --help": [sys.executable, "-m", "mmzoo", "--help"],
    "mmzoo list": [sys.executable, "-m", "mmzoo", "list"],
    "mmzoo info five_senses": [sys.executable, "-m", "mmzoo", "info", "five_senses"],
    "import timm": [sys.executable, "-c", "import timm"],
    "import open_clip": [sys.executable, "-c", "import open_clip"],
}
PEER = "import timm"


def cpu_seconds(command: list[str]) -> float:
    """Return user + system seconds of one run, children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all variants")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        names = list(VARIANTS)
        for name in names if number % 2 == 0 else names[::-1]:
            seconds[name].append(cpu_seconds(VARIANTS[name]))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    if options.json:
        print(json.dumps({n: {"cpu_s": m, "ratio_to_timm": medians[PEER] / m} for n, m in medians.items()}))
        return
    for name, median in medians.items():
        print(f"{name:24} {median:6.3f} CPU s   {medians[PEER] / median:6.1f}x faster than `{PEER}`")


if __name__ == "__main__":
    main()
