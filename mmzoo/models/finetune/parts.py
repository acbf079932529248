"""Parts of a model by short names: `trunk`, `trunk.blocks.0-5`, `trunk.ffn.image`, `modalities.audio`.

A part is a set of parameters. Its name is a dotted path into the model, with these liberties:
`modalities.x` for `adapters.x`; `blocks.0-5` for several blocks; `trunk.ffn`, `trunk.mixer` for those of
every block; `ffn.image`, `norm.image` for a modality's own; `norms` for all norm layers (below what stands
before it); `*`, `?` and `[…]` as in a shell, where `*` also crosses dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from mmzoo.errors import ConfigError, close_matches

NORMS = "norms"
"""Last word of a part that means all norm layers below."""
SCATTERED = 3
"""More paths than this within a part are counted instead of named."""
_RANGE = re.compile(r"(\d+)-(\d+)")
_MODALITY_HOLDERS = {"ffn": r"(?:networks\.)?", "norm": r"(?:norms\.)?", "subjects": "(?:of-)?"}
"""What the model puts between a word and the name of a modality (or subject) behind it."""


def select(model: nn.Module, part: str, where: str) -> list[str]:
    """Return the names of a part's parameters; a name that means nothing gets its close matches."""
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, None] = {}
    for single in _singles(part):
        matching = _matching(model, names, single)
        if not matching:
            do = close_matches(single, known_parts(model))
            raise ConfigError.at(where, f"{single!r} is no part of the model", "a part of it", do)
        found |= dict.fromkeys(matching)
    return [name for name in names if name in found]


def known_parts(model: nn.Module) -> list[str]:
    """Return the parts that have a name of their own, for messages and help."""
    known: dict[str, None] = {NORMS: None}
    for name, _ in model.named_parameters():
        words = name.split(".")
        words[0] = "modalities" if words[0] == "adapters" else words[0]
        for length in range(1, min(len(words), 4)):
            known[".".join(words[:length])] = None
        if words[0] == "trunk" and len(words) > 4 and words[1] == "blocks":
            inner = [w for w in words[3:] if w != "networks"]
            known |= dict.fromkeys([f"trunk.{inner[0]}", f"trunk.{inner[0]}.{inner[1]}"])
        known[f"{words[0]}.{NORMS}"] = None
    return list(known)


def summarise(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Say which parts a set of parameters makes up: whole parts by name, scattered ones counted."""
    return _cover("", [name for name, _ in model.named_parameters()], set(names))


def _cover(prefix: str, below: Sequence[str], chosen: set[str]) -> list[str]:
    """Return the shortest paths below `prefix` that cover what is chosen of the names `below`."""
    depth = prefix.count(".") + 1 if prefix else 0
    said: list[str] = []
    for head in dict.fromkeys(".".join(name.split(".")[: depth + 1]) for name in below):
        own = [n for n in below if n == head or n.startswith(f"{head}.")]
        count = sum(n in chosen for n in own)
        short = re.sub(r"^adapters", "modalities", head)
        if count == len(own):
            said.append(short)
        elif count:
            inner = _cover(head, own, chosen)
            scattered = len(inner) > SCATTERED and depth >= 1 and head != "trunk.blocks"
            said += [f"{short} ({count} of {len(own)} tensors)"] if scattered else inner
    return said


def _singles(part: str) -> list[str]:
    """Write out a range of blocks."""
    words = part.split(".")
    for at, word in enumerate(words):
        if span := _RANGE.fullmatch(word):
            numbers = range(int(span[1]), int(span[2]) + 1)
            return [s for i in numbers for s in _singles(".".join([*words[:at], str(i), *words[at + 1 :]]))]
    return [part]


def _matching(model: nn.Module, names: Sequence[str], part: str) -> list[str]:
    words = part.split(".")
    if words[-1] == NORMS:
        below = _matching(model, names, ".".join(words[:-1])) if words[:-1] else names
        return [name for name in below if _is_norm(model, name)]
    pattern = re.compile(_pattern(words))
    return [name for name in names if pattern.fullmatch(name)]


def _is_norm(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return "Norm" in type(owner).__name__


def _pattern(words: list[str]) -> str:
    """Return the regular expression of the parameters below a part."""
    if words[0] == "modalities":
        words = ["adapters", *words[1:]]
    if words[0] == "trunk" and words[1:2] in (["ffn"], ["mixer"]):
        words = ["trunk", "blocks", "?*", *words[1:]]
    steps = [_glob(word) + r"\." + _MODALITY_HOLDERS.get(word, "") for word in words[:-1]]
    return "".join(steps) + _glob(words[-1]) + r"(?:\..+)?"


def _glob(word: str) -> str:
    """Translate a shell pattern; `*` may cross dots."""
    pieces = re.split(r"(\*|\?|\[[^\]]+\])", word)
    signs = {"*": ".*", "?": "."}
    return "".join(signs.get(p, p if p.startswith("[") else re.escape(p)) for p in pieces)
