"""The words after a verb: a name, then `key=value` overrides, in any order with the flags."""

from __future__ import annotations

from collections.abc import Sequence

from mmzoo.errors import ConfigError


def is_override(word: str) -> bool:
    """Say whether a word changes the configuration (`a.b=1`, `+a.b=1`, `~a.b`) rather than names a thing."""
    return "=" in word or word.startswith(("+", "~"))


def split(words: Sequence[str], command: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names (at most as many as `names` describes) and the overrides."""
    given = [word for word in words if not is_override(word)]
    if len(given) > len(names):
        extra = given[len(names)]
        do = f"To change an option write its dotted key, e.g. learner.optim.lr=3e-4; see `{command} -h`."
        raise ConfigError.at(command, f"{extra!r} after {given[0]!r}", "key=value", do)
    return given, [word for word in words if is_override(word)]


def required(words: Sequence[str], command: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Like `split`, but every name must be there."""
    given, overrides = split(words, command, names)
    if len(given) < len(names):
        missing = names[len(given)]
        raise ConfigError.at(
            command, f"no {missing}", " ".join(names), f"See the examples of `{command} -h`."
        )
    return given, overrides
