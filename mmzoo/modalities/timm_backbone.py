"""Any timm backbone as an adapter: its feature map, tokens or pooled vector, projected to the trunk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.init import trunc_normal_
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.modalities.image_preprocess import ImageAugment, ImagePreprocess, Interpolation, Resize
from mmzoo.modalities.mixed_sizes import Embedded, embed_by_size, fake_images
from mmzoo.modalities.record_preprocess import RecordPreprocess
from mmzoo.modalities.timm_zoo import check_name, create_backbone, data_config


class Output(str, Enum):
    """What of the backbone becomes tokens."""

    FEATURE_MAP = "feature_map"
    TOKENS = "tokens"
    POOLED = "pooled"


class MemoryFormat(str, Enum):
    """How a backbone's pictures and convolution weights lie in memory; the numbers are the same."""

    CHANNELS_FIRST = "channels_first"
    CHANNELS_LAST = "channels_last"


class TimmPreprocess(RecordPreprocess):
    """ImagePreprocess with size, mean, deviation and filter from timm's own record, without network."""

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; what is left open comes from the backbone's record."""

        model: str | None = None
        "timm's name whose record is read; null = the adapter's model."
        size: tuple[int, int] | None = None
        "Height and width given to the model (pixels); null = the record's (or create.img_size)."
        resize: Resize = Resize.CROP
        "squash to size; crop: cover it and keep the middle; pad: fit inside; aspect: keep the shape."
        crop_share: float | None = None
        "For crop: side of the middle, relative to the covering picture; null = the record's or 1."
        side_multiple: int = 32
        "For aspect: both sides become multiples of this (pixels)."
        interpolation: Interpolation | None = None
        "Filter of resizing; null = the record's."
        mean: tuple[float, float, float] | None = None
        "Mean per RGB channel, of values 0 … 1; null = the record's."
        std: tuple[float, float, float] | None = None
        "Standard deviation per RGB channel; null = the record's."
        augment: ImageAugment = field(default_factory=ImageAugment)
        "What training does to a picture."

        def filled(self) -> ImagePreprocess.Config:
            """Return all options, what was left open read from timm's record."""
            record = data_config(self.model)
            own_size = (record["input_size"][1], record["input_size"][2])
            filters = {i.value: i for i in Interpolation}
            share = record["crop_pct"] if self.size in (None, own_size) else 1.0
            return ImagePreprocess.Config(
                size=self.size or own_size,
                resize=self.resize,
                crop_share=self.crop_share or share,
                side_multiple=self.side_multiple,
                interpolation=self.interpolation
                or filters.get(record["interpolation"], Interpolation.BICUBIC),
                mean=self.mean or tuple(record["mean"]),
                std=self.std or tuple(record["std"]),
                augment=self.augment,
            )


class TimmAdapter(ModalityAdapter):
    """Tokens of any timm backbone, after a CLS token of our own.

    feature_map: one token a cell, row-major; tokens: the same with the backbone's own leading tokens (class,
    registers) counted in `num_prefix`; pooled: a single token.
    Shape: values (k c height width) -> tokens (k 1+n d). Sizes may differ where the backbone takes any size.
    A frozen backbone stays in evaluation mode and out of the graph, whatever the model's mode. Batch norm in
    training sees each size of a batch by itself.
    """

    kind = "image"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options."""

        preprocess: TimmPreprocess.Config = field(default_factory=TimmPreprocess.Config)
        "From an image file to the tensor."
        model: str = "resnet18"
        "timm's name of the backbone (timm.list_models()), a weights tag after a dot allowed."
        pretrained: bool = False
        "Whether to start from timm's published weights (fetched once, then cached)."
        freeze: bool = False
        "Whether the backbone is left as it is: evaluation mode, no gradient."
        out: Output = Output.FEATURE_MAP
        "feature_map, tokens or pooled."
        levels: list[int] = field(default_factory=list)
        "Blocks (ViT) or stages whose feature maps go along for a decoder, from 0; the final one comes last."
        drop_path: float = 0.0
        "Stochastic depth of the backbone (probability in its last block); 0 leaves timm's default."
        memory_format: MemoryFormat = MemoryFormat.CHANNELS_LAST
        "channels_last is 1.3 to 2 times as fast for small convolutional nets (measured on a CPU, float32)."
        create: dict[str, Any] = field(default_factory=dict)
        "More arguments of timm.create_model, such as img_size or in_chans."

        def __post_init__(self) -> None:
            """Check the name; let preprocess know which record is meant."""
            check_name(self.model, "model")
            if sorted(set(self.levels)) != self.levels or min(self.levels, default=0) < 0:
                do = "For a ViT of 12 blocks take [2,5,8]."
                raise ConfigError.at("levels", str(self.levels), "ascending numbers from 0", do)
            if self.levels and self.out is Output.POOLED:
                raise ConfigError.at(
                    "levels", "levels with out=pooled", "feature_map or tokens", "Change out."
                )
            reserved = sorted({"pretrained", "num_classes", "model_name"} & self.create.keys())
            if reserved:
                found = ", ".join(reserved)
                raise ConfigError.at(
                    "create", found, "arguments that have no option of their own", "Drop them."
                )
            if self.preprocess.model is None:
                self.preprocess.model = self.model
            side = self.create.get("img_size")
            if self.preprocess.size is None and side is not None:
                self.preprocess.size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))

        @property
        def channels(self) -> int:
            """Return how many channels the backbone reads."""
            return int(self.create.get("in_chans", 3))

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Create the backbone and the projection."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        pooled = config.out is Output.POOLED
        self.backbone, width = create_backbone(config, keep_head=pooled, where=name)
        last = config.memory_format is MemoryFormat.CHANNELS_LAST
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.backbone.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue] torch's overload is real
        self.proj = nn.Linear(width, dim)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim)))
        trunc_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        own = int(getattr(self.backbone, "num_prefix_tokens", 0) or 0)
        self.num_own = 0 if pooled else own
        self.level_dims = self._level_dims(width) if config.levels else ()
        self.num_prefix = 1 + (own if config.out is Output.TOKENS else 0)
        if config.freeze:
            self.backbone.requires_grad_(requires_grad=False)
            self.backbone.eval()

    def _level_dims(self, width: int) -> tuple[int, ...]:
        """Return the channels of each feature map that goes along, the final one's last."""
        stages: Any = getattr(self.backbone, "feature_info", ())
        if not hasattr(self.backbone, "forward_intermediates") or max(self.config.levels) >= len(stages):
            found = f"levels {self.config.levels} of {self.config.model}"
            expected = f"numbers below {len(stages)}" if stages else "a backbone that gives intermediate maps"
            raise ConfigError.at(f"{self.name}.levels", found, expected, "Change them, or the backbone.")
        return (*(int(stages[i]["num_chs"]) for i in self.config.levels), width)

    def train(self, mode: bool = True) -> TimmAdapter:  # noqa: FBT001, FBT002 torch's signature
        """Switch the mode of all but a frozen backbone."""
        super().train(mode)
        if self.config.freeze:
            self.backbone.eval()
        return self

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Run the backbone and project its output."""
        channels = {int(c) for c in x.sizes[:, 0]}
        if channels != {self.config.channels}:
            found = f"images of {', '.join(str(c) for c in sorted(channels))} channels"
            raise ShapeError.at(
                self.name, found, f"{self.config.channels}", "Set create.in_chans to what they have."
            )
        return embed_by_size(x, self._embed, self.name, self.num_prefix)

    def _embed(self, images: Float[Tensor, "k c height width"]) -> Embedded:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            features, grid, levels = self._features(images.contiguous(memory_format=self.memory_format))
        tokens = self.proj(features)
        cls = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return Embedded(torch.cat([cls, tokens], dim=1), grid, levels=self._maps(features, grid, levels))

    def _maps(
        self, features: Float[Tensor, "k n c"], grid: tuple[int, ...] | None, levels: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the intermediate feature maps and, last, the final features laid on their grid."""
        if not self.config.levels:
            return ()
        if grid is None:
            raise ShapeError.at(self.name, "final tokens without a grid", "a feature map", "Drop levels.")
        body = features[:, features.shape[1] - math.prod(grid) :]
        return (*levels, body.transpose(1, 2).unflatten(2, grid))

    def _run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.config.levels:
            return self.backbone.forward_features(images), []
        return self.backbone.forward_intermediates(images, indices=self.config.levels, output_fmt="NCHW")

    def _features(
        self, images: Tensor
    ) -> tuple[Float[Tensor, "k n c"], tuple[int, ...] | None, list[Tensor]]:
        try:
            if self.config.out is Output.POOLED:
                return self.backbone(images)[:, None], (1, 1), []
            features, levels = self._run(images)
        except AssertionError as error:
            found = f"{self.config.model} refuses images of {tuple(images.shape[1:])} ({error})"
            do = "Set preprocess.size, create.img_size or create.dynamic_img_size=true."
            raise ShapeError.at(self.name, found, "a size that it takes", do) from error
        if features.ndim == 4:
            last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
            features = features if last else features.permute(0, 2, 3, 1)
            return features.flatten(1, 2), (features.shape[1], features.shape[2]), levels
        grid = _grid(features.shape[1] - self.num_own, images)
        if self.config.out is Output.FEATURE_MAP:
            features = features[:, self.num_own :]
        return features, grid, levels

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise of the backbone's size."""
        return fake_images(config.channels, [config.preprocess.filled().size] * rows, generator)


def _grid(cells: int, images: Tensor) -> tuple[int, int] | None:
    """Return the grid of `cells` tokens whose shape is the images', or None where there is no such grid."""
    height, width = images.shape[2:]
    rows = max(1, round(math.sqrt(cells * height / width)))
    return (rows, cells // rows) if cells % rows == 0 else None
