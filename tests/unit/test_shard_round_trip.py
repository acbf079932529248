"""What a manifest holds comes back from shards as it was: captions, answers, numbers, boxes, scores."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo import registry, schema
from mmzoo.batch import Item, NumericKind, Sample
from mmzoo.cli.main import main
from mmzoo.datamodules.driving import Driving
from mmzoo.datamodules.loader import SampleSource
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.shard_stream import StreamLoader
from mmzoo.datamodules.shard_write import pack, pack_data, write_shards
from mmzoo.datamodules.shards import Shards
from mmzoo.errors import DataError
from mmzoo.modalities.base import Preprocess

Reads = dict[str, Preprocess]
SPLITS = ("train", "val", "test")
NAMED = {split: f"{split}-*.tar" for split in SPLITS}
IN_SPLITS = ("train", "train", "val", "train", "test", "train", "val", "test")
BOX = {"box": {"kind": "boxes", "form": "xywh"}}


@pytest.fixture
def reads() -> Reads:
    kinds = {k: registry.find("modalities", k).Config().preprocess for k in ("text", "image", "fmri")}
    kinds["text"] = dataclasses.replace(
        kinds["text"], tokenizer=registry.find("tokenizers", "bytes").Config()
    )
    kinds["image"] = dataclasses.replace(kinds["image"], size=(16, 16))
    return {k: options.build() for k, options in kinds.items()}


def manifest(folder: pathlib.Path, rows: list[dict[str, Any]], reads: Reads, **options: Any) -> Manifest:
    """Write rows with a picture each, in fixed splits."""
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    for i, (row, split) in enumerate(zip(rows, IN_SPLITS, strict=True)):
        Image.fromarray(draw.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"id": f"s{i}", "image": f"{i}.png", "split": split, **row}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    tree = {"path": str(folder / "rows.jsonl"), "loader": {"batch_size": 2}, **options}
    return Manifest(schema.parse(Manifest.Config, tree), reads, seed=1)


def shards(root: pathlib.Path, reads: Reads, **options: Any) -> Shards:
    tree = {"root": str(root), "loader": {"batch_size": 2}, **options}
    return Shards(schema.parse(Shards.Config, tree), reads, seed=1)


def bits(sample: Sample) -> dict[str, Any]:
    """Return all that a sample holds, in a form that `==` compares exactly."""

    def item(x: Item) -> tuple[Any, ...]:
        return x.values.dtype, x.values.tolist(), x.valid is None or x.valid.tolist(), x.subject

    labels = {**sample.targets, **sample.lists}
    return {
        "id": sample.id,
        "inputs": {m: item(x) for m, x in sample.inputs.items()},
        "several": {m: [item(x) for x in items] for m, items in sample.several.items()},
        "labels": {t: (v.dtype, v.tolist()) for t, v in labels.items()},
    }


def all_of(source: SampleSource, seed: int | None = None) -> dict[str, dict[str, Any]]:
    """Return id -> what a sample holds, in evaluation or as drawn in training."""
    drawn = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(len(source))]
    samples = [source.get(i, generator) for i, generator in enumerate(drawn)]
    return {sample.id: bits(sample) for sample in samples}


def check_same(data: Manifest, root: pathlib.Path, reads: Reads) -> Shards:
    """Write shards, read them by index and as a stream, and compare everything with the manifest.

    Without info.json only names that no label has are unknown (`answer` has some).
    """
    pack_data(root, data, per_shard=2)
    back = shards(root, reads, **NAMED)
    told, found = data.info(), back.info()
    for name in ("labels", "numeric", "several", "counts", "subjects", "moments"):
        assert getattr(found, name) == getattr(told, name), name
    assert set(told.modalities) == set(found.modalities)
    for split in SPLITS:
        assert all_of(back.source(split)) == all_of(data.source(split)) != {}
    assert all_of(back.source("train"), 7) == all_of(data.source("train"), 7)
    assert all_of(back.reference()) == all_of(data.reference())
    loader = back.loader("train")
    assert isinstance(loader, StreamLoader)
    by_id = all_of(data.source("train"))
    for batch in loader:
        for target, label in batch.targets.items():
            for row, at in zip(label.values, label.index.tolist(), strict=True):
                assert row.tolist() == by_id[batch.ids[at]]["labels"][target][1]
    answers = {t: names for t, names in told.labels.items() if t == "answer"}
    without_notes = root / "info.json"
    without_notes.rename(root / "elsewhere")
    read = shards(root, reads, **NAMED, numbers=boxes_of(told.numeric)).info()
    (root / "elsewhere").rename(without_notes)
    assert read.numeric == told.numeric
    assert {**read.labels, **answers} == dict(told.labels)
    return back


def boxes_of(numeric: dict[str, NumericKind]) -> dict[str, Any]:
    return {t: {"kind": "boxes"} for t, kind in numeric.items() if kind is NumericKind.BOXES}


CAPTIONS = [{"caption": [f"picture {i} caption {n}" for n in range(1 + i % 4)]} for i in range(8)]


@pytest.mark.parametrize("evaluate", ["all", "first"])
def test_captions(evaluate: str, tmp_path: pathlib.Path, reads: Reads) -> None:
    data = manifest(tmp_path / "m", CAPTIONS, reads, captions={"evaluate": evaluate})
    back = check_same(data, tmp_path / "s", reads)
    assert back.info().several == ({"text": 4} if evaluate == "all" else {})
    carved = {"train": "*.tar", "val_share": 0.3, "test_share": 0.3}
    whole = {s.id: s for i in range(8) for s in [manifest_sample(data, i)]}
    for mode in ("all", "first"):
        anew = shards(tmp_path / "s", reads, captions=mode, **carved)
        seen = {k: v for split in ("val", "test") for k, v in all_of(anew.source(split)).items()}
        assert len(seen) >= 2
        kept_apart = [s for s in seen.values() if s["several"]]
        assert bool(kept_apart) == (mode == "all" or evaluate == "all")
        assert all(bits(whole[k])["several"] == s["several"] for k, s in seen.items() if mode == evaluate)


def manifest_sample(data: Manifest, number: int) -> Sample:
    """Return a sample of any split as evaluation sees it."""
    sources = (data.reference(), data.source("val"), data.source("test"))
    return [source.get(i, None) for source in sources for i in range(len(source))][number]


def test_pairs_are_kept_where_chance_decides_and_refused_where_they_are_kept_apart(
    tmp_path: pathlib.Path, reads: Reads
) -> None:
    data = manifest(tmp_path / "m", CAPTIONS, reads, captions={"train": "pairs", "neighbours": "any"})
    check = shards(tmp_path / "s", reads, **NAMED)
    pack_data(tmp_path / "s", data)
    assert all_of(check.source("train")) == all_of(data.source("train"))
    assert "s1#1" in all_of(check.source("train"))
    apart = manifest(tmp_path / "m", CAPTIONS, reads, captions={"train": "pairs"})
    with pytest.raises(DataError, match=r"train: pairs kept apart in a batch; expected an order that a str"):
        pack(apart.source("train"))


def test_answers_to_choose_from(tmp_path: pathlib.Path, reads: Reads) -> None:
    rows = [
        {"question": f"what {i}?", "choices": ["a bell", "a dog", "rain"][: 2 + i % 2], "answer": i % 2}
        for i in range(8)
    ]
    told = {"column": "choices", "template": "{question} answer: {choice}"}
    data = manifest(tmp_path / "m", rows, reads, choices=told)
    back = check_same(data, tmp_path / "s", reads)
    assert back.info().several == {"text": 3}
    batch = next(iter(back.loader("train")))
    assert len(batch.inputs["text"]) > len(batch)


def test_answers_that_are_pictures(tmp_path: pathlib.Path, reads: Reads) -> None:
    rows = [
        {"image": None, "text": "which?", "choices": ["0.png", f"{i}.png"], "answer": 1} for i in range(8)
    ]
    rows[0] |= {"choices": ["0.png", "1.png"]}
    told = {"column": "choices", "modality": "image"}
    data = manifest(tmp_path / "m", rows, reads, choices=told, inputs={"text": "text"})
    check_same(data, tmp_path / "s", reads)
    members = shards(tmp_path / "s", reads, **NAMED).source("train").records[1].several["image"]
    assert [name.partition(".tar/")[2] for name in members] == [
        "00000001.image.0.png",
        "00000001.image.1.png",
    ]


def test_numbers_and_boxes(tmp_path: pathlib.Path, reads: Reads) -> None:
    draw = np.random.default_rng(3)
    rows = [
        {"age": float(draw.normal(1000, 50)), "pose": draw.normal(size=3).tolist(), "box": [1.25, 2, 20.5, 9]}
        for _ in range(8)
    ]
    rows[1] |= {"age": None, "box": None}
    numbers = {"age": {}, "pose": {}, **BOX}
    data = manifest(tmp_path / "m", rows, reads, numbers=numbers, targets=[])
    back = check_same(data, tmp_path / "s", reads)
    assert back.info().labels == {
        "age": ("age",),
        "pose": ("pose[0]", "pose[1]", "pose[2]"),
        "box": ("x1", "y1", "x2", "y2"),
    }
    assert "box" not in back.source("train").get(1, None).targets
    words = {"text": reads["text"]}
    told = manifest(
        tmp_path / "w", [{"text": "a", **row} for row in rows], words, numbers=numbers, targets=[]
    )
    pack_data(tmp_path / "words", told)
    for either in (told, shards(tmp_path / "words", words, **NAMED)):
        assert set(either.info().labels) == {"age", "pose"}


def test_scores_and_several_labels(tmp_path: pathlib.Path, reads: Reads) -> None:
    rows = [
        {
            "text": f"word {i}",
            "answers": {"red": 1, "orange": 0.333, f"colour {i}": 1 / 3},
            "tags": ["wide", "old"][: i % 3],
            "label": f"class {i % 2}",
        }
        for i in range(8)
    ]
    check_same(manifest(tmp_path / "m", rows, reads), tmp_path / "s", reads)


def test_second_pictures_and_scans_keep_names_and_subjects(tmp_path: pathlib.Path, reads: Reads) -> None:
    (tmp_path / "m").mkdir()
    rows: list[dict[str, Any]] = []
    for i in range(8):
        np.save(tmp_path / "m" / f"sub-0{i % 2}_{i}.npy", np.arange(4, dtype=np.float32) + i)
        rows.append({"image2": f"{7 - i}.png", "scan": f"sub-0{i % 2}_{i}.npy", "text": "a"})
    reads["image2"] = reads["image"]
    inputs = {"image": "image", "image2": "image2", "fmri": "scan", "text": "text"}
    data = manifest(tmp_path / "m", rows, reads, inputs=inputs, targets=[])
    back = check_same(data, tmp_path / "s", reads)
    assert back.source("train").get(0, None).inputs["fmri"].subject == "sub-00"
    assert back.info().subjects == {"sub-00": 4, "sub-01": 4}
    capital = manifest(tmp_path / "m", rows, {}, inputs={"Second": "image2"}, targets=[])
    with pytest.raises(DataError, match=r"s0: modality 'Second'; expected a name in lower case, without a"):
        list(pack(capital.source("train")))
    rows[0] |= {"other": "sub-01_1.npy"}
    two = manifest(tmp_path / "m", rows, reads, inputs={**inputs, "fmri2": "other"}, targets=[])
    with pytest.raises(DataError, match=r"s0: scans of sub-00 and sub-01; expected one subject a sample"):
        list(pack(two.source("train")))


def test_shards_can_be_packed_again(tmp_path: pathlib.Path, reads: Reads) -> None:
    data = manifest(tmp_path / "m", CAPTIONS, reads)
    first = check_same(data, tmp_path / "s", reads)
    pack_data(tmp_path / "again", first, per_shard=3)
    second = shards(tmp_path / "again", reads, **NAMED)
    assert second.info() == first.info()
    assert all_of(second.reference()) == all_of(data.reference())
    assert all_of(second.source("val")) == all_of(data.source("val"))


def test_samples_that_nobody_reads_are_left_out(tmp_path: pathlib.Path, reads: Reads) -> None:
    rows = [{"text": "a", "age": i} if i % 2 else {"image": None, "text": "b", "age": i} for i in range(8)]
    only = {"image": reads["image"]}
    told = {"numbers": {"age": {}}, "targets": []}
    read, whole = manifest(tmp_path / "m", rows, only, **told), manifest(tmp_path / "m", rows, {}, **told)
    assert (
        pack_data(tmp_path / "s", whole, reads=["image"])
        == {"train": 3, "test": 1}
        == {split: count for split, count in read.info().counts.items() if count}
    )
    back = shards(tmp_path / "s", only, train="train-*.tar", test="test-*.tar", val_share=0.0)
    assert all_of(back.source("train")) == all_of(read.source("train"))
    assert back.info().moments == read.info().moments
    assert not list((tmp_path / "s").glob("val*"))
    notes = json.loads((tmp_path / "s" / "info.json").read_text())
    assert notes["moments"]["age"]["mean"] == list(read.info().moments["age"].mean)


def test_a_file_that_is_not_there_is_one_line(tmp_path: pathlib.Path, reads: Reads) -> None:
    data = manifest(tmp_path / "m", CAPTIONS, reads)
    (tmp_path / "m" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        pack_data(tmp_path / "s", data)


def test_what_is_not_read_from_files_is_refused(tmp_path: pathlib.Path) -> None:
    streets = Driving(Driving.fake(tmp_path), {})
    with pytest.raises(
        DataError, match=r"driving/train, whose samples are not read from files; expected a fo"
    ):
        pack_data(tmp_path / "s", streets)
    assert not (tmp_path / "s").exists()


def test_json_by_hand_needs_no_notes(tmp_path: pathlib.Path, reads: Reads) -> None:
    """Shards of another program: numbers and several texts in the json, nothing beside them."""
    samples = [
        {
            "__key__": f"{i:02d}",
            "json": {
                "id": 7,
                "numbers": {"age": i, "pose": [i, 1]},
                "several": {"text": ["a"] * (i + 1)},
                "labels": {"label": "ab"[i % 2]},
            },
        }
        for i in range(4)
    ]
    samples.append({"__key__": "05", "json": {"numbers": {"age": [1, 2]}, "texts": {"text": ["b"]}}})
    write_shards(tmp_path, samples[:4])
    (tmp_path / "info.json").unlink()
    whole = {"val_share": 0.0, "test_share": 0.0}
    info = shards(tmp_path, reads, **whole).info()
    assert info.labels == {"label": ("a", "b"), "age": ("age",), "pose": ("pose[0]", "pose[1]")}
    assert info.several == {"text": 4}
    assert info.modalities == ("text",)
    source = shards(tmp_path, reads, **whole).source("train")
    assert [source.get(i, None).id for i in (0, 3)] == ["train-000000/00", "train-000000/03"]
    pose = {"numbers": {"pose": {"columns": ["x", "y"]}}}
    assert shards(tmp_path, reads, **pose, **whole).info().labels == {**info.labels, "pose": ("x", "y")}
    fixed = shards(tmp_path, reads, labels={"label": ["b", "a"]}, **pose, **whole).info()
    assert fixed.labels == {"label": ("b", "a"), "pose": ("x", "y")}
    write_shards(tmp_path, samples)
    (tmp_path / "info.json").unlink()
    with pytest.raises(DataError, match=r"05 age: 2 numbers; expected 1 as in .*00"):
        shards(tmp_path, reads, **whole).info()
    told = shards(tmp_path, reads, numbers={"age": {}}, labels={"label": ["a", "b"]}, **whole).source("train")
    with pytest.raises(DataError, match=r"05: 2 numbers; expected 1 \(age\)"):
        told.get(4, None)
    write_shards(tmp_path, [{"__key__": "x", "json": {"members": {"image": ["image.0.png"]}}}])
    with pytest.raises(DataError, match=r"x\.json: members image: 'image\.0\.png'; expected a member of the"):
        shards(tmp_path, reads, labels={"label": ["a"]}, **whole).source("train").get(0, None)


def test_the_command_packs_what_a_recipe_reads(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, packed = tmp_path / "made", tmp_path / "packed"
    assert main(["data", "make", "grounding", "--n", "24", str(made)]) == 0
    capsys.readouterr()
    words = ["data", "pack", "grounding", str(packed), f"data.path={made}/manifest.csv"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(packed),
        "samples": {"train": 18, "val": 3, "test": 3},
    }
    again = main(words)
    assert again != 0
    assert "something is there already" in capsys.readouterr().err
