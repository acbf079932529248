"""WebDataset shards: written and read back, streamed in a fixed order, resumed exactly, shared by ranks."""

from __future__ import annotations

import io
import json
import logging
import pathlib
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import tariterators

from mmzoo import registry, schema
from mmzoo.batch import Batch
from mmzoo.datamodules import loader as loader_module
from mmzoo.datamodules.folder import Folder
from mmzoo.datamodules.order import Rank
from mmzoo.datamodules.shard_format import Fields, split_member
from mmzoo.datamodules.shard_stream import StreamLoader, expand
from mmzoo.datamodules.shard_write import pack, write_shards
from mmzoo.datamodules.shards import Shards
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess

Reads = dict[str, Preprocess]


@pytest.fixture
def preprocesses() -> Reads:
    return {k: registry.find("modalities", k).Config().preprocess.build() for k in ("text", "fmri", "image")}


def shards(root: pathlib.Path, preprocesses: Reads, seed: int = 0, **options: object) -> Shards:
    loader = {"batch_size": 4, **dict(options.pop("loader", {}))}  # type: ignore[call-overload]
    tree = {"root": str(root), "shuffle_buffer": 8, "loader": loader, **options}
    return Shards(schema.parse(Shards.Config, tree), preprocesses, seed=seed)


@pytest.fixture
def words(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write 4 shards of 12 samples: a sentence and a class."""
    samples = [
        {"__key__": f"{i:03d}", "txt": f"word {i}", "json": {"labels": {"label": "xyz"[i % 3]}}}
        for i in range(48)
    ]
    write_shards(tmp_path / "words", samples, per_shard=12, labels={"label": ("x", "y", "z")})
    return tmp_path / "words"


def seen(batches: list[Batch]) -> list[tuple[tuple[str, ...], list[list[int]]]]:
    return [(b.ids, b.inputs["text"].values.tolist()) for b in batches]


WHOLE = {"val_share": 0.0, "test_share": 0.0}


def test_what_is_written_is_read_by_webdataset_and_by_index(words: pathlib.Path, preprocesses: Reads) -> None:
    assert sorted(p.name for p in words.glob("*.tar")) == [f"train-{i:06d}.tar" for i in range(4)]
    assert json.loads((words / "info.json").read_text())["samples"] == {
        f"train-{i:06d}.tar": 12 for i in range(4)
    }
    keys: list[str] = []
    for path in sorted(words.glob("*.tar")):
        with path.open("rb") as stream:
            members = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            keys += [s["__key__"] for s in tariterators.group_by_keys(members)]
    data = shards(words, preprocesses, **WHOLE)
    source = data.source("train")
    assert [source.records[i].id.split("/")[1] for i in range(48)] == keys == [f"{i:03d}" for i in range(48)]
    for i in (0, 13, 47):
        sample = source.get(i, None)
        assert torch.equal(sample.inputs["text"].values, preprocesses["text"](f"word {i}").values)
        assert sample.targets["label"].item() == i % 3
    assert data.info().counts == {"train": 48, "val": 0, "test": 0}


def test_writing_is_reproducible_to_the_byte(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, [{"__key__": "k", "txt": "é", "json": {"labels": {}}}])
    assert (tmp_path / "a" / "train-000000.tar").read_bytes() == (
        tmp_path / "b" / "train-000000.tar"
    ).read_bytes()


def test_an_epoch_streams_each_sample_once(words: pathlib.Path, preprocesses: Reads) -> None:
    data = shards(words, preprocesses, **WHOLE)
    loader = data.loader("train")
    assert isinstance(loader, StreamLoader)
    assert len(loader) == 12
    by_id = {s.id: s for i in range(48) for s in [data.source("train").get(i, None)]}
    epochs = [list(loader), list(loader)]
    for epoch in epochs:
        assert Counter(i for b in epoch for i in b.validate().ids) == dict.fromkeys(by_id, 1)
        for batch in epoch:
            text = batch.inputs["text"]
            for row, name in enumerate(batch.ids):
                assert (
                    text.values[row, : int(text.sizes[row, 0])].tolist()
                    == by_id[name].inputs["text"].values.tolist()
                )
                assert batch.targets["label"].values[row] == by_id[name].targets["label"]
    assert seen(epochs[0]) != seen(epochs[1])
    assert seen(list(shards(words, preprocesses, **WHOLE).loader("train"))) == seen(epochs[0])
    assert seen(list(shards(words, preprocesses, seed=1, **WHOLE).loader("train"))) != seen(epochs[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resume_is_exact(workers: int, words: pathlib.Path, preprocesses: Reads) -> None:
    options = {"loader": {"num_workers": workers}, **WHOLE}
    whole = shards(words, preprocesses, **options).loader("train")
    first, second, third = (seen(list(whole)) for _ in range(3))
    for done in (0, 1, 5, 12):
        loader = shards(words, preprocesses, **options).loader("train")
        loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batches": done})
        assert seen(list(loader)) == second[done:]
        if done == 5:
            assert seen(list(loader)) == third
    assert first != second


def test_resume_with_other_workers_is_refused(words: pathlib.Path, preprocesses: Reads) -> None:
    state = shards(words, preprocesses).loader("train").state_dict()
    other = shards(words, preprocesses, loader={"num_workers": 2}).loader("train")
    with pytest.raises(DataError, match=r"resume of words/train: num_workers 2; expected 0\."):
        other.load_state_dict(state)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_the_shards_evenly(
    world: int, words: pathlib.Path, preprocesses: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[list[str]] = []
    for index in range(world):
        monkeypatch.setattr(
            loader_module.Rank, "current", staticmethod(lambda index=index: Rank(index, world))
        )
        loader = shards(words, preprocesses, loader={"batch_size": 2}, **WHOLE).loader("train")
        batches = list(loader)
        assert len(batches) == len(loader) == 48 // (2 * world)
        shares.append([i for b in batches for i in b.ids])
    drawn = Counter(i for share in shares for i in share)
    if world != 3:  # 4 shards do not divide among 3: one rank goes round its shard again
        assert drawn == dict.fromkeys(drawn, 1)
        assert len(drawn) == 48
    first = {i.split("/")[0] for i in shares[0]}
    assert len(first) == {2: 2, 3: 2, 8: 4}[world]


def test_carved_splits_are_apart_and_stable(words: pathlib.Path, preprocesses: Reads) -> None:
    data = shards(words, preprocesses, val_share=0.2, test_share=0.3)
    names = {
        s: {data.source(s).records[i].id for i in range(len(data.source(s)))}
        for s in ("train", "val", "test")
    }
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 48
    assert all(5 <= len(n) <= 32 for n in names.values())
    streamed = {i for b in data.loader("train") for i in b.ids}
    assert streamed <= names["train"]
    assert [i for b in data.loader("val") for i in b.ids] == sorted(names["val"])


def test_fields_and_numbered_classes(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    rng = np.random.default_rng(0)
    scans: list[bytes] = []
    for _ in range(6):
        out = io.BytesIO()
        np.save(out, rng.normal(size=4).astype(np.float32))
        scans.append(out.getvalue())
    samples = [
        {"__key__": f"sub-{i % 2}x{i}", "npy": scan, "cls": str(i % 2), "url": "u"}
        for i, scan in enumerate(scans)
    ]
    write_shards(tmp_path, samples)
    data = shards(tmp_path, preprocesses, fields={"npy": "fmri"}, labels={"label": ["no", "yes"]}, **WHOLE)
    assert data.info().modalities == ("fmri",)
    assert data.info().labels == {"label": ("no", "yes")}
    assert data.info().subjects == {f"sub-{i % 2}x{i}": 4 for i in range(6)}
    assert [data.source("train").get(i, None).targets["label"].item() for i in range(6)] == [0, 1] * 3
    batch = next(iter(data.loader("train")))
    assert batch.inputs["fmri"].values.shape == (4, 4)


def test_a_folder_can_be_packed(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    config = Folder.fake(tmp_path / "loose")
    config.captions = ["a {label}", "the {label}"]
    loose = Folder(config, preprocesses).source("train")
    write_shards(tmp_path / "packed", pack(loose), per_shard=10)
    packed = shards(tmp_path / "packed", preprocesses, **WHOLE).source("train")
    assert len(packed) == len(loose)
    for i in range(len(loose)):
        a, b = loose.get(i, torch.Generator().manual_seed(i)), packed.get(i, torch.Generator().manual_seed(i))
        assert all(torch.equal(a.inputs[m].values, b.inputs[m].values) for m in ("image", "text"))
        assert a.targets["label"] == b.targets["label"]


def test_pickles_are_refused(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    write_shards(tmp_path, [{"__key__": "k", "txt": "a", "pkl": b"cos\nsystem\n"}])
    with pytest.raises(
        DataError, match=r"train-000000\.tar/k\.pkl: a pickle; expected data that can be read without"
    ):
        shards(tmp_path, preprocesses, labels={"label": ["a"]}, **WHOLE).source("train").get(0, None)
    ignoring = shards(tmp_path, preprocesses, ignore=["pkl"], **WHOLE)
    assert set(ignoring.source("train").get(0, None).inputs) == {"text"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_member_is_skipped_and_named(
    workers: int, tmp_path: pathlib.Path, preprocesses: Reads, caplog: pytest.LogCaptureFixture
) -> None:
    good = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(good, "PNG")
    samples = [{"__key__": f"{i:02d}", "png": good.getvalue()[: 20 if i == 7 else None]} for i in range(20)]
    write_shards(tmp_path, samples, per_shard=10)
    options = {"num_workers": workers, "max_bad_share": 0.1}
    data = shards(tmp_path, {"image": preprocesses["image"]}, loader=options, **WHOLE)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            names = {i.split("/")[1] for b in data.loader("train") for i in b.validate().ids}
            good_ones = {f"{i:02d}" for i in range(20)} - {"07"}
            assert names == good_ones if workers == 0 else 17 <= len(names & good_ones) == len(names)
    assert [("07.png" in r.getMessage()) for r in caplog.records if "skipped" in r.getMessage()] == [True]


def test_a_cut_shard_gives_what_it_has(
    words: pathlib.Path, preprocesses: Reads, caplog: pytest.LogCaptureFixture
) -> None:
    path = words / "train-000001.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmember("018.txt").offset_data
    whole = shards(words, preprocesses, **WHOLE)
    whole.info()
    path.write_bytes(path.read_bytes()[:offset])
    loader = StreamLoader(
        whole.loader("train").shards,  # type: ignore[attr-defined]
        whole.loader("train")._stream.make,  # type: ignore[attr-defined]
        schema.parse(type(whole.config.loader), {"batch_size": 4, "max_bad_share": 0.5}),
        name="cut",
        seed=0,
    )
    with caplog.at_level(logging.WARNING):
        names = {i.split("/")[1] for b in loader for i in b.ids}
    assert names == {f"{i:03d}" for i in range(48) if not 18 <= i < 24}
    assert any("train-000001.tar" in r.getMessage() for r in caplog.records)


def test_addresses_are_expanded(tmp_path: pathlib.Path) -> None:
    for name in ("a-0.tar", "a-1.tar", "b-0.tar"):
        (tmp_path / name).touch()
    folder = str(tmp_path)
    assert expand(["a-{0..1}.tar"], folder) == [f"{folder}/a-0.tar", f"{folder}/a-1.tar"]
    assert expand(["?-0.tar", "https://h/{x,y}.tar"], folder) == [
        f"{folder}/a-0.tar",
        f"{folder}/b-0.tar",
        "https://h/x.tar",
        "https://h/y.tar",
    ]
    assert expand([f"{folder}/a*.tar"], "elsewhere") == [f"{folder}/a-0.tar", f"{folder}/a-1.tar"]
    with pytest.raises(DataError, match=r"'pipe:rm x' runs a shell command"):
        expand(["pipe:rm x"], folder)


def test_addresses_need_counts_and_cannot_be_indexed(preprocesses: Reads) -> None:
    far = {"train": "https://h/{0..3}.tar", "val": "https://h/v.tar", "test": "https://h/t.tar"}
    data = shards(pathlib.Path(), preprocesses, labels={"label": ["a"]}, **far)
    with pytest.raises(ConfigError, match=r"data\.samples: no number of train samples"):
        data.loader("train")
    with pytest.raises(DataError, match=r"val shards at an address; expected local files"):
        data.loader("val")
    known = shards(pathlib.Path(), preprocesses, samples={"train": 100}, **far)
    assert len(known.loader("train")) == 25
    assert known.info().counts == {"train": 100}


def test_file_addresses_stream(words: pathlib.Path, preprocesses: Reads) -> None:
    url = f"file://{words}/train-{{000000..000003}}.tar"
    options = {"train": url, "val": "*.tar", "test": "*.tar", "samples": {"train": 48}}
    far = shards(words, preprocesses, **options).loader("train")
    near = shards(words, preprocesses, train="*.tar", val="*.tar", test="*.tar").loader("train")
    assert seen(list(far)) == seen(list(near))


def test_what_is_missing_or_odd_is_said(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    with pytest.raises(DataError, match=r"nowhere: nothing there; expected the data set\. Ask Ann\."):
        shards(tmp_path / "nowhere", preprocesses, get="Ask Ann.").info()
    with pytest.raises(DataError, match=r"no shards \*\.tar; expected at least one \.tar\."):
        shards(tmp_path, preprocesses).info()
    with pytest.raises(ConfigError, match=r"shuffle_buffer: 0; expected at least 1\."):
        schema.parse(Shards.Config, {"shuffle_buffer": 0})
    with pytest.raises(DataError, match=r"x\.json: not JSON"):
        Fields().record("x", {"json": "x.json"}, lambda _: b"{")
    with pytest.raises(DataError, match=r"x\.json: a list; expected a JSON object"):
        Fields().record("x", {"json": "x.json"}, lambda _: b"[]")


def test_members_split_at_the_first_dot() -> None:
    assert split_member("a.b/c.fmri.npy") == ("a.b/c", "fmri.npy")
    assert split_member("x.JPG") == ("x", "jpg")
    assert split_member("noext") is None
    assert split_member("a/.hidden") is None
    assert split_member("__meta__.json") is None
