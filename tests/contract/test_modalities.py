"""What every row of the modalities table and of the tokenizers table must keep."""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle

import numpy as np
import pytest
import torch

from mmzoo import registry, schema
from mmzoo.batch import DataInfo, ModalityInput, Sample, TokenSequence
from mmzoo.datamodules.collate import collate
from mmzoo.errors import DataError
from mmzoo.modalities.base import ModalityAdapter

ROWS = sorted(registry.table("modalities"))
TOKENIZERS = sorted(registry.table("tokenizers"))
DIM, HEADS = 32, 2
INFO = DataInfo(subjects={"sub-01": 30, "sub-02": 41}, modalities=tuple(ROWS))

SMALL = {
    "image": {"preprocess": {"size": [64, 48]}},
    "timm": {"preprocess": {"size": [64, 64]}, "create": {"block_args": {}}},
    "text": {"preprocess": {"tokenizer": {"type": "bytes"}, "max_tokens": 24}},
    "open_clip_image": {
        "create": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32}}
    },
    "open_clip_text": {"create": {"text_cfg": {"context_length": 16, "layers": 2, "width": 32, "heads": 2}}},
}
"""Options that make a row faster than its defaults; `test_builds_from_defaults` takes none of them."""

RAGGED_AXES = {"image": (2, 3), "audio": (1,), "text": (1,), "fmri": (1,), "skeleton": (2,)}
"""Axes of `values` that a batch may pad, by the kind of raw input."""


WRONG_FORMS = {
    "image": "picture.png",
    "audio": np.zeros(8000, np.float32),
    "text": b"bytes",
    "fmri": np.zeros(30, np.float32),
    "skeleton": np.zeros((3, 4), np.float32),
}
"""Raw input that looks plausible and is not what the Preprocess takes."""


def class_of(name: str) -> type[ModalityAdapter]:
    return registry.find("modalities", name)


def config_of(name: str, *, defaults: bool = False):
    cls = class_of(name)
    return cls.resolve(schema.parse(cls.Config, {} if defaults else SMALL.get(name, {})), INFO)


def build(name: str, seed: int = 0, *, defaults: bool = False) -> ModalityAdapter:
    """Build an adapter whose parameters are all away from their starting values."""
    torch.manual_seed(seed)
    adapter = config_of(name, defaults=defaults).build(name=name, dim=DIM, num_heads=HEADS)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return adapter.eval()


def fake(adapter: ModalityAdapter, rows: int, seed: int = 0) -> ModalityInput:
    return type(adapter).fake_input(adapter.config, rows, torch.Generator().manual_seed(seed))


def real(sequence: TokenSequence, row: int) -> torch.Tensor:
    return sequence.tokens[row][sequence.valid[row]]


def real_biases(sequence: TokenSequence, row: int) -> list[torch.Tensor]:
    keep = sequence.valid[row]
    return [bias[min(row, len(bias) - 1)][:, keep][:, :, keep] for bias in sequence.biases]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def one_row(x: ModalityInput, row: int) -> ModalityInput:
    """Return a row by itself, without any padding."""
    extent = tuple(slice(0, int(n)) for n in x.sizes[row])
    values = x.values[row][extent].clone()[None]
    valid = None if x.valid is None else x.valid[row][extent[-(x.valid.ndim - 1) :]].clone()[None]
    subjects = None if x.subjects is None else (x.subjects[row],)
    return ModalityInput(values, torch.zeros(1, dtype=torch.int64), x.sizes[row : row + 1], valid, subjects)


def padded(x: ModalityInput, axes: tuple[int, ...]) -> ModalityInput:
    """Return the same rows with wider padding that holds garbage."""
    shape = list(x.values.shape)
    for axis in axes:
        shape[axis] += 37
    garbage = torch.nan if x.values.is_floating_point() else 10**9
    values = torch.full(shape, garbage, dtype=x.values.dtype)
    valid = (
        None if x.valid is None else torch.zeros(shape[:1] + shape[-(x.valid.ndim - 1) :], dtype=torch.bool)
    )
    for row in range(len(x)):
        extent = tuple(slice(0, int(n)) for n in x.sizes[row])
        values[row][extent] = x.values[row][extent]
        if valid is not None:
            inner = extent[-(valid.ndim - 1) :]
            valid[row][inner] = x.valid[row][inner]
    return dataclasses.replace(x, values=values, valid=valid)


def check_sequence(sequence: TokenSequence, x: ModalityInput, name: str) -> None:
    rows, n, dim = sequence.tokens.shape
    assert (rows, dim) == (len(x), DIM)
    assert sequence.tokens.dtype == torch.float32
    assert sequence.valid.shape == (rows, n)
    assert sequence.valid.device.type == sequence.index.device.type == "cpu"
    assert torch.equal(sequence.index, x.index)
    assert sequence.modality == name
    assert sequence.num_prefix >= 1
    assert bool(sequence.valid[:, : sequence.num_prefix].all())
    assert bool(torch.isfinite(sequence.tokens[sequence.valid]).all())
    for bias in sequence.biases:
        assert bias.shape in {(1, HEADS, n, n), (rows, HEADS, n, n)}
    if sequence.grids is not None:
        assert len(sequence.grids) == rows
        for grid, valid in zip(sequence.grids, sequence.valid, strict=True):
            end = sequence.num_prefix + int(np.prod(grid))
            assert end <= n
            assert not bool(valid[end:].any())


@pytest.mark.parametrize("name", ROWS)
def test_builds_from_defaults(name):
    adapter = build(name, defaults=True)
    assert adapter.kind in RAGGED_AXES
    x = fake(adapter, 2)
    assert len(x) == 2
    with torch.no_grad():
        check_sequence(adapter(x), x, name)


@pytest.mark.parametrize("name", ROWS)
def test_shape_dtype_and_rows(name):
    adapter = build(name)
    for rows in (1, 4):
        x = dataclasses.replace(fake(adapter, rows), index=torch.arange(rows) * 3 + 1)
        check_sequence(adapter(x), x, name)


@pytest.mark.parametrize("name", ROWS)
def test_padding_and_neighbours_change_no_real_token(name):
    adapter = build(name)
    x = fake(adapter, 5)
    expected = adapter(x)
    wider = adapter(padded(x, RAGGED_AXES[adapter.kind]))
    for row in range(5):
        alone = adapter(one_row(x, row))
        for found, at in ((wider, row), (alone, 0)):
            close(real(found, at), real(expected, row))
            for bias, bias_expected in zip(real_biases(found, at), real_biases(expected, row), strict=True):
                close(bias, bias_expected)


@pytest.mark.parametrize("name", ROWS)
def test_every_parameter_gets_a_gradient(name):
    adapter = build(name).train()
    x = fake(adapter, 6)
    sequence = adapter(x)
    drawn = torch.Generator().manual_seed(1)
    loss = (sequence.tokens[sequence.valid] * torch.randn(1, DIM, generator=drawn)).square().sum()
    for bias in sequence.biases:
        loss = loss + bias.square().sum()
    loss.backward()
    without = [
        key for key, p in adapter.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)
    ]
    assert without == []


@pytest.mark.parametrize("name", ROWS)
def test_config_round_trip(name):
    for defaults in (True, False):
        config = config_of(name, defaults=defaults)
        assert schema.parse(type(config), config.to_dict()) == config


@pytest.mark.parametrize("name", ROWS)
def test_same_seed_same_bits(name):
    first, second = build(name, seed=3).train(), build(name, seed=3).train()
    outputs = []
    for adapter in (first, second):
        torch.manual_seed(4)
        x = fake(adapter, 3, seed=5)
        outputs.append((adapter(x).tokens, x.values, x.sizes))
    for found, expected in zip(*outputs, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ROWS)
def test_state_survives_save_and_load(name):
    adapter, other = build(name, seed=0), build(name, seed=1)
    x = fake(adapter, 3)
    assert not torch.equal(adapter(x).tokens[:, 0], other(x).tokens[:, 0])
    buffer = io.BytesIO()
    torch.save(adapter.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    found, expected = other(x), adapter(x)
    for row in range(3):
        assert torch.equal(real(found, row), real(expected, row))
        for bias, bias_expected in zip(real_biases(found, row), real_biases(expected, row), strict=True):
            assert torch.equal(bias, bias_expected)


@pytest.mark.parametrize("name", ROWS)
def test_mixed_precision_keeps_rows_and_masks(name):
    adapter = build(name)
    x = fake(adapter, 3)
    with torch.no_grad():
        expected = adapter(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = adapter(x)
    assert torch.equal(found.valid, expected.valid)
    scale = expected.tokens[expected.valid].abs().max()
    difference = (found.tokens - expected.tokens)[expected.valid].abs().max()
    assert float(difference) < 0.05 * float(scale)


def raw_of(adapter: ModalityAdapter, seed: int):
    """Make raw input as files or synthetic data give it."""
    rng = np.random.default_rng(seed)
    if adapter.kind == "image":
        return rng.integers(0, 256, (40 + 9 * seed, 56, 3)).astype(np.uint8)
    if adapter.kind == "audio":
        return rng.normal(0, 0.1, 9000 + 4000 * seed).astype(np.float32), 16_000
    if adapter.kind == "text":
        return "a dog barks" + " loudly" * seed
    if adapter.kind == "fmri":
        from mmzoo.modalities.fmri import Scan

        subject = sorted(INFO.subjects)[seed % 2]
        return Scan(rng.normal(0, 1, (3, INFO.subjects[subject])).astype(np.float32), subject)
    joints = adapter.config.preprocess.joints
    return rng.normal(0, 1, (joints.dims, 20 + 5 * seed, joints.num_joints, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ROWS)
def test_preprocess_feeds_the_adapter(name):
    adapter = build(name)
    preprocess = adapter.config.preprocess.build()
    samples = [Sample(f"s{seed}", {name: preprocess(raw_of(adapter, seed))}).validate() for seed in range(3)]
    batch = collate([samples[0], Sample("without"), *samples[1:]])
    x = batch.inputs[name]
    assert x.index.tolist() == [0, 2, 3]
    with torch.no_grad():
        check_sequence(adapter(x), x, name)


@pytest.mark.parametrize("name", ROWS)
def test_preprocess_depends_on_the_generator_alone(name):
    adapter = build(name)
    preprocess = adapter.config.preprocess.build()
    copied = pickle.loads(pickle.dumps(preprocess))
    raw = raw_of(adapter, 1)
    for make in (lambda: None, lambda: torch.Generator().manual_seed(7)):
        torch.manual_seed(1)
        first = preprocess(raw, generator=make())
        torch.manual_seed(2)
        second = copied(raw, generator=make())
        assert torch.equal(first.values, second.values)
        assert (first.valid is None) == (second.valid is None)
        assert first.valid is None or torch.equal(first.valid, second.valid)


@pytest.mark.parametrize("name", ROWS)
def test_unreadable_files_and_wrong_raw_forms_are_data_errors(name):
    preprocess = build(name).config.preprocess.build()
    with pytest.raises(DataError, match=r"noise\.bin"):
        preprocess.decode(b"\x80\xff\x00 no such format", "noise.bin")
    with pytest.raises(DataError, match="; expected "):
        preprocess(WRONG_FORMS[class_of(name).kind])


@functools.cache
def tokenizer_of(name: str, tables: str | None):
    options = {"tables": tables} if name == "gpt2_bpe" else {}
    return registry.find("tokenizers", name).Config(**options).build()


@pytest.fixture
def tables(request) -> str | None:
    """Return the folder of GPT-2's tables where the tokenizer needs it."""
    if request.node.callspec.params["name"] != "gpt2_bpe":
        return None
    return str(request.getfixturevalue("shared") / "data" / "gpt2_bpe")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_gives_ids_below_its_size_and_text_back(name, tables):
    tokenizer = tokenizer_of(name, tables)
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size
    for text in ("a dog barks", "x", "two words and 3 more", "naïve 日本"):
        ids = tokenizer.encode(text)
        assert all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode([*ids, tokenizer.pad_id, tokenizer.pad_id]) == text
        short = tokenizer.encode(text, max_tokens=3)
        assert len(short) <= 3
        assert short[-1:] == ids[-1:]
    assert tokenizer.encode("")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_config_round_trip(name):
    cls = registry.find("tokenizers", name)
    config = cls.Config()
    assert schema.parse(cls.Config, config.to_dict()) == config
