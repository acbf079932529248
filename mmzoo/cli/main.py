"""The command `mmzoo`: finds the verb, imports only its file, turns every failure into a line and a code.

Exit codes: 0 done, 1 failed, 2 something to mend in the command or the config, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from mmzoo import __version__
from mmzoo.errors import ConfigError, MmzooError, close_matches

VERBS = {
    "train": "train a recipe; leaves a complete run folder",
    "eval": "measure a run, checkpoint or model on a split",
    "embed": "write embeddings of any data as .npz or .parquet",
    "download": "fetch weights by name, from the hub or any address",
    "verify": "check weights: hash, layout, golden output",
    "convert": "turn weights from one layout into another",
    "push": "publish a run on the hub",
    "list": "list models, recipes and all building blocks",
    "info": "explain one of them: options, defaults, parameters",
    "config": "print a recipe's resolved configuration",
    "data": "inspect data on disk, pack them into shards, or make synthetic data",
    "report": "rebuild plots and report.html of a run",
}

USAGE = f"""\
usage: mmzoo COMMAND … [key=value …]

A multimodal, multi-task model zoo ({__version__}).

commands:
{{verbs}}

examples:
  mmzoo train                              # the demo: five senses, one model, a few minutes on a CPU
  mmzoo list                               # everything there is
  mmzoo train cifar10 learner.optim.lr=3e-4 --dry-run
  mmzoo COMMAND -h                         # options and examples of one command
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors with close matches."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown is None:
            raise self._misused(message)
        flag = unknown.group(1)
        dotted = re.match(r"--?([\w.]+)=", flag)
        if dotted and f"--{dotted.group(1)}" not in self._option_string_actions:
            raise ConfigError.at(
                self.prog, repr(flag), "key=value without dashes", f"Write {flag.lstrip('-')}."
            )
        known = [f for f in self._option_string_actions if f.startswith("--")]
        do = close_matches(flag.split("=")[0], known)
        raise ConfigError.at(self.prog, f"{flag!r} is unknown", "an option of this command", do)

    def _misused(self, message: str) -> MmzooError:
        """Say in the house's one line what argparse found wrong with an argument."""
        do = f"See `{self.prog} -h`."
        if choice := re.fullmatch(r"argument (.+?): invalid choice: (.+?) \(choose from (.+)\)", message):
            return ConfigError.at(f"{self.prog} {choice[1]}", choice[2], f"one of {choice[3]}", do)
        if value := re.fullmatch(r"argument (.+?): invalid (\w+) value: (.+)", message):
            return ConfigError.at(f"{self.prog} {value[1]}", value[3], value[2], do)
        if absent := re.fullmatch(r"the following arguments are required: (.+)", message):
            return ConfigError.at(self.prog, f"no {absent[1]}", absent[1], do)
        return ConfigError(f"{self.prog}: {message}. {do}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except MmzooError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"mmzoo: error: {line}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("mmzoo: interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has left
        return 0
    except (
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
    ) as error:
        return _unusable(error) if error.filename is not None else _crashed(error)
    except OSError as error:
        return _full(error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else _crashed(error)
    except Exception as error:
        return _crashed(error)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        if argv[1:] and argv[1] in VERBS:
            return _dispatch([argv[1], "-h"])
        verbs = "\n".join(f"  {verb:8} {summary}" for verb, summary in VERBS.items())
        sys.stdout.write(USAGE.format(verbs=verbs))
        return 0
    if argv[0] in ("-V", "--version", "version"):
        sys.stdout.write(f"mmzoo {__version__}\n")
        return 0
    if argv[0] not in VERBS:
        raise _unknown_verb(argv[0])
    command = importlib.import_module(f"mmzoo.cli.{argv[0]}")
    parser = Parser(
        prog=f"mmzoo {argv[0]}",
        description=(command.__doc__ or "").strip(),
        epilog=_epilog(command.EXAMPLES, command.NEXT),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    try:
        args = parser.parse_intermixed_args(argv[1:])
    except SystemExit as leave:  # argparse leaves this way after -h
        return int(leave.code or 0)
    return int(command.run(args))


def _unknown_verb(verb: str) -> MmzooError:
    from mmzoo.configs import list_configs

    if verb in list_configs("recipe"):
        return ConfigError.at("mmzoo", f"{verb!r} is a recipe", "a command", f"Type `mmzoo train {verb}`.")
    return ConfigError.at("mmzoo", f"{verb!r} is unknown", "a command", close_matches(verb, VERBS))


def _epilog(examples: Sequence[tuple[str, str]], follow: str) -> str:
    width = max(len(command) for command, _ in examples)
    lines = [f"  {command.ljust(width)}  # {meaning}" for command, meaning in examples]
    return "\n".join(["examples:", *lines, "", f"next: {follow}"])


def _full(error: OSError) -> int:
    """Write one line where the disk has no room; no traceback, which would need some."""
    where = str(error.filename or "disk")
    do = "Make room, or name a path on another disk."
    found = ConfigError.at(where, f"cannot write ({error.strerror})", "free space", do)
    sys.stderr.write(f"mmzoo: error: {found}\n")
    return found.exit_code


def _unusable(error: OSError) -> int:
    """Write one line for a path that cannot be read or written."""
    if os.environ.get("MMZOO_LOG_LEVEL", "").lower() == "debug":
        sys.stderr.write("".join(traceback.format_exception(error)))
    found = ConfigError.at(
        str(error.filename),
        f"cannot be used ({error.strerror})",
        "a path that can be read or written",
        "Check the path and its permissions.",
    )
    sys.stderr.write(f"mmzoo: error: {found}\n")
    return found.exit_code


def _crashed(error: Exception) -> int:
    """Write the traceback to the run's log (or a file of its own) and one line to stderr."""
    from mmzoo.cli import logs

    text = "".join(traceback.format_exception(error))
    path = logs.crash_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        where = f"The traceback is in {path}"
    except OSError:
        where = "There was nowhere to write the traceback"
    if os.environ.get("MMZOO_LOG_LEVEL", "").lower() == "debug":
        sys.stderr.write(text)
    cause = (str(error).strip().splitlines() or [""])[0]
    sys.stderr.write(
        f"mmzoo: failed: {type(error).__name__}: {cause}. {where} (MMZOO_LOG_LEVEL=debug shows it).\n"
    )
    return 1
