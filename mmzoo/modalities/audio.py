"""Audio as ONE-PEACE hears it: raw waveform, strided convolutions, convolutional positions, a CLS token.

Axis letters: k rows, t samples, n frames, c channels of the extractor, d width, h heads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmzoo.batch import ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.frames import conv_over_time
from mmzoo.layers.init import trunc_normal_
from mmzoo.layers.positions import RelativeBias1d
from mmzoo.layers.rows import scatter_rows, take_rows
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.modalities.sound import SoundPreprocess, real_steps

ConvLayer = tuple[int, int, int]
"""One convolution of the extractor: channels, kernel, stride."""

WAV2VEC_LARGE: list[ConvLayer] = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
"""The released extractor: one frame every 320 samples, each reading 400 of them."""


class PadFrames(str, Enum):
    """What the positional convolution sees beyond a clip's end when other clips of the batch are longer."""

    ZERO = "zero"
    REFERENCE = "reference"


class HiddenFrames(str, Enum):
    """What the positional convolution sees of frames that are hidden for denoising."""

    ZERO = "zero"
    COMPACT = "compact"


class WaveformAdapter(ModalityAdapter):
    """A waveform becomes one token every 20 ms (released strides at 16 kHz), after a CLS token.

    Why: the extractor learns its own filter bank; convolutional positions need no maximum length.
    Shape: values (k t) -> tokens (k 1+n d), biases one (1 h 1+n 1+n); n = floor((t - kernel) / stride) + 1,
    layer by layer.
    Ref: ONE-PEACE section 3.1 (audio adapter), wav2vec 2.0 large. The code masks no padded frame, so there a
    clip's tokens depend on how long its neighbours are; here padded frames are zeroed before each positional
    convolution, which equals running the clip alone, unless `pad_frames` asks for the reference's way.
    """

    kind = "audio"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options; the defaults are those of the released 4B model."""

        preprocess: SoundPreprocess.Config = field(default_factory=SoundPreprocess.Config)
        "From a sound file to the waveform."
        conv_layers: list[ConvLayer] = field(default_factory=lambda: list(WAV2VEC_LARGE))
        "The extractor: [channels, kernel, stride] of each convolution, in steps of the layer below."
        position_depth: int = 5
        "Number of positional convolutions."
        position_kernel: int = 19
        "Their kernel (frames); an even one drops the last frame of each output."
        position_groups: int = 16
        "Their groups; must divide the trunk's width."
        num_buckets: int = 512
        "Buckets a side of the relative bias: distances up to half of it are told apart exactly."
        num_bias_tables: int = 1
        "Relative bias tables: 0 = off, 1 = shared by all layers, otherwise one for each layer of the trunk."
        type_embedding: bool = False
        "Add one learned vector to every token, CLS included."
        # compat(onepeace): its code never reads this tensor, but its files hold it
        mask_token: bool = False
        "Hold ONE-PEACE's frozen, unread mask token, so that its weights go there and back whole."
        max_positions: int = 1024
        "Distance (frames) at which the last bucket begins."
        # compat(onepeace): `reference` lets the positional convolution see padded frames
        pad_frames: PadFrames = PadFrames.ZERO
        "zero: padding never changes a clip's tokens; reference: as ONE-PEACE's code, where it does."
        # compat(onepeace): `compact` makes neighbours of frames that are apart in time
        hidden_frames: HiddenFrames = HiddenFrames.ZERO
        "zero: hidden frames are zeroed in their place; compact: visible ones move together (ONE-PEACE)."

        def __post_init__(self) -> None:
            """Check the convolutions."""
            if not self.conv_layers or any(min(layer) < 1 for layer in self.conv_layers):
                found = f"{self.conv_layers}"
                raise ConfigError.at(
                    "conv_layers", found, "[channels, kernel, stride] lists", "Use positive numbers."
                )
            if self.position_depth < 0 or self.position_kernel < 1 or self.position_groups < 1:
                found = f"{self.position_depth}, {self.position_kernel}, {self.position_groups}"
                raise ConfigError.at(
                    "position_depth, _kernel, _groups", found, ">= 0, >= 1, >= 1", "Raise them."
                )
            if self.num_bias_tables < 0 or self.num_buckets < 2:
                found = f"{self.num_bias_tables}, {self.num_buckets}"
                raise ConfigError.at("num_bias_tables, num_buckets", found, "at least 0 and 2", "Raise them.")

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Build the extractor, the projection, the positions and the bias."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        if dim % config.position_groups and config.position_depth:
            found = f"{config.position_groups} groups for width {dim}"
            raise ConfigError.at(f"{name}.position_groups", found, "a divisor of the width", "Lower it.")
        channels = config.conv_layers[-1][0]
        self.extractor = WaveformExtractor(config.conv_layers)
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, dim)
        self.positions = nn.ModuleList(
            PositionalConv(dim, config.position_kernel, config.position_groups)
            for _ in range(config.position_depth)
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.cls_position = nn.Parameter(torch.empty(1, 1, dim))
        self.type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if config.type_embedding else None
        self.biases = nn.ModuleList(
            RelativeBias1d(config.num_buckets, num_heads, config.max_positions)
            for _ in range(config.num_bias_tables)
        )
        self.mask_token: nn.Parameter | None = None
        if config.mask_token:
            self.mask_token = nn.Parameter(trunc_normal_(torch.empty(1, dim)), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ONE-PEACE does: linear weights and CLS from a normal of 0.02 cut at one deviation."""
        for weight in (self.projection.weight, self.cls_token, self.cls_position):
            trunc_normal_(weight)
        nn.init.zeros_(self.projection.bias)

    def num_frames(self, samples: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        """Return how many frames clips of `samples` samples give (on the host)."""
        for _, kernel, stride in self.config.conv_layers:
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples.clamp(min=0)

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the clips."""
        samples = x.sizes[:, 0]
        frames = self.num_frames(samples)
        if int(frames.min()) < 1:
            found = f"a clip of {int(samples.min())} samples"
            raise ShapeError.at(self.name, found, "at least one frame", "Raise preprocess.min_duration_s.")
        content = self.projection(self.norm(self.extractor(x.values[:, : int(samples.max())])))
        n = content.shape[1]
        zeroed = self.config.pad_frames is PadFrames.ZERO
        place = self._place(content, real_steps(frames, n, content.device) if zeroed else None)
        valid = torch.arange(n + 1) <= frames[:, None]
        grids = tuple((int(f),) for f in frames)
        biases = tuple(bias(n + 1) for bias in self.biases)
        tokens = self._tokens(content, place)
        return TokenSequence(tokens, valid, x.index, self.name, grids, 1, biases, content=content)

    @property
    def extent(self) -> tuple[int, ...]:
        """Return the distance at which the relative bias ends, CLS and an end mark added as in ONE-PEACE."""
        return (self.config.max_positions + 2,)

    def hide(self, sequence: TokenSequence, hidden: Bool[Tensor, "k n"]) -> TokenSequence:
        """Leave hidden frames out of `valid`, and out of what the positional convolution reads.

        The extractor's features are those of `sequence`: they are computed once, however often frames are
        hidden.
        """
        content, valid = sequence.content, sequence.valid & ~hidden
        if content is None:
            do = "Hide frames of what the adapter itself returned."
            raise ShapeError.at(self.name, "a sequence without content", "the adapter's output", do)
        if self.config.hidden_frames is HiddenFrames.COMPACT:
            place = self._place_compact(content, valid[:, 1:])
        else:
            place = self._place(content, valid[:, 1:].to(content.device, non_blocking=True))
        return dataclasses.replace(sequence, tokens=self._tokens(content, place), valid=valid)

    def _tokens(
        self, content: Float[Tensor, "k n d"], place: Float[Tensor, "k n d"]
    ) -> Float[Tensor, "k m d"]:
        cls = (self.cls_token + self.cls_position).expand(len(content), -1, -1)
        tokens = torch.cat([cls.to(content.dtype), content + place], dim=1)
        return tokens if self.type_embedding is None else tokens + self.type_embedding

    def _place_compact(
        self, content: Float[Tensor, "k n d"], visible: Bool[Tensor, "k n"]
    ) -> Float[Tensor, "k n d"]:
        k, n, width = content.shape
        counts = visible.sum(1)
        slots = torch.arange(int(counts.max())) < counts[:, None]
        frames = torch.argsort((~visible).to(torch.uint8), dim=1, stable=True)[:, : slots.shape[1]]
        places = (torch.arange(k)[:, None] * n + frames)[slots].to(content.device, non_blocking=True)
        # compat(onepeace): slots beyond a row's visible frames read the frame of the last slot's number
        frames = frames.masked_fill(~slots, slots.shape[1] - 1).to(content.device, non_blocking=True)
        taken = content.gather(1, frames[..., None].expand(-1, -1, width))
        kept = slots.flatten().nonzero()[:, 0].to(content.device, non_blocking=True)
        zeroed = self.config.pad_frames is PadFrames.ZERO
        moved = self._place(taken, slots.to(content.device, non_blocking=True) if zeroed else None)
        flat = take_rows(moved.flatten(0, 1), kept)
        return scatter_rows(flat, places, k * n).view(k, n, width)

    def _place(
        self, content: Float[Tensor, "k n d"], real: Bool[Tensor, "k n"] | None
    ) -> Float[Tensor, "k n d"]:
        place = content
        for layer in self.positions:
            place = layer(place if real is None else place.masked_fill(~real[..., None], 0.0))
        return place if len(self.positions) else torch.zeros_like(content)

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise of a few receptive fields, each clip of its own length."""
        reach = receptive_field(config.conv_layers)
        lengths = torch.randint(2 * reach, 5 * reach, (rows,), generator=generator)
        values = torch.randn(rows, int(lengths.max()), generator=generator)
        values = values * (torch.arange(values.shape[1]) < lengths[:, None])
        return ModalityInput(values, torch.arange(rows), lengths[:, None])


class WaveformExtractor(nn.Module):
    """Strided convolutions without bias, each followed by LayerNorm over the channels and GELU.

    Shape: (k t) -> (k n c). Unpadded, so a frame inside a clip reads that clip's samples only.
    """

    def __init__(self, layers: list[ConvLayer]) -> None:
        """Build the convolutions."""
        super().__init__()
        widths = [1, *(channels for channels, _, _ in layers)]
        self.strides = tuple(stride for _, _, stride in layers)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, channels, kernel, stride, bias=False)
            for width, (channels, kernel, stride) in zip(widths[:-1], layers, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in layers)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.get_parameter("weight"))

    def forward(self, waves: Float[Tensor, "k t"]) -> Float[Tensor, "k n c"]:
        """Extract the frames."""
        x = waves[..., None]
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            x = F.gelu(norm(conv_over_time(x, conv.get_parameter("weight"), stride)))
        return x


class PositionalConv(nn.Module):
    """One layer of convolutional positions: grouped convolution over time, LayerNorm without affine, GELU.

    Shape: (k n d) -> (k n d).
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        """Build the convolution, padded to keep the length."""
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Float[Tensor, "k n d"]) -> Float[Tensor, "k n d"]:
        """Mix neighbouring frames."""
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)[:, : x.shape[1]]
        return F.gelu(F.layer_norm(y, y.shape[-1:]))


def receptive_field(layers: list[ConvLayer]) -> int:
    """Return how many samples one frame reads."""
    reach, jump = 1, 1
    for _, kernel, stride in layers:
        reach, jump = reach + (kernel - 1) * jump, jump * stride
    return reach
