"""The guide on one's own data: its options are real, its manifest is read, its Python runs."""

from __future__ import annotations

import pathlib
import re
import sys
import types
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmzoo import recipe, registry, schema
from mmzoo.datamodules.files import kind_of
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.shards import Shards

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs/guide/your-own-data.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_option_of_the_guide_exists(text: str) -> None:
    tree: Any = OmegaConf.to_container(OmegaConf.create(text))
    options = dict(tree["data"])
    row = registry.find("datamodules", options.pop("type"))
    config = schema.parse(row.Config, options, "data")
    assert isinstance(config, row.Config)


def test_the_first_recipe_is_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(blocks("yaml")[0])
    config = recipe.load(str(path))
    assert config.data.root == "my_pictures"
    assert set(config.tasks) == {"classify"}


def test_the_manifest_is_read_as_the_guide_says(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(blocks("csv")[0])
    data = Manifest(schema.parse(Manifest.Config, {"path": str(path), "split": {"val_share": 0.0}}), {})
    info = data.info()
    assert set(info.modalities) == {"image", "audio", "text"}
    assert info.labels == {"label": ("dog", "person"), "tags": ("indoors", "outdoors", "winter")}
    assert info.counts == {"train": 2, "val": 0, "test": 1}


def test_the_labels_of_numbers_are_read_as_the_guide_says(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(next(text for text in blocks("csv") if "x1" in text))
    tree: Any = OmegaConf.to_container(OmegaConf.create(next(t for t in blocks("yaml") if "scored" in t)))
    options = {k: v for k, v in tree["data"].items() if k != "type"} | {"path": str(path)}
    info = Manifest(schema.parse(Manifest.Config, options), {}).info()
    assert info.labels["answers"] == ("black", "brown", "red")
    assert {target: kind.value for target, kind in info.numeric.items()} == {"age": "numbers", "box": "boxes"}


def test_the_table_of_extensions_is_true() -> None:
    rows = re.findall(
        r"^\| ([a-z0-9., ]+?)(?: \(.*\))? \| (\w+) \|$", GUIDE.read_text(encoding="utf-8"), re.M
    )
    told = {name: kind for names, kind in rows for name in names.split(", ") if kind != "modality"}
    assert len(told) == 19
    assert {name: kind_of(f"x.{name}") for name in told} == told


def test_the_python_of_the_guide_writes_shards_that_are_read() -> None:
    module = types.ModuleType("own_data_guide")
    sys.modules[module.__name__] = module
    exec(compile("\n".join(blocks("python")), "your-own-data.md", "exec"), module.__dict__)
    folder = module.paths[0].parent
    data = Shards(schema.parse(Shards.Config, {"root": str(folder), "val_share": 0.0, "test_share": 0.0}), {})
    assert data.info().counts["train"] == len(module.data.source("train"))
    assert data.info().labels == module.data.info().labels
