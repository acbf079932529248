from __future__ import annotations

import pathlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmzoo import compose, configs, schema
from mmzoo.errors import ConfigError


@dataclass(kw_only=True)
class Model(schema.Config):
    dim: int = 8
    """dim"""
    trunk: Any = schema.one("heads", "linear")
    """any choice"""


@dataclass(kw_only=True)
class Tree(schema.Config):
    name: str = "x"
    """name"""
    seed: int = 0
    """seed"""
    model: Model = field(default_factory=Model)
    """model"""
    tags: list[str] = field(default_factory=list)
    """tags"""
    extra: dict[str, float] = field(default_factory=dict)
    """extra"""
    root: str = ""
    """root"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("MMZOO_CONFIG_DIR", str(tmp_path))
    files = {
        "model/tiny.yaml": "dim: 4\ntrunk: {type: linear}\n",
        "model/wide.yaml": "base: [model/tiny]\ndim: 64\n",
        "recipe/first.yaml": (
            "base: [model/tiny]\nname: first\nseed: 3\ntags: [a, b]\nroot: ${oc.env:NOT_SET,here}/x\n"
        ),
        "recipe/second.yaml": "base: [recipe/first, model/wide]\nname: second\nmodel: {trunk: {type: mlp}}\n",
        "recipe/loop.yaml": "base: [recipe/loop]\n",
        "recipe/broken.yaml": "a: [1\n",
        "recipe/odd.yaml": "base: [nothing]\n",
        "recipe/lost.yaml": "base: [model/tny]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def made(name: str, *overrides: str) -> dict[str, Any]:
    return compose.compose(Tree, name, overrides)


def test_bases_merge_in_order_then_the_file(folder: pathlib.Path):
    tree = made("second")
    assert tree["name"] == "second"
    assert tree["seed"] == 3
    assert tree["model"] == {"dim": 64, "trunk": {"type": "mlp"}}
    assert tree["root"] == "here/x"


def test_user_configs_are_found_before_the_package(folder: pathlib.Path):
    assert "first" in configs.list_configs("recipe")
    assert configs.find("recipe", "first") == folder / "recipe/first.yaml"
    assert compose.read(folder / "recipe/first.yaml", "recipe").name == "first"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=5", ("seed",), 5),
        ("model.dim=16", ("model", "dim"), 16),
        ("name=a=b", ("name",), "a=b"),
        ("tags=[x, y]", ("tags",), ["x", "y"]),
        ("tags.1=z", ("tags",), ["a", "z"]),
        ("tags[0]=q", ("tags",), ["q", "b"]),
        ("+extra.k=1e-3", ("extra", "k"), 0.001),
        ("++extra={a:1, b:2}", ("extra",), {"a": 1, "b": 2}),
        ("name=None", ("name",), None),
        ("model.trunk.type=mlp", ("model", "trunk", "type"), "mlp"),
        ("model=wide", ("model", "dim"), 64),
    ],
)
def test_overrides(folder: pathlib.Path, override: str, path: tuple[str, ...], value: Any):
    tree: Any = made("first", override)
    for key in path:
        tree = tree[key]
    assert tree == value


def test_delete(folder: pathlib.Path):
    assert "tags" not in made("first", "~tags")
    with pytest.raises(
        ConfigError, match=r"override '~tgas': nothing there to delete; .* Did you mean 'tags'\?"
    ):
        made("first", "~tgas")


def test_overrides_apply_in_order_and_a_new_type_drops_the_old_options(folder: pathlib.Path):
    tree = made("first", "model.trunk.type=mlp", "+model.trunk.ratio=3", "model.trunk.type=linear")
    assert tree["model"]["trunk"] == {"type": "linear"}


def test_wrong_overrides_are_reported_together(folder: pathlib.Path):
    with pytest.raises(ConfigError) as caught:
        made("first", "sed=1", "model=tinny", "nonsense", "model.dmi=2")
    text = str(caught.value)
    assert len(text.splitlines()) == 4
    assert "Did you mean 'seed'?" in text
    assert "model: 'tinny' is unknown; expected a model by name, or a .yaml file. Did you mean 'tiny'" in text
    assert "override 'nonsense': no key=value" in text
    assert "Did you mean 'dim'?" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loop", "base goes in a circle"),
        ("broken", "not YAML"),
        ("odd", "'nothing'; expected recipe/NAME or model/NAME"),
        ("lost", "Did you mean 'tiny'"),
        ("frist", "Did you mean 'first'"),
        ("gone.yaml", "no file gone.yaml"),
    ],
)
def test_bad_recipes_are_one_clear_line(folder: pathlib.Path, name: str, message: str):
    with pytest.raises(ConfigError) as caught:
        made(name)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
