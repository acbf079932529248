"""Every shipped YAML fits the real options, repeats no default, and resolves to what is committed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from golden.write import FOLDER, FROM_ENVIRONMENT, golden_text, shipped
from mmzoo import compose, configs, recipe, registry, schema, zoo
from mmzoo.batch import DataInfo, DenseKind, NumericKind, SceneKind
from mmzoo.errors import ConfigError
from mmzoo.learners.tasks import faults_of, with_heads, with_own_heads
from mmzoo.learners.trainer import TrainerConfig
from mmzoo.models.base import owner_of
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.recipe import RecipeConfig

COMMAND = "python -m tests.golden.write"
EVERY = [(group, name) for group in configs.GROUPS for name in shipped(group)]
SUBJECTS = {"s1": 20, "s2": 30}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in FROM_ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)


def merged(group: str, name: str) -> dict[str, Any]:
    tree = OmegaConf.to_container(compose.read(shipped(group)[name], group), resolve=True)
    assert isinstance(tree, dict)
    return {str(k): v for k, v in tree.items()}


def parsed(group: str, tree: dict[str, Any]) -> schema.Config:
    if group == "data":
        tree = dict(tree)
        return schema.parse(registry.find("datamodules", tree.pop("type")).Config, tree)
    if group == "model":
        return zoo.model_options(tree)
    return schema.parse({"recipe": RecipeConfig, "trainer": TrainerConfig}[group], tree)


def repeats(
    node: Mapping[str, Any], made: schema.Config, default: schema.Config | None, below: Any, where: str
) -> Iterator[str]:
    """Yield the path of every leaf of `node` that says what holds without it.

    Without it holds what the bases of the file say (`below`), else `default` (options that the parent gives
    its component), else the field's own default.
    """
    below = below if isinstance(below, Mapping) else {}
    for field in dataclasses.fields(made):
        if field.name in node:
            standard = getattr(default, field.name) if default is not None else own_default(field)
            yield from repeated(
                node[field.name],
                getattr(made, field.name),
                standard,
                below.get(field.name, ...),
                f"{where}.{field.name}".lstrip("."),
                field,
            )


def repeated(
    value: Any, made: Any, standard: Any, below: Any, path: str, field: dataclasses.Field[Any] | None = None
) -> Iterator[str]:
    if isinstance(made, schema.Config):
        node = {"type": value} if isinstance(value, str) else value
        known = field.metadata.get("default") if field is not None else None
        chosen = below.get("type", known) if isinstance(below, Mapping) else known
        if "type" in node and node["type"] == chosen:
            yield f"{path}.type"
        elif "type" in node:
            below = ...  # another class: the options below are gone
        same = standard if type(standard) is type(made) else None
        yield from repeats(node, made, same, below, path)
    elif isinstance(made, dict) and any(isinstance(v, schema.Config) for v in made.values()):
        for key, entry in value.items():
            under = below.get(key, ...) if isinstance(below, Mapping) else ...
            yield from repeated(entry, made.get(key), None, under, f"{path}.{key}")
    elif isinstance(made, list) and any(isinstance(v, schema.Config) for v in made):
        for i, entry in enumerate(value):
            yield from repeated(entry, made[i], None, ..., f"{path}.{i}")
    elif not (isinstance(value, str) and value.startswith("${")):
        holds = schema._plain(standard) if below is ... else below
        if value == holds and isinstance(value, bool) == isinstance(holds, bool):
            yield path


def own_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    try:
        return field.default_factory() if field.default_factory is not dataclasses.MISSING else ...
    except ConfigError:  # a default that is not valid by itself, such as a trainer without an end
        return ...


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_file_parses_and_repeats_nothing(group: str, name: str):
    file = shipped(group)[name]
    made = parsed(group, merged(group, name))
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    bases = OmegaConf.create({})
    own = OmegaConf.create({"base": raw.get("base", [])})
    if own.base:
        bases = below_of(file.parent.parent, group, [str(b) for b in own.base])
    below = OmegaConf.to_container(bases, resolve=False)
    found = list(repeats({k: v for k, v in raw.items() if k != "base"}, made, None, below, ""))
    assert not found, f"{group}/{name}.yaml repeats what holds anyway: {', '.join(found)}"
    assert file.read_text(encoding="utf-8").startswith("# "), "the first line says what it is"


def below_of(package: Any, group: str, bases: list[str]) -> DictConfig:
    """Return what the bases of a file amount to without it."""
    tree = OmegaConf.create({})
    for base in bases:
        other, _, name = base.partition("/")
        node = compose.read(package / other / f"{name}.yaml", other)
        tree = compose._merge(tree, node if other in ("recipe", group) else OmegaConf.create({other: node}))
    return tree


def test_a_repeated_default_is_found():
    tree = {
        "name": "recipe",
        "seed": 3,
        "trainer": {"max_steps": 5, "accumulate": 1},
        "learner": {"type": "multitask", "optim": {"lr": 1e-3, "betas": None, "eps": 1e-6}},
        "tasks": {"a": {"objective": "infonce", "head": {"type": "contrastive", "pooling": "cls"}}},
        "data": {"type": "five_senses", "num_val": 256, "loader": {"batch_size": 64}},
    }
    made = schema.parse(RecipeConfig, tree)
    assert list(repeats(tree, made, None, {"seed": 3, "trainer": {"accumulate": 2}}, "")) == [
        "name",
        "seed",
        "data.loader.batch_size",
        "data.num_val",
        "tasks.a.head.pooling",
        "learner.type",
        "learner.optim.lr",
        "learner.optim.betas",
    ]


@pytest.mark.parametrize("name", shipped("model"))
def test_every_model_preset_builds(name: str):
    owner = owner_of(zoo.preset(name))
    options = owner.resolve(zoo.preset(name), DataInfo(subjects=SUBJECTS))
    with torch.device("meta"):
        model = owner(options)
    assert sum(p.numel() for p in model.parameters()) > 0
    assert schema.parse(owner.Config, options.to_dict()) == options


@pytest.mark.parametrize("name", shipped("recipe"))
def test_every_recipe_loads_and_its_model_has_a_head_for_every_task(name: str):
    config = recipe.load(name)
    assert config.name == name
    targets = {t.target for t in config.tasks.values() if t.target}
    targets |= {getattr(m, "target", "") for t in config.tasks.values() for m in t.metrics} - {""}
    kinds = {t.target: getattr(type(t.objective).owner, "kind", None) for t in config.tasks.values()}
    dense = {target: kind for target, kind in kinds.items() if isinstance(kind, DenseKind)}
    reads = {t.target: type(t.objective).owner.reads.value for t in config.tasks.values()}
    numeric = {t: NumericKind(r) for t, r in reads.items() if r in list(NumericKind)}
    labels = dict.fromkeys(targets, ("a", "b", "c"))
    choices = getattr(config.data, "choices", None)
    several = dict.fromkeys(choices.modalities if choices else (), 4)
    scene = {target: kind for target, kind in kinds.items() if isinstance(kind, SceneKind)}
    info = DataInfo(
        labels=labels, subjects=SUBJECTS, dense=dense, numeric=numeric, several=several, scene=scene
    )
    options = with_heads(config.model, config.tasks)
    heads = {name: options.heads.get(task.head_of or name) for name, task in config.tasks.items()}
    assert not [f for n, t in config.tasks.items() for f in faults_of(n, t, heads[n], info)]
    owner = owner_of(options)
    with torch.device("meta"):
        model = owner(owner.bare(owner.resolve(options, info)))
    own = model.heads if isinstance(model, MultimodalModel) else model.config.heads
    assert list(own) == list(with_own_heads(config.tasks))
    assert recipe.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", shipped("recipe"))
def test_every_recipe_resolves_to_its_golden(name: str):
    file, text = FOLDER / f"{name}.yaml", golden_text(name)
    assert file.is_file(), f"no golden of {name}: run `{COMMAND} {name}`, read and commit it"
    old = file.read_text(encoding="utf-8")
    changes = "".join(difflib.unified_diff(old.splitlines(True), text.splitlines(True), "golden", "now", n=1))
    assert not changes, f"{name} resolves to something else; if meant, run `{COMMAND} {name}`:\n{changes}"


def test_no_golden_is_left_of_a_recipe_that_is_gone():
    gone = {f.stem for f in FOLDER.glob("*.yaml")} - set(shipped("recipe"))
    assert not gone, f"run `{COMMAND}`"
