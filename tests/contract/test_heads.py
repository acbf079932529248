from __future__ import annotations

import dataclasses
import io

import pytest
import torch

from contract.fakes import INFO, NAMES, PASSES, TARGET, sequence
from mmzoo import registry, schema
from mmzoo.batch import Prediction, PredictionKind, TokenSequence
from mmzoo.heads.base import Head, PairHead
from mmzoo.heads.masked import MaskedHead
from mmzoo.heads.pooling import Pooling

ROWS = sorted(
    k
    for k in registry.table("heads")
    if not getattr(registry.find("heads", k), "reads_maps", False)
    and not issubclass(registry.find("heads", k), MaskedHead)
)
"""Heads that read tokens; those that read a decoder's maps are in test_decoders, those that hide tokens in
test_masked_heads."""
DIM = 8


def build(name: str, seed: int = 0, **options) -> Head:
    cls = registry.find("heads", name)
    torch.manual_seed(seed)
    config = cls.resolve(cls.Config(**options), INFO, TARGET)
    return config.build(dim=DIM, passes=PASSES[:2] if issubclass(cls, PairHead) else PASSES)


def ask(head: Head, given: TokenSequence, name_of_pass: str) -> Prediction:
    """Return the prediction of one pass; of a head that reads two, that of the same tokens twice."""
    if not isinstance(head, PairHead):
        return head(given, name_of_pass)
    (found,) = head.pair(dict.fromkeys(head.passes, given)).values()
    return found


def all_passes(head: Head, generator: torch.Generator) -> torch.Tensor:
    return torch.cat([ask(head, sequence(generator, [0, 2, 3], DIM), p).values for p in PASSES])


@pytest.mark.parametrize("name", ROWS)
def test_shape_dtype_and_rows(name, generator):
    head = build(name)
    for name_of_pass in PASSES:
        found = ask(head, sequence(generator, [1, 4, 9], DIM), name_of_pass)
        widths = {
            PredictionKind.VECTORS: DIM,
            PredictionKind.FEATURES: DIM,
            PredictionKind.CHOICES: 1,
            PredictionKind.BOXES: 4,
        }
        width = widths.get(head.gives, len(NAMES))
        assert found.values.shape == (3, width)
        assert found.values.dtype == torch.float32
        assert found.index.tolist() == [1, 4, 9]
    nothing = sequence(generator, [0, 1], DIM)
    empty = dataclasses.replace(
        nothing, tokens=nothing.tokens[:0], valid=nothing.valid[:0], index=nothing.index[:0]
    )
    assert ask(head, empty, PASSES[0]).values.shape == (0, width)


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("name", ROWS)
def test_masked_tokens_change_nothing(name, pooling, generator):
    head = build(name, pooling=pooling).eval()
    given = sequence(generator, [0, 1, 2], DIM)
    expected = ask(head, given, "image").values
    other = given.tokens.masked_fill(~given.valid[..., None], -3.0)
    longer = torch.cat([other, torch.full((3, 4, DIM), 7.0)], dim=1)
    valid = torch.cat([given.valid, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    found = ask(head, dataclasses.replace(given, tokens=longer, valid=valid), "image").values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("name", ROWS)
def test_a_row_without_real_tokens_stays_finite(name, pooling, generator):
    head = build(name, pooling=pooling)
    given = sequence(generator, [0, 1], DIM)
    given.valid[0] = False
    tokens = given.tokens.masked_fill(~given.valid[..., None], torch.nan).requires_grad_()
    found = ask(head, dataclasses.replace(given, tokens=tokens), "image").values
    assert torch.isfinite(found).all()
    found.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("name", ROWS)
def test_every_parameter_gets_a_gradient(name, pooling, generator):
    head = build(name, pooling=pooling)
    total = torch.zeros(())
    for name_of_pass in PASSES:
        found = ask(head, sequence(generator, [0, 1, 2], DIM), name_of_pass)
        extra = [x for x in (found.scale, found.offset) if x is not None]
        total = (
            total + (found.values * torch.randn(found.values.shape, generator=generator)).sum() + sum(extra)
        )
    total.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ROWS)
def test_config_round_trip(name):
    cls = registry.find("heads", name)
    config = cls.resolve(cls.Config(pooling=Pooling.ATTENTION), INFO, TARGET)
    assert schema.parse(cls.Config, config.to_dict()) == config


@pytest.mark.parametrize("name", ROWS)
def test_same_seed_same_bits_and_state_survives(name, generator):
    head, again, other = build(name, pooling=Pooling.ATTENTION), build(name, pooling=Pooling.ATTENTION), None
    state = generator.get_state()
    expected = all_passes(head, generator)
    assert torch.equal(expected, all_passes(again, generator.set_state(state)))
    other = build(name, seed=1, pooling=Pooling.ATTENTION)
    assert not torch.equal(expected, all_passes(other, generator.set_state(state)))
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(expected, all_passes(other, generator.set_state(state)))
