"""Any open_clip text tower as an adapter, with its own tokenizer: its tokens or its embedding."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import Item, ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.open_clip_tower import OpenClipTower, TowerConfig, TowerOutput
from mmzoo.modalities.open_clip_zoo import model_config, open_clip


class OpenClipTextPreprocess(Preprocess):
    """From a text to the ids (n) that open_clip's tokenizer of the model gives, marks included."""

    reads_paths: ClassVar[bool] = False

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; they belong to the weights."""

        model: str | None = None
        "open_clip's name whose tokenizer is used; null = the adapter's model."
        max_tokens: int | None = None
        "Longest sequence of ids; null = the tower's context length."

        def __post_init__(self) -> None:
            """Leave room for the marks and a token."""
            if self.max_tokens is not None and self.max_tokens < 3:
                raise ConfigError.at("max_tokens", f"{self.max_tokens}", "at least 3", "Raise it.")

    def __init__(self, config: Any) -> None:
        """Keep the options; the tokenizer is made with the first text."""
        self.config = config

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tokenizer behind when copied to another process; it is made again there."""
        return {"config": self.config}

    @functools.cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of the model."""
        name = self.config.model or "ViT-B-32"
        try:
            return open_clip("tokenizer").get_tokenizer(name, context_length=self.config.max_tokens)
        except (ImportError, OSError, AssertionError) as error:
            found, do = f"{name}: {error}", "Install transformers and fetch its tokenizer once."
            raise ConfigError.at("open_clip_text", found, "a tokenizer that can be made", do) from error

    def decode(self, data: bytes, name: str) -> str:
        """Read UTF-8 text, a leading byte order mark and the last line's end dropped."""
        try:
            return data.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            do = "Convert or remove the file."
            raise DataError.at(name, f"no UTF-8 text ({error})", "UTF-8", do) from error

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Turn a text into an Item of int64 ids without padding; training changes nothing."""
        del generator
        if not isinstance(raw, str):
            do = "Decode bytes, pass one text at a time."
            raise DataError.at("text", f"{type(raw).__name__}", "str", do)
        ids: Tensor = self.tokenizer([raw])[0]
        end = getattr(self.tokenizer, "eot_token_id", None)
        places = (ids == end).nonzero() if end is not None else torch.empty(0)
        return Item(ids[: int(places[0]) + 1].clone() if len(places) else ids)


class OpenClipTextAdapter(OpenClipTower):
    """Tokens of an open_clip text tower, after a CLS token of our own.

    tokens: one an id, after the tower's last norm; pooled: the tower's embedding as a single token,
    open_clip's `encode_text`. Texts are padded to the tower's context length, as open_clip pads them.
    Shape: values (k n) int -> tokens (k 1+n d).
    """

    kind = "text"
    side = "text"

    @dataclass(kw_only=True)
    class Config(TowerConfig):
        """Options."""

        row: ClassVar[str] = "open_clip_text"

        preprocess: OpenClipTextPreprocess.Config = field(default_factory=OpenClipTextPreprocess.Config)
        "From a text to ids."

        def __post_init__(self) -> None:
            """Let preprocess know which length is meant, too."""
            super().__post_init__()
            length = self.create.get("text_cfg", {}).get("context_length")
            if self.preprocess.max_tokens is None and length is not None:
                self.preprocess.max_tokens = int(length)

        @property
        def text_cfg(self) -> dict[str, Any]:
            """Return open_clip's options of the tower."""
            return dict(model_config(self.model, self.create).get("text_cfg", {}))

    def settle_output(self) -> int:
        """Keep what padding needs; drop the projection where tokens leave it unused; return the width."""
        if not hasattr(self.tower, "token_embedding"):
            found = f"{self.config.model} has a text tower of another library"
            raise ConfigError.at(self.name, found, "one of open_clip's own", "Choose another model.")
        if self.config.out is TowerOutput.TOKENS:
            self.tower.text_projection, self.tower.output_tokens = None, True
        projection = self.tower.text_projection
        if projection is None:
            return int(self.tower.ln_final.weight.shape[0])
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Run the tower and project its output; ids beyond a row's end are never looked at."""
        ids, valid = padded_ids(x, self.tower)
        with self.gradients():
            features = self.features(ids)
        if self.config.out is TowerOutput.POOLED:
            valid = valid[:, :1]
        whole = self.after_cls(self.proj(features[:, : valid.shape[1]]))
        ones = torch.ones(len(x), 1, dtype=torch.bool)
        grids = tuple((int(n),) for n in valid.sum(1))
        return TokenSequence(whole, torch.cat([ones, valid], dim=1), x.index, self.name, grids, 1)

    def features(self, ids: Int[Tensor, "k n"]) -> Float[Tensor, "k m w"]:
        """Return the tower's own output for ids padded to its context length: tokens, or the embedding."""
        if self.config.out is TowerOutput.POOLED:
            return self.tower(ids)[:, None]
        return self.tower(ids)[1]

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make random ids, each row of its own length ended by the highest id, as CLIP's tokenizer does."""
        options = config.text_cfg
        longest = int(config.preprocess.max_tokens or options.get("context_length", 77))
        last = int(options.get("vocab_size", 49_408)) - 1
        lengths = torch.randint(2, longest + 1, (rows,), generator=generator)
        lengths[:1] = longest
        ids = torch.randint(1, last, (rows, longest), generator=generator)
        ids[torch.arange(rows), lengths - 1] = last
        ids = ids.masked_fill(torch.arange(longest) >= lengths[:, None], 0)
        return ModalityInput(ids, torch.arange(rows), lengths[:, None])


def padded_ids(x: ModalityInput, tower: Any) -> tuple[Int[Tensor, "k n"], Bool[Tensor, "k m"]]:
    """Return the ids padded to a tower's context length, and (on the host) which up to the longest are
    real."""
    context_length, pad_id = int(tower.context_length), int(getattr(tower, "pad_id", 0) or 0)
    lengths = x.sizes[:, 0].clamp(max=context_length)
    longest = int(lengths.max())
    valid = torch.arange(longest) < lengths[:, None]
    real = x.values[:, :longest].masked_fill(~valid.to(x.values.device), pad_id)
    ids = real.new_full((len(x), context_length), pad_id)
    ids[:, :longest] = real
    return ids, valid
