"""`model=ARCH.TAG`: preset, weights and advice by one override; frozen random weights are told."""

from __future__ import annotations

import importlib.util
import logging
import pathlib

import pytest
import torch

from mmzoo import compose, configs, recipe, zoo
from mmzoo.checkpoints import cards
from mmzoo.cli import fine_tuning
from mmzoo.datamodules.skeletons import Skeletons
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.recipe import Built
from mmzoo.zoo import pretrained

NAME = "five_senses_tiny.five_senses"
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "fine_tune.py"


@pytest.fixture
def motions(tmp_path: pathlib.Path) -> list[str]:
    """Overrides that give the recipe mocap three classes of invented motions."""
    Skeletons.fake(tmp_path)
    parts = ["data.split.test_groups=[]", "data.split.val_groups=[]", "data.layout=ntu25"]
    return [f"data.root={tmp_path / 'windows.npz'}", *parts, "trainer.accelerator=cpu"]


def test_it_means_the_preset_and_the_weights_and_others_have_the_last_word() -> None:
    written, card = pretrained.expand(["seed=1", f"model={NAME}", "model.freeze=[trunk]"])
    assert written == ["model=five_senses_tiny", f"init_from={NAME}", "seed=1", "model.freeze=[trunk]"]
    assert card is cards.find(NAME)
    for plain in (["model=five_senses_tiny"], ["model=my.yaml"], ["init_from=five_senses_tiny"], []):
        assert pretrained.expand(plain) == (plain, None)


def test_wrong_names_are_told_before_anything_is_read() -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'five_senses'"):
        recipe.load("mocap", ["model=five_senses_tiny.five_sense"])
    with pytest.raises(ConfigError, match=r"no preset; expected .*init_from=onepeace_vision\.laion2b"):
        recipe.load("cifar10", ["model=onepeace_vision.laion2b"])
    with pytest.raises(ConfigError, match="'five_sense_tiny' is unknown"):
        recipe.load("mocap", ["model=five_sense_tiny"])


def test_a_recipe_of_one_modality_takes_its_part_of_the_weights(
    motions: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        built = recipe.build(recipe.load("mocap", [*motions, f"model={NAME}", "model.freeze=[trunk]"]))
    assert not [r for r in caplog.records if "random" in r.getMessage()]
    assert list(built.config.model.modalities) == ["skeleton"]
    whole = zoo.load(NAME).state_dict()
    for name, tensor in built.model.state_dict().items():
        assert name.startswith("heads.classify") or torch.equal(tensor, whole[name]), name
    assert built.config.model.modalities["skeleton"].preprocess.num_frames == 48
    lines = fine_tuning.lines(built)
    assert lines["starts from"] == NAME
    assert lines["starts anew"] == "heads"
    assert lines["frozen"] == "trunk"
    assert built.config.to_dict()["init_from"] == NAME  # what the run folder keeps


def test_advice_stands_in_the_options_and_yields_to_others(
    motions: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = cards.find(NAME)
    advice = ["learner.optim.lr=0.004", "learner.optim.warmup=0.2", "model.freeze=[trunk.mixer]"]
    monkeypatch.setattr(card, "fine_tune", {"skeleton": advice, "image": ["seed=7"]})
    with caplog.at_level(logging.INFO):
        config = recipe.load("mocap", ["learner.optim.warmup=0.1", *motions, f"model={NAME}"])
    optim = config.learner.optim
    assert (optim.lr, optim.warmup, config.model.freeze) == (0.004, 0.1, ["trunk.mixer"])
    assert f"{NAME} recommends for skeleton: {' '.join(advice)}" in caplog.text
    plain = recipe.load("mocap", [*motions, "model=five_senses_tiny", f"init_from={NAME}"])
    assert plain.learner.optim.lr == 0.001
    several = recipe.load("five_senses", [f"model={NAME}"])
    assert several.seed == 0
    assert set(several.model.modalities) == {"image", "audio", "text", "fmri", "skeleton"}


def test_every_cards_advice_fits_its_preset() -> None:
    for card in cards.cards().values():
        for modality, advice in card.fine_tune.items():
            assert modality in card.modalities
            tree = compose.read(configs.find("recipe", "five_senses"), "recipe")
            options = [f"model={card.arch}", *advice, f"tasks.align.passes=[{modality}]"]
            assert compose.override(recipe.RecipeConfig, tree, options, card.name)


def test_frozen_random_weights_are_said_in_one_line_with_the_cure(
    motions: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def said(*options: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            recipe.build(recipe.load("mocap", [*motions, "model=five_senses_tiny", *options]))
        return [r.getMessage() for r in caplog.records if "random" in r.getMessage()]

    assert said() == []
    [line] = said("model.freeze=[trunk,~trunk.norms,modalities.audio]")
    assert line.startswith("model.freeze: random weights that never learn (modalities.audio, trunk.blocks.0")
    assert line.endswith(f"init_from=RUN or model=ARCH.TAG, such as model={NAME}")
    [line] = said("model.lora.rank=2")
    assert line.startswith("model.freeze: random weights that never learn (modalities, trunk.blocks.0")
    assert said(*VIT) == []


VIT = [
    "model.freeze=[trunk]",
    "model.trunk.init_from=timm-random:vit_tiny_patch16_224",
    "model.trunk.dim=192",
    "model.trunk.num_heads=3",
    "model.trunk.depth=1",
    "model.trunk.ffn.hidden_dim=768",
    "model.trunk.mixer={type: attention, qkv_bias: all, sub_norm: false}",
    "model.trunk.ffn.activation=gelu",
    "model.trunk.ffn.sub_norm=false",
    "model.trunk.norm_eps=1e-6",
]


def export(built: Built, folder: pathlib.Path) -> str:
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.5)
    zoo.export(built.model, folder, built.learner.meta)
    return f"init_from={folder}"


def test_people_whom_the_weights_do_not_know_start_anew(small: list[str], tmp_path: pathlib.Path) -> None:
    scans = [*small, "tasks.align.passes=[fmri,text]", "~model.modalities.image"]

    def build(people: str, *more: str) -> Built:
        known = "sub-01: 472, sub-02: 430, sub-05: 391, sub-07: 380"
        option = f"model.modalities.fmri.subjects={{{known}{people}}}"
        return recipe.build(recipe.load("five_senses", [*scans, option, *more]))

    known = build("")
    source = export(known, tmp_path)
    other = build(", sub-09: 7", source)
    assert fine_tuning.facts(other)["anew"] == ["modalities.fmri.subjects.of-sub-09"]
    theirs, ours = known.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    fewer = build("", export(other, tmp_path / "more"))  # sub-09 is left behind
    assert fine_tuning.facts(fewer).get("anew") is None
    namesake = export(build(", sub-09: 5"), tmp_path / "namesake")
    changed = build(", sub-09: 7", namesake)  # none of the other person's tensors, whatever their shape
    fresh = build(", sub-09: 7").model.state_dict()
    for name, tensor in changed.model.state_dict().items():
        if "of-sub-09" in name:
            assert torch.equal(tensor, fresh[name]), name


def test_a_person_known_in_part_is_no_stranger(small: list[str], tmp_path: pathlib.Path) -> None:
    scans = [*small, "tasks.align.passes=[fmri,text]", "~model.modalities.image"]
    built = recipe.build(recipe.load("five_senses", scans))
    state = built.model.state_dict()
    state.pop("adapters.fmri.subjects.of-sub-01.linear.bias")
    zoo.files.write_export(tmp_path, state, built.learner.meta)
    with pytest.raises(CheckpointError, match="1 tensors it does not give"):
        recipe.build(recipe.load("five_senses", [*scans, f"init_from={tmp_path}"]))


@pytest.mark.parametrize(("data", "name"), [("mocap", "mocap"), ("people", "haxby")])
def test_the_benchmark_compares_runs_that_differ_in_their_weights_alone(data: str, name: str) -> None:
    spec = importlib.util.spec_from_file_location("fine_tune", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = script.rows(data)
    tuned, same = (recipe.load(name, rows[row]).to_dict() for row in ("fine-tuned", "scratch, same options"))
    assert tuned.pop("init_from") == NAME
    assert same.pop("init_from") == ""
    [modality] = tuned["model"]["modalities"]
    same["model"]["modalities"] = {modality: same["model"]["modalities"][modality]}  # others are not read
    same["model"]["heads"] = {}
    assert tuned == same
    scratch = recipe.load(name, rows["scratch"]).to_dict()
    assert scratch["model"]["modalities"][modality] == tuned["model"]["modalities"][modality]
    assert scratch["learner"] == recipe.load(name).to_dict()["learner"]
