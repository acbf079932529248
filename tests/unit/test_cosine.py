"""Cosine attention as an option of plain attention and of the mixture of heads: any plan, any kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.trunk.attention import MultiHeadAttention, segments_of
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.cosine import CosineLogits, log_offsets, relative_of, visible_keys
from mmzoo.trunk.moh import MixtureOfHeads
from mmzoo.trunk.packing import Packed, pack
from mmzoo.trunk.trunk import Trunk

DIM, HEADS = 16, 4
NAMES = ("image", "text", "fmri")
CLASSES = {"attention": MultiHeadAttention, "moh": MixtureOfHeads}


def image(grids: list[tuple[int, ...]], seed: int = 0, *, n: int = 8) -> TokenSequence:
    """Make images whose grids lie behind one prefix token, with garbage in the padding."""
    values = torch.randn(len(grids), n, DIM, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([1 + torch.Size(grid).numel() for grid in grids])
    return TokenSequence(
        values, torch.arange(n) < lengths[:, None], torch.arange(len(grids)), "image", tuple(grids), 1
    )


def text(lengths: list[int]) -> TokenSequence:
    values = torch.randn(len(lengths), 6, DIM, generator=torch.Generator().manual_seed(7))
    valid = torch.arange(6) < torch.tensor(lengths)[:, None]
    grids = tuple((n,) for n in lengths)
    return TokenSequence(values, valid, torch.arange(len(lengths)), "text", grids)


def voxels(count: int) -> TokenSequence:
    values = torch.randn(count, 3, DIM, generator=torch.Generator().manual_seed(9))
    return TokenSequence(values, torch.ones(count, 3, dtype=torch.bool), torch.arange(count), "fmri")


def mixer(key: str, **options: Any) -> Any:
    cls = CLASSES[key]
    config = schema.parse(cls.Config, {"similarity": "cosine", "position_dim": 8, **options})
    torch.manual_seed(3)
    made = cls(config, dim=DIM, num_heads=HEADS)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
    return made


def run(made: Any, packed: Packed, x: Tensor | None = None) -> Tensor:
    made.prepare(packed.seq, 0)
    return made(packed.buffer if x is None else x, seq=packed.seq, ctx=MixerContext())[0]


def mixed() -> Packed:
    joint = [text([2, 4]), image([(2, 3), (3, 2)], 2)]
    return pack([[image([(2, 3), (3, 2), (1, 4)])], [text([6, 3])], joint, [voxels(2)]], NAMES)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key", CLASSES)
@pytest.mark.parametrize("backend", ["segments", "bmm", "flex"])
def test_every_kernel_gives_the_dense_matrix(key: str, backend: str):
    with torch.no_grad():
        wanted = run(mixer(key, backend="dense"), mixed())
        torch.testing.assert_close(run(mixer(key, backend=backend), mixed()), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", CLASSES)
def test_a_segment_does_not_depend_on_its_neighbours(key: str):
    made = mixer(key).eval()
    whole = mixed()
    y = run(made, whole)
    alone = run(made, pack([[image([(2, 3), (3, 2), (1, 4)])]], NAMES))
    torch.testing.assert_close(y[: len(alone)], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("key", CLASSES)
def test_every_weight_and_token_gets_a_gradient(key: str):
    made, packed = mixer(key), mixed()
    x = packed.buffer.clone().requires_grad_()
    run(made, packed, x).sin().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
    assert x.grad is not None
    assert bool(x.grad.any(1).all())


def test_logits_are_their_formula():
    """One head, one image with a prefix token: each logit computed by itself."""
    made = mixer("attention", sub_norm=False)
    packed = pack([[image([(2, 3)], n=7)]], NAMES)
    cosine = made.cosine
    assert isinstance(cosine, CosineLogits)
    qkv = made._project(packed.buffer).view(7, 3, HEADS, DIM // HEADS)
    heads: list[Tensor] = []
    for h in range(HEADS):
        logits = torch.zeros(7, 7)
        for i in range(7):
            for j in range(7):
                q, k = qkv[i, 0, h], qkv[j, 1, h]
                warmth = torch.nn.functional.softplus(cosine.temperature[h]) * torch.tensor(7.0).log()
                logits[i, j] = warmth * ((q / q.norm() + cosine.query_embedding[h]) @ (k / k.norm()))
                if i and j:
                    step = torch.tensor(
                        [8.0 * ((i - 1) // 3 - (j - 1) // 3) / 1, 8.0 * ((i - 1) % 3 - (j - 1) % 3) / 2]
                    )
                    spaced = step.sign() * (step.abs() + 1).log2() / 3
                    logits[i, j] += cosine.bias_out(cosine.bias_in(spaced).relu())[h]
        heads.append(logits.softmax(1) @ qkv[:, 2, h])
    wanted = made.out(torch.stack(heads, 1).flatten(1))
    torch.testing.assert_close(run(made, packed), wanted, atol=1e-5, rtol=1e-5)


def test_tokens_left_out_keep_their_places():
    """Holes in a row: what is left attends as if the others were masked, less their part of ln(keys)."""
    whole = image([(2, 3), (2, 3)], n=7)
    valid = whole.valid.clone()
    valid[:, [2, 5]] = False
    packed = pack([[dataclasses.replace(whole, valid=valid)]], NAMES)
    full = relative_of(pack([[whole]], NAMES).seq)
    kept = valid[0].nonzero()[:, 0]
    found, wanted = relative_of(packed.seq), full.index[0][:, kept][:, :, kept]
    assert torch.equal(found.index[0], wanted)
    assert torch.equal(found.coords, full.coords)


def test_a_causal_row_counts_the_keys_it_sees():
    made = mixer("attention", sub_norm=False)
    with torch.no_grad():
        long = run(made, pack([[text([6])]], NAMES, is_causal=True))
        sequence = text([6])
        short = dataclasses.replace(
            sequence, tokens=sequence.tokens[:, :4], valid=sequence.valid[:, :4], grids=((6,),)
        )
        torch.testing.assert_close(run(made, pack([[short]], NAMES, is_causal=True)), long[:4])


def test_a_mask_by_head_is_counted_by_head():
    packed = pack([[text([4])]], NAMES, mask_mod=lambda s, h, q, k: (k <= q) | (h == 0))
    counts = visible_keys(segments_of(packed.seq, 0), packed.seq, 2)
    assert counts.tolist() == [[4, 1], [4, 2], [4, 3], [4, 4]]


def test_recomputing_blocks_changes_no_gradient():
    tree = {"dim": DIM, "depth": 2, "num_heads": HEADS, "mixer": {"type": "moh", "similarity": "cosine"}}
    found: dict[str, dict[str, Tensor]] = {}
    for mode in ("none", "block"):
        torch.manual_seed(0)
        trunk = Trunk(schema.parse(Trunk.Config, tree), modalities=NAMES)
        trunk.set_checkpointing(mode)
        trunk([[image([(2, 3), (1, 4)])]]).groups[0][0].tokens.square().sum().backward()
        own = {name: p.grad for name, p in trunk.named_parameters() if "cosine" in name}
        found[mode] = {name: grad for name, grad in own.items() if grad is not None}
    assert len(found["none"]) == 12
    assert all(bool(grad.any()) for grad in found["none"].values())
    torch.testing.assert_close(found["block"], found["none"])


def test_offsets_are_log_spaced_and_a_lone_cell_has_none():
    assert log_offsets((1, 1)).tolist() == [[0.0, 0.0]]
    assert log_offsets((0, 0)).shape == (0, 2)
    step = torch.tensor(9.0).log2() / 3
    torch.testing.assert_close(
        log_offsets((1, 2)), torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]]) * step
    )


def test_a_network_without_width_is_refused():
    with pytest.raises(ConfigError, match=r"trunk.mixer.position_dim: 0; expected at least 1"):
        mixer("moh", position_dim=0)


def test_its_network_is_not_counted_for_every_token():
    plain = MultiHeadAttention(MultiHeadAttention.Config(), dim=DIM, num_heads=HEADS)
    assert mixer("attention").flops([5, 6]) == plain.flops([5, 6])
