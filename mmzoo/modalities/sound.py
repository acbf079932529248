"""Sound: decode, mono, resample, standardise, cut; what the waveform and the mel Preprocess share."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Item
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess

MAX_CHANNELS = 64
"""More channels than this mean that the axes are the wrong way round."""


class Standardise(str, Enum):
    """How a clip's level is normalised: over the whole clip before anything is cut off, or not at all."""

    CLIP = "clip"
    NONE = "none"


@dataclass(kw_only=True)
class SoundAugment(schema.Config):
    """What training does to a waveform; a generator decides everything. Evaluation does none of it."""

    random_crop: bool = True
    "Cut a clip that is too long at a random place (else at its start, as evaluation does)."
    gain_db: float = 0.0
    "Change the level by a factor drawn from +- this many decibels; 0 is off."
    shift_s: float = 0.0
    "Move the sound by up to this many seconds either way, silence filling in; 0 is off."
    noise_snr_db: float | None = None
    "Add white noise this many decibels below the clip's own level; null is off."

    def __post_init__(self) -> None:
        """Refuse negative amounts."""
        for name in ("gain_db", "shift_s"):
            if getattr(self, name) < 0:
                raise ConfigError.at(
                    name, f"{getattr(self, name)}", "zero or more", "Use 0 to switch it off."
                )


class SoundPreprocess(Preprocess):
    """From a sound file to a mono waveform (t) at the rate the weights expect.

    Order: mono (mean of the channels), resample, [training: shift, noise], standardise over the whole clip,
    [training: gain], cut to `max_duration_s` (in evaluation the start is kept), tile up to `min_duration_s`.
    Ref: ONE-PEACE's audio datasets, which standardise before cutting and tile clips under a second.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; they belong to the weights."""

        sample_rate_hz: int = 16_000
        "Rate the model works at (Hz); other rates are resampled."
        standardise: Standardise = Standardise.CLIP
        "clip: zero mean and unit variance over the whole clip; none: leave the level alone."
        max_duration_s: float | None = 15.0
        "Longer clips are cut to this many seconds; null keeps everything."
        min_duration_s: float = 1.0
        "Shorter clips are repeated until they last this many seconds."
        augment: SoundAugment = field(default_factory=SoundAugment)
        "What training does to the waveform."

        def __post_init__(self) -> None:
            """Check rate and durations."""
            if self.sample_rate_hz < 1:
                raise ConfigError.at(
                    "sample_rate_hz", f"{self.sample_rate_hz}", "a positive rate", "Use 16000."
                )
            if self.min_duration_s < 0 or (self.max_duration_s or 1e9) < max(self.min_duration_s, 1e-9):
                found = f"min {self.min_duration_s} s, max {self.max_duration_s} s"
                raise ConfigError.at("max_duration_s", found, "0 <= min <= max", "Raise max or lower min.")

    kind: ClassVar[str] = "audio"

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def decode(self, data: bytes, name: str) -> tuple[np.ndarray, int]:
        """Read WAV, FLAC, OGG, MP3 and whatever else libsndfile knows: samples (t channels), rate in Hz."""
        import soundfile

        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            found = f"unreadable sound ({str(error).rpartition('>: ')[2]})"  # before it, a buffer of ours
            raise DataError.at(name, found, "WAV, FLAC, OGG or MP3", "Convert or remove the file.") from error
        if not len(samples):
            raise DataError.at(name, "no samples", "at least one", "Remove the file.")
        return samples, int(rate)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Return the waveform (t) as an Item."""
        return Item(self.waveform(raw, generator))

    def waveform(self, raw: Any, generator: torch.Generator | None = None) -> Float[Tensor, " t"]:
        """Do everything from raw samples to the mono clip that the model hears."""
        wave, rate = as_mono(raw)
        options: SoundPreprocess.Config = self.config
        if rate != options.sample_rate_hz:
            from torchaudio.functional import resample

            wave = resample(wave, rate, options.sample_rate_hz)
        augment: SoundAugment = options.augment
        if generator is not None:
            wave = _noise(
                _shift(wave, round(augment.shift_s * options.sample_rate_hz), generator), augment, generator
            )
        if options.standardise is Standardise.CLIP:
            wave = F.layer_norm(wave, wave.shape)
        if generator is not None and augment.gain_db:
            wave = wave * 10 ** (_uniform(-augment.gain_db, augment.gain_db, generator) / 20)
        return self._fit(wave, generator if augment.random_crop else None)

    def _fit(self, wave: Tensor, generator: torch.Generator | None) -> Tensor:
        rate, longest = self.config.sample_rate_hz, self.config.max_duration_s
        length, shortest = wave.shape[0], round(self.config.min_duration_s * rate)
        if longest is not None and length > round(longest * rate):
            keep = round(longest * rate)
            start = _integer(0, length - keep, generator) if generator is not None else 0
            return wave[start : start + keep].contiguous()
        return wave.repeat(-(-shortest // length))[:shortest] if length < shortest else wave


def as_mono(raw: Any) -> tuple[Float[Tensor, " t"], int]:
    """Check raw sound (samples (t) or (t channels), rate in Hz) and average its channels."""
    if not (isinstance(raw, tuple) and len(raw) == 2):
        found = f"{type(raw).__name__}"
        raise DataError.at(
            "audio", found, "(float samples (t) or (t channels), rate in Hz)", "Pass both in a tuple."
        )
    samples, rate = torch.as_tensor(raw[0]), raw[1]
    if (
        samples.ndim not in (1, 2)
        or not samples.numel()
        or (samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS)
    ):
        found = f"samples {tuple(samples.shape)}"
        raise DataError.at("audio", found, "(t) or (t channels), time first", "Transpose or drop the clip.")
    if not samples.is_floating_point():
        found = f"{str(samples.dtype).removeprefix('torch.')} samples"
        raise DataError.at("audio", found, "floats of about -1 to 1", "Divide integers by their full scale.")
    if int(rate) != rate or rate < 1:
        raise DataError.at("audio", f"rate {rate}", "a whole number of Hz", "Give the sample rate.")
    wave = samples.float() if samples.ndim == 1 else samples.float().mean(1)
    if not bool(torch.isfinite(wave).all()):
        raise DataError.at("audio", "NaN or infinity", "finite samples", "Mend or drop the clip.")
    return wave, int(rate)


def real_steps(sizes: Int[Tensor, " k"], n: int, device: torch.device) -> Bool[Tensor, "k n"] | None:
    """Return the mask of real steps on `device` (sizes are on the host); None where every row fills all n."""
    if bool((sizes >= n).all()):
        return None
    return (torch.arange(n) < sizes[:, None]).to(device, non_blocking=True)


def _shift(wave: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if not most:
        return wave
    by = max(-wave.shape[0], min(wave.shape[0], _integer(-most, most, generator)))
    return F.pad(wave, (by, -by))


def _noise(wave: Tensor, augment: SoundAugment, generator: torch.Generator) -> Tensor:
    if augment.noise_snr_db is None:
        return wave
    level = wave.square().mean().sqrt() * 10 ** (-augment.noise_snr_db / 20)
    return wave + level * torch.randn(wave.shape, generator=generator)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Draw a whole number from low … high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
