"""Byte pair encoding: GPT-2's split into words, its printable stand-ins for bytes, and the merging itself."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CACHE_LIMIT = 65_536


class Merges:
    """Splits a word into pieces by joining, again and again, the neighbouring pair that was learned first.

    Words are cached up to a limit.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], symbols: Mapping[int, str]) -> None:
        """Keep the rank of each pair, in the order learned, and the symbol of each byte."""
        self._rank = {pair: rank for rank, pair in enumerate(pairs)}
        self._symbols = dict(symbols)
        self._bytes = {symbol: byte for byte, symbol in symbols.items()}
        self._cache: dict[str, tuple[str, ...]] = {}

    def split(self, word: str) -> tuple[str, ...]:
        """Return the pieces of a word."""
        if word not in self._cache:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[word] = self._merge(
                [self._symbols[byte] for byte in word.encode("utf-8", errors="replace")]
            )
        return self._cache[word]

    def join(self, pieces: Iterable[str]) -> str:
        """Return the text of pieces; an incomplete character becomes U+FFFD."""
        return bytes(self._bytes[symbol] for symbol in "".join(pieces)).decode("utf-8", errors="replace")

    def _merge(self, parts: list[str]) -> tuple[str, ...]:
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            joined: list[str] = []
            at = 0
            while at < len(parts):
                together = tuple(parts[at : at + 2]) == best
                joined.append("".join(best) if together else parts[at])
                at += 2 if together else 1
            parts = joined
        return tuple(parts)


def byte_symbols() -> dict[int, str]:
    """Return GPT-2's printable character for each byte: Latin-1's, or the next one above U+00FF."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


@functools.cache
def _gpt2_words() -> Any:
    import regex  # a dependency of open_clip; Python's own re knows no Unicode classes

    return regex.compile(
        r"""'(?:[sdmt]|re|ve|ll)"""  # English endings
        r"""|\x20?\p{L}+|\x20?\p{N}+|\x20?[^\s\p{L}\p{N}]+"""  # letters, digits or signs, a blank before
        r"""|\s+(?!\S)|\s+"""  # of other space the last character goes with what follows
    )


def split_gpt2(text: str) -> list[str]:
    """Split a text into GPT-2's words; joined they are the text.

    Ref: the pattern of GPT-2's encoder: English endings, then runs of letters, digits or signs, then space.
    """
    return _gpt2_words().findall(text)
