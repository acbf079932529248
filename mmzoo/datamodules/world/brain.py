"""The scans: a voxel-wise encoding model of that very picture, in four subjects of different size.

Ref: the project's fMRI simulator, whose steps are 1 log-Gabor energies, 2 receptive fields and tuning, 3
mixing between neighbours, 4 noise at a known ceiling. Three additions: energies are divided by the
picture's overall contrast, some voxels of V2, V4 and above read opponent colours, and the higher ones
carry a code of who, what, how and where (`semantic_code`), the same for all subjects.

Voxel counts are those of NSD's subjects 1, 2, 5, 7 divided by 33.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float, Int, UInt8
from PIL import Image

from mmzoo.datamodules.world.events import ATTRIBUTES, Event, keyed

SUBJECTS = {"sub-01": 472, "sub-02": 430, "sub-05": 391, "sub-07": 380}
"""Subject -> number of voxels."""
ROIS = ("V1", "V2", "V4", "high")
SIZE = 64
"""Height and width (pixels) at which the brain sees a picture."""
GRID = 16
"""Energies are averaged on a grid of this many cells a side before the receptive fields read them."""
SEMI_SATURATION = 0.01
"""Mean energy below which normalisation no longer lifts a picture's contrast."""

_ROI_SHARE = (0.25, 0.20, 0.20, 0.35)
_PRF_GROWTH = (1.0, 1.4, 2.2, 4.0)
_SHARPNESS = (2.0, 1.5, 1.0, 0.2)
_EXPONENT = (0.6, 0.5, 0.45, 0.4)
_COLOUR_SHARE = (0.0, 0.1, 0.5, 0.4)
_SCALES, _ORIENTATIONS, _COLOURS = 4, 8, 4
_LOW = np.r_[0 : SIZE // 4, 3 * SIZE // 4 : SIZE]
_CODE_DIMS = {"action": 10, "colour": 5, "tempo": 2, "side": 1, "setting": 3}
_CODE_WEIGHTS = {"action": 1.0, "colour": 0.8, "tempo": 0.7, "side": 0.6, "setting": 0.6}
_STREAM = 1000
"""First number of the random keys of this file, beyond those of events."""

Maps = Float[np.ndarray, "n c cells"]


@dataclass(frozen=True)
class Subject:
    """One subject's voxels: ROI of each, weights of channels and cells, code weights, mixing, ncsnr.

    Math: drive d = sum_c channels_vc sum_cells fields_v E_c; z = d^n standardised on the calibration
    events; higher voxels z <- .6 z + .8 <code, a_v> standardised; z <- z K; scan = ncsnr z + noise of
    unit variance.
    """

    name: str
    roi: Int[np.ndarray, " v"]
    fields: Float[np.ndarray, "v cells"]
    channels: Float[np.ndarray, "v c"]
    tuning: Float[np.ndarray, "v k"]
    mixing: Float[np.ndarray, "v v"]
    ncsnr: Float[np.ndarray, " v"]

    def noise_ceiling(self, repeats: int) -> Float[np.ndarray, " v"]:
        """Return the share of variance that the best model can explain in the mean of some repeats."""
        return self.ncsnr**2 / (self.ncsnr**2 + 1.0 / repeats)


def make_subject(name: str, seed: int, ncsnr: float) -> Subject:
    """Draw one of the world's subjects; `ncsnr` is the median over the voxels."""
    at = list(SUBJECTS).index(name)
    return draw_subject(name, SUBJECTS[name], ncsnr, keyed(seed, _STREAM, at))


def draw_subject(name: str, voxels: int, ncsnr: float, rng: np.random.Generator) -> Subject:
    """Draw a person's voxels; `ncsnr` is the median over them."""
    sizes = np.round(np.cumsum((0.0, *_ROI_SHARE)) * voxels).astype(int)
    roi = np.repeat(np.arange(len(ROIS)), np.diff(sizes))
    return Subject(
        name=name,
        roi=roi,
        fields=_receptive_fields(roi, rng),
        channels=_channel_weights(roi, rng),
        tuning=rng.normal(size=(voxels, sum(_CODE_DIMS.values()))) * (roi == ROIS.index("high"))[:, None],
        mixing=_neighbours(roi),
        ncsnr=np.clip(np.exp(rng.normal(np.log(ncsnr), 0.5, voxels)), 0.05, 2.0 * max(1.0, ncsnr)),
    )


def energies(pictures: UInt8[np.ndarray, "n h w 3"]) -> Maps:
    """Return what early vision computes: 32 log-Gabor energies of the luminance, 4 opponent colours, on a
    grid.

    Math: f_s = .25 / 2^s cycles a pixel, G = exp(-ln(f/f_s)^2 / (2 ln(1.6)^2)) exp(-dtheta^2 / (2
    (pi/8)^2)), one-sided (analytic, factor 2), no DC; E = |IFFT(FFT(I - mean) G)|.
    """
    seen = _at_size(pictures).astype(np.float32) / 255.0
    red, green, blue = seen[..., 0], seen[..., 1], seen[..., 2]
    light = (red + green + blue) / 3.0
    light = light - light.mean(axis=(1, 2), keepdims=True)
    fine = np.fft.fft2(light).astype(np.complex64)
    spectra = {SIZE: fine, SIZE // 2: _low_frequencies(fine)}
    maps = np.empty((len(seen), _SCALES * _ORIENTATIONS + _COLOURS, GRID * GRID), dtype=np.float32)
    for c, gabor in enumerate(_gabors()):
        maps[:, c] = _pool(np.abs(np.fft.ifft2(spectra[len(gabor)] * gabor)))
    contrast = maps[:, : _SCALES * _ORIENTATIONS]
    contrast /= contrast.mean(axis=(1, 2), keepdims=True) + SEMI_SATURATION
    opponent = (red - green, green - red, blue - (red + green) / 2, (red + green) / 2 - blue)
    for c, colour in enumerate(opponent, start=_SCALES * _ORIENTATIONS):
        maps[:, c] = _pool(np.maximum(colour, 0.0))
    return maps


def semantic_code(events: Sequence[Event], seed: int) -> Float[np.ndarray, "n k"]:
    """Return the code of who, what, how and where, each value of each attribute a vector shared by all
    subjects."""
    tables = zip(ATTRIBUTES, _code_tables(seed), strict=True)
    return np.concatenate(
        [table[[getattr(event, name) for event in events]] for name, table in tables], axis=1
    )


class Responder:
    """A subject whose responses are standardised on calibration events: pictures and events in, signal
    out."""

    def __init__(self, subject: Subject, maps: Maps, code: Float[np.ndarray, "n k"]) -> None:
        """Measure mean and deviation of each step on the calibration events."""
        self.subject = subject
        weights = subject.channels[:, :, None] * subject.fields[:, None, :]
        self._weights = weights.reshape(len(subject.roi), -1).T.astype(np.float32)
        drive = self._drive(maps)
        self._drive_norm = _moments(drive)
        self._code_norm = _moments(code @ subject.tuning.T)
        self._mixed_norm = _moments(self._mixed(drive, code))

    def signal(self, maps: Maps, code: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n v"]:
        """Return the noiseless response, of zero mean and unit variance over calibration events."""
        return _standardise(self._mixed(self._drive(maps), code), self._mixed_norm)

    def scans(
        self, signal: Float[np.ndarray, "n v"], noise: Float[np.ndarray, "n r v"]
    ) -> Float[np.ndarray, "n r v"]:
        """Return the repeats' scans, scaled to unit variance of a single scan."""
        ncsnr = self.subject.ncsnr
        return (ncsnr * signal[:, None] + noise) / np.sqrt(1.0 + ncsnr**2)

    def _drive(self, maps: Maps) -> Float[np.ndarray, "n v"]:
        exponent = np.array(_EXPONENT)[self.subject.roi]
        flat = maps.reshape(len(maps), -1).astype(np.float32)
        return np.maximum(flat @ self._weights, 0.0).astype(np.float64) ** exponent

    def _mixed(
        self, drive: Float[np.ndarray, "n v"], code: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, "n v"]:
        response = _standardise(drive, self._drive_norm)
        high = self.subject.roi == ROIS.index("high")
        meaning = _standardise(code @ self.subject.tuning.T, self._code_norm)
        response[:, high] = 0.6 * response[:, high] + 0.8 * meaning[:, high]
        return response @ self.subject.mixing


def trial_noise(event: Event, repeats: int) -> Float[np.ndarray, "r v"]:
    """Return unit-variance noise of all subjects' voxels side by side, partly shared by a subject's voxels.

    Math: e_k = rho e_(k-1) + sqrt(1 - rho^2) n_k over the repeats, n = sqrt(.91) white + .3 global, rho = .3.
    """
    rng, rho = event.rng("fmri"), 0.3
    total = sum(SUBJECTS.values())
    fresh = np.sqrt(0.91) * rng.standard_normal((repeats, total))
    shared = rng.standard_normal((repeats, len(SUBJECTS)))
    fresh += 0.3 * np.repeat(shared, list(SUBJECTS.values()), axis=1)
    noise = fresh.copy()
    for k in range(1, repeats):
        noise[k] = rho * noise[k - 1] + np.sqrt(1 - rho**2) * fresh[k]
    return noise


@functools.cache
def _code_tables(seed: int) -> tuple[Float[np.ndarray, "_ _"], ...]:
    """Return the vectors of each attribute's values, far apart from each other."""
    return tuple(
        _spread(len(values), _CODE_DIMS[name], keyed(seed, _STREAM + 1, at)) * _CODE_WEIGHTS[name]
        for at, (name, values) in enumerate(ATTRIBUTES.items())
    )


@functools.cache
def _gabors() -> tuple[Float[np.ndarray, "h w"], ...]:
    fy, fx = np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE), indexing="ij")
    radius, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    radius[0, 0] = 1.0
    filters: list[Float[np.ndarray, "h w"]] = []
    for scale in range(_SCALES):
        keep = np.s_[:, :] if scale < 2 else np.ix_(_LOW, _LOW)
        ring = np.exp(-(np.log(radius / (0.25 / 2**scale)) ** 2) / (2 * np.log(1.6) ** 2))
        for step in range(_ORIENTATIONS):
            off = np.angle(np.exp(1j * (angle - np.pi * step / _ORIENTATIONS)))
            gabor = 2.0 * ring * np.exp(-(off**2) / (2 * (np.pi / 8) ** 2))
            gabor[0, 0] = 0.0
            filters.append(gabor[keep].astype(np.float32))
    return tuple(filters)


def _receptive_fields(roi: Int[np.ndarray, " v"], rng: np.random.Generator) -> Float[np.ndarray, "v cells"]:
    eccentricity, angle = 0.45 * rng.beta(1.2, 2.0, len(roi)), rng.uniform(0, 2 * np.pi, len(roi))
    size = (0.03 + 0.12 * eccentricity) * np.array(_PRF_GROWTH)[roi]
    centre = 0.5 + eccentricity[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    cells = (np.arange(GRID) + 0.5) / GRID
    away = (cells - centre[:, :, None]) ** 2
    field = np.exp(-(away[:, 0, :, None] + away[:, 1, None, :]) / (2 * size[:, None, None] ** 2))
    field = field.reshape(len(roi), -1) + 1e-9
    return field / field.sum(axis=1, keepdims=True)


def _channel_weights(roi: Int[np.ndarray, " v"], rng: np.random.Generator) -> Float[np.ndarray, "v c"]:
    theta, scale = rng.uniform(0, np.pi, len(roi)), rng.normal(1.2, 0.8, len(roi))
    orientations = np.pi * np.arange(_ORIENTATIONS) / _ORIENTATIONS
    sharp = np.array(_SHARPNESS)[roi][:, None]
    by_angle = np.exp(sharp * (np.cos(2 * (orientations - theta[:, None])) - 1.0))
    by_scale = np.exp(-((np.arange(_SCALES) - scale[:, None]) ** 2) / (2 * 0.8**2)) + 1e-9
    gabor = (by_scale[:, :, None] * by_angle[:, None, :]).reshape(len(roi), -1)
    gabor /= gabor.sum(axis=1, keepdims=True)
    likes_colour = rng.random(len(roi)) < np.array(_COLOUR_SHARE)[roi]
    hue = np.eye(_COLOURS)[rng.integers(_COLOURS, size=len(roi))]
    gabor[likes_colour] *= 0.1
    return np.concatenate([gabor, 0.9 * hue * likes_colour[:, None]], axis=1)


def _neighbours(roi: Int[np.ndarray, " v"]) -> Float[np.ndarray, "v v"]:
    at = np.arange(len(roi))
    kernel = np.exp(-np.abs(at[:, None] - at) / 2.0) * (roi[:, None] == roi)
    return kernel / np.linalg.norm(kernel, axis=0)


def _spread(number: int, dims: int, rng: np.random.Generator) -> Float[np.ndarray, "number dims"]:
    """Draw unit-variance vectors that keep apart: the best of 200 draws by smallest distance."""
    best, widest = np.zeros((number, dims)), -1.0
    for _ in range(200):
        draw = rng.normal(size=(number, dims))
        draw = (draw - draw.mean(axis=0)) / (draw.std(axis=0) + 1e-9)
        gaps = np.linalg.norm(draw[:, None] - draw, axis=-1) + 1e9 * np.eye(number)
        if gaps.min() > widest:
            best, widest = draw, float(gaps.min())
    return best


def _at_size(pictures: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n 64 64 3"]:
    if pictures.shape[1:3] == (SIZE, SIZE):
        return pictures
    return np.stack(
        [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BOX)) for p in pictures]
    )


def _low_frequencies(spectrum: Complex[np.ndarray, "n h w"]) -> Complex[np.ndarray, "n h2 w2"]:
    """Cut a spectrum down to that of the picture at half the size, all that the coarse scales need."""
    return spectrum[:, _LOW[:, None], _LOW] / 4.0


def _pool(maps: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n cells"]:
    rows, step = maps.shape[1], maps.shape[1] // GRID
    by_row = maps.reshape(len(maps), GRID, step, rows).sum(axis=2)
    return by_row.reshape(len(maps), GRID * GRID, step).sum(axis=2) / step**2


def _moments(values: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "2 v"]:
    return np.stack([values.mean(axis=0), values.std(axis=0) + 1e-6])


def _standardise(
    values: Float[np.ndarray, "n v"], norm: Float[np.ndarray, "2 v"]
) -> Float[np.ndarray, "n v"]:
    return (values - norm[0]) / norm[1]
