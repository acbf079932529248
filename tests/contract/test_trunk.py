"""What every token mixer and feed-forward must do, whichever rows the tables have."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmzoo import registry, schema
from mmzoo.batch import TokenSequence
from mmzoo.trunk.base import FeedForward, MixerContext, TokenMixer
from mmzoo.trunk.packing import Packed, pack
from mmzoo.trunk.trunk import Trunk

DIM, HEADS = 16, 2
NAMES = ("image", "text")
ROWS = [(table, key) for table in ("mixers", "feed_forwards") for key in registry.table(table)]


def tokens(modality: str, lengths: list[int], *, n: int = 6) -> TokenSequence:
    """Make rows of the given lengths on a (length - 1) x 1 grid behind one prefix token, garbage in the
    padding.
    """
    generator = torch.Generator().manual_seed(len(modality))
    values = torch.randn(len(lengths), n, DIM, generator=generator)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    grids = tuple((length - 1, 1) for length in lengths)
    return TokenSequence(values, valid, torch.arange(len(lengths)), modality, grids=grids, num_prefix=1)


def buffer() -> Packed:
    text, image = tokens("text", [3, 5]), tokens("image", [6, 6])
    return pack([[text], [image], [text, image]], NAMES)


def build(table: str, key: str, seed: int = 0) -> Any:
    """Build a component from its defaults, every parameter random."""
    config = registry.find(table, key).Config()
    torch.manual_seed(seed)
    context = {"num_heads": HEADS} if table == "mixers" else {"modalities": NAMES}
    made = config.build(dim=DIM, **context)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return made


def run(made: Any, packed: Packed, x: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    if isinstance(made, TokenMixer):
        made.prepare(packed.seq, 0)
    return made(
        packed.buffer if x is None else x, seq=packed.seq, ctx=MixerContext(generator=torch.Generator())
    )


@pytest.mark.parametrize(("table", "key"), ROWS)
def test_shape_dtype_and_aux(table: str, key: str):
    packed = buffer()
    made = build(table, key)
    assert isinstance(made, TokenMixer if table == "mixers" else FeedForward)
    y, aux = run(made, packed)
    assert y.shape == packed.buffer.shape
    assert y.dtype == packed.buffer.dtype
    assert torch.isfinite(y).all()
    assert all(value.ndim == 0 for value in aux.values())


@pytest.mark.parametrize(("table", "key"), ROWS)
def test_every_parameter_and_the_input_get_a_gradient(table: str, key: str):
    packed = buffer()
    made = build(table, key)
    x = packed.buffer.clone().requires_grad_()
    y, aux = run(made, packed, x)
    (y.sin().sum() + sum(aux.values())).backward()
    lacking = [name for name, p in made.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert lacking == []
    assert x.grad is not None
    assert bool(x.grad.any(1).all())


@pytest.mark.parametrize(("table", "key"), ROWS)
def test_packed_equals_alone(table: str, key: str):
    """A segment's tokens do not depend on what else is in the buffer."""
    made = build(table, key).eval()
    text, image = tokens("text", [3, 5]), tokens("image", [6, 6])
    together = pack([[text], [image]], NAMES)
    whole, _ = run(made, together)
    for group in ([text], [image]):
        alone = pack([group], NAMES)
        start, end = together.seq.modality_slices[group[0].modality]
        torch.testing.assert_close(run(made, alone)[0], whole[start:end], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("table", "key"), ROWS)
def test_same_seed_same_bits(table: str, key: str):
    packed = buffer()
    first, second = build(table, key).eval(), build(table, key).eval()
    assert torch.equal(run(first, packed)[0], run(second, packed)[0])


@pytest.mark.parametrize(("table", "key"), ROWS)
def test_state_survives_saving(table: str, key: str, tmp_path: pathlib.Path):
    packed = buffer()
    first, second = build(table, key).eval(), build(table, key, seed=1).eval()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(run(first, packed)[0], run(second, packed)[0])


@pytest.mark.parametrize(("table", "key"), ROWS)
def test_config_round_trip(table: str, key: str):
    config = registry.find(table, key).Config()
    assert schema.parse(type(config), config.to_dict()) == config


@pytest.mark.parametrize("key", registry.table("mixers"))
def test_trunk_of_every_mixer_ignores_padding(key: str):
    model = Trunk(
        schema.parse(Trunk.Config, {"dim": DIM, "depth": 2, "num_heads": HEADS, "mixer": key}),
        modalities=NAMES,
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    model.eval()
    text = tokens("text", [3, 5])
    other = TokenSequence(
        text.tokens.masked_fill(~text.valid[..., None], 1e3), text.valid, text.index, "text", text.grids, 1
    )
    found, wanted = model([[other]]).groups[0][0], model([[text]]).groups[0][0]
    assert torch.equal(found.tokens, wanted.tokens)
    assert (found.tokens[~text.valid] == 0).all()


@pytest.mark.parametrize("key", registry.table("mixers"))
def test_causal_mixers_do_not_leak(key: str):
    made = build("mixers", key).eval()
    if not made.supports_causal:
        pytest.skip(f"{key} is not causal; the trunk refuses")
    text = tokens("text", [6])
    packed = pack([[text]], NAMES, is_causal=True)
    before, _ = run(made, packed)
    x = packed.buffer.clone()
    x[4:] += torch.randn(2, DIM)
    packed = pack([[text]], NAMES, is_causal=True)
    after, _ = run(made, packed, x)
    # not bit for bit: where tokens are sorted by expert, later ones change the sizes of matrix products
    torch.testing.assert_close(before[:4], after[:4], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[4:], after[4:], atol=1e-4)


@pytest.mark.parametrize("key", registry.table("mixers"))
def test_exact_mixers_start_as_plain_attention(key: str):
    cls = registry.find("mixers", key)
    if cls.init_from_mha.value != "exact":
        pytest.skip(f"{key} starts {cls.init_from_mha.value} from plain attention")
    plain = build("mixers", "attention").eval()
    made = build("mixers", key, seed=1).eval()
    made.load_state_dict({**made.state_dict(), **cls.from_mha(plain.state_dict())})
    packed = buffer()
    torch.testing.assert_close(run(made, packed)[0], run(plain, packed)[0], atol=1e-5, rtol=1e-5)


def test_config_round_trip_of_the_trunk():
    config = Trunk.Config()
    assert schema.parse(Trunk.Config, config.to_dict()) == config
    assert isinstance(Trunk(config, modalities=NAMES), nn.Module)
