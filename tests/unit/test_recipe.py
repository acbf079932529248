"""Where everything meets: what a recipe builds, and what it says where parts do not fit."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest
import torch

from mmzoo import recipe, registry, zoo
from mmzoo.datamodules.folder import Folder
from mmzoo.errors import ConfigError
from mmzoo.learners.meter import step_cost
from mmzoo.recipe import RecipeConfig

TWO = ["~tasks.align", "+tasks.who={target: action, head: linear, objective: cross_entropy, passes: [text]}"]
"""Overrides: one classification in place of the contrast."""


def build(overrides: list[str]) -> recipe.Built:
    return recipe.build(recipe.load("five_senses", overrides))


def faults(overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(overrides)
    return str(caught.value).splitlines()


def test_a_recipe_builds_what_it_says_and_stays_as_it_is(small: list[str]):
    config = recipe.load("five_senses", [*small, "seed=3", "learner.optim.lr=5e-4"])
    before = config.to_dict()
    built = recipe.build(config)
    assert config.to_dict() == before
    assert list(built.model.modalities) == ["image", "audio", "text", "fmri", "skeleton"]
    assert built.model.passes == {"align": ("image", "audio", "text", "fmri", "skeleton")}
    assert built.config.model.modalities["fmri"].subjects == dict(built.info.subjects)
    assert built.datamodule.seed == built.learner.seed == 3
    assert built.learner.config.optim.lr == 5e-4
    assert built.info.counts == {"train": 32, "val": 8, "test": 8}
    assert built.trainer.max_steps == 4
    assert built.learner.meta["recipe"] == built.config.to_dict()
    again = recipe.build(built.config)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, built.model.state_dict()[name]), name
    other = recipe.build(recipe.load("five_senses", [*small, "seed=4"])).model.trunk.blocks[0].mixer
    weights = [p for p in other.parameters() if p.ndim > 1]
    same = [p for p in built.model.trunk.blocks[0].mixer.parameters() if p.ndim > 1]
    assert all(not torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def test_only_modalities_that_a_task_reads_are_decoded_and_trained(small: list[str]):
    built = recipe.build(recipe.load("five_senses", [*small, *TWO, "trainer.monitor=val/loss"]))
    batch = next(iter(built.datamodule.loader("train")))
    assert list(batch.inputs) == ["text"]
    assert built.model.heads["who"].config.num_classes == len(built.info.labels["action"])
    flops, tokens = step_cost(built.model, batch)
    assert flops > 0
    assert tokens == int(built.model.tokens(batch, ["text"])["text"].valid.sum())


def test_a_folder_of_pictures_trains(tmp_path: pathlib.Path):
    data = {"type": "folder", **Folder.fake(tmp_path).to_dict()}
    config = recipe.from_dict(
        {
            "model": {
                "modalities": {"image": {"type": "image", "preprocess": {"size": [32, 32]}}},
                "trunk": {"dim": 16, "depth": 1, "num_heads": 2},
            },
            "data": data,
            "tasks": {"kind": {"target": "label", "head": "linear", "objective": "cross_entropy"}},
            "trainer": {"max_epochs": 1},
        }
    )
    built = recipe.build(config)
    assert built.info.labels["label"] == ("cat", "dog")
    output = built.model(next(iter(built.datamodule.loader("train"))))
    assert output.predictions["kind"]["image"].values.shape[1] == 2


def test_parts_that_do_not_fit_are_all_named_at_once(small: list[str]):
    wrong = [
        "+tasks.a={objective: infonce}",
        "+tasks.b={objective: infonce, head: linear, target: action}",
        "+tasks.c={objective: cross_entropy, head: linear, target: acton, metrics: [retrieval]}",
        "+tasks.d={objective: infonce, head: contrastive, metrics: [{type: zero_shot, target: sidde}]}",
    ]
    assert faults([*small, *wrong]) == [
        "tasks.a: no head; expected a head. Set tasks.a.head or model.heads.a.",
        "tasks.b.objective: reads vectors; expected classes, which the head gives. Choose another, or "
        "another head.",
        "tasks.c.metrics.0: reads vectors; expected classes, which the head gives. Choose another, or "
        "another head.",
        "tasks.c.target: no label 'acton' in the data; expected one of its labels. Did you mean 'action'?",
        "tasks.d.metrics.0.target: no label 'sidde' in the data; expected one of its labels. Did you mean "
        "'side'?",
    ]


def test_modalities_that_the_data_lack_are_named(tmp_path: pathlib.Path, small: list[str]):
    config = Folder.fake(tmp_path)
    found = faults([*small, f"data={{type: folder, root: {config.root}}}"])
    assert found[0].startswith("data: no audio, text, fmri, skeleton in the data; expected modalities image")
    assert found[0].endswith("Set tasks.NAME.passes=[image], or use data that has audio.")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks.align.weight=-1", "tasks.align: weight: -1.0; expected 0 or more"),
        ("trainer.devices=0", "trainer.devices: 0; expected at least 1"),
        ("trainer.accumulate=0", "trainer.accumulate: 0; expected at least 1"),
        ("trainer.max_steps=0", "trainer: no end; expected max_steps, max_epochs or max_minutes"),
        ("trainer.precision=8", "trainer.precision: 8; expected 32-true, bf16-mixed or 16-mixed"),
        ("trainer.monitor_mode=most", "trainer.monitor_mode: most; expected min or max"),
        ("learner.optim.lr=0", "learner.optim: optim.lr: 0.0; expected a positive number"),
        ("plugins=[no_such_module]", "plugins: 'no_such_module' (No module named 'no_such_module')"),
        ("tasks.align.passes=[imag]", "heads.align.passes: 'imag'; expected modalities of the model"),
    ],
)
def test_options_out_of_range_are_refused(small: list[str], override: str, expected: str):
    assert any(expected in line for line in faults([*small, override]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "trainer.accelerator=abacus",
            "trainer: accelerator=abacus, devices=1, strategy=auto; expected what",
        ),
        ("trainer.strategy=strtgy", "strategy=strtgy; expected what this machine has. Lightning says: "),
    ],
)
def test_what_lightning_refuses_is_one_line(small: list[str], override: str, expected: str):
    found = faults([*small, override])
    assert len(found) == 1
    assert expected in found[0]


def test_plugins_are_imported_before_their_rows_are_needed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_plugin.py").write_text(
        "from mmzoo import registry\nfrom mmzoo.objectives.contrast import InfoNce\n"
        "from mmzoo.registry import Row\n"
        "class Mine(InfoNce):\n    class Config(InfoNce.Config): pass\n"
        "registry.table('objectives')['mine'] = Row('my_plugin:Mine', 'mine')\n"
    )
    (tmp_path / "r.yaml").write_text(
        "base: [recipe/five_senses]\nplugins: [my_plugin]\n"
        "tasks: {align: {objective: {type: mine, chunk: 8}}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        config = recipe.load(str(tmp_path / "r.yaml"), ["tasks.align.objective.chunk=4"])
        assert config.tasks["align"].objective.chunk == 4
    finally:
        registry.table("objectives").pop("mine", None)
        sys.modules.pop("my_plugin", None)


def test_the_whole_tree_survives_a_round_trip(small: list[str]):
    config = recipe.load("five_senses", small)
    assert recipe.from_dict(config.to_dict()) == config
    assert recipe.from_dict(config.to_dict(), ["seed=9"]).seed == 9


def test_rebuilding_fetches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    """`fetch=False` and loading an export: the weights that timm publishes are not asked for."""
    import timm

    asked: list[bool] = []
    real = timm.create_model

    def spy(*args: Any, pretrained: bool = False, **kwargs: Any) -> Any:
        asked.append(pretrained)
        return real(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", spy)
    tree = {
        "model": {
            "modalities": {"image": {"type": "timm", "model": "regnetx_002", "pretrained": True}},
            "trunk": {"dim": 16, "depth": 1, "num_heads": 2},
        },
        "data": {"type": "folder", **Folder.fake(tmp_path).to_dict()},
        "tasks": {"kind": {"target": "label", "head": "linear", "objective": "cross_entropy"}},
        "trainer": {"max_epochs": 1},
    }
    config: RecipeConfig = recipe.from_dict(tree)
    built = recipe.build(config)
    assert asked == [True]
    bare = recipe.build(config, fetch=False)
    assert asked == [True, False]
    assert bare.config.model.modalities["image"].pretrained
    zoo.export(built.model, tmp_path / "export", built.learner.meta)
    model = zoo.load(tmp_path / "export")
    assert asked == [True, False, False]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, built.model.state_dict()[name]), name


def test_only_keeps_the_tasks_it_names(small: list[str]):
    second = "+tasks.who={target: action, head: linear, objective: cross_entropy, passes: [text]}"
    both = recipe.load("five_senses", [*small, second])
    assert list(both.tasks) == ["align", "who"]
    kept = recipe.load("five_senses", [*small, second, "only=who"])
    assert list(kept.tasks) == ["who"]
    assert kept.only == ["who"]
    assert recipe.from_dict(kept.to_dict()) == kept
    with pytest.raises(
        ConfigError, match=r"only: no task 'whom'; expected tasks of the recipe\. Did you mean 'who'"
    ):
        recipe.load("five_senses", [*small, second, "only=[whom]"])


def test_a_part_that_is_not_there_can_be_chosen_by_its_type_and_nothing_else():
    chosen = recipe.load("five_senses", ["model.decoder.type=mlore"])
    assert type(chosen.model.decoder).owner is registry.find("decoders", "mlore")
    with pytest.raises(ConfigError, match=r"^model\.decoder\.width: nothing is chosen at model\.decoder; "):
        recipe.load("five_senses", ["model.decoder.width=16"])
