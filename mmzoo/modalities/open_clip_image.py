"""Any open_clip image tower as an adapter: its feature map or its embedding, projected to the trunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import ModalityInput, TokenSequence
from mmzoo.errors import ShapeError
from mmzoo.modalities.image_preprocess import ImageAugment, ImagePreprocess, Interpolation, Resize
from mmzoo.modalities.mixed_sizes import Embedded, embed_by_size, fake_images
from mmzoo.modalities.open_clip_tower import OpenClipTower, TowerConfig, TowerOutput
from mmzoo.modalities.open_clip_zoo import preprocess_config
from mmzoo.modalities.record_preprocess import RecordPreprocess

RESIZES = {"shortest": Resize.CROP, "squash": Resize.SQUASH, "longest": Resize.PAD}
"""open_clip's words for what is done to a picture of another shape."""


class OpenClipImagePreprocess(RecordPreprocess):
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


class OpenClipImageAdapter(OpenClipTower):
    """Tokens of an open_clip image tower, after a CLS token of our own.

    tokens: one a patch (or cell of a convolutional net), row-major, after the tower's last norm; pooled: the
    tower's embedding as a single token, open_clip's `encode_image`. What the choice leaves unused is dropped.
    Shape: values (k 3 height width) -> tokens (k 1+n d).
    """

    kind = "image"
    side = "visual"

    @dataclass(kw_only=True)
    class Config(TowerConfig):
        """Options."""

        row: ClassVar[str] = "open_clip_image"

        preprocess: OpenClipImagePreprocess.Config = field(default_factory=OpenClipImagePreprocess.Config)
        "From an image file to the tensor."

        def __post_init__(self) -> None:
            """Let preprocess know which record and size are meant, too."""
            super().__post_init__()
            self.preprocess.tag = self.preprocess.tag or self.tag
            side = self.create.get("vision_cfg", {}).get("image_size")
            if self.preprocess.size is None and side is not None:
                self.preprocess.size = (side, side) if isinstance(side, int) else (side[0], side[1])

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Run the tower and project its output."""
        return embed_by_size(x, self._embed, self.name, num_prefix=1)

    def features(self, images: Float[Tensor, "k c height width"]) -> Float[Tensor, "k n w"]:
        """Return the tower's own output: patches (n of them) or its embedding (n = 1)."""
        return self._features(images)[0]

    def _embed(self, images: Float[Tensor, "k c height width"]) -> Embedded:
        with self.gradients():
            features, grid = self._features(images)
        return Embedded(self.after_cls(self.proj(features)), grid)

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

    def settle_output(self) -> int:
        """Drop what tokens leave unused; find the width by running the tower once, without data."""
        if self.config.out is TowerOutput.TOKENS:
            drop_head(self.tower)
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
