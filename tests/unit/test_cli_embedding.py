"""Embeddings to a file: what lands in it, and that a killed job goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmzoo import schema, zoo
from mmzoo.batch import DataInfo, Sample
from mmzoo.cli import embedding, main
from mmzoo.cli.embedding import Options, embed
from mmzoo.errors import ConfigError, DataError
from mmzoo.models.multimodal import MultimodalModel

ROWS = 23


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that embeds text."""
    tree = {
        "modalities": {"text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 16}}},
        "trunk": {"dim": 16, "depth": 1, "num_heads": 2, "ffn": {"type": "shared", "hidden_dim": 16}},
        "heads": {"align": {"head": {"type": "contrastive", "embed_dim": 8}}},
    }
    made = MultimodalModel(schema.parse(MultimodalModel.Config, tree))
    return zoo.export(made, tmp_path_factory.mktemp("export"), zoo.describe(made, DataInfo()))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A manifest of sentences, one cell empty."""
    path = tmp_path / "rows.csv"
    cells = [f"s{i},{'' if i == 7 else f'sentence number {i}'}\n" for i in range(ROWS)]
    path.write_text("id,text\n" + "".join(cells))
    return path


def read(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {k: file[k] for k in file}


def test_rows_are_what_the_model_says_of_each_sample(model: Path, table: Path, tmp_path: Path):
    summary = embed(
        str(model), str(table), [], Options(str(tmp_path / "out.npz"), shard_size=4, batch_size=3)
    )
    assert (summary["rows"], summary["dim"], summary["samples"], summary["modalities"]) == (
        ROWS - 1,
        8,
        ROWS - 1,
        ["text"],
    )
    found = read(tmp_path / "out.npz")
    assert found["ids"].tolist() == [f"s{i}" for i in range(ROWS) if i != 7]
    alone = zoo.load(model).encode(text=[f"sentence number {i}" for i in range(ROWS) if i != 7])["text"]
    np.testing.assert_allclose(found["vectors"], alone.numpy(), atol=1e-6)
    assert not (tmp_path / "out.npz.parts").exists()


def test_a_killed_job_goes_on_after_its_last_shard(
    model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = Options(str(tmp_path / "out.npz"), shard_size=4)
    embed(str(model), str(table), [], Options(str(tmp_path / "whole.npz"), shard_size=4))
    compute = embedding._rows
    done: list[str] = []
    stop_after = 8

    def count(net: MultimodalModel, task: str, samples: Sequence[Sample], size: int) -> embedding.Rows:
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.extend(s.id for s in samples)
        return compute(net, task, samples, size)

    monkeypatch.setattr(embedding, "_rows", count)
    with pytest.raises(KeyboardInterrupt):
        embed(str(model), str(table), [], options)
    assert sorted(p.name for p in (tmp_path / "out.npz.parts").iterdir()) == [
        "000000.npz",
        "000001.npz",
        "job.json",
    ]
    assert not (tmp_path / "out.npz").exists()
    stop_after = -1
    embed(str(model), str(table), [], options)
    assert done == [f"s{i}" for i in range(ROWS) if i != 7]
    whole, found = read(tmp_path / "whole.npz"), read(tmp_path / "out.npz")
    assert all(np.array_equal(whole[k], found[k]) for k in whole)


def test_parts_of_another_job_are_not_mixed_in(model: Path, table: Path, tmp_path: Path):
    parts = tmp_path / "out.npz.parts"
    parts.mkdir()
    (parts / "job.json").write_text('{"weights": "others", "shard_size": 1024}')
    with pytest.raises(
        ConfigError, match=r"out.npz.parts belongs to another job \(weights, data, .* differ\)"
    ):
        embed(str(model), str(table), [], Options(str(tmp_path / "out.npz")))


def test_parquet_holds_the_same(model: Path, table: Path, tmp_path: Path):
    embed(str(model), str(table), [], Options(str(tmp_path / "out.npz")))
    embed(str(model), str(table), [], Options(str(tmp_path / "out.parquet")))
    rows = pq.read_table(tmp_path / "out.parquet")
    found = read(tmp_path / "out.npz")
    assert rows.column("id").to_pylist() == found["ids"].tolist()
    assert rows.column("modality").to_pylist() == found["modality"].tolist()
    np.testing.assert_array_equal(
        np.array(rows.column("vector").to_pylist(), dtype=np.float32), found["vectors"]
    )


def test_a_file_that_exists_is_kept_unless_told_otherwise(model: Path, table: Path, tmp_path: Path):
    out = tmp_path / "out.npz"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"out.npz exists; expected a new file. Add --overwrite"):
        embed(str(model), str(table), [], Options(str(out)))
    assert out.read_bytes() == b"precious"
    embed(str(model), str(table), [], Options(str(out), overwrite=True))
    assert len(read(out)["ids"]) == ROWS - 1


TOLD = {
    "--head algin": "--head: 'algin'; expected a head of the model. Did you mean 'align'?",
    "--device cudaa": "--device: 'cudaa' (",
}


@pytest.mark.parametrize("flags", TOLD)
def test_wrong_options_are_told(
    flags: str, model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["embed", str(model), str(table), "-o", str(tmp_path / "o.npz"), *flags.split()]
    assert main.main(args) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"mmzoo: error: {TOLD[flags]}")


def test_data_that_are_nowhere_or_hold_nothing_are_told(model: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"no such data 'tset'; expected a path, a split or a data config. Did you"
    ):
        embed(str(model), "tset", [], Options(str(tmp_path / "o.npz")))
    with pytest.raises(ConfigError, match=r"'test' of a model without data; expected a path to data"):
        embed(str(model), "test", [], Options(str(tmp_path / "o.npz")))


def test_a_job_that_brings_nothing_leaves_nothing(model: Path, tmp_path: Path):
    folder = tmp_path / "noise"
    for name in ("a/x.txt", "b/y.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="samples are unreadable"):
        embed(str(model), str(folder), [], Options(str(tmp_path / "o.npz")))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("o.npz")] == []
