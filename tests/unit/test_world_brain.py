"""The scans: energies against a slow formula, the noise ceiling against an oracle, shared codes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmzoo.datamodules.world import brain
from mmzoo.datamodules.world.events import WorldConfig, make_events


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def slow_energy(picture, scale, step):
    """Evaluate one log-Gabor energy map frequency by frequency, averaged on the grid."""
    light = picture.astype(float).mean(axis=-1) / 255.0
    spectrum = np.fft.fft2(light - light.mean())
    out = np.zeros((64, 64), dtype=complex)
    for ky in range(64):
        for kx in range(64):
            fy, fx = ((ky + 32) % 64 - 32) / 64, ((kx + 32) % 64 - 32) / 64
            f = math.hypot(fy, fx)
            if f == 0.0:
                continue
            away = math.atan2(fy, fx) - math.pi * step / 8
            away = math.atan2(math.sin(away), math.cos(away))
            gain = math.exp(-(math.log(f / (0.25 / 2**scale)) ** 2) / (2 * math.log(1.6) ** 2))
            out[ky, kx] = 2 * spectrum[ky, kx] * gain * math.exp(-(away**2) / (2 * (math.pi / 8) ** 2))
    return np.abs(np.fft.ifft2(out)).reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel()


def test_energies_are_those_of_log_gabor_filters_up_to_contrast(pictures):
    maps = brain.energies(pictures)
    assert maps.shape == (3, 36, 256)
    factors = []
    for scale, step in ((0, 0), (1, 3), (2, 5), (3, 7)):
        expected, found = slow_energy(pictures[1], scale, step), maps[1, 8 * scale + step]
        factors.append(float((found / expected).mean()))
        error = np.sqrt(np.mean((found / factors[-1] - expected) ** 2) / np.mean(expected**2))
        assert error < (1e-4 if scale < 2 else 0.08), "the coarse scales are read at half the size"
    np.testing.assert_allclose(factors, factors[0], rtol=0.01)


def test_contrast_does_not_matter_much_and_colour_does():
    grey = np.tile(np.random.default_rng(1).integers(60, 200, (1, 64, 64, 1)), (1, 1, 1, 3)).astype(np.uint8)
    flat = (128 + (grey.astype(float) - 128) / 2).astype(np.uint8)
    full, half = brain.energies(grey), brain.energies(flat)
    np.testing.assert_allclose(half[:, :32].mean(), full[:, :32].mean(), rtol=0.25)
    np.testing.assert_allclose(full[:, 32:], 0.0, atol=1e-6)
    red = np.zeros((1, 64, 64, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_allclose(brain.energies(red)[0, 32:, 0], (1.0, 0.0, 0.0, 0.5), atol=1e-6)


def test_pictures_of_another_size_are_seen_at_64(pictures):
    large = pictures.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(brain.energies(large), brain.energies(pictures), atol=1e-6)


def test_subjects_have_their_voxels_and_the_median_ncsnr():
    for name, voxels in brain.SUBJECTS.items():
        subject = brain.make_subject(name, 0, 0.8)
        assert len(subject.roi) == len(subject.ncsnr) == voxels
        assert abs(np.median(subject.ncsnr) / 0.8 - 1) < 0.1
        np.testing.assert_allclose(subject.fields.sum(axis=1), 1.0)
        np.testing.assert_allclose(np.linalg.norm(subject.mixing, axis=0), 1.0)
        shares = np.bincount(subject.roi) / voxels
        np.testing.assert_allclose(shares, (0.25, 0.20, 0.20, 0.35), atol=0.01)
        np.testing.assert_array_equal(brain.make_subject(name, 0, 0.8).fields, subject.fields)


def test_codes_are_shared_and_keep_values_apart():
    events = make_events(WorldConfig(), "test")
    code = brain.semantic_code(events, 0)
    by_action = {e.action: c[:10] for e, c in zip(events, code, strict=True)}
    gaps = [np.linalg.norm(by_action[a] - by_action[b]) for a in by_action for b in by_action if a < b]
    assert min(gaps) > 1.5
    np.testing.assert_array_equal(brain.semantic_code(events[:4], 0), code[:4])
    assert np.abs(brain.semantic_code(events, 1) - code).max() > 0.1


def test_noise_has_unit_variance_and_the_stated_correlations():
    noise = np.stack([brain.trial_noise(e, 3) for e in make_events(WorldConfig(), "train")[:400]])
    assert abs(noise.std() - 1.0) < 0.01
    first, second = noise[:, 0, :472], noise[:, 1, :472]
    lag = np.mean([np.corrcoef(first[:, v], second[:, v])[0, 1] for v in range(0, 472, 8)])
    assert abs(lag - 0.3) < 0.03
    between = np.corrcoef(first[:, 0:400:10].T)
    assert abs(between[np.triu_indices(40, 1)].mean() - 0.09) < 0.03


def test_a_perfect_model_explains_the_noise_ceiling():
    rng = np.random.default_rng(0)
    subject = brain.make_subject("sub-07", 0, 0.6)
    maps, code = rng.random((500, 36, 256)).astype(np.float32), rng.normal(size=(500, 21))
    responder = brain.Responder(subject, maps, code)
    signal = responder.signal(maps, code)
    np.testing.assert_allclose(signal.std(axis=0), 1.0, atol=1e-3)
    scans = responder.scans(signal, rng.normal(size=(500, 3, 380)))
    assert abs(np.median(scans.std(axis=(0, 1))) - 1.0) < 0.05
    mean = scans.mean(axis=1)
    explained = np.array([np.corrcoef(signal[:, v], mean[:, v])[0, 1] ** 2 for v in range(380)])
    assert abs(np.median(explained / subject.noise_ceiling(3)) - 1.0) < 0.05
