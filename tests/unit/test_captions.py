"""Several captions of one picture: how rows give them, what training and evaluation make of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo import registry, schema
from mmzoo.batch import Batch, Prediction
from mmzoo.datamodules.captions import PairSource, in_rounds, keep_apart
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.order import Rank, train_draws
from mmzoo.datamodules.shard_write import pack
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.modalities.base import Preprocess
from mmzoo.objectives.contrast import InfoNce

Reads = dict[str, Preprocess]
COUNTS = (5, 3, 1, 5, 2, 4)
"""Captions of each picture of the training part."""


@pytest.fixture
def reads() -> Reads:
    text, image = (registry.find("modalities", m).Config().preprocess for m in ("text", "image"))
    text = dataclasses.replace(text, tokenizer=TOKENIZER)
    return {"text": text.build(), "image": dataclasses.replace(image, size=(16, 16)).build()}


def captions(picture: int, count: int) -> list[str]:
    return [f"picture {picture} caption {n}" for n in range(count)]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write eight small pictures, six to train on."""
    draw = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    rows = [
        {"id": f"p{i}", "image": f"{i}.png", "caption": captions(i, count), "split": split}
        for i, (count, split) in enumerate(
            zip((*COUNTS, 5, 1), ("train",) * 6 + ("val", "test"), strict=True)
        )
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def manifest(path: pathlib.Path, reads: Reads, seed: int = 1, **options: Any) -> Manifest:
    tree = {"path": str(path), "loader": {"batch_size": 3}, **options}
    return Manifest(schema.parse(Manifest.Config, tree), reads, seed=seed)


TOKENIZER = registry.find("tokenizers", "bytes").Config()


def texts(batch: Batch) -> list[str]:
    """Return the captions of a batch, read back from their bytes."""
    reader = TOKENIZER.build()
    part = batch.inputs["text"]
    return [
        reader.decode(row[: int(n)].tolist()) for row, n in zip(part.values, part.sizes[:, 0], strict=True)
    ]


def thing(sample_id: str) -> str:
    return sample_id.partition("#")[0]


def test_training_draws_one_and_evaluation_sees_all(folder: pathlib.Path, reads: Reads) -> None:
    data = manifest(folder / "rows.jsonl", reads)
    info = data.info()
    assert info.counts == {"train": 6, "val": 1, "test": 1}
    assert info.several == {"text": 5}
    assert info.labels == {}
    drawn: dict[str, set[str]] = {}
    for _ in range(8):
        for batch in data.loader("train"):
            batch.validate()
            assert batch.inputs["text"].index.tolist() == list(range(len(batch)))
            for name, text in zip(batch.ids, texts(batch), strict=True):
                drawn.setdefault(name, set()).add(text)
    assert all(drawn[f"p{i}"] <= set(captions(i, count)) for i, count in enumerate(COUNTS))
    assert len(drawn["p0"]) > 2
    (batch,) = data.loader("val")
    assert batch.inputs["text"].index.tolist() == [0] * 5
    assert texts(batch) == captions(6, 5)
    whole = list(data.loader("reference"))
    assert [len(b.inputs["text"]) for b in whole] == [5 + 3 + 1, 5 + 2 + 4]
    assert whole[0].inputs["text"].index.tolist() == [0] * 5 + [1] * 3 + [2]


def test_evaluation_with_the_first_alone(folder: pathlib.Path, reads: Reads) -> None:
    data = manifest(folder / "rows.jsonl", reads, captions={"evaluate": "first"})
    assert data.info().several == {}
    (batch,) = data.loader("val")
    assert texts(batch) == captions(6, 5)[:1]


def test_pairs_go_through_every_caption_and_stay_apart(folder: pathlib.Path, reads: Reads) -> None:
    """Five-caption pictures in batches of three; every pair at most once an epoch, nearly all of them."""
    del reads["image"]
    data = manifest(folder / "rows.jsonl", reads, captions={"train": "pairs"})
    assert data.info().counts["train"] == sum(COUNTS) == len(data.source("train"))
    seen: Counter[str] = Counter()
    orders = set()
    for _ in range(6):
        epoch = list(data.loader("train"))
        for batch in epoch:
            assert len({thing(i) for i in batch.ids}) == len(batch)
            seen.update(texts(batch))
        names = [i for b in epoch for i in b.ids]
        assert len(names) == len(set(names)) >= 15
        orders.add(tuple(names))
    assert len(orders) == 6
    assert set(seen) == {c for i, count in enumerate(COUNTS) for c in captions(i, count)}
    (batch,) = data.loader("val")
    assert len(batch.inputs["text"]) == 5
    assert sum(len(b) for b in data.loader("reference")) == 6


def test_pairs_by_chance_come_together(folder: pathlib.Path, reads: Reads) -> None:
    data = manifest(folder / "rows.jsonl", reads, captions={"train": "pairs", "neighbours": "any"})
    sizes = [len({thing(i) for i in b.ids}) for _ in range(4) for b in data.loader("train")]
    assert min(sizes) < 3
    assert len(sizes) == 4 * (sum(COUNTS) // 3)


def test_too_few_pictures_for_a_batch(folder: pathlib.Path, reads: Reads) -> None:
    options = {"captions": {"train": "pairs"}, "loader": {"batch_size": 8}}
    data = manifest(folder / "rows.jsonl", reads, **options)
    with pytest.raises(ConfigError, match=r"loader.batch_size: batches of 8; expected at most 6"):
        next(iter(data.loader("train")))


@pytest.mark.parametrize("train", ["one", "pairs"])
def test_a_resumed_epoch_goes_on_with_the_same_captions(
    folder: pathlib.Path, reads: Reads, train: str
) -> None:
    def read(batch: Batch) -> list[tuple[str, str]]:
        return list(zip(batch.ids, texts(batch), strict=True))

    del reads["image"]
    options = {"captions": {"train": train}, "loader": {"batch_size": 2}}
    whole = manifest(folder / "rows.jsonl", reads, **options).loader("train")
    epochs = [[read(b) for b in whole] for _ in range(2)]
    assert epochs[0] != epochs[1]
    parted = manifest(folder / "rows.jsonl", reads, **options).loader("train")
    iterator = iter(parted)
    start = [read(next(iterator)) for _ in range(2)]
    again = manifest(folder / "rows.jsonl", reads, **options).loader("train")
    again.load_state_dict(parted.state_dict())
    assert start + [read(b) for b in again] == epochs[0]
    assert [read(b) for b in again] == epochs[1]


@pytest.mark.parametrize("block", [2, 3, 7])
def test_blocks_hold_a_thing_once(block: int) -> None:
    draw = np.random.default_rng(block)
    for _ in range(20):
        things = draw.integers(0, 12, 60).tolist()
        order = draw.permutation(60).tolist()
        kept = keep_apart(in_rounds(order, things), things, block)
        assert len(set(kept)) == len(kept)
        blocks = [[things[i] for i in kept[at : at + block]] for at in range(0, len(kept), block)]
        assert all(len(set(b)) == len(b) for b in blocks)
        assert all(len(b) == block for b in blocks[:-1])
        even = [i % 12 for i in range(60)]
        assert sorted(keep_apart(in_rounds(order, even), even, 6)) == list(range(60))


def test_captions_in_columns_and_in_rows(folder: pathlib.Path, reads: Reads) -> None:
    """Clotho has a column for each caption, Flickr30k's table a row; both say what the list says."""
    split = {"split": {"val_share": 0.0, "test_share": 0.0}}
    wide, long = ["image,first,second,third"], ["number,image,caption"]
    for i in range(3):
        cells = [f'"{c}"' for c in captions(i, 3 - i % 2)]
        wide.append(",".join([f"{i}.png", *cells, *[""] * (i % 2)]))
        long += [f"{n},{i}.png,{cell}" for n, cell in enumerate(cells)]
    (folder / "wide.csv").write_text("\n".join(wide))
    (folder / "long.csv").write_text("\n".join(long))
    columns = {"captions": {"columns": ["first", "second", "third"]}, **split}
    rows = {"captions": {"by": "image"}, "targets": [], **split}
    expected = [c for i in range(3) for c in captions(i, 3 - i % 2)]
    for name, options in (("wide.csv", columns), ("long.csv", rows)):
        data = manifest(folder / name, reads, **options)
        assert data.info().several == {"text": 3}
        (batch,) = data.loader("reference")
        assert texts(batch) == expected
        assert batch.inputs["text"].index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert batch.ids == ("0.png", "1.png", "2.png")


def test_karpathy_files_are_manifests(folder: pathlib.Path, reads: Reads) -> None:
    (folder / "val2014").mkdir()
    for i in range(4):
        (folder / f"{i}.png").rename(folder / "val2014" / f"{i}.png")
    images = [
        {
            "filepath": "val2014",
            "filename": f"{i}.png",
            "imgid": i,
            "split": split,
            "sentences": [{"raw": c, "tokens": c.split()} for c in captions(i, 5)],
        }
        for i, split in enumerate(("train", "restval", "val", "test"))
    ]
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    data = manifest(path, reads)
    assert data.info().counts == {"train": 2, "val": 1, "test": 1}
    assert data.info().several == {"text": 5}
    (batch,) = data.loader("test")
    assert batch.ids == ("val2014/3.png",)
    assert texts(batch) == captions(3, 5)
    path.write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match=r"dataset_coco\.json: KeyError: 'images'; expected an object with"):
        manifest(path, reads).info()


def test_what_does_not_fit_is_named(folder: pathlib.Path, reads: Reads) -> None:
    (folder / "long.csv").write_text("image,caption,split\n0.png,a,train\n0.png,b,val\n,c,train\n")
    with pytest.raises(ConfigError, match=r"long\.csv: captions: no column 'imgae'.*Did you mean 'image'"):
        manifest(folder / "long.csv", reads, captions={"by": "imgae"}).info()
    with pytest.raises(DataError, match=r"long\.csv row 2: split 'val' of '0\.png'; expected 'train'"):
        manifest(folder / "long.csv", reads, captions={"by": "image"}).info()
    (folder / "long.csv").write_text("image,caption\n0.png,a\n,c\n")
    with pytest.raises(DataError, match=r"long\.csv row 2 image: nothing; expected what the caption is of"):
        manifest(folder / "long.csv", reads, captions={"by": "image"}).info()
    (folder / "long.csv").write_text("image,words\n0.png,a\n")
    with pytest.raises(ConfigError, match=r"captions\.by: no column of captions"):
        manifest(folder / "long.csv", reads, captions={"by": "image"}).info()


def test_shards_keep_all_captions(folder: pathlib.Path, reads: Reads) -> None:
    data = manifest(folder / "rows.jsonl", reads)
    assert next(iter(pack(data.source("train"))))["json"]["texts"]["text"] == captions(0, 5)
    assert next(iter(pack(data.source("val"))))["json"]["several"]["text"] == captions(6, 5)


def test_the_contrast_trains_on_one_and_scores_the_first(generator: torch.Generator) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1)
    scale = torch.tensor(5.0)
    image = Prediction(vectors[:2].clone().requires_grad_(), torch.tensor([0, 1]), scale)
    text = Prediction(vectors[2:], torch.tensor([0, 0, 1]), scale)
    first = Prediction(vectors[[2, 4]], torch.tensor([0, 1]), scale)
    loss, batch = InfoNce.Config().build(), Batch(("a", "b"))
    with torch.no_grad():
        several = loss({"image": image, "text": text}, batch, "")
        single = loss({"image": image, "text": first}, batch, "")
    assert torch.equal(several.total.sum, single.total.sum)
    assert several.total.count == 2
    with pytest.raises(ShapeError, match=r"objective/text: samples with several entries; expected one"):
        loss({"image": image, "text": text}, batch, "")


@pytest.mark.parametrize("world", [1, 2])
def test_pairs_stay_apart_on_all_ranks_together(
    folder: pathlib.Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    source = manifest(folder / "rows.jsonl", reads, captions={"train": "pairs"}).source("train")
    assert isinstance(source, PairSource)
    monkeypatch.setattr(Rank, "current", staticmethod(lambda: Rank(0, world)))
    order = source.order(torch.Generator().manual_seed(0))
    shares = [train_draws(order, 3, Rank(r, world), drop_last=True).index.split(3) for r in range(world)]
    for batches in zip(*shares, strict=True):
        things = [source.things[int(pair)] for batch in batches for pair in batch]
        assert len(set(things)) == len(things) == 3 * world
