"""Which tokens are hidden: exact shares, whole words, blocks, what joint passes prefer to hide."""

from __future__ import annotations

import pytest
import torch

from mmzoo.batch import ModalityInput, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.layers.masking import Maskable, block_centres, dense, tokens_of, unit_liking
from mmzoo.layers.masks import BlockMask, Prefer, RandomMask, WordMask
from mmzoo.modalities.audio import HiddenFrames, WaveformAdapter
from mmzoo.modalities.skeleton import SkeletonAdapter
from mmzoo.modalities.text import TextAdapter, TextPreprocess
from mmzoo.modalities.tokenizers import Bytes, ClipBpe

WORDS = torch.tensor([[-1, 0, 0, 1, 2, 2, 2, 3, -1, -1], [-1, 0, 1, 1, 2, 3, 4, 5, 6, -1]])


def plain(lengths: list[int]) -> Maskable:
    words = torch.where(
        torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], torch.arange(max(lengths)), -1
    )
    return Maskable(words, words)


def test_words_are_hidden_whole(generator):
    hidden = WordMask.Config(share=0.4).build()(Maskable(WORDS, tokens_of(WORDS)), generator)
    for words, own in zip(WORDS, hidden, strict=True):
        chosen = set(words[own].tolist())
        assert own.tolist() == [int(w) in chosen for w in words]
        assert len(chosen) == -(-4 * (int(words.max()) + 1) // 10)  # the next whole number above 40 %


def test_every_word_is_hidden_sometimes_and_about_as_often(generator):
    mask = WordMask.Config(share=0.15).build()
    what = plain([20] * 400)
    times = mask(what, generator).sum(0)
    assert times.min() > 0.5 * 400 * 3 / 20
    assert times.max() < 1.6 * 400 * 3 / 20


def test_numbers_become_dense():
    given = torch.tensor([[-1, 3, 3, 5, -1, 5, 9], [0, 0, 1, 1, -1, 2, 2]])
    assert dense(given).tolist() == [[-1, 0, 0, 1, -1, 1, 2], [0, 0, 1, 1, -1, 2, 2]]
    assert tokens_of(given).tolist() == [[-1, 0, 1, 2, -1, 3, 4], [0, 1, 2, 3, -1, 4, 5]]


def test_blocks_have_their_length_and_stay_inside(generator):
    counts = torch.tensor([60, 7, 0, 30])
    covered = block_centres(counts, 0.4, 5, generator)
    assert covered[2].sum() == 0
    assert not covered[3, 32:].any()  # a centre on the last step reaches two beyond; those are no steps
    runs = "".join("x" if c else " " for c in covered[0]).split()
    inner = [len(r) for r in runs]
    assert sum(inner) <= 5 * int(60 * 0.5 / 5)
    assert max(inner) >= 5


def test_block_masks_are_clumped_and_exact(generator):
    what = plain([99, 60])
    blocks = BlockMask.Config(share=0.55).build()(what, generator)
    loose = RandomMask.Config(share=0.55).build()(what, generator)
    assert blocks.sum(1).tolist() == loose.sum(1).tolist() == [int(99 * 0.55), int(60 * 0.55)]

    def changes(hidden: torch.Tensor) -> int:
        return int((hidden[:, 1:] != hidden[:, :-1]).sum())

    assert changes(blocks) < 0.75 * changes(loose)


@pytest.mark.parametrize("share", [0.4, 0.6875])
def test_joint_passes_hide_what_single_ones_show_first(share, generator):
    what = plain([16, 16])
    alone = RandomMask.Config(share=0.75).build()(what, generator)
    joint = RandomMask.Config(share=share, prefer=Prefer.SHOWN).build()(what, generator, alone)
    assert joint.sum(1).tolist() == [int(16 * share)] * 2
    assert (joint | alone).all()  # 25 % are shown, and 40 % or more hidden: all of the shown ones
    free = RandomMask.Config(share=share).build()(what, generator, alone)
    assert not (free | alone).all()
    few = RandomMask.Config(share=0.15).build()(what, generator)
    among = RandomMask.Config(share=share, prefer=Prefer.SHOWN).build()(what, generator, few)
    assert not (among & few).any()


def test_liking_marks_what_is_not_hidden():
    hidden = torch.tensor([[False, True, True, False, True, True, True, False, False, False]])
    assert unit_liking(hidden, WORDS[:1]).tolist() == [[0.0, 1.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("cls", "options", "found"),
    [
        (RandomMask, {"share": 0.0}, "share: 0;"),
        (WordMask, {"share": 1.0}, "share: 1;"),
        (BlockMask, {"length": 0}, "length: 0;"),
    ],
)
def test_options_out_of_range_are_refused(cls, options, found):
    with pytest.raises(ConfigError, match=found):
        cls.Config(**options)


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        (Bytes.Config(), "ab c", [0, 0, 1, 1, -1]),
        (Bytes.Config(), " a\tb", [0, 0, 1, 1, -1]),
        (ClipBpe.Config(), "a quixotically zebra", [-1, 0, 1, 1, 1, 2, -1]),
    ],
)
def test_tokenizers_know_where_words_begin(tokenizer, text, words):
    made = tokenizer.build()
    assert made.words(made.encode(text)) == words


def test_ids_that_are_no_byte_begin_no_word():
    tokenizer = Bytes.Config().build()
    assert [i for i in range(-2, tokenizer.vocab_size + 3) if tokenizer.begins_word(i)] == [
        12,
        13,
        14,
        15,
        16,
        35,
    ]
    assert tokenizer.words([*tokenizer.ids("a b"), 2, 300]) == [0, 1, 1, 1, 1]


def test_gpt2_pieces_of_a_word_stay_together(shared, monkeypatch):
    from mmzoo.modalities.tokenizers import Gpt2Bpe

    tokenizer = Gpt2Bpe.Config(tables=str(shared / "data" / "gpt2_bpe")).build()
    ids = tokenizer.encode("A quixotically striped zebra")
    words = tokenizer.words(ids)
    assert words[-1] == -1
    assert max(words) == 3
    said = ["".join(tokenizer.decode([i]) for i, w in zip(ids, words, strict=True) if w == n) for n in (1, 3)]
    assert [s.strip() for s in said] == ["quixotically", "zebra"]


def test_text_adapters_never_offer_marks():
    config = TextAdapter.Config(preprocess=TextPreprocess.Config(tokenizer=Bytes.Config()), num_bias_tables=0)
    adapter = TextAdapter(config, name="text", dim=8, num_heads=2)
    prepare = config.preprocess.build()
    x = ModalityInput.stack([prepare("a bc"), prepare("d")], torch.arange(2))
    what = adapter.maskable(x, adapter(x))
    assert what.words.tolist() == [[-1, 0, 1, 1, 1, -1], [-1, 0, -1, -1, -1, -1]]
    assert what.steps.tolist() == [[-1, 0, 1, 2, 3, -1], [-1, 0, -1, -1, -1, -1]]


def test_steps_of_a_skeleton_are_moments(generator):
    config = SkeletonAdapter.Config()
    config.window.joints = 5
    adapter = SkeletonAdapter(config, name="skeleton", dim=8, num_heads=2)
    x = SkeletonAdapter.fake_input(config, 3, generator)
    sequence = adapter(x)
    what = adapter.maskable(x, sequence)
    assert ((what.words >= 0) == sequence.valid).sum() == sequence.valid.numel() - len(x)
    assert int(what.steps.max()) < int(what.words.max())


@pytest.mark.parametrize("mode", list(HiddenFrames))
def test_hidden_frames_leave_no_trace(mode, generator):
    """What stands in a hidden frame reaches no visible one, not through positional convolutions either."""
    config = WaveformAdapter.Config(
        conv_layers=[(16, 10, 5), (16, 4, 4)], position_depth=2, position_kernel=5, hidden_frames=mode
    )
    torch.manual_seed(0)
    adapter = WaveformAdapter(config, name="audio", dim=16, num_heads=2).eval()
    x = WaveformAdapter.fake_input(config, 2, generator)
    sequence = adapter(x)
    hidden = torch.zeros_like(sequence.valid)
    hidden[:, 2:4] = True
    seen = adapter.hide(sequence, hidden)
    assert torch.equal(seen.valid, sequence.valid & ~hidden)
    content = sequence.content.masked_fill(hidden[:, 1:, None], 50.0)
    other = adapter.hide(TokenSequence(**{**vars(sequence), "content": content}), hidden)
    assert torch.equal(other.tokens[seen.valid], seen.tokens[seen.valid])
    assert not torch.allclose(seen.tokens[seen.valid], sequence.tokens[seen.valid], atol=1e-4)
    nothing = adapter.hide(sequence, torch.zeros_like(hidden))
    torch.testing.assert_close(nothing.tokens[sequence.valid], sequence.tokens[sequence.valid])
