"""Log-mel: features against a spectrum written out by hand, the adapter against running each clip alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmzoo.batch import ModalityInput
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.axis_positions import AxisPositions
from mmzoo.modalities.mel import MelAdapter, MelPreprocess, sinusoids_2d
from mmzoo.schema import parse


def preprocess(**options: object) -> MelPreprocess:
    return MelPreprocess(parse(MelPreprocess.Config, options))


def adapter(**options: object) -> MelAdapter:
    torch.manual_seed(0)
    defaults = {"preprocess": {"num_mels": 12}, "patch_frames": 4, "patch_mels": 6, "position_blocks": 5}
    return MelAdapter(parse(MelAdapter.Config, defaults | options), name="mel", dim=8, num_heads=2)


def ragged(lengths: list[int], filler: float = 0.0, mels: int = 12) -> ModalityInput:
    values = torch.full((len(lengths), max(lengths), mels), filler)
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, mels, generator=torch.Generator().manual_seed(row))
    sizes = torch.tensor([[length, mels] for length in lengths])
    return ModalityInput(values, torch.arange(len(lengths)), sizes)


def tone(hz: float = 700.0, seconds: float = 1.0, rate: int = 16_000) -> tuple[np.ndarray, int]:
    time = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hz * time) + 0.1 * np.cos(2 * np.pi * 3 * hz * time)).astype(np.float32), rate


def mel_scale(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def test_features_follow_the_textbook() -> None:
    make = preprocess(normalise="none", num_mels=10, min_hz=50.0)
    samples, rate = tone()
    values = make((samples, rate)).values
    assert values.shape == (101, 10)
    frame, centre = 37, 37 * 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    piece = np.zeros(512)
    piece[56:456] = samples[centre - 200 : centre + 200] * window
    power = np.abs(np.fft.rfft(piece)) ** 2
    edges = np.linspace(mel_scale(50.0), mel_scale(8000.0), 12)
    hz = 700 * (10 ** (edges / 2595) - 1)
    bins = np.arange(257) * 16_000 / 512
    for band in range(10):
        low, middle, high = hz[band : band + 3]
        weight = np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
        assert float(values[frame, band]) == pytest.approx(
            math.log(max((weight * power).sum(), 1e-6)), abs=1e-3
        )


def test_kaldi_features_are_torchaudios() -> None:
    from torchaudio.compliance.kaldi import fbank

    samples, rate = tone()
    values = preprocess(normalise="none", features="kaldi", num_mels=23)((samples, rate)).values
    wave = torch.from_numpy(samples) - float(samples.mean())
    expected = fbank(
        wave[None],
        num_mel_bins=23,
        sample_frequency=16_000,
        htk_compat=True,
        window_type="hanning",
        dither=0.0,
    )
    assert values.shape == (98, 23)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


def test_normalisation_by_clip_and_by_data_set() -> None:
    raw = tone()
    plain = preprocess(normalise="none")(raw).values
    by_clip = preprocess()(raw).values
    torch.testing.assert_close(
        by_clip, (plain - plain.mean()) / plain.std(correction=0), rtol=1e-4, atol=1e-5
    )
    by_set = preprocess(normalise="dataset", mean=-4.0, std=2.5)(raw).values
    torch.testing.assert_close(by_set, (plain + 4.0) / 2.5)


@pytest.mark.parametrize("features", ["mel", "kaldi"])
def test_very_short_clips_work(features: str) -> None:
    values = preprocess(features=features, min_duration_s=0.0)((np.ones(30, np.float32), 16_000)).values
    assert values.shape[0] >= 1
    assert torch.isfinite(values).all()


def test_spec_augment_fills_one_band_and_one_stretch(generator: torch.Generator) -> None:
    make = preprocess(mel_mask=20, time_mask=30)
    clean, raw = make(tone()).values, tone()
    masked = make(raw, generator=torch.Generator().manual_seed(4)).values
    assert torch.equal(masked, make(raw, generator=torch.Generator().manual_seed(4)).values)
    changed = masked != clean
    rows, cols = changed.all(1), changed.all(0)
    assert 0 < int(rows.sum()) <= 30
    assert 0 < int(cols.sum()) <= 20
    assert torch.equal(changed, rows[:, None] | cols[None])
    torch.testing.assert_close(masked[changed], torch.zeros(int(changed.sum())), rtol=0, atol=0.05)
    kept = preprocess()(raw, generator=generator).values
    assert torch.equal(kept, clean)


@pytest.mark.parametrize("positions", ["grid", "time", "sinusoid"])
def test_a_clip_in_a_ragged_batch_equals_the_clip_alone(positions: str) -> None:
    model = adapter(positions=positions)
    x = ragged([37, 9, 20, 1], filler=5.0)
    together = model(x)
    for row, (length, _) in enumerate(x.sizes.tolist()):
        alone = model(ModalityInput(x.values[row : row + 1, :length], x.index[:1], x.sizes[row : row + 1]))
        n = alone.tokens.shape[1]
        assert n == 1 + 2 * math.ceil(length / 4)
        assert together.valid[row].tolist() == [i < n for i in range(together.tokens.shape[1])]
        torch.testing.assert_close(together.tokens[row, :n], alone.tokens[0], rtol=0, atol=1e-6)
    assert together.grids == ((10, 2), (3, 2), (5, 2), (1, 2))


def test_tokens_follow_the_formula() -> None:
    model = adapter()
    x = ragged([10])
    state = model.state_dict()
    padded = torch.cat([x.values[0], torch.zeros(2, 12)])
    tokens = [state["cls_token"][0, 0]]
    for time in range(3):
        for band in range(2):
            patch = padded[4 * time : 4 * time + 4, 6 * band : 6 * band + 6].flatten()
            place = state["time_positions.table"][time] + state["mel_positions.table"][band]
            tokens.append(state["projection.weight"] @ patch + state["projection.bias"] + place)
    torch.testing.assert_close(model(x).tokens[0], torch.stack(tokens), rtol=1e-5, atol=1e-6)


def test_axis_positions_stretch_over_longer_rows_only() -> None:
    positions = AxisPositions(4, 3)
    out = positions(torch.tensor([7, 3, 10]), 10)
    table = positions.table.detach().numpy()
    torch.testing.assert_close(out[1, :3], positions.table[:3])
    for row, length in ((0, 7), (2, 10)):
        for i in range(length):
            expected = [np.interp(i * 3 / (length - 1), np.arange(4), table[:, d]) for d in range(3)]
            np.testing.assert_allclose(out[row, i].detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(positions(torch.tensor([2, 4]), 4), positions.table[None])
    assert torch.equal(AxisPositions(1, 3)(torch.tensor([5]), 5).std(1), torch.zeros(1, 3))


def test_sinusoids_tell_rows_from_columns() -> None:
    table = sinusoids_2d(3, 5, 8)
    for row in range(3):
        for col in range(5):
            by_row = [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
            by_col = [math.sin(col), math.sin(col / 100), math.cos(col), math.cos(col / 100)]
            np.testing.assert_allclose(table[row * 5 + col].numpy(), by_row + by_col, atol=1e-6)
    with pytest.raises(ConfigError, match="sinusoid for width 6; expected a multiple of 4"):
        sinusoids_2d(1, 1, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_mels": 5}, "patch_mels: 4 x 5 for 12 mels; expected a divisor"),
        ({"position_blocks": 0}, "position_blocks: 0"),
        (
            {"preprocess": {"fft_size": 256}},
            "fft_size: 256 for a window of 400 samples; expected at least 400",
        ),
        ({"preprocess": {"hop_ms": 0.0}}, "num_mels, hop_ms, std"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter(**options)


def test_wrong_mels_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"mel: values \(1, 9, 7\); expected \(k, frames, 12\)"):
        adapter()(ragged([9], mels=7))


def test_fake_input_runs_with_gradients_everywhere(generator: torch.Generator) -> None:
    model = adapter()
    x = MelAdapter.fake_input(model.config, 4, generator)
    out = model(x)
    out.tokens[out.valid].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
