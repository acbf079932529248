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
from mmzoo.layers.init import trunc_normal_
from mmzoo.modalities.base import ModalityAdapter, Preprocess
from mmzoo.modalities.open_clip_image import TowerOutput
from mmzoo.modalities.open_clip_zoo import check_name, create_tower, model_config, open_clip


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


class OpenClipTextAdapter(ModalityAdapter):
    """Tokens of an open_clip text tower, after a CLS token of our own.

    tokens: one an id, after the tower's last norm; pooled: the tower's embedding as a single token,
    open_clip's `encode_text`. Texts are padded to the tower's context length, as open_clip pads them.
    Shape: values (k n) int -> tokens (k 1+n d).
    A frozen tower stays in evaluation mode and out of the graph, whatever the model's mode.
    """

    kind = "text"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options."""

        preprocess: OpenClipTextPreprocess.Config = field(default_factory=OpenClipTextPreprocess.Config)
        "From a text to ids."
        model: str = "ViT-S-32"
        "open_clip's name of the model (open_clip.list_models()), or hf-hub:ORG/REPO."
        tag: str = ""
        "Tag of published weights (open_clip.list_pretrained()); empty = the model's first."
        pretrained: bool = False
        "Whether to start from the published weights (fetched once, then cached)."
        freeze: bool = False
        "Whether the tower is left as it is: evaluation mode, no gradient."
        out: TowerOutput = TowerOutput.TOKENS
        "tokens or pooled."
        create: dict[str, Any] = field(default_factory=dict)
        "Arguments of open_clip.create_model that replace the model's own, such as text_cfg."

        def __post_init__(self) -> None:
            """Check the name; let preprocess know which tokenizer and length are meant."""
            check_name(self.model, self.tag, "open_clip_text")
            self.preprocess.model = self.preprocess.model or self.model
            length = self.create.get("text_cfg", {}).get("context_length")
            if self.preprocess.max_tokens is None and length is not None:
                self.preprocess.max_tokens = int(length)

        @property
        def text_cfg(self) -> dict[str, Any]:
            """Return open_clip's options of the tower."""
            return dict(model_config(self.model, self.create).get("text_cfg", {}))

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Create the tower and the projection."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        self.tower: Any = create_tower(config, "text", name)
        if not hasattr(self.tower, "token_embedding"):
            found = f"{config.model} has a text tower of another library"
            raise ConfigError.at(name, found, "one of open_clip's own", "Choose another model.")
        self.context_length = int(self.tower.context_length)
        self.pad_id = int(getattr(self.tower, "pad_id", 0) or 0)
        width = int(self.tower.ln_final.weight.shape[0])
        if config.out is TowerOutput.TOKENS:
            self.tower.text_projection = None
            self.tower.output_tokens = True
        elif self.tower.text_projection is not None:
            width = self._projected_width()
        self.proj = nn.Linear(width, dim)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        trunc_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        if config.freeze:
            self.tower.requires_grad_(requires_grad=False)
            self.tower.eval()

    def train(self, mode: bool = True) -> OpenClipTextAdapter:  # noqa: FBT001, FBT002 torch's signature
        """Switch the mode of all but a frozen tower."""
        super().train(mode)
        if self.config.freeze:
            self.tower.eval()
        return self

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Run the tower and project its output; ids beyond a row's end are never looked at."""
        ids, valid = self._padded(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            features = self.features(ids)
        if self.config.out is TowerOutput.POOLED:
            valid = valid[:, :1]
        tokens = self.proj(features[:, : valid.shape[1]])
        cls = self.cls_token.to(tokens.dtype).expand(len(x), -1, -1)
        ones = torch.ones(len(x), 1, dtype=torch.bool)
        grids = tuple((int(n),) for n in valid.sum(1))
        whole = torch.cat([cls, tokens], dim=1)
        return TokenSequence(whole, torch.cat([ones, valid], dim=1), x.index, self.name, grids, 1)

    def features(self, ids: Int[Tensor, "k n"]) -> Float[Tensor, "k m w"]:
        """Return the tower's own output for ids padded to its context length: tokens, or the embedding."""
        if self.config.out is TowerOutput.POOLED:
            return self.tower(ids)[:, None]
        return self.tower(ids)[1]

    def _padded(self, x: ModalityInput) -> tuple[Int[Tensor, "k n"], Bool[Tensor, "k m"]]:
        """Return the ids padded to the context length, and (on the host) which up to the longest are real."""
        lengths = x.sizes[:, 0].clamp(max=self.context_length)
        longest = int(lengths.max())
        valid = torch.arange(longest) < lengths[:, None]
        real = x.values[:, :longest].masked_fill(~valid.to(x.values.device), self.pad_id)
        ids = real.new_full((len(x), self.context_length), self.pad_id)
        ids[:, :longest] = real
        return ids, valid

    def _projected_width(self) -> int:
        projection = self.tower.text_projection
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

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
