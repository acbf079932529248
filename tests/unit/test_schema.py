from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmzoo import registry, schema
from mmzoo.errors import ConfigError


class Colour(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Small(schema.Configurable):
    @dataclass(kw_only=True)
    class Config(schema.Config):
        size: int = 3
        """size"""
        rate: float = 0.5
        """rate"""

    def __init__(self, config: Config, extra: int = 0) -> None:
        self.config, self.extra = config, extra


class Large(schema.Configurable):
    @dataclass(kw_only=True)
    class Config(schema.Config):
        depth: int
        """depth"""
        inner: Any = schema.one("things", "small", size=7)
        """inner"""

        def __post_init__(self) -> None:
            if self.depth > 9:
                raise ConfigError.at("depth", str(self.depth), "at most 9", "Lower it.")


@dataclass(kw_only=True)
class Tree(schema.Config):
    name: str = "x"
    """name"""
    colour: Colour = Colour.RED
    """colour"""
    pair: tuple[float, float] = (0.0, 1.0)
    """pair"""
    names: list[str] = field(default_factory=list)
    """names"""
    limit: int | None = None
    """limit"""
    thing: Any = schema.one("things", "small")
    """thing"""
    option: Any = schema.maybe("things")
    """option"""
    parts: dict[str, Any] = schema.many("things")
    """parts"""
    steps: list[Any] = schema.several("things")
    """steps"""


@pytest.fixture(autouse=True)
def things(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "small": registry.Row(f"{__name__}:Small", "small"),
        "large": registry.Row(f"{__name__}:Large", "large"),
    }
    real = registry.table
    monkeypatch.setattr(registry, "table", lambda name: rows if name == "things" else real(name))


def test_defaults_and_choices_become_objects():
    tree = schema.parse(
        Tree,
        {"colour": "blue", "pair": [1, 2], "thing": {"type": "large", "depth": 2}, "parts": {"a": "small"}},
    )
    assert tree.colour is Colour.BLUE
    assert tree.pair == (1.0, 2.0)
    assert isinstance(tree.pair[0], float)
    assert isinstance(tree.thing, Large.Config)
    assert tree.thing.inner == Small.Config(size=7)
    assert tree.parts == {"a": Small.Config()}
    assert tree.option is None


def test_build_makes_the_owner_with_context():
    made = schema.parse(Tree, {}).thing.build(extra=4)
    assert isinstance(made, Small)
    assert (made.config.size, made.extra) == (3, 4)


def test_round_trip_through_plain_yaml_values():
    tree = schema.parse(
        Tree,
        {
            "steps": [{"type": "large", "depth": 1}, "small"],
            "option": "small",
            "limit": 4,
            "parts": {"p": {"type": "small", "rate": 1}},
        },
    )
    plain = tree.to_dict()
    assert plain["steps"][0] == {
        "type": "large",
        "depth": 1,
        "inner": {"type": "small", "size": 7, "rate": 0.5},
    }
    assert schema.parse(Tree, plain) == tree


def test_all_faults_are_reported_at_once_with_paths_and_neighbours():
    with pytest.raises(ConfigError) as caught:
        schema.parse(
            Tree,
            {
                "nmae": 1,
                "colour": "rd",
                "pair": [1],
                "thing": {"type": "smal"},
                "parts": {"a": {"type": "small", "size": "big"}},
                "steps": [{"type": "large", "depth": 12}],
            },
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    text = str(caught.value)
    assert "nmae: unknown key; expected an option of Tree. Did you mean 'name' or 'names'?" in lines
    assert "colour: str 'rd'; expected one of red, blue. Did you mean 'red'?" in lines
    assert "pair: list [1]; expected 2 values. Give each of them." in lines
    assert "thing.type: 'smal' is unknown; expected a row of the things table. Did you mean 'small'?" in lines
    assert "parts.a.size: str 'big'; expected int. Give a whole number." in lines
    assert "steps.0: depth: 12; expected at most 9. Lower it." in text


def test_missing_required_option_is_named():
    with pytest.raises(ConfigError, match=r"thing\.depth: missing; expected int\. Set thing\.depth=…\."):
        schema.parse(Tree, {"thing": {"type": "large"}})


@pytest.mark.parametrize("value", [True, "3", 2.5, None])
def test_an_int_is_an_int(value: Any):
    with pytest.raises(ConfigError, match=r"thing\.size: .* expected int"):
        schema.parse(Tree, {"thing": {"type": "small", "size": value}})


@pytest.mark.parametrize(
    "path",
    ["name", "thing.type", "thing.size", "parts.a.rate", "steps.0.inner.size", "pair.0", "option.size"],
)
def test_check_path_follows_choices(path: str):
    node = {
        "parts": {"a": "small"},
        "steps": [{"type": "large", "depth": 1}],
        "pair": [1, 2],
        "option": {"type": "small"},
    }
    schema.check_path(Tree, node, path.split("."))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "thing.sise",
            "thing.sise: unknown key 'sise'; expected an option of Small.Config. Did you mean 'size'?",
        ),
        ("parts.b.rate", r"parts.b: unknown key 'b'; expected one of the things given"),
        ("steps.3.size", r"steps.3: unknown key '3'"),
        ("name.x", "name.x: unknown key 'x'; expected nothing below name"),
    ],
)
def test_check_path_refuses_what_is_not_there(path: str, message: str):
    node = {"parts": {"a": "small"}, "steps": ["small"]}
    with pytest.raises(ConfigError) as caught:
        schema.check_path(Tree, node, path.split("."))
    assert str(caught.value).startswith(message)
