"""Any open_clip image tower as an adapter: its feature map or its embedding, projected to the trunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import Item, ModalityInput, TokenSequence
from mmzoo.errors import ShapeError
from mmzoo.layers.init import trunc_normal_
from mmzoo.modalities.base import ModalityAdapter, Preprocess
from mmzoo.modalities.image_preprocess import ImageAugment, ImagePreprocess, Interpolation, Resize
from mmzoo.modalities.mixed_sizes import Embedded, embed_by_size, fake_images
from mmzoo.modalities.open_clip_zoo import check_name, create_tower, preprocess_config


class TowerOutput(str, Enum):
    """What of a tower becomes tokens."""

    TOKENS = "tokens"
    POOLED = "pooled"


RESIZES = {"shortest": Resize.CROP, "squash": Resize.SQUASH, "longest": Resize.PAD}
"""open_clip's words for what is done to a picture of another shape."""


class OpenClipImagePreprocess(Preprocess):
    """ImagePreprocess with size, mean, deviation and filter from open_clip's own record, without network."""

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options."""

        model: str | None = None
        "open_clip's name whose record is read; null = the adapter's model."
        tag: str = ""
        "Tag of the weights whose record is read; empty = the adapter's."
        size: tuple[int, int] | None = None
        "Height and width given to the model (pixels); null = the record's."
        augment: ImageAugment = field(default_factory=ImageAugment)
        "What training does to a picture."

        def filled(self) -> ImagePreprocess.Config:
            """Return all options, what was left open read from open_clip's record."""
            record = preprocess_config(self.model or "ViT-B-32", self.tag, {})
            side = record["size"]
            size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
            bilinear = record["interpolation"] == "bilinear"
            return ImagePreprocess.Config(
                size=self.size or size,
                resize=RESIZES[record["resize_mode"]],
                interpolation=Interpolation.BILINEAR if bilinear else Interpolation.BICUBIC,
                mean=tuple(record["mean"]),
                std=tuple(record["std"]),
                augment=self.augment,
            )

    def __init__(self, config: Any) -> None:
        """Read open_clip's record."""
        self.config, self.filled = config, ImagePreprocess(config.filled())

    def decode(self, data: bytes, name: str) -> Any:
        """Read an image file."""
        return self.filled.decode(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Turn a picture into an Item (3 h w)."""
        return self.filled(raw, generator=generator)


class OpenClipImageAdapter(ModalityAdapter):
    """Tokens of an open_clip image tower, after a CLS token of our own.

    tokens: one a patch (or cell of a convolutional net), row-major, after the tower's last norm; pooled: the
    tower's embedding as a single token, open_clip's `encode_image`. What the choice leaves unused is dropped.
    Shape: values (k 3 height width) -> tokens (k 1+n d).
    A frozen tower stays in evaluation mode and out of the graph, whatever the model's mode.
    """

    kind = "image"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options."""

        preprocess: OpenClipImagePreprocess.Config = field(default_factory=OpenClipImagePreprocess.Config)
        "From an image file to the tensor."
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
        "Arguments of open_clip.create_model that replace the model's own, such as vision_cfg."

        def __post_init__(self) -> None:
            """Check the name; let preprocess know which record is meant."""
            check_name(self.model, self.tag, "open_clip_image")
            self.preprocess.model = self.preprocess.model or self.model
            self.preprocess.tag = self.preprocess.tag or self.tag
            side = self.create.get("vision_cfg", {}).get("image_size")
            if self.preprocess.size is None and side is not None:
                self.preprocess.size = (side, side) if isinstance(side, int) else (side[0], side[1])

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Create the tower and the projection."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        self.tower: Any = create_tower(config, "visual", name)
        if config.out is TowerOutput.TOKENS:
            drop_head(self.tower)
        self.proj = nn.Linear(self._width(), dim)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        trunc_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        if config.freeze:
            self.tower.requires_grad_(requires_grad=False)
            self.tower.eval()

    def train(self, mode: bool = True) -> OpenClipImageAdapter:  # noqa: FBT001, FBT002 torch's signature
        """Switch the mode of all but a frozen tower."""
        super().train(mode)
        if self.config.freeze:
            self.tower.eval()
        return self

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Run the tower and project its output."""
        return embed_by_size(x, self._embed, self.name, num_prefix=1)

    def features(self, images: Float[Tensor, "k c height width"]) -> Float[Tensor, "k n w"]:
        """Return the tower's own output: patches (n of them) or its embedding (n = 1)."""
        return self._features(images)[0]

    def _embed(self, images: Float[Tensor, "k c height width"]) -> Embedded:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            features, grid = self._features(images)
        tokens = self.proj(features)
        cls = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return Embedded(torch.cat([cls, tokens], dim=1), grid)

    def _features(self, images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        try:
            if self.config.out is TowerOutput.POOLED:
                return self.tower(images)[:, None], (1, 1)
            found = self.tower.forward_intermediates(
                images, indices=1, normalize_intermediates=True, intermediates_only=True
            )
        except (AssertionError, RuntimeError) as error:
            text = f"{self.config.model} refuses images of {tuple(images.shape[1:])} ({error})"
            do = "Set preprocess.size to the tower's."
            raise ShapeError.at(self.name, text, "a size that it takes", do) from error
        maps: Tensor = found["image_intermediates"][-1]
        return maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])

    def _width(self) -> int:
        """Return the width of the tower's output, found by running it once without weights or data."""
        size = self.config.preprocess.filled().size
        with torch.no_grad():
            training = self.tower.training
            self.tower.eval()
            width = self._features(torch.zeros(1, 3, *size))[0].shape[-1]
            self.tower.train(training)
        return width

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise of the tower's size."""
        return fake_images(3, [config.preprocess.filled().size] * rows, generator)


def drop_head(tower: Any) -> None:
    """Drop what only the embedding needs, so that every parameter left gets a gradient."""
    if hasattr(tower, "trunk"):
        tower.head = nn.Identity()
        for part in ("head", "fc_norm", "attn_pool"):
            if isinstance(getattr(tower.trunk, part, None), nn.Module):
                setattr(tower.trunk, part, nn.Identity())
        return
    for part in ("proj", "attn_pool", "attnpool", "attn_pool_contrastive"):
        if getattr(tower, part, None) is not None:
            setattr(tower, part, None)
