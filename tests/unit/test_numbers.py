"""Labels that are numbers, boxes or scores: read, checked, placed with the picture, mixed, inspected."""

from __future__ import annotations

import json
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo import schema
from mmzoo.batch import NumericKind
from mmzoo.datamodules.inspect import inspect_path
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.mixture import Mixture
from mmzoo.datamodules.scores import read_scores
from mmzoo.datamodules.shard_write import pack
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_preprocess import ImagePreprocess, Interpolation
from mmzoo.modalities.open_clip_image import OpenClipImagePreprocess
from mmzoo.modalities.text import TextPreprocess
from mmzoo.modalities.timm_backbone import TimmPreprocess

WIDE, HIGH = 40, 20
BOX = (10, 5, 30, 15)
WHOLE = {"val_share": 0.0, "test_share": 0.0}
COLUMNS = {"box": {"kind": "boxes", "columns": ["x1", "y1", "x2", "y2"]}}


def picture(path: pathlib.Path, box: tuple[int, int, int, int] = BOX) -> None:
    """Write a black picture of 40 x 20 with a white box."""
    pixels = np.zeros((HIGH, WIDE, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)


def image(**options: Any) -> ImagePreprocess:
    return ImagePreprocess(schema.parse(ImagePreprocess.Config, {"size": [32, 32], **options}))


def data(path: pathlib.Path, reads: dict[str, Preprocess] | None = None, **options: Any) -> Manifest:
    tree = {"path": str(path), "split": WHOLE, **options}
    return Manifest(schema.parse(Manifest.Config, tree), {"image": image()} if reads is None else reads)


def rows(folder: pathlib.Path, *lines: str, header: str = "image,x1,y1,x2,y2") -> pathlib.Path:
    picture(folder / "a.png")
    path = folder / "rows.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


SHARES = [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("header", "cells", "numbers"),
    [
        ("image,x1,y1,x2,y2", "a.png,10,5,30,15", COLUMNS["box"]),
        ("image,x,y,w,h", "a.png,10,5,20,10", {**COLUMNS["box"], "form": "xywh", "columns": list("xywh")}),
        ("image,box", 'a.png,"[10, 5, 30, 15]"', {"kind": "boxes"}),
        ("image,box", 'a.png,"[0.25, 0.25, 0.75, 0.75]"', {"kind": "boxes", "units": "relative"}),
        ("image,b", 'a.png,"[0.25, 0.25, 0.5, 0.5]"', {"kind": "boxes", "units": "relative", "form": "xywh"}),
    ],
)
def test_every_way_to_write_a_box(
    tmp_path: pathlib.Path, header: str, cells: str, numbers: dict[str, Any]
) -> None:
    if header.endswith(",b"):
        numbers = {**numbers, "columns": ["b"]}
    path = rows(tmp_path, cells, header=header)
    made = data(path, numbers={"box": numbers})
    info = made.info()
    assert info.labels == {"box": ("x1", "y1", "x2", "y2")}
    assert info.numeric == {"box": NumericKind.BOXES}
    assert made.source("train").get(0, None).targets["box"].tolist() == pytest.approx(SHARES)


def test_jsonl_holds_lists(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    lines = [{"image": "a.png", "box": list(BOX), "age": 3, "pose": [1.5, 2]}, {"image": "a.png"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    made = data(path, numbers={"box": {"kind": "boxes"}, "age": {}, "pose": {}})
    info = made.info()
    assert info.labels == {"box": ("x1", "y1", "x2", "y2"), "age": ("age",), "pose": ("pose[0]", "pose[1]")}
    assert info.numeric["age"] is NumericKind.NUMBERS
    batch = next(iter(made.loader("reference")))
    assert len(batch) == 2
    assert {t: v.index.tolist() for t, v in batch.targets.items()} == {"box": [0], "age": [0], "pose": [0]}
    assert batch.targets["pose"].values.tolist() == [[1.5, 2.0]]
    assert batch.targets["age"].values.shape == (1, 1)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("a.png,10,5,10,15", r"row 1 box: box \[10, 5, 10, 15\]; expected x1 < x2 and y1 < y2"),
        ("a.png,10,5,30,", r"row 1 box: no y2; expected x1, y1, x2, y2, or none"),
        ("a.png,10,5,30,nan", r"'nan'; expected a finite number"),
        ("a.png,10,5,30,wide", r"'wide'; expected a finite number"),
        (",10,5,30,15", r"row 1 box: a box, but no image"),
    ],
)
def test_wrong_boxes_are_named_when_the_manifest_is_read(
    tmp_path: pathlib.Path, cells: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        data(rows(tmp_path, cells), numbers=COLUMNS).info()


def test_lists_must_have_one_length(tmp_path: pathlib.Path) -> None:
    header = "image,pose"
    path = rows(tmp_path, 'a.png,"[1, 2]"', "a.png,", 'a.png,"[1, 2, 3]"', header=header)
    with pytest.raises(DataError, match=r"row 3 pose: 3 numbers; expected 2 as in .*row 1"):
        data(path, numbers={"pose": {}}).info()
    with pytest.raises(DataError, match=r"2 numbers; expected four for a box"):
        data(path, numbers={"pose": {"kind": "boxes"}}).info()
    path = rows(tmp_path, "a.png,tall", header=header)
    with pytest.raises(DataError, match=r"'tall'; expected a number or a JSON list"):
        data(path, numbers={"pose": {}}).info()
    path = rows(tmp_path, "a.png,", header=header)
    with pytest.raises(DataError, match=r"no pose in any row"):
        data(path, numbers={"pose": {}}).info()
    with pytest.raises(ConfigError, match=r"no column 'posse'"):
        data(path, numbers={"posse": {}}).info()


def test_options_of_boxes_are_refused_on_other_numbers() -> None:
    tree = {"path": "x.csv", "numbers": {"age": {"units": "relative"}}}
    with pytest.raises(ConfigError, match=r"expected these for boxes only"):
        schema.parse(Manifest.Config, tree)
    with pytest.raises(ConfigError, match=r"one column of lists, or four"):
        schema.parse(
            Manifest.Config, {"path": "x", "numbers": {"b": {"kind": "boxes", "columns": ["a", "b"]}}}
        )


def test_a_box_outside_its_picture_is_an_unreadable_sample(tmp_path: pathlib.Path) -> None:
    path = rows(tmp_path, "a.png,-0.6,5,40.9,15", "a.png,10,5,300,15", "a.png,40.1,5,40.8,15")
    source = data(path, numbers=COLUMNS).source("train")
    assert source.get(0, None).targets["box"].tolist() == pytest.approx([0, 0.25, 1, 0.75])
    with pytest.raises(DataError, match=r"box \[10, 5, 300, 15\] in a picture of 40 x 20"):
        source.get(1, None)
    with pytest.raises(DataError, match=r"expected x1 < x2"):
        source.get(2, None)


@pytest.mark.parametrize("resize", ["squash", "pad", "aspect"])
@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_the_box_shows_the_same_in_the_picture_that_the_model_gets(
    tmp_path: pathlib.Path, resize: str, generator: torch.Generator | None
) -> None:
    """Against the white pixels themselves, in evaluation and in training with what keeps them in place."""
    path = rows(tmp_path, "a.png,10,5,30,15")
    options = {"size": [48, 96], "interpolation": Interpolation.BILINEAR.value, "side_multiple": 8}
    options |= {"mean": [0, 0, 0], "std": [1, 1, 1], "augment": {"colour_jitter": 0.2}}
    sample = (
        data(path, {"image": image(resize=resize, **options)}, numbers=COLUMNS)
        .source("train")
        .get(0, generator)
    )
    pixels = sample.inputs["image"].values.mean(0)
    background = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2] / 2
    lit = pixels > background
    down, right = lit.any(1).nonzero().flatten(), lit.any(0).nonzero().flatten()
    height, width = pixels.shape
    found = [right[0] / width, down[0] / height, (right[-1] + 1) / width, (down[-1] + 1) / height]
    assert sample.targets["box"].tolist() == pytest.approx([float(v) for v in found], abs=1.01 / height)


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "crop"},
        {"augment": {"crop_scale": [0.5, 1.0]}},
        {"augment": {"pad_crop": 4}},
        {"augment": {"flip_prob": 0.5}},
        {"augment": {"policy": "rand_augment"}},
    ],
)
def test_what_would_tear_boxes_from_pictures_is_refused(
    tmp_path: pathlib.Path, options: dict[str, Any]
) -> None:
    path = rows(tmp_path, "a.png,10,5,30,15")
    name = next(iter(options.get("augment", options)))
    with pytest.raises(ConfigError, match=rf"{name}.*expected whole pictures, unmirrored"):
        data(path, {"image": image(**options)}, numbers=COLUMNS).info()
    assert data(path, {"image": image(**options)}, targets=["x1"]).info().labels == {"x1": ("10",)}


def test_other_preprocessing_is_asked_too(tmp_path: pathlib.Path) -> None:
    path = rows(tmp_path, "a.png,10,5,30,15")
    clip = OpenClipImagePreprocess(OpenClipImagePreprocess.Config())
    for preprocess in (clip, TimmPreprocess(TimmPreprocess.Config(model="vit_tiny_patch16_224"))):
        reads = {"image": preprocess}
        with pytest.raises(ConfigError, match=r"resize=crop"):
            data(path, reads, numbers=COLUMNS).info()
        assert torch.equal(preprocess.place_boxes(torch.ones(1, 4), (4, 4)), torch.ones(1, 4))
    text = {"kind": "boxes", "columns": ["x1", "y1", "x2", "y2"], "of": "text"}
    reads = {"text": TextPreprocess(TextPreprocess.Config())}
    words = rows(tmp_path, "a.txt,10,5,30,15", header="text,x1,y1,x2,y2")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"boxes in what TextPreprocess reads"):
        data(words, reads, numbers={"box": text}).info()


def test_a_model_without_the_picture_gets_no_box(tmp_path: pathlib.Path) -> None:
    path = rows(tmp_path, "a.png,hello,3,10,5,30,15", header="image,text,age,x1,y1,x2,y2")
    reads = {"text": TextPreprocess(TextPreprocess.Config())}
    made = data(path, reads, numbers={**COLUMNS, "age": {}}, targets=[])
    assert made.info().labels == {"age": ("age",)}
    assert list(made.source("train").get(0, None).targets) == ["age"]


def test_numbers_travel_through_mixtures_and_to_workers(tmp_path: pathlib.Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        rows(tmp_path / name, "a.png,10,5,30,15,3", "a.png,,,,,5", header="image,x1,y1,x2,y2,age")
    sets = {
        name: {
            "type": "manifest",
            "path": str(tmp_path / name / "rows.csv"),
            "numbers": {**COLUMNS, "age": {}},
            "split": WHOLE,
        }
        for name in "ab"
    }
    tree = {"sets": sets, "targets": "shared", "loader": {"batch_size": 4, "num_workers": 2}}
    made = Mixture(schema.parse(Mixture.Config, tree), {"image": image()})
    assert made.info().numeric == {"box": NumericKind.BOXES, "age": NumericKind.NUMBERS}
    batch = next(iter(made.loader("reference")))
    assert batch.targets["box"].index.tolist() == [0, 2]
    assert batch.targets["box"].values.tolist() == [SHARES, SHARES]
    assert batch.targets["age"].values.flatten().tolist() == [3, 5, 3, 5]
    copy = pickle.loads(pickle.dumps(made.source("train")))
    assert torch.equal(copy.get(0, None).targets["box"], torch.tensor(SHARES))
    sets["b"]["numbers"] = {"box": {"columns": ["x1", "y1"]}}
    sets["b"]["targets"] = []
    clash = Mixture(schema.parse(Mixture.Config, {"sets": sets, "targets": "shared"}), {"image": image()})
    with pytest.raises(ConfigError, match=r"label 'box' is numbers \(x1, y1\) in b; expected boxes"):
        clash.info()


def test_shards_keep_scores_and_numbers(tmp_path: pathlib.Path) -> None:
    path = rows(tmp_path, "a.png,red:0.4|big,7", header="image,tags,age")
    made = data(path, scored=["tags"], targets=["tags"])
    (sample,) = pack(made.source("train"))
    assert sample["json"]["labels"] == {"tags": {"red": 0.4, "big": 1.0}}
    (sample,) = pack(data(path, numbers={"age": {}}).source("train"))
    assert sample["json"]["numbers"] == {"age": [7.0]}


@pytest.mark.parametrize(
    ("cell", "scores"),
    [
        ("red:0.6| orange : 1", {"red": 0.6, "orange": 1.0}),
        ("red", {"red": 1.0}),
        ("12:30:0.5|red", {"12:30": 0.5, "red": 1.0}),
        ('{"a: b": 0.3, "c": null}', {"a: b": 0.3, "c": 1.0}),
        ({"red": 0}, {"red": 0.0}),
        (["red:0.5", "blue"], {"red": 0.5, "blue": 1.0}),
        ({}, {}),
        ([], {}),
        ("  ", None),
        (None, None),
    ],
)
def test_scores(cell: Any, scores: dict[str, float] | None) -> None:
    assert read_scores(cell, "|", "here") == scores


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("red:1.5", r"here: score '1.5' of 'red'; expected a number from 0 to 1"),
        ("red:nan", "score 'nan'"),
        ("red:very", "score 'very' of 'red'"),
        ({"red": True}, "score True"),
        ("red|red:0.3", "'red' twice"),
        ('{"red": ', "a JSON object of scores"),
    ],
)
def test_wrong_scores(cell: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_scores(cell, "|", "here")


def test_scored_labels_become_soft_targets(tmp_path: pathlib.Path) -> None:
    path = rows(tmp_path, "a.png,red:0.6|blue", "a.png,", "a.png,green:0.25", header="image,answers")
    made = data(path, scored=["answers"])
    assert made.info().labels == {"answers": ("blue", "green", "red")}
    batch = next(iter(made.loader("reference")))
    assert batch.targets["answers"].index.tolist() == [0, 2]
    torch.testing.assert_close(
        batch.targets["answers"].values, torch.tensor([[1.0, 0.0, 0.6], [0.0, 0.25, 0.0]])
    )
    with pytest.raises(ConfigError, match=r"'answers' is no label of names"):
        data(path, scored=["answers"], targets=[]).info()


def test_inspect_proposes_options_that_read_them(tmp_path: pathlib.Path) -> None:
    header = "image,x1,y1,x2,y2,age,answers,label"
    cells = ["a.png,10,5,30,15,3.5,red:0.6|blue:1,2", "a.png,1,2,30,15,4,red:1,3"]
    report = inspect_path(rows(tmp_path, *cells, header=header))
    assert report.config["numbers"] == {**COLUMNS, "age": {"kind": "numbers"}}
    assert report.config["scored"] == ["answers"]
    assert report.numbers["box"]["x1"] == (1, 5.5, 10)
    assert report.classes == {"answers": {"blue": 1, "red": 2}, "label": {"2": 1, "3": 1}}
    assert "box: x1 1 to 10 (median 5.5)" in str(report)
    assert not report.faults
    options = {k: v for k, v in report.config.items() if k != "type"}
    assert data(pathlib.Path(options.pop("path")), **options).info().numeric["box"] is NumericKind.BOXES
    sizes = rows(tmp_path, 'a.png,"[10, 5, 4, 4]"', 'a.png,"[1, 2, 30, 15]"', header="image,bbox")
    assert inspect_path(sizes).config["numbers"] == {"bbox": {"kind": "boxes", "form": "xywh"}}
