"""Packing against the padded tensors themselves, one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmzoo.batch import TokenSequence
from mmzoo.errors import ShapeError
from mmzoo.trunk.packing import join, pack, unpack
from mmzoo.trunk.plan import SeqInfo

NAMES = ("image", "text", "audio")


def make(
    modality: str, rows: list[str], index: list[int], *, dim: int = 3, heads: int = 2, bias: str = ""
) -> TokenSequence:
    """Build a sequence from masks written as strings: '110' is two real tokens and a pad. bias: '',
    'shared', 'rows'.
    """
    valid = torch.tensor([[c == "1" for c in row] for row in rows])
    seed = sum(map(ord, modality))
    generator = torch.Generator().manual_seed(seed)
    k, n = valid.shape
    biases: tuple[Tensor, ...] = ()
    if bias:
        biases = (torch.randn(1 if bias == "shared" else k, heads, n, n, generator=generator),)
    tokens = torch.randn(k, n, dim, generator=generator)
    return TokenSequence(tokens, valid, torch.tensor(index), modality, biases=biases)


def attention_rows(seq: SeqInfo, buffer: Tensor) -> list[Tensor]:
    """Cut the buffer into segments, in attention order."""
    rows = buffer if seq.order is None else buffer[seq.order]
    return list(rows.split(seq.lengths))


@pytest.fixture
def image() -> TokenSequence:
    return make("image", ["111", "111"], [0, 2], bias="shared")


@pytest.fixture
def text() -> TokenSequence:
    return make("text", ["11100", "10000", "11111", "11000"], [0, 1, 2, 3], bias="shared")


@pytest.fixture
def audio() -> TokenSequence:
    return make("audio", ["0110", "1011", "0000"], [1, 2, 3], bias="rows")


def test_only_real_tokens_enter_and_all_come_back(
    image: TokenSequence, text: TokenSequence, audio: TokenSequence
):
    groups = [[text], [image], [audio], [image, text], [text, image, audio]]
    packed = pack(groups, NAMES)
    total = sum(int(s.valid.sum()) for g in groups for s in g)
    assert packed.buffer.shape == (total, 3)
    back = unpack(packed.buffer, packed, groups)
    for group, returned in zip(groups, back, strict=True):
        for s, r in zip(group, returned, strict=True):
            assert torch.equal(r.tokens, s.tokens * s.valid[..., None])
            assert torch.equal(r.valid, s.valid)
            assert torch.equal(r.index, s.index)
            assert (r.modality, r.biases) == (s.modality, ())


def test_buffer_is_modality_major(image: TokenSequence, text: TokenSequence, audio: TokenSequence):
    packed = pack([[text, image], [audio], [image], [text]], NAMES)
    assert packed.seq.modality_slices == {"image": (0, 12), "text": (12, 34), "audio": (34, 39)}
    real = {s.modality: {tuple(t.tolist()) for t in s.tokens[s.valid]} for s in (image, text, audio)}
    for name, (start, end) in packed.seq.modality_slices.items():
        assert {tuple(t.tolist()) for t in packed.buffer[start:end]} == real[name]


def test_single_passes_need_no_permutation_and_few_runs(image: TokenSequence, text: TokenSequence):
    seq = pack([[text], [image], [image]], NAMES).seq
    assert seq.order is None
    assert seq.inverse is None
    assert [(r.count, r.length) for r in seq.runs] == [(2, 3), (2, 3), (1, 1), (1, 2), (1, 3), (1, 5)]
    assert [r.segment for r in seq.runs] == [0, 2, 4, 5, 6, 7]
    assert seq.cu_seqlens.dtype == torch.int32
    assert seq.cu_seqlens.tolist() == [0, 3, 6, 9, 12, 13, 15, 18, 23]
    assert seq.max_length == 5
    assert seq.padding_ratio == pytest.approx((20 + 6 + 6) / 23)


def test_equally_long_rows_in_order_are_not_copied():
    image = make("image", ["111", "111"], [0, 1])
    packed = pack([[image]], NAMES)
    assert packed.buffer.data_ptr() == image.tokens.data_ptr()
    assert unpack(packed.buffer, packed, [[image]])[0][0].tokens.data_ptr() == image.tokens.data_ptr()


def test_joint_segments_hold_each_sample_in_group_order(
    image: TokenSequence, text: TokenSequence, audio: TokenSequence
):
    packed = pack([[text, image, audio]], NAMES)
    found = {tuple(s.flatten().tolist()) for s in attention_rows(packed.seq, packed.buffer)}
    expected: set[tuple[float, ...]] = set()
    for sample in range(4):
        tokens = [
            s.tokens[s.index.tolist().index(sample)][s.valid[s.index.tolist().index(sample)]]
            for s in (text, image, audio)
            if sample in s.index.tolist()
        ]
        expected.add(tuple(torch.cat(tokens).flatten().tolist()))
    assert found == expected
    assert packed.seq.order is not None
    assert packed.seq.inverse is not None
    assert torch.equal(packed.seq.order[packed.seq.inverse], torch.arange(packed.seq.num_tokens))


def test_segment_of_row_names_the_segment(image: TokenSequence, text: TokenSequence, audio: TokenSequence):
    seq = pack([[text, image], [audio]], NAMES).seq
    in_attention_order = seq.segment_of_row if seq.order is None else seq.segment_of_row[seq.order]
    lengths = torch.tensor(seq.lengths)
    assert torch.equal(in_attention_order, torch.arange(len(lengths)).repeat_interleave(lengths))


def test_grids_follow_the_segments():
    image = make("image", ["111", "111"], [0, 1])
    image = TokenSequence(
        image.tokens, image.valid, image.index, "image", grids=((1, 2), (2, 1)), num_prefix=1
    )
    text = make("text", ["100", "111"], [0, 1])
    seq = pack([[text, image], [image]], NAMES).seq
    assert seq.grids == (((1, 2),), ((2, 1),), (None, (1, 2)), (None, (2, 1)))


def expected_bias(group: list[TokenSequence], sample: int, layer: int = 0) -> Tensor:
    """Block-diagonal bias of one sample, entry by entry."""
    places = []
    for s in group:
        if sample in s.index.tolist():
            row = s.index.tolist().index(sample)
            places += [(s, row, int(c)) for c in s.valid[row].nonzero()[:, 0]]
    out = torch.zeros(2, len(places), len(places))
    for i, (s, row, a) in enumerate(places):
        for j, (z, _, b) in enumerate(places):
            if s is z and s.biases:
                bias = s.biases[min(layer, len(s.biases) - 1)]
                out[:, i, j] = bias[row if bias.shape[0] > 1 else 0, :, a, b]
    return out


@pytest.mark.parametrize("layers", [1, 2])
def test_bias_is_compact_block_diagonal_and_zero_across(layers: int, audio: TokenSequence):
    image = make("image", ["111", "111"], [0, 2], bias="rows")
    text = make("text", ["11100", "10000", "11111", "11000"], [0, 1, 2, 3], bias="shared")
    if layers == 2:
        text = TokenSequence(
            text.tokens, text.valid, text.index, "text", biases=(text.biases[0], text.biases[0] * 2)
        )
    groups = [[text, image, audio], [audio], [image]]
    seq = pack(groups, NAMES).seq
    assert len(seq.biases) == layers
    for layer in range(layers):
        found = {}
        for run, bias in zip(seq.runs, seq.bias(layer), strict=True):
            assert bias is not None
            assert bias.shape[0] in (1, run.count)
            for i in range(run.count):
                found[run.pieces[0][0], tuple(bias[min(i, bias.shape[0] - 1)].flatten().tolist())] = True
        for g, group in enumerate(groups):
            samples = {int(i) for s in group for r, i in enumerate(s.index) if s.valid[r].any()}
            for sample in samples:
                assert (g, tuple(expected_bias(group, sample, layer).flatten().tolist())) in found


def test_shared_bias_stays_unexpanded(text: TokenSequence, image: TokenSequence):
    seq = pack([[image], [text, image]], NAMES).seq
    assert [bias.shape[0] for bias in seq.bias(0) if bias is not None] == [1] * len(seq.runs)


def test_pass_without_bias_beside_one_with(image: TokenSequence):
    plain = make("text", ["11"], [0])
    seq = pack([[plain], [image]], NAMES).seq
    assert [bias is None for bias in seq.bias(0)] == [False, True]


def test_gradients_return_to_real_tokens_only(text: TokenSequence, image: TokenSequence):
    text.tokens.requires_grad_()
    image.tokens.requires_grad_()
    groups = [[text], [image, text]]
    packed = pack(groups, NAMES)
    weight = torch.randn_like(packed.buffer)
    back = unpack(packed.buffer * weight, packed, groups)
    sum((s.tokens * (g + 1)).sum() for g, group in enumerate(back) for s in group).backward()
    assert text.tokens.grad is not None
    assert (text.tokens.grad[~text.valid] == 0).all()
    spread = unpack(weight, packed, groups)
    assert torch.allclose(text.tokens.grad, spread[0][0].tokens + 2 * spread[1][1].tokens)
    assert image.tokens.grad is not None
    assert torch.allclose(image.tokens.grad, 2 * spread[1][0].tokens)


def test_join_concatenates_real_tokens_left_aligned(
    text: TokenSequence, image: TokenSequence, audio: TokenSequence
):
    joined = join([image, text, audio])
    assert joined.modality == "image+text+audio"
    assert joined.index.tolist() == [0, 1, 2, 3]
    for row in range(4):
        expected = [
            s.tokens[s.index.tolist().index(row)][s.valid[s.index.tolist().index(row)]]
            for s in (image, text, audio)
            if row in s.index.tolist()
        ]
        tokens = torch.cat(expected)
        assert joined.valid[row].tolist() == [True] * len(tokens) + [False] * (
            joined.valid.shape[1] - len(tokens)
        )
        assert torch.equal(joined.tokens[row, : len(tokens)], tokens)
        assert (joined.tokens[row, len(tokens) :] == 0).all()


def test_empty_rows_have_no_segment():
    packed = pack([[make("text", ["000", "110"], [0, 1])]], NAMES)
    assert packed.seq.lengths == [2]
    nothing = pack([[make("text", ["000"], [0])]], NAMES)
    assert nothing.buffer.shape == (0, 3)
    assert nothing.seq.runs == ()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[]], "trunk: no sequence; expected at least one"),
        ([[make("imag", ["1"], [0])]], r"'imag'; expected one of image, text, audio. Did you mean 'image'"),
        (
            [[make("text", ["1"], [0]), make("text", ["1"], [0])]],
            "a joint pass of text\\+text; expected each modality once",
        ),
        ([[make("text", ["1"], [0])], [make("image", ["1"], [0], dim=4)]], r"image tokens \(1, 1, 4\)"),
    ],
)
def test_errors_say_what_to_do(groups: list[list[TokenSequence]], message: str):
    with pytest.raises(ShapeError, match=message):
        pack(groups, NAMES)


def test_numbers_of_biases_must_agree(image: TokenSequence):
    text = make("text", ["11"], [0], bias="shared")
    three = TokenSequence(text.tokens, text.valid, text.index, "text", biases=text.biases * 3)
    two = TokenSequence(image.tokens, image.valid, image.index, "image", biases=image.biases * 2)
    with pytest.raises(ShapeError, match="2 biases on image, 3 elsewhere"):
        pack([[three], [two]], NAMES)


def test_gradients_of_shared_biases_gather_from_all_runs():
    text = make("text", ["11100", "10000", "11111", "11100"], [0, 1, 2, 3], bias="shared")
    image = make("image", ["111", "111"], [0, 2], bias="shared")
    table = text.biases[0].requires_grad_()
    groups = [[text], [image, text]]
    seq = pack(groups, NAMES).seq
    weights = [torch.randn_like(b) for b in seq.bias(0) if b is not None]
    sum((b * w).sum() for b, w in zip(seq.bias(0), weights, strict=True)).backward()
    wanted = torch.zeros_like(table)
    for run, w in zip(seq.runs, weights, strict=True):
        offset = 0
        for _, name, n in run.pieces:
            if name == "text":
                wanted[:, :, :n, :n] += w[:, :, offset : offset + n, offset : offset + n]
            offset += n
    torch.testing.assert_close(table.grad, wanted)
