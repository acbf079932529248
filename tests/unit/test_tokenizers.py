"""Tokenizers against open_clip, a naive BPE and GPT-2's table of bytes."""

from __future__ import annotations

import json
import pickle

import pytest

from mmzoo.errors import DataError
from mmzoo.modalities.bpe import Merges, byte_symbols, split_gpt2
from mmzoo.modalities.tokenizers import Bytes, ClipBpe, Gpt2Bpe

TEXTS = [
    "A dog barks.",
    "Zwei  Hunde,\tdrei Katzen!",
    "naïve café 日本 🙂",
    "don't we'll 123 abc4",
    "",
    " lead",
]


@pytest.fixture
def tables(tmp_path):
    """Write small GPT-2 tables: all bytes, three merges, a dictionary in another order."""
    symbols = byte_symbols()
    merges = [("Ġ", "c"), ("o", "w"), ("Ġc", "ow"), ("a", "t")]
    pieces = [symbols[byte] for byte in range(256)] + ["".join(pair) for pair in merges]
    encoder = {piece: number for number, piece in enumerate(pieces)}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    (tmp_path / "vocab.bpe").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    order = [258, *range(255, 32, -1), 256, 257, 259]  # bytes 0 … 32 are missing
    lines = [f"{number} {100 - i}" for i, number in enumerate(order)] + ["madeupword0000 0"]
    (tmp_path / "dict.txt").write_text("\n".join(lines) + "\n")
    return tmp_path, len(lines) + 4


def gpt2(tables, **options) -> Gpt2Bpe:
    folder, vocab_size = tables
    return Gpt2Bpe.Config(tables=str(folder), **{"vocab_size": vocab_size, **options}).build()


def merged_naively(word: str, pairs: list[tuple[str, str]]) -> list[str]:
    """Apply the pairs one after the other, each wherever it occurs; BPE where no pair makes an older one."""
    parts = list(word)
    for left, right in pairs:
        at = 0
        while at < len(parts) - 1:
            if (parts[at], parts[at + 1]) == (left, right):
                parts[at : at + 2] = [left + right]
            at += 1
    return parts


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_utf8_and_come_back(text):
    tokenizer = Bytes.Config().build()
    ids = tokenizer.encode(text)
    assert ids == [byte + 3 for byte in text.encode()] + [1]
    assert tokenizer.decode([*ids, 0, 0]) == text
    assert max(ids) < tokenizer.vocab_size == 259


def test_bytes_cut_keeps_the_end_mark_and_bad_ids_give_nothing():
    tokenizer = Bytes.Config().build()
    assert tokenizer.encode("abcdef", max_tokens=4) == [100, 101, 102, 1]
    assert tokenizer.decode([100, 2, 300, 1]) == "a"
    assert tokenizer.decode(tokenizer.encode("é", max_tokens=2)) == "\ufffd"


@pytest.mark.parametrize("text", [*TEXTS, "&amp;amp; &lt;b&gt;", "<end_of_text>", "UPPER lower"])
def test_clip_ids_are_those_of_open_clip(text):
    from open_clip.tokenizer import tokenize

    tokenizer = ClipBpe.Config().build()
    expected = tokenize(text, context_length=77)[0].tolist()
    ids = tokenizer.encode(text, max_tokens=77)
    assert ids + [tokenizer.pad_id] * (77 - len(ids)) == expected
    assert tokenizer.encode(text) == ids


def test_clip_cuts_long_texts_as_open_clip_does():
    from open_clip.tokenizer import tokenize

    tokenizer, text = ClipBpe.Config().build(), "the quick brown fox jumps! " * 30
    assert tokenizer.encode(text, max_tokens=77) == tokenize(text, context_length=77)[0].tolist()
    assert tokenizer.encode(text, max_tokens=3) == [49406, 518, 49407]


def test_clip_decodes_signs_that_share_the_padding_id():
    tokenizer = ClipBpe.Config().build()
    assert tokenizer.decode([*tokenizer.encode("wow! a dog"), 0, 0, 0]) == "wow ! a dog"


def test_building_reads_no_table():
    assert ClipBpe.Config().build().vocab_size == 49_408
    assert Gpt2Bpe.Config(tables="nowhere").build().vocab_size == 50_264


def test_gpt2_looks_pieces_up_in_the_dictionary(tables):
    tokenizer = gpt2(tables)
    dictionary = [line.split(" ")[0] for line in (tables[0] / "dict.txt").read_text().splitlines()]

    def line_of(number: int) -> int:
        return 4 + dictionary.index(str(number))

    assert tokenizer.encode("COW") == [line_of(258), 2]
    assert tokenizer.encode("cat") == [line_of(256), line_of(259), 2]
    assert tokenizer.encode("cow cow") == [4, 4, 2]
    assert tokenizer.encode("a") == [3, line_of(ord("a")), 2]  # the blank is not in this dictionary
    assert tokenizer.decode([4, line_of(256), line_of(259), 2, 1]) == "cow cat"
    assert gpt2(tables, lower_case=False).encode("CAT")[1:] == [line_of(ord(c)) for c in "CAT"] + [2]


def test_gpt2_keeps_max_ids_and_the_end_mark(tables):
    assert gpt2(tables, max_ids=3).encode("cow " * 9) == [4, 4, 4, 2]
    assert gpt2(tables).encode("cow " * 9, max_tokens=3) == [4, 4, 2]
    assert len(gpt2(tables).encode("cow " * 99)) == 71


def test_gpt2_speaks_of_missing_and_malformed_tables(tables, tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"gpt2_bpe: cannot read .*empty/encoder.json; expected GPT-2's BPE tables"
    ):
        Gpt2Bpe.Config(tables=str(tmp_path / "empty")).build().encode("x")
    with pytest.raises(
        DataError, match=r"lines in .*dict.txt; expected vocab_size - 4 = 96. Set vocab_size="
    ):
        gpt2(tables, vocab_size=100).encode("x")
    (tables[0] / "encoder.json").write_text("{")
    with pytest.raises(DataError, match="malformed tables in"):
        gpt2(tables).encode("x")
    monkeypatch.setenv("MMZOO_DATA", str(tmp_path / "else"))
    with pytest.raises(DataError, match=r"cannot read .*else/gpt2_bpe/encoder.json"):
        Gpt2Bpe.Config().build().encode("x")


def test_gpt2_round_trip_with_real_tables(shared):
    tokenizer = Gpt2Bpe.Config(
        tables=str(shared / "data" / "gpt2_bpe"), lower_case=False, max_ids=999
    ).build()
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["bytes", "clip_bpe"])
def test_tokenizers_travel_to_other_processes(name):
    from mmzoo import registry

    tokenizer = registry.find("tokenizers", name).Config().build()
    ids = tokenizer.encode("a dog")
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.encode("a dog") == ids
    assert len(pickle.dumps(tokenizer)) < 1000


def test_gpt2_travels_with_its_options(tables):
    tokenizer = gpt2(tables, max_ids=2)
    tokenizer.encode("cow")
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.vocab_size == tables[1]
    assert copied.encode("cow cow cow") == [4, 4, 2]


@pytest.mark.parametrize("word", ["abcabc", "aabbcc", "cabab", "a", "bcbcbcabcab"])
def test_merging_takes_the_pair_learned_first(word):
    pairs = [("a", "b"), ("b", "c"), ("ab", "c"), ("bc", "bc"), ("abc", "abc")]
    symbols = {ord(c): c for c in "abc"}
    assert list(Merges(pairs, symbols).split(word)) == merged_naively(word, pairs)


def test_byte_symbols_are_printable_and_distinct():
    symbols = byte_symbols()
    assert len(set(symbols.values())) == 256
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols.values())
    assert (symbols[ord("A")], symbols[ord(" ")], symbols[ord("\n")], symbols[0xAD]) == ("A", "Ġ", "Ċ", "Ń")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" a  b\n c", [" a", " ", " b", "\n", " c"]),
        ("don't they'll I'd", ["don", "'t", " they", "'ll", " I", "'d"]),
        ("abc123 456,!? x", ["abc", "123", " 456", ",!?", " x"]),
        ("tail  ", ["tail", "  "]),
        ("naïve Ⅷ½", ["naïve", " Ⅷ½"]),
    ],
)
def test_split_into_gpt2_words(text, words):
    assert split_gpt2(text) == words
