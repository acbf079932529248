"""The text adapter: embedding, positions, buckets, padding; its preprocessing."""

from __future__ import annotations

import pytest
import torch

from mmzoo import schema
from mmzoo.batch import ModalityInput
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.modalities.text import Cleaning, TextAdapter, TextPreprocess, clean_caption
from mmzoo.modalities.tokenizers import Bytes


def config_of(**options) -> TextAdapter.Config:
    made = TextPreprocess.Config(tokenizer=Bytes.Config(), max_tokens=20)
    return TextAdapter.Config(**{"preprocess": made, "max_positions": 24, "num_buckets": 8, **options})


def adapter_of(**options) -> TextAdapter:
    adapter = TextAdapter(config_of(**options), name="text", dim=12, num_heads=3)
    drawn = torch.Generator().manual_seed(0)
    for bias in adapter.biases:
        torch.nn.init.normal_(bias.get_parameter("table"), generator=drawn)
    return adapter.eval()


def texts(*rows: list[int], padding: int = 0) -> ModalityInput:
    longest = max(len(row) for row in rows)
    values = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    return ModalityInput(values, torch.arange(len(rows)), torch.tensor([[len(row)] for row in rows]))


def test_tokens_are_embeddings_and_positions_after_cls():
    adapter = adapter_of()
    found = adapter(texts([5, 9, 9], [7, 1]))
    for row, ids in enumerate([[5, 9, 9], [7, 1]]):
        assert torch.equal(found.tokens[row, 0], (adapter.cls_token[0, 0] + adapter.positions[0]))
        for place, token in enumerate(ids, start=1):
            assert torch.equal(
                found.tokens[row, place], adapter.embedding.weight[token] + adapter.positions[place]
            )
    assert found.valid.tolist() == [[True] * 4, [True, True, True, False]]
    assert found.num_prefix == 1
    assert found.grids == ((3,), (2,))
    assert torch.equal(found.biases[0], adapter.biases[0](4))


def test_what_stands_in_the_padding_is_never_looked_at():
    adapter = adapter_of()
    clean, dirty = texts([5, 6, 7, 8], [9, 1]), texts([5, 6, 7, 8], [9, 1], padding=10**6)
    assert torch.equal(adapter(clean).tokens, adapter(dirty).tokens)
    longer = ModalityInput(torch.nn.functional.pad(dirty.values, (0, 30), value=-5), dirty.index, dirty.sizes)
    assert torch.equal(adapter(longer).tokens, adapter(clean).tokens)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_biases_are_off_shared_or_one_a_layer(count):
    found = adapter_of(num_bias_tables=count)(texts([3, 4, 5]))
    assert [b.shape for b in found.biases] == [(1, 3, 4, 4)] * count
    assert len({b.sum().item() for b in found.biases}) == count


def test_texts_longer_than_the_position_table_are_refused():
    with pytest.raises(ShapeError, match="text: a text of 24 tokens and CLS; expected at most 24"):
        adapter_of()(texts([3] * 24))
    assert adapter_of()(texts([3] * 23)).tokens.shape == (1, 24, 12)


def test_vocabulary_is_the_tokenizers_or_larger():
    assert adapter_of().embedding.weight.shape == (259, 12)
    assert adapter_of(vocab_size=300).embedding.weight.shape == (300, 12)
    with pytest.raises(
        ConfigError, match=r"text.vocab_size: 100 for a tokenizer of 259 entries; expected no fewer"
    ):
        adapter_of(vocab_size=100)


def test_factorised_embedding_is_widened_to_the_trunk():
    adapter = adapter_of(embedding_dim=5)
    assert adapter.embedding.weight.shape == (259, 5)
    found = adapter(texts([7, 9]))
    expected = adapter.embedding.weight[[7, 9]] @ adapter.widen.weight.t() + adapter.positions[1:3]
    torch.testing.assert_close(found.tokens[0, 1:], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim: 0; expected 1 or more, or null"),
        ({"max_positions": 20}, "max_positions: 20 for texts of 20 tokens and CLS; expected at least 21"),
        ({"num_buckets": 1}, "num_bias_tables, num_buckets: 1, 1; expected at least 0 and 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**options)


def test_too_few_tokens_are_refused():
    with pytest.raises(ConfigError, match="max_tokens: 2; expected at least 3"):
        TextPreprocess.Config(max_tokens=2)


def test_released_size_has_the_released_number_of_parameters():
    config = TextAdapter.Config(vocab_size=50_264)
    adapter = TextAdapter(config, name="text", dim=4, num_heads=2)
    per_dim = sum(p.numel() for name, p in adapter.named_parameters() if "biases" not in name) // 4
    assert per_dim * 1536 + adapter.biases[0].table.shape[0] * 24 == 78_008_880


def test_preprocess_gives_int64_ids_cut_to_max_tokens():
    preprocess = TextPreprocess.Config(tokenizer=Bytes.Config(), max_tokens=5).build()
    item = preprocess("abcdefgh")
    assert item.values.dtype == torch.int64
    assert item.values.tolist() == [100, 101, 102, 103, 1]
    assert torch.equal(preprocess("abcdefgh", generator=torch.Generator()).values, item.values)


def test_preprocess_decodes_utf8_only():
    preprocess = TextPreprocess.Config(tokenizer=Bytes.Config()).build()
    assert preprocess.decode("\ufeffein Hörspiel\r\n".encode(), "a.txt") == "ein Hörspiel"
    with pytest.raises(DataError, match=r"a.txt: no UTF-8 text"):
        preprocess.decode(b"\xff\xfe\x00", "a.txt")
    with pytest.raises(DataError, match="text: list; expected str"):
        preprocess(["two", "texts"])


def test_captions_are_cleaned_when_asked():
    assert clean_caption("...#a  dog\t runs \n fast. \n") == "a dog runs fast."
    options = {"tokenizer": Bytes.Config(), "clean": Cleaning.CAPTION}
    item = TextPreprocess.Config(**options).build()("!! x  y ")
    assert (
        item.values.tolist() == TextPreprocess.Config(tokenizer=Bytes.Config()).build()("x y").values.tolist()
    )


def test_tokenizer_is_chosen_by_name():
    node = {"preprocess": {"tokenizer": {"type": "gpt2_bpe", "tables": "somewhere"}, "max_tokens": 71}}
    config = schema.parse(TextAdapter.Config, node)
    assert config.preprocess.tokenizer.tables == "somewhere"
    assert TextAdapter(config, name="text", dim=4, num_heads=1).embedding.weight.shape[0] == 50_264
    assert schema.parse(TextAdapter.Config, config.to_dict()) == config
