"""Audio as a picture: log-mel spectrogram (torchaudio), cut into (time x mel) patches, one token each.

Axis letters: k rows, t spectrogram frames, m mel bands, n tokens, d width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmzoo.batch import Item, ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.axis_positions import AxisPositions
from mmzoo.layers.init import trunc_normal_
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.modalities.sound import SoundPreprocess, Standardise, real_steps


class Features(str, Enum):
    """Which of torchaudio's mel features: a power MelSpectrogram, or Kaldi's fbank (as AST and BEATs use)."""

    MEL = "mel"
    KALDI = "kaldi"


class Normalise(str, Enum):
    """What centres and scales log-mel values: the clip itself, `mean` and `std` of a data set, or nothing."""

    CLIP = "clip"
    DATASET = "dataset"
    NONE = "none"


class Positions(str, Enum):
    """Where a patch is: learned time and mel tables (2-D), a learned time table (1-D), or fixed sinusoids."""

    GRID = "grid"
    TIME = "time"
    SINUSOID = "sinusoid"


class MelPreprocess(SoundPreprocess):
    """From a sound file to log-mel values (t m), made clip by clip so that padding has no part in them.

    Math: log(max(mel power, 1e-6)), or Kaldi's own log; then (x - mean) / std. SpecAugment (training) sets
    one band of mels and one stretch of frames to the clip's mean value.
    Ref: SpecAugment (Park et al. 2019) without time warping.
    """

    @dataclass(kw_only=True)
    class Config(SoundPreprocess.Config):
        """Options; they belong to the weights."""

        standardise: Standardise = Standardise.NONE
        "As in the waveform's; the log-mel values are normalised anyway."
        features: Features = Features.MEL
        "mel: torchaudio MelSpectrogram; kaldi: torchaudio.compliance.kaldi.fbank."
        num_mels: int = 64
        "Mel bands."
        window_ms: float = 25.0
        "Analysis window (ms)."
        hop_ms: float = 10.0
        "Step from frame to frame (ms)."
        fft_size: int = 512
        "Length of the Fourier transform (samples), at least the window; Kaldi takes the next power of two."
        min_hz: float = 20.0
        "Lower edge of the mel bands (Hz)."
        normalise: Normalise = Normalise.CLIP
        "What centres and scales the log-mel values."
        mean: float = 0.0
        "Mean of the log-mel values (dataset normalisation only)."
        std: float = 1.0
        "Standard deviation of the log-mel values (dataset normalisation only)."
        mel_mask: int = 0
        "SpecAugment: mask a band of up to this many mels in training; 0 is off."
        time_mask: int = 0
        "SpecAugment: mask a stretch of up to this many frames in training; 0 is off."

        def __post_init__(self) -> None:
            """Check the analysis."""
            super().__post_init__()
            window = round(self.window_ms * self.sample_rate_hz / 1000)
            if self.features is Features.MEL and window > self.fft_size:
                found = f"{self.fft_size} for a window of {window} samples"
                raise ConfigError.at(
                    "fft_size", found, f"at least {window}", "Raise it or shorten window_ms."
                )
            if self.num_mels < 1 or self.hop_ms <= 0 or self.std <= 0:
                found = f"{self.num_mels}, {self.hop_ms}, {self.std}"
                raise ConfigError.at("num_mels, hop_ms, std", found, "positive numbers", "Raise them.")

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Return log-mel values (t m) as an Item."""
        values = self.normalised(self.log_mel(self.waveform(raw, generator)))
        return Item(values if generator is None else self._masked(values, generator))

    def log_mel(self, wave: Float[Tensor, " samples"]) -> Float[Tensor, "t m"]:
        """Return the log-mel spectrogram of one clip."""
        return self._features(wave)

    def normalised(self, values: Float[Tensor, "t m"]) -> Float[Tensor, "t m"]:
        """Centre and scale."""
        options: MelPreprocess.Config = self.config
        if options.normalise is Normalise.CLIP:
            return (values - values.mean()) / values.std(correction=0).clamp(min=1e-5)
        if options.normalise is Normalise.DATASET:
            return (values - options.mean) / options.std
        return values

    @functools.cached_property
    def _features(self) -> Callable[[Tensor], Tensor]:
        options: MelPreprocess.Config = self.config
        rate = options.sample_rate_hz
        if options.features is Features.KALDI:
            from torchaudio.compliance.kaldi import fbank

            return functools.partial(
                _kaldi, fbank, num_mel_bins=options.num_mels, frame_length=options.window_ms,
                frame_shift=options.hop_ms, low_freq=options.min_hz, sample_frequency=float(rate),
            )  # fmt: skip
        from torchaudio.transforms import MelSpectrogram

        mel = MelSpectrogram(
            rate, n_fft=options.fft_size, win_length=round(options.window_ms * rate / 1000),
            hop_length=round(options.hop_ms * rate / 1000), f_min=options.min_hz, n_mels=options.num_mels,
        )  # fmt: skip
        return functools.partial(_log_power, mel, options.fft_size // 2 + 1)

    def _masked(self, values: Tensor, generator: torch.Generator) -> Tensor:
        values = values.clone()
        fill = values.mean()
        for axis, most in ((0, self.config.time_mask), (1, self.config.mel_mask)):
            most = min(most, values.shape[axis])
            width = int(torch.randint(0, most + 1, (), generator=generator))
            start = int(torch.randint(0, values.shape[axis] - width + 1, (), generator=generator))
            values.narrow(axis, start, width).fill_(fill)
        return values


def _log_power(mel: nn.Module, shortest: int, wave: Tensor) -> Tensor:
    short = shortest - wave.shape[0]
    padded = F.pad(wave, (0, short)) if short > 0 else wave
    return mel(padded).t().clamp(min=1e-6).log().contiguous()


def _kaldi(fbank: Callable[..., Tensor], wave: Tensor, **options: Any) -> Tensor:
    shortest = math.ceil(options["frame_length"] * options["sample_frequency"] / 1000)
    padded = F.pad(wave, (0, max(0, shortest - wave.shape[0])))
    return fbank(padded[None] - padded.mean(), htk_compat=True, window_type="hanning", dither=0.0, **options)


class MelAdapter(ModalityAdapter):
    """Log-mel patches through one linear layer.

    Shape: values (k t m) -> tokens (k 1+n d), n = ceil(t / patch_frames) * (m / patch_mels), time slow, mel
    fast; frames missing from a clip's last patch are zero.
    """

    kind = "audio"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options."""

        preprocess: MelPreprocess.Config = field(default_factory=MelPreprocess.Config)
        "From a sound file to log-mel values."
        patch_frames: int = 16
        "Patch length along time (spectrogram frames)."
        patch_mels: int = 16
        "Patch height (mel bands); must divide preprocess.num_mels. Equal to it, tokens lie on time alone."
        positions: Positions = Positions.GRID
        "grid: learned time + mel tables; time: a learned time table; sinusoid: fixed, 2-D."
        position_blocks: int = 256
        "Length of the learned time table (patches); longer clips stretch it."

        def __post_init__(self) -> None:
            """Check the patches."""
            if self.patch_frames < 1 or self.patch_mels < 1 or self.preprocess.num_mels % self.patch_mels:
                found = f"{self.patch_frames} x {self.patch_mels} for {self.preprocess.num_mels} mels"
                raise ConfigError.at(
                    "patch_mels", found, "a divisor of preprocess.num_mels", "Change one of them."
                )
            if self.position_blocks < 1:
                raise ConfigError.at("position_blocks", f"{self.position_blocks}", "one or more", "Raise it.")

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Build the projection and the positions."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        self.bands = config.preprocess.num_mels // config.patch_mels
        self.projection = nn.Linear(config.patch_frames * config.patch_mels, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        learned = config.positions is not Positions.SINUSOID
        self.time_positions = AxisPositions(config.position_blocks, dim) if learned else None
        self.mel_positions = AxisPositions(self.bands, dim) if config.positions is Positions.GRID else None
        for weight in (self.projection.weight, self.cls_token):
            trunc_normal_(weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the clips."""
        frames = x.sizes[:, 0]
        if x.values.ndim != 3 or x.values.shape[2] != self.config.preprocess.num_mels:
            expected = f"(k, frames, {self.config.preprocess.num_mels})"
            raise ShapeError.at(
                self.name, f"values {tuple(x.values.shape)}", expected, "Use this adapter's Preprocess."
            )
        blocks = torch.div(
            frames + self.config.patch_frames - 1, self.config.patch_frames, rounding_mode="floor"
        )
        n = int(blocks.max())
        patches = self._patches(x.values[:, : int(frames.max())], frames, n)
        content = self.projection(patches) + self._place(blocks, n)
        cls = self.cls_token.expand(len(x), -1, -1).to(content.dtype)
        valid = torch.arange(n * self.bands + 1) <= blocks[:, None] * self.bands
        grids = tuple((int(b), self.bands) for b in blocks)
        return TokenSequence(torch.cat([cls, content], dim=1), valid, x.index, self.name, grids, 1)

    def _patches(self, values: Tensor, frames: Int[Tensor, " k"], n: int) -> Float[Tensor, "k tokens p"]:
        real = real_steps(frames, values.shape[1], values.device)
        values = values if real is None else values.masked_fill(~real[..., None], 0.0)
        values = F.pad(values, (0, 0, 0, n * self.config.patch_frames - values.shape[1]))
        grid = values.unflatten(1, (n, self.config.patch_frames)).unflatten(
            3, (self.bands, self.config.patch_mels)
        )
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)

    def _place(self, blocks: Int[Tensor, " k"], n: int) -> Float[Tensor, "_ tokens d"]:
        if self.time_positions is None:
            return sinusoids_2d(n, self.bands, self.dim).to(self.projection.weight.device)[None]
        place = self.time_positions(blocks, n)[:, :, None]
        if self.mel_positions is not None:
            place = place + self.mel_positions(blocks, self.bands)[:, None]
        return place.expand(-1, -1, self.bands, -1).flatten(1, 2)

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise of a few patches, each clip of its own length."""
        lengths = torch.randint(1, 4 * config.patch_frames, (rows,), generator=generator)
        values = torch.randn(rows, int(lengths.max()), config.preprocess.num_mels, generator=generator)
        values = values * (torch.arange(values.shape[1]) < lengths[:, None])[..., None]
        sizes = torch.stack([lengths, torch.full_like(lengths, config.preprocess.num_mels)], dim=1)
        return ModalityInput(values, torch.arange(rows), sizes)


def sinusoids_2d(rows: int, cols: int, dim: int) -> Float[Tensor, "n d"]:
    """Return fixed positions of a row-major grid: half of the width encodes the row, half the column.

    Math: sin and cos of position / 10000^(i / quarter), i = 0 … quarter - 1, quarter = dim / 4.
    Ref: MAE (He et al. 2022), after Vaswani et al. 2017.
    """
    if dim % 4:
        raise ConfigError.at("positions", f"sinusoid for width {dim}", "a multiple of 4", "Use grid or time.")
    rate = 10_000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    row, col = torch.arange(rows)[:, None] * rate, torch.arange(cols)[:, None] * rate
    by_row = torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(-1, cols, -1)
    by_col = torch.cat([col.sin(), col.cos()], dim=1)[None].expand(rows, -1, -1)
    return torch.cat([by_row, by_col], dim=2).flatten(0, 1)
