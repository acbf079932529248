"""Manifests: columns found and told, absent cells, several labels, splits, and what wrong files are told."""

from __future__ import annotations

import csv
import json
import pathlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmzoo import registry, schema
from mmzoo.datamodules.manifest import Manifest
from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.base import Preprocess

Reads = dict[str, Preprocess]
HEADER = ["id", "picture", "sound", "caption", "brain", "label", "tags", "subject"]


@pytest.fixture
def preprocesses() -> Reads:
    kinds = ("image", "audio", "text", "fmri")
    return {k: registry.find("modalities", k).Config().preprocess.build() for k in kinds}


@pytest.fixture
def rows(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write 20 rows; each cell of row i is there if i does not divide by 3 (picture), 4 (sound), …."""
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for i in range(20):
            picture, sound, brain = f"files/{i}.png", f"files/{i}.wav", f"files/{i}.fmri.npy"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / picture)
            soundfile.write(tmp_path / sound, rng.uniform(-0.5, 0.5, 400), 8000)
            np.save(tmp_path / brain, rng.normal(size=5 + i % 2).astype(np.float32))
            tags = ["", "red", "red|big", "big| round "][i % 4]
            label = "" if i % 5 == 0 else "ab"[i % 2]
            cells = [
                picture if i % 3 else "",
                sound if i % 4 else "",
                f"number {i}, here",
                brain,
                label,
                tags,
            ]
            writer.writerow([f"r{i}", *cells, f"s{i % 2}"])
    return tmp_path / "rows.csv"


def manifest(path: pathlib.Path, preprocesses: Reads, **options: object) -> Manifest:
    whole = {"split": {"val_share": 0.0, "test_share": 0.0}}
    return Manifest(schema.parse(Manifest.Config, {"path": str(path), **whole, **options}), preprocesses)


def test_columns_are_found_by_name_and_by_their_files(rows: pathlib.Path, preprocesses: Reads) -> None:
    data = manifest(rows, preprocesses)
    info = data.info()
    assert set(info.modalities) == {"image", "audio", "text", "fmri"}
    assert info.labels == {"label": ("a", "b"), "tags": ("big", "red", "round")}
    assert info.subjects == {"s0": 5, "s1": 6}
    assert info.counts == {"train": 20, "val": 0, "test": 0}


def test_cells_become_inputs_and_labels_or_nothing(rows: pathlib.Path, preprocesses: Reads) -> None:
    source = manifest(rows, preprocesses).source("train")
    for i in range(20):
        sample = source.get(i, None)
        assert sample.id == f"r{i}"
        there = {"text", "fmri"} | ({"image"} if i % 3 else set()) | ({"audio"} if i % 4 else set())
        assert set(sample.inputs) == there
        wanted = preprocesses["text"](f"number {i}, here").values
        assert torch.equal(sample.inputs["text"].values, wanted)
        assert sample.inputs["fmri"].subject == f"s{i % 2}"
        assert ("label" in sample.targets) == (i % 5 != 0)
        if i % 5:
            assert sample.targets["label"].item() == i % 2
        tags = [None, [0, 1, 0], [1, 1, 0], [1, 0, 1]][i % 4]
        assert (sample.targets["tags"].tolist() if "tags" in sample.targets else None) == tags


def test_only_the_models_modalities_are_read(rows: pathlib.Path, preprocesses: Reads) -> None:
    data = manifest(rows, {"sound": preprocesses["audio"]}, inputs={"sound": "sound"}, targets=["label"])
    source = data.source("train")
    assert len(source) == 15, "rows without a sound are no samples"
    assert set(source.get(0, None).inputs) == {"sound"}
    assert data.info().labels == {"label": ("a", "b")}
    (rows.parent / "files" / "1.png").unlink()
    source.get(0, None)


def test_jsonl_is_the_same(rows: pathlib.Path, preprocesses: Reads) -> None:
    with rows.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    lines: list[str] = []
    for row in table:
        kept: dict[str, object] = {k: v for k, v in row.items() if v}
        if row["tags"]:
            kept["tags"] = [t.strip() for t in row["tags"].split("|")]
        lines.append(json.dumps(kept))
    other = rows.with_suffix(".jsonl")
    other.write_text("\n".join(lines) + "\n\n")
    a, b = manifest(rows, preprocesses), manifest(other, preprocesses)
    assert a.info() == b.info()
    for i in range(20):
        x, y = a.source("train").get(i, None), b.source("train").get(i, None)
        assert x.id == y.id
        assert {k: v.tolist() for k, v in x.targets.items()} == {k: v.tolist() for k, v in y.targets.items()}
        assert all(torch.equal(x.inputs[m].values, y.inputs[m].values) for m in x.inputs)


def test_an_empty_list_says_that_no_label_holds(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "tags": ["u", "v"]}\n{"text": "b", "tags": []}\n{"text": "c"}\n')
    source = manifest(path, preprocesses).source("train")
    assert [source.get(i, None).targets.get("tags", torch.tensor(-1)).tolist() for i in range(3)] == [
        [1, 1],
        [0, 0],
        -1,
    ]
    assert [source.get(i, None).id for i in range(3)] == ["row-1", "row-2", "row-3"]


def split_rows(path: pathlib.Path, words: list[str]) -> pathlib.Path:
    lines = [f"number {i},{'ab'[i % 2]},{w},p{i // 4}" for i, w in enumerate(words)]
    path.write_text("text,label,split,person\n" + "\n".join(lines) + "\n")
    return path


def test_splits_that_a_column_names(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    path = split_rows(tmp_path / "x.csv", ["train"] * 20 + ["validation"] * 4 + ["Test"] * 6)
    assert manifest(path, preprocesses).info().counts == {"train": 20, "val": 4, "test": 6}
    path = split_rows(tmp_path / "y.csv", ["train"] * 20 + ["test"] * 6)
    shares = {"val_share": 0.2, "test_share": 0.5}
    data = manifest(path, preprocesses, split=shares)
    assert data.info().counts == {"train": 16, "val": 4, "test": 6}
    data = manifest(path, preprocesses, split={**shares, "by": "person"})
    people = {
        s: {(int(r.id.split("-")[1]) - 1) // 4 for r in data.source(s).records} for s in ("train", "val")
    }  # type: ignore[attr-defined]
    assert data.info().counts == {"train": 16, "val": 4, "test": 6}
    assert not people["train"] & people["val"]


def test_nothing_to_train_on_is_said(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    path = split_rows(tmp_path / "x.csv", ["test"] * 4)
    with pytest.raises(
        DataError, match=r"^data: no sample to train on; expected at least one\. Lower the shares"
    ):
        manifest(path, preprocesses).train_dataloader()


def test_a_corrupt_cell_is_a_data_error(rows: pathlib.Path, preprocesses: Reads) -> None:
    (rows.parent / "files" / "1.wav").write_bytes(b"RIFF")
    (rows.parent / "files" / "2.png").unlink()
    source = manifest(rows, preprocesses).source("train")
    with pytest.raises(DataError, match=r"files/1\.wav"):
        source.get(1, None)
    with pytest.raises(DataError, match=r"files/2\.png: unreadable \(.*No such file"):
        source.get(2, None)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("x.txt", "a", r"x\.txt: a \.txt file; expected \.csv or \.tsv or \.jsonl\."),
        ("x.csv", "", r"x\.csv: no rows; expected a header and a row"),
        ("x.csv", "text\na,b\n", r"x\.csv line 2: 2 cells; expected 1 as in the header\. Quote cells"),
        (
            "x.jsonl",
            '{"text": "a"}\n{"text"\n',
            r"x\.jsonl line 2: Expecting ':'.*expected one JSON object a line",
        ),
        ("x.jsonl", "[1]\n", r"x\.jsonl line 1: a list; expected one JSON object a line"),
        ("x.csv", "id,text\ni,a\ni,b\n", r"x\.csv row 2: id 'i' as in row 1; expected an id for each row"),
        (
            "x.csv",
            "text,split\na,tran\n",
            r"row 1: split 'tran'; expected one of train, val, test\. Did you mean 'train'",
        ),
        ("x.csv", "text,split\na,train\nb,\n", r"row 2: no split; expected train, val or test in every row"),
    ],
)
def test_wrong_manifests_are_said(
    name: str, text: str, line: str, tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=line):
        manifest(tmp_path / name, preprocesses).info()


def test_wrong_options_are_said(rows: pathlib.Path, preprocesses: Reads) -> None:
    with pytest.raises(ConfigError, match=r"no column 'pictur'; expected a column\. Did you mean 'picture'"):
        manifest(rows, preprocesses, inputs={"image": "pictur"}).info()
    with pytest.raises(ConfigError, match=r"no column 'person' in rows\.csv; expected a column"):
        manifest(rows, preprocesses, split={"by": "person"}).info()
    with pytest.raises(ConfigError, match=r"expected one of the model's \(video\)"):
        manifest(rows, {"video": preprocesses["image"]}).info()
    (rows.parent / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"columns a, b; expected a column named image"):
        manifest(rows.parent / "numbers.csv", preprocesses).info()
    (rows.parent / "latin.csv").write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 8 is not UTF-8"):
        manifest(rows.parent / "latin.csv", preprocesses).info()
    with pytest.raises(DataError, match=r"none\.csv: nothing there; expected the data set\. Write it\."):
        manifest(rows.parent / "none.csv", preprocesses, get="Write it.").info()
