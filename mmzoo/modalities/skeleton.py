"""Skeletons: a motion cut into spatiotemporal windows, one token each, after a CLS token.

Axis letters: k rows, c channels, t frames, v joints, p entities, u windows, d width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.axis_positions import AxisPositions
from mmzoo.layers.init import trunc_normal_
from mmzoo.layers.masking import Maskable
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.modalities.motion import SkeletonPreprocess
from mmzoo.modalities.windows import WindowMode, any_real, num_windows, partition


class Embedding(str, Enum):
    """How a window becomes a token: one linear map, or each joint through a small map first."""

    LINEAR = "linear"
    POINTWISE = "pointwise"


@dataclass(kw_only=True)
class Window(schema.Config):
    """The extent of a token."""

    frames: int = 4
    "Frames in a window."
    joints: int | None = None
    "Joints in a window; null takes all."
    entities: int | None = 1
    "Entities in a window; null takes all."

    def __post_init__(self) -> None:
        """Refuse empty windows."""
        if any(n is not None and n < 1 for n in (self.frames, self.joints, self.entities)):
            found = f"{self.frames} x {self.joints} x {self.entities}"
            raise ConfigError.at("window", found, "one or more, or null for all", "Raise it.")


class SkeletonAdapter(ModalityAdapter):
    """Windows of joints as tokens.

    Shape: values (k c t v p) with `valid` (k t v p) -> tokens (k 1+u d), u = ceil(t/frames) ceil(v/joints)
    ceil(p/entities), frame slowest. A token is real where at least one element of its window was seen.
    Math: linear: token = W [x * seen; seen] + b over the window, so that zero and unseen differ; pointwise:
    leaky_relu(norm(W_c x)) * seen for each element, then W. Plus learned positions of the
    frame, joint and entity window.
    Ref: ISTA-Net (window tokens, embedding of each joint by itself; its batch norm is a layer norm here, so
    that rows do not depend on each other).
    """

    kind = "skeleton"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options; ISTA-Net on NTU has a window of 20 x 1 x 2, strided, pointwise."""

        preprocess: SkeletonPreprocess.Config = field(default_factory=SkeletonPreprocess.Config)
        "From raw coordinates to channels and mask."
        window: Window = field(default_factory=Window)
        "The extent of a token."
        mode: WindowMode = WindowMode.CONTIGUOUS
        "contiguous: neighbours share a window (the paper); strided: every n-th element does (the code)."
        embedding: Embedding = Embedding.LINEAR
        "linear: one map of the whole window; pointwise: a small map of each joint first (ISTA-Net)."
        point_dim: int = 16
        "Width of a joint (pointwise only)."
        position_blocks: int = 64
        "Length of the learned time table (windows); longer motions stretch it."

        def __post_init__(self) -> None:
            """Check sizes."""
            if self.point_dim < 1 or self.position_blocks < 1:
                found = f"{self.point_dim}, {self.position_blocks}"
                raise ConfigError.at("point_dim, position_blocks", found, "one or more", "Raise them.")

        @property
        def window_size(self) -> tuple[int, int, int]:
            """Return frames, joints, entities of a window."""
            w, p = self.window, self.preprocess
            return w.frames, w.joints or p.joints.num_joints, w.entities or p.entities

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Build the embedding and the positions."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        preprocess, window = config.preprocess, config.window_size
        per_joint = preprocess.num_channels + 1
        self.point: PointEmbedding | None = None
        if config.embedding is Embedding.POINTWISE:
            per_joint = config.point_dim
            self.point = PointEmbedding(preprocess.num_channels, per_joint)
        self.projection = nn.Linear(per_joint * window[0] * window[1] * window[2], dim)
        self.frame_positions = AxisPositions(config.position_blocks, dim)
        self.joint_positions = AxisPositions(num_windows(preprocess.joints.num_joints, window[1]), dim)
        self.entity_positions = AxisPositions(num_windows(preprocess.entities, window[2]), dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        for weight in (self.projection.weight, self.cls_token):
            trunc_normal_(weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the motions; rows of one extent together, since windows depend on a motion's own length."""
        self._check(x)
        extents: dict[tuple[int, int], list[int]] = {}
        for row, (_, frames, _, entities) in enumerate(x.sizes.tolist()):
            extents.setdefault((frames, entities), []).append(row)
        tokens: list[Tensor] = []
        reals: list[Tensor] = []
        grids: dict[int, tuple[int, ...]] = {}
        for (frames, entities), rows in extents.items():
            same = len(extents) == 1
            values = x.values if same else x.values[torch.tensor(rows).to(x.values.device, non_blocking=True)]
            seen = torch.ones(values.shape[:1] + values.shape[2:], dtype=torch.bool)
            if x.valid is not None:
                seen = x.valid if same else x.valid[torch.tensor(rows)]
            made, real = self._embed(values[:, :, :frames, :, :entities], seen[:, :frames, :, :entities])
            tokens.append(made)
            reals.append(real)
            extent = (frames, x.values.shape[3], entities)
            grid = tuple(num_windows(s, w) for s, w in zip(extent, self.config.window_size, strict=True))
            grids.update(dict.fromkeys(rows, grid))
        order = torch.tensor([row for rows in extents.values() for row in rows]).argsort()
        content, valid = _join(tokens), _join(reals)
        if len(extents) > 1:
            content, valid = content[order.to(content.device, non_blocking=True)], valid[order]
        cls = self.cls_token.expand(len(x), -1, -1).to(content.dtype)
        whole = all(bool(real.all()) for real in reals)
        by_row = tuple(grids[row] for row in range(len(x))) if whole else None
        return TokenSequence(
            torch.cat([cls, content], dim=1), F.pad(valid, (1, 0), value=True), x.index, self.name, by_row, 1
        )

    def _embed(
        self, values: Float[Tensor, "k c t v p"], seen: Bool[Tensor, "k t v p"]
    ) -> tuple[Float[Tensor, "k u d"], Bool[Tensor, "k u"]]:
        window, mode = self.config.window_size, self.config.mode
        mask = seen.to(values.device, non_blocking=True)[:, None]
        content = values.masked_fill(~mask, 0.0)
        if self.point is None:
            content = torch.cat([content, mask.to(values.dtype)], dim=1)
        else:
            content = self.point(content) * mask
        parts = partition(content, window, mode).flatten(1, 3).transpose(1, 2)
        blocks = [num_windows(s, w) for s, w in zip(values.shape[2:], window, strict=True)]
        return self.projection(parts) + self._place(blocks), any_real(seen, window, mode)

    def _place(self, blocks: list[int]) -> Float[Tensor, "1 u d"]:
        tables = (self.frame_positions, self.joint_positions, self.entity_positions)
        frame, joint, entity = (
            table(torch.tensor([n]), n)[0] for table, n in zip(tables, blocks, strict=True)
        )
        return (frame[:, None, None] + joint[:, None] + entity).flatten(0, 2)[None]

    def _check(self, x: ModalityInput) -> None:
        preprocess: SkeletonPreprocess.Config = self.config.preprocess
        shape = tuple(x.values.shape)
        channels, joints = preprocess.num_channels, preprocess.joints.num_joints
        if len(shape) != 5 or (shape[1], shape[3]) != (channels, joints) or shape[4] > preprocess.entities:
            expected = f"(k, {channels}, frames, {joints}, at most {preprocess.entities})"
            raise ShapeError.at(self.name, f"values {shape}", expected, "Use this adapter's Preprocess.")

    def maskable(self, x: ModalityInput, sequence: TokenSequence) -> Maskable:
        """Make a moment a step, whether or not all of its windows were seen."""
        joints, window = x.values.shape[3], self.config.window_size
        grids = tuple(
            tuple(num_windows(size, w) for size, w in zip((frames, joints, entities), window, strict=True))
            for _, frames, _, entities in x.sizes.tolist()
        )
        return super().maskable(x, dataclasses.replace(sequence, grids=grids))

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise of a few windows, each motion of its own length, some joints and persons missing."""
        preprocess, window = config.preprocess, config.window_size
        channels, joints, entities = (
            preprocess.num_channels,
            preprocess.joints.num_joints,
            preprocess.entities,
        )
        frames = torch.randint(1, 3 * window[0] + 1, (rows,), generator=generator)
        values = torch.randn(rows, channels, int(frames.max()), joints, entities, generator=generator)
        seen = torch.rand(values.shape[:1] + values.shape[2:], generator=generator) < 0.9
        seen[:, 0, 0, 0] = True
        if entities > 1:
            seen[1::2, ..., -1] = False
        seen &= (torch.arange(values.shape[2]) < frames[:, None])[:, :, None, None]
        sizes = torch.tensor([[channels, int(n), joints, entities] for n in frames])
        return ModalityInput(values * seen[:, None], torch.arange(rows), sizes, seen)


class PointEmbedding(nn.Module):
    """Each joint by itself: linear map, norm, leaky ReLU. (k c t v p) -> (k c' t v p)."""

    def __init__(self, channels: int, dim: int) -> None:
        """Build it."""
        super().__init__()
        self.linear = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "k c t v p"]) -> Float[Tensor, "k d t v p"]:
        """Embed."""
        return F.leaky_relu(self.norm(self.linear(x.movedim(1, -1))), 0.1).movedim(-1, 1)


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate rows whose second axis differs, padding it with zeros."""
    most = max(part.shape[1] for part in parts)
    pads = ((0, 0) * (part.ndim - 2) + (0, most - part.shape[1]) for part in parts)
    return torch.cat([F.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])
