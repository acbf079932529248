"""Text: token embeddings, learned positions, a CLS token, bucketed 1-D relative biases."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import nn

from mmzoo import schema
from mmzoo.batch import Item, ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.layers.init import trunc_normal_
from mmzoo.layers.masking import Maskable, tokens_of
from mmzoo.layers.positions import RelativeBias1d
from mmzoo.modalities.base import ModalityAdapter, Preprocess
from mmzoo.modalities.tokenizers import Tokenizer


class Cleaning(str, Enum):
    """What is done to a text before the tokenizer sees it."""

    NONE = "none"
    CAPTION = "caption"


class TextPreprocess(Preprocess):
    """From a text to the ids (n) of its tokens."""

    reads_paths: ClassVar[bool] = False

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; they belong to the weights."""

        tokenizer: Any = schema.one("tokenizers", "clip_bpe")
        "Which tokenizer, with its options."
        max_tokens: int = 77
        "Longest sequence of ids, marks included; longer texts lose their end (ONE-PEACE: 71 with gpt2_bpe)."
        clean: Cleaning = Cleaning.NONE
        "none, or caption: as ONE-PEACE's training sets, no leading signs and no runs of blanks."

        def __post_init__(self) -> None:
            """Leave room for the marks and a token."""
            if self.max_tokens < 3:
                raise ConfigError.at("max_tokens", f"{self.max_tokens}", "at least 3", "Raise it.")

    def __init__(self, config: Any) -> None:
        """Build the tokenizer (its tables are read with the first text)."""
        self.config = config
        self.tokenizer: Tokenizer = config.tokenizer.build()

    def decode(self, data: bytes, name: str) -> str:
        """Read UTF-8 text, a leading byte order mark and the last line's end dropped."""
        try:
            return data.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError.at(
                name, f"no UTF-8 text ({error})", "UTF-8", "Convert or remove the file."
            ) from error

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Turn a text into an Item of int64 ids; training changes nothing."""
        del generator
        if not isinstance(raw, str):
            raise DataError.at(
                "text", f"{type(raw).__name__}", "str", "Decode bytes, pass one text at a time."
            )
        text = clean_caption(raw) if self.config.clean is Cleaning.CAPTION else raw
        return Item(torch.tensor(self.tokenizer.encode(text, self.config.max_tokens), dtype=torch.int64))


def clean_caption(text: str) -> str:
    """Drop leading signs, make one blank of each run of white space, strip both ends.

    Ref: ONE-PEACE's training data sets (its inference interface skips this).
    """
    return " ".join(text.lstrip(",.!?*#:;~").split())


class TextAdapter(ModalityAdapter):
    """Token ids as embeddings with positions, after a CLS token.

    Shape: values (k n) int -> tokens (k 1+n d), biases (1 h 1+n 1+n).
    Ref: ONE-PEACE section 3.1 (text adapter).
    """

    kind = "text"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options; the defaults are those of the released 4B model, but for the tokenizer."""

        preprocess: TextPreprocess.Config = field(default_factory=TextPreprocess.Config)
        "From a text to ids."
        vocab_size: int | None = None
        "Rows of the embedding; null = the tokenizer's entries."
        embedding_dim: int | None = None
        "Width of the embedding before a linear map to the trunk's (ALBERT section 3.1); null = the trunk's."
        max_positions: int = 514
        "Rows of the position table, CLS included."
        num_buckets: int = 256
        "Buckets a side of the relative bias: distances up to half of it are told apart exactly."
        num_bias_tables: int = 1
        "Relative bias tables: 0 = off, 1 = shared by all layers, otherwise one for each layer of the trunk."
        type_embedding: bool = False
        "Add one learned vector to every token, CLS included."

        def __post_init__(self) -> None:
            """Check that the position table holds the longest text."""
            if self.max_positions <= self.preprocess.max_tokens:
                found = f"{self.max_positions} for texts of {self.preprocess.max_tokens} tokens and CLS"
                expected = f"at least {self.preprocess.max_tokens + 1}"
                raise ConfigError.at(
                    "max_positions", found, expected, "Raise it or lower preprocess.max_tokens."
                )
            if self.embedding_dim is not None and self.embedding_dim < 1:
                raise ConfigError.at(
                    "embedding_dim", f"{self.embedding_dim}", "1 or more, or null", "Raise it."
                )
            if self.num_bias_tables < 0 or self.num_buckets < 2:
                found = f"{self.num_bias_tables}, {self.num_buckets}"
                raise ConfigError.at("num_bias_tables, num_buckets", found, "at least 0 and 2", "Raise them.")

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Build the embedding, the positions, the CLS token and the biases."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        tokenizer: Tokenizer = config.preprocess.tokenizer.build()
        vocab_size = config.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            found = f"{vocab_size} for a tokenizer of {tokenizer.vocab_size} entries"
            raise ConfigError.at(f"{name}.vocab_size", found, "no fewer", "Raise it or leave it open (null).")
        self.tokenizer, self.pad_id = tokenizer, tokenizer.pad_id
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim or dim)
        trunc_normal_(self.embedding.weight)
        self.widen = nn.Linear(config.embedding_dim, dim, bias=False) if config.embedding_dim else None
        self.positions = nn.Parameter(trunc_normal_(torch.empty(config.max_positions, dim)))
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        self.type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if config.type_embedding else None
        self.biases = nn.ModuleList(
            RelativeBias1d(config.num_buckets, num_heads) for _ in range(config.num_bias_tables)
        )

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the texts; ids beyond a row's end are never looked at."""
        lengths = x.sizes[:, 0]
        longest = int(lengths.max())
        if longest >= len(self.positions):
            found = f"a text of {longest} tokens and CLS"
            do = "Lower preprocess.max_tokens or raise max_positions."
            raise ShapeError.at(self.name, found, f"at most {len(self.positions)}", do)
        valid = torch.arange(longest + 1) <= lengths[:, None]
        ids = x.values[:, :longest]
        if not bool(valid.all()):
            ids = ids.masked_fill(~valid[:, 1:].to(ids.device, non_blocking=True), self.pad_id)
        content = self.embedding(ids)
        if self.widen is not None:
            content = self.widen(content)
        cls = self.cls_token.to(content.dtype).expand(len(x), -1, -1)
        tokens = torch.cat([cls, content], dim=1) + self.positions[: longest + 1]
        if self.type_embedding is not None:
            tokens = tokens + self.type_embedding
        biases = tuple(bias(longest + 1) for bias in self.biases)
        grids = tuple((length,) for length in lengths.tolist())
        return TokenSequence(tokens, valid, x.index, self.name, grids, 1, biases)

    @property
    def extent(self) -> tuple[int, ...]:
        """Return the length of the position table."""
        return (self.config.max_positions,)

    def maskable(self, x: ModalityInput, sequence: TokenSequence) -> Maskable:
        """Tell words apart; marks are never hidden."""
        words = torch.full(sequence.valid.shape, -1)
        ids = x.values.cpu()
        for row, length in enumerate(x.sizes[:, 0].tolist()):
            numbers = self.tokenizer.words(ids[row, :length].tolist())
            words[row, 1 : 1 + length] = torch.tensor(numbers, dtype=torch.int64)
        return Maskable(words, tokens_of(words))

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make random ids, each row of its own length, the first as long as a text may be."""
        tokenizer: Tokenizer = config.preprocess.tokenizer.build()
        longest = config.preprocess.max_tokens
        lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
        lengths[:1] = longest
        ids = torch.randint(tokenizer.vocab_size, (rows, longest), generator=generator)
        ids = ids.masked_fill(torch.arange(longest) >= lengths[:, None], tokenizer.pad_id)
        return ModalityInput(ids, torch.arange(rows), lengths[:, None])
