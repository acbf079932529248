"""Tokenizers: from a text to the ids a model reads, end mark included, and back.

Tables are read on first use, so that building a model from a checkpoint needs none of them.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmzoo import schema
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.bpe import Merges, byte_symbols, split_gpt2

BLANK = byte_symbols()[ord(" ")]
"""GPT-2's printable stand-in for the blank that begins a word."""


class Tokenizer(schema.Configurable):
    """Subclasses give `ids` and `text`, the marks around a text, `pad_id` and `vocab_size`.

    A model has its own CLS token, so no tokenizer but `clip_bpe` (whose weights expect one) puts a start
    mark.
    """

    vocab_size: int
    "Ids are below this."
    pad_id: int
    "What a batch may hold beyond a text's end; a row's length tells, not the id."
    prefix: tuple[int, ...] = ()
    "Marks put before every text."
    suffix: tuple[int, ...] = ()
    "Marks put behind every text."

    def __init__(self, config: Any) -> None:
        """Keep the options; read nothing yet."""
        self.config = config

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text without marks."""
        raise NotImplementedError

    def text(self, ids: list[int]) -> str:
        """Return the text of ids that are no marks."""
        raise NotImplementedError

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Return the ids of a text, marks included; a text too long loses its end, never its marks."""
        ids = self.ids(text)
        if max_tokens is not None:
            ids = ids[: max(0, max_tokens - len(self.prefix) - len(self.suffix))]
        return [*self.prefix, *ids, *self.suffix]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; marks and padding give nothing."""
        marks = {self.pad_id, *self.prefix, *self.suffix}
        return self.text([i for i in ids if i not in marks])

    def words(self, ids: Sequence[int]) -> list[int]:
        """Return the number, from 0, of the word that each id belongs to; -1 for marks."""
        marks = {*self.prefix, *self.suffix}
        numbers: list[int] = []
        word, fresh = -1, True
        for i in ids:
            if i in marks:
                numbers.append(-1)
                fresh = True
                continue
            word += fresh or self.begins_word(i)
            fresh = self.ends_word(i)
            numbers.append(word)
        return numbers

    def begins_word(self, token: int) -> bool:
        """Say whether a token can only begin a word."""
        del token
        return False

    def ends_word(self, token: int) -> bool:
        """Say whether a token can only end one; unless said otherwise every token is a word of its own."""
        del token
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Leave tables behind when copied to another process; they are read again there."""
        return {"config": self.config}


SPACES = frozenset(3 + byte for byte in b" \t\n\r\f\v")
"""Ids of `Bytes` that are white space."""


class Bytes(Tokenizer):
    """UTF-8 bytes; no table, 259 entries, for tiny models and any language.

    Ids: 0 padding, 1 end, 2 unused, byte b is 3 + b. Ref: ByT5 (arXiv:2105.13626).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    vocab_size = 259
    pad_id = 0
    suffix = (1,)

    def ids(self, text: str) -> list[int]:
        """Return one id a byte."""
        return [3 + byte for byte in text.encode("utf-8", errors="replace")]

    def begins_word(self, token: int) -> bool:
        """Say whether it is white space: a word brings the blank before it."""
        return token in SPACES

    def ends_word(self, token: int) -> bool:
        """Say no: only the blank of the next word tells."""
        del token
        return False

    def text(self, ids: list[int]) -> str:
        """Join the bytes; an incomplete character becomes U+FFFD."""
        return bytes(i - 3 for i in ids if 3 <= i < 259).decode("utf-8", errors="replace")


class ClipBpe(Tokenizer):
    """CLIP's lower-cased byte-level BPE as open_clip has it: start 49406, end 49407, 49,408 entries.

    Padding is 0, as CLIP pads (also the id of "!": only a row's length tells padding from text).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """No options."""

    vocab_size = 49_408
    pad_id = 0
    prefix = (49_406,)
    suffix = (49_407,)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError as error:
            do = "Run: pip install open_clip_torch."
            raise ConfigError.at("tokenizer clip_bpe", str(error), "the package open_clip", do) from error
        return SimpleTokenizer()

    def ids(self, text: str) -> list[int]:
        """Return open_clip's ids (text repaired, unescaped, lower-cased)."""
        return self._tokenizer.encode(text)

    def ends_word(self, token: int) -> bool:
        """Say whether the piece carries the mark of a word's end."""
        return self._tokenizer.decoder[token].endswith("</w>")

    def text(self, ids: list[int]) -> str:
        """Return open_clip's text, each word followed by a blank, the last one stripped."""
        return self._tokenizer.decode(ids).strip()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text between the marks; ids after the end mark are padding."""
        kept = list(ids)
        if self.suffix[0] in kept:
            kept = kept[: kept.index(self.suffix[0])]
        return self.text([i for i in kept if i not in self.prefix])


class Gpt2Bpe(Tokenizer):
    """GPT-2's byte BPE with fairseq's dictionary, as ONE-PEACE's released weights read text.

    The text is lower-cased and given one leading blank; its BPE ids are looked up in dict.txt, whose line i
    has id 4 + i after <s> 0, <pad> 1, </s> 2, <unk> 3; at most `max_ids` are kept and </s> is appended.
    Ref: ONE-PEACE, fairseq's GPT-2 BPE and Dictionary.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Where the tables are, and the limits of the released weights."""

        tables: str | None = None
        "Folder of encoder.json, vocab.bpe and dict.txt; null = gpt2_bpe in MMZOO_DATA (or in ./data)."
        max_ids: int = 70
        "Ids of a text kept before </s>."
        lower_case: bool = True
        "Whether the text is lower-cased first."
        vocab_size: int = 50_264
        "Entries of dict.txt and the four marks."

    pad_id = 1
    suffix = (2,)
    unknown_id = 3
    num_marks = 4

    def __init__(self, config: Any) -> None:
        """Keep the options; the tables are read with the first text."""
        super().__init__(config)
        self.vocab_size = config.vocab_size

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew from the options."""
        self.__init__(state["config"])

    @functools.cached_property
    def _tables(self) -> _Gpt2Tables:
        return read_gpt2_tables(self.config)

    def ids(self, text: str) -> list[int]:
        """Return dictionary ids, cut at `max_ids`."""
        tables = self._tables
        text = f" {text.lower() if self.config.lower_case else text}"
        pieces = (piece for word in split_gpt2(text) for piece in tables.merges.split(word))
        return [tables.id_of_piece.get(piece, self.unknown_id) for piece in pieces][: self.config.max_ids]

    def begins_word(self, token: int) -> bool:
        """Say whether the piece brings the blank before a word."""
        return self._tables.piece_of_id.get(token, "").startswith(BLANK)

    def ends_word(self, token: int) -> bool:
        """Say no: only the blank of the next word tells."""
        del token
        return False

    def text(self, ids: list[int]) -> str:
        """Return the text without its leading blank."""
        tables = self._tables
        pieces = [tables.piece_of_id[i] for i in ids if i in tables.piece_of_id]
        return tables.merges.join(pieces).removeprefix(" ")


@dataclass(frozen=True)
class _Gpt2Tables:
    merges: Merges
    id_of_piece: dict[str, int]
    piece_of_id: dict[int, str] = field(repr=False)


def read_gpt2_tables(config: Gpt2Bpe.Config) -> _Gpt2Tables:
    """Read encoder.json (piece -> BPE id), vocab.bpe (merges) and dict.txt (BPE id -> line number)."""
    folder = pathlib.Path(config.tables or pathlib.Path(os.environ.get("MMZOO_DATA", "data"), "gpt2_bpe"))
    names = ("encoder.json", "vocab.bpe", "dict.txt")
    try:
        encoder, vocab, dictionary = [(folder / name).read_text(encoding="utf-8") for name in names]
    except OSError as error:
        found = f"cannot read {error.filename}"
        do = "Set the tokenizer's tables=FOLDER (or MMZOO_DATA); the files are those of GPT-2 and fairseq."
        raise DataError.at("tokenizer gpt2_bpe", found, "GPT-2's BPE tables", do) from error
    try:
        bpe_ids: dict[str, int] = json.loads(encoder)
        merges = [tuple(line.split(" ")) for line in _lines(vocab) if not line.startswith("#version")]
        entries = [line.rsplit(" ", 1)[0] for line in _lines(dictionary)]
        table = Merges([(left, right) for left, right in merges], byte_symbols())
    except ValueError as error:
        do = "Copy the three files again."
        raise DataError.at(
            "tokenizer gpt2_bpe", f"malformed tables in {folder} ({error})", "GPT-2's", do
        ) from error
    if len(entries) + Gpt2Bpe.num_marks != config.vocab_size:
        found = f"{len(entries)} lines in {folder / 'dict.txt'}"
        do = f"Set vocab_size={len(entries) + Gpt2Bpe.num_marks}, or use the tables of the weights."
        raise DataError.at("tokenizer gpt2_bpe", found, f"vocab_size - 4 = {config.vocab_size - 4}", do)
    piece_of_bpe = {str(number): piece for piece, number in bpe_ids.items()}
    piece_of_id = {
        Gpt2Bpe.num_marks + i: piece_of_bpe[entry] for i, entry in enumerate(entries) if entry in piece_of_bpe
    }
    return _Gpt2Tables(table, {piece: i for i, piece in piece_of_id.items()}, piece_of_id)


def _lines(text: str) -> Iterable[str]:
    return (line for line in text.split("\n") if line)
