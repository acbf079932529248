"""Waveforms: the Preprocess against slow formulas, the adapter against running each clip alone."""

from __future__ import annotations

import io
import wave as wave_files

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmzoo.batch import ModalityInput
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.modalities.audio import WaveformAdapter, receptive_field
from mmzoo.modalities.sound import SoundAugment, SoundPreprocess, Standardise, as_mono
from mmzoo.schema import parse

SMALL = {
    "conv_layers": [[8, 10, 5], [8, 3, 2], [8, 2, 2]],
    "position_depth": 2,
    "position_groups": 4,
    "num_buckets": 8,
}


def adapter(**options: object) -> WaveformAdapter:
    torch.manual_seed(0)
    made = WaveformAdapter(parse(WaveformAdapter.Config, SMALL | options), name="sound", dim=16, num_heads=2)
    for bias in made.biases:
        torch.nn.init.normal_(bias.table)
    return made.eval()


def ragged(lengths: list[int], filler: float = 0.0) -> ModalityInput:
    generator = torch.Generator().manual_seed(3)
    values = torch.full((len(lengths), max(lengths)), filler)
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, generator=generator)
    return ModalityInput(values, torch.arange(len(lengths)), torch.tensor(lengths)[:, None])


def sound(**options: object) -> SoundPreprocess:
    return SoundPreprocess(parse(SoundPreprocess.Config, options))


@pytest.mark.parametrize("kernel", [5, 6])
def test_a_clip_in_a_ragged_batch_equals_the_clip_alone(kernel: int) -> None:
    model = adapter(position_kernel=kernel)
    x = ragged([400, 263, 91, 399], filler=7.0)
    together = model(x)
    for row, length in enumerate(x.sizes[:, 0].tolist()):
        alone = model(ModalityInput(x.values[row : row + 1, :length], x.index[:1], x.sizes[row : row + 1]))
        n = alone.tokens.shape[1]
        assert together.valid[row].tolist() == [i < n for i in range(together.tokens.shape[1])]
        torch.testing.assert_close(together.tokens[row, :n], alone.tokens[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.biases[0][:, :, :n, :n], alone.biases[0], rtol=0, atol=0)
        assert together.grids is not None
        assert together.grids[row] == (n - 1,)


def test_reference_padding_lets_neighbours_leak() -> None:
    x = ragged([400, 91])
    alone = ModalityInput(x.values[1:, :91], x.index[:1], x.sizes[1:])
    model = adapter(pad_frames="reference")
    n = model(alone).tokens.shape[1]
    assert (model(x).tokens[1, :n] - model(alone).tokens[0]).abs().max() > 1e-3


def test_tokens_follow_the_formula_written_out_frame_by_frame() -> None:
    model = adapter(position_kernel=4)
    x = ragged([200])
    state = model.state_dict()
    frames = x.values[:, None]
    for i, (_, kernel, stride) in enumerate(model.config.conv_layers):
        weight = state[f"extractor.convs.{i}.weight"]
        count = (frames.shape[2] - kernel) // stride + 1
        slow = torch.stack(
            [(frames[0, :, s * stride : s * stride + kernel] * weight).sum((1, 2)) for s in range(count)],
            dim=1,
        )
        scale, shift = state[f"extractor.norms.{i}.weight"], state[f"extractor.norms.{i}.bias"]
        normed = (slow - slow.mean(0)) / (slow.var(0, correction=0) + 1e-5).sqrt() * scale[:, None] + shift[
            :, None
        ]
        frames = F.gelu(normed)[None]
    feature = frames[0].T
    feature = F.layer_norm(feature, (8,), state["norm.weight"], state["norm.bias"])
    content = feature @ state["projection.weight"].T + state["projection.bias"]
    place = content
    for i in range(2):
        padded = F.pad(place, (0, 0, 2, 2))
        weight, bias = state[f"positions.{i}.conv.weight"], state[f"positions.{i}.conv.bias"]
        out = torch.empty_like(content)
        for t in range(len(content)):
            for d in range(16):
                group = slice(d // 4 * 4, d // 4 * 4 + 4)
                out[t, d] = (padded[t : t + 4, group].T * weight[d]).sum() + bias[d]
        place = F.gelu(
            (out - out.mean(1, keepdim=True)) / (out.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        )
    cls = state["cls_token"][0] + state["cls_position"][0]
    torch.testing.assert_close(model(x).tokens[0], torch.cat([cls, content + place]), rtol=1e-4, atol=1e-5)


def test_released_layers_give_the_published_frame_counts() -> None:
    model = WaveformAdapter(WaveformAdapter.Config(position_depth=0), name="a", dim=8, num_heads=1)
    seconds = torch.tensor([1, 5, 10, 15, 20])
    assert model.num_frames(seconds * 16_000).tolist() == [49, 249, 499, 749, 999]
    assert model.num_frames(torch.tensor([399, 400, 719, 720])).tolist() == [0, 1, 1, 2]
    assert receptive_field(model.config.conv_layers) == 400


def test_too_short_a_clip_and_wrong_groups_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"sound: a clip of 5 samples; expected at least one frame\. Raise preprocess"
    ):
        adapter()(ragged([200, 5]))
    with pytest.raises(
        ConfigError, match="position_groups: 5 groups for width 16; expected a divisor of the width"
    ):
        adapter(position_groups=5)
    with pytest.raises(ConfigError, match=r"conv_layers: \[\]"):
        WaveformAdapter.Config(conv_layers=[])


def test_no_bias_and_no_positions_are_possible() -> None:
    out = adapter(num_bias_tables=0, position_depth=0)(ragged([300, 100]))
    assert out.biases == ()
    assert out.num_prefix == 1


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_decode_reads_every_container(container: str, channels: int) -> None:
    import soundfile

    time = np.arange(8000) / 8000
    tone = np.stack([0.5 * np.sin(2 * np.pi * f * time) for f in (220, 330)[:channels]], axis=1)
    file = io.BytesIO()
    soundfile.write(file, tone, 8000, format=container)
    samples, rate = sound().decode(file.getvalue(), f"tone.{container.lower()}")
    assert (rate, samples.shape[1], samples.dtype) == (8000, channels, np.float32)
    lossless = container in ("WAV", "FLAC")
    np.testing.assert_allclose(samples[1000:7000], tone[1000:7000], atol=1e-4 if lossless else 0.05)


def test_decode_agrees_with_the_standard_library() -> None:
    numbers = np.random.default_rng(0).integers(-(2**15), 2**15, (100, 2), dtype=np.int16)
    file = io.BytesIO()
    with wave_files.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(11_025)
        out.writeframes(numbers.tobytes())
    samples, rate = sound().decode(file.getvalue(), "x.wav")
    assert rate == 11_025
    np.testing.assert_allclose(samples, numbers / 2**15, atol=1e-7)
    mono, _ = as_mono((samples, rate))
    np.testing.assert_allclose(mono.numpy(), numbers.mean(1) / 2**15, atol=1e-6)


@pytest.mark.parametrize("data", [b"", b"not sound at all", b"RIFF1234WAVEfmt "])
def test_unreadable_bytes_name_the_file(data: bytes) -> None:
    with pytest.raises(DataError, match=r"broken\.wav: unreadable sound \([^<]+\)"):
        sound().decode(data, "broken.wav")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros(5, np.float32), r"audio: ndarray; expected \(float samples"),
        (
            (np.zeros((2, 400), np.float32), 8000),
            r"samples \(2, 400\); expected \(t\) or \(t channels\), time first",
        ),
        ((np.zeros(0, np.float32), 8000), r"samples \(0,\)"),
        ((np.zeros(9, np.int16), 8000), "int16 samples; expected floats"),
        ((np.zeros(9, np.float32), 0), "rate 0; expected a whole number of Hz"),
        ((np.full(9, np.nan, np.float32), 8000), "NaN or infinity; expected finite samples"),
    ],
)
def test_raw_sound_is_checked(raw: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sound()(raw)


def test_any_rate_becomes_the_target_rate() -> None:
    rate, target = 44_100, 16_000
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    values = sound(standardise="none")((tone, rate)).values
    assert values.shape == (target,)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(target) / target)
    torch.testing.assert_close(values[500:-500], expected[500:-500], atol=2e-3, rtol=0)


def test_standardised_over_the_whole_clip_before_cutting() -> None:
    samples = np.concatenate([np.full(16_000, 3.0), np.random.default_rng(0).normal(size=16_000)]).astype(
        np.float32
    )
    values = sound(max_duration_s=1.5)((samples, 16_000)).values
    expected = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-5)
    np.testing.assert_allclose(values.numpy(), expected[:24_000], atol=1e-5)


def test_short_clips_are_repeated() -> None:
    samples = np.arange(7000, dtype=np.float32)
    values = sound(standardise="none")((samples, 16_000)).values.numpy()
    np.testing.assert_array_equal(values, np.concatenate([samples, samples, samples[:2000]]))


def test_training_crops_by_the_generator_only(generator: torch.Generator) -> None:
    samples = np.arange(64_000, dtype=np.float32)
    make = sound(standardise="none", max_duration_s=2.0)
    crops = [make((samples, 16_000), generator=generator).values for _ in range(3)]
    again = [make((samples, 16_000), generator=torch.Generator().manual_seed(0)).values for _ in range(2)]
    assert torch.equal(crops[0], again[0])
    assert torch.equal(again[0], again[1])
    assert len({int(c[0]) for c in crops}) == 3
    assert all(torch.equal(c, c[0] + torch.arange(32_000)) for c in crops)
    assert float(make((samples, 16_000)).values[0]) == 0.0


def test_augmentations_do_what_they_say(generator: torch.Generator) -> None:
    samples = torch.randn(16_000, generator=generator)
    plain = sound(standardise="none")

    def augmented(**options: float) -> torch.Tensor:
        config = SoundPreprocess.Config(standardise=Standardise.NONE, augment=SoundAugment(**options))
        return SoundPreprocess(config)((samples, 16_000), generator=torch.Generator().manual_seed(5)).values

    assert torch.equal(plain((samples, 16_000), generator=generator).values, samples)
    factor = augmented(gain_db=6.0) / samples
    torch.testing.assert_close(factor, factor[:1].expand(16_000), rtol=1e-4, atol=0)
    assert 0.5 < float(factor[0]) < 2.0
    assert float(factor[0]) != 1.0
    moved = augmented(shift_s=0.1)
    by = next(
        s for s in range(-1600, 1601) if torch.equal(torch.roll(samples, s)[1600:-1600], moved[1600:-1600])
    )
    silent = moved[:by] if by > 0 else moved[by:]
    assert by != 0
    assert torch.equal(silent, torch.zeros_like(silent))
    noise = augmented(noise_snr_db=20.0) - samples
    assert float(10 * torch.log10(samples.square().mean() / noise.square().mean())) == pytest.approx(
        20.0, abs=0.3
    )
    with pytest.raises(ConfigError, match=r"gain_db: -1\.0; expected zero or more"):
        SoundAugment(gain_db=-1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sample_rate_hz": 0}, "sample_rate_hz: 0"), ({"max_duration_s": 0.5}, r"min 1\.0 s, max 0\.5 s")],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sound(**options)


def test_fake_input_is_ragged_and_runs(generator: torch.Generator) -> None:
    model = adapter()
    x = WaveformAdapter.fake_input(model.config, 5, generator)
    assert len(set(x.sizes[:, 0].tolist())) > 1
    assert model(x).tokens.shape[0] == 5


def test_a_table_a_layer_and_a_type_embedding():
    made = adapter(num_bias_tables=3, type_embedding=True, mask_token=True)
    plain = adapter(num_bias_tables=3)
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if k in plain.state_dict()})
    with torch.no_grad():
        made.type_embedding.normal_()
        found, expected = made(ragged([300, 200])), plain(ragged([300, 200]))
    torch.testing.assert_close(found.tokens, expected.tokens + made.type_embedding)
    assert len(found.biases) == 3
    for bias, table in zip(found.biases, made.biases, strict=True):
        n = found.tokens.shape[1]
        torch.testing.assert_close(bias[0], table.table[table.index(n)].permute(2, 0, 1))
    assert not torch.equal(found.biases[0], found.biases[1])
    assert [n for n, p in made.named_parameters() if not p.requires_grad] == ["mask_token"]
    with pytest.raises(ConfigError, match="num_bias_tables, num_buckets: -1, 8"):
        adapter(num_bias_tables=-1)
