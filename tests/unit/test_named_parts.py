"""Names in options, of parts of the model and of weights, are checked before any data are read."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from mmzoo import recipe
from mmzoo.errors import ConfigError, MmzooError
from mmzoo.learners import named_parts

NO_PART = "is no part of the model; expected a part of it. Did you mean"


def faults(*overrides: str, name: str = "five_senses") -> list[str]:
    with pytest.raises(MmzooError) as caught:
        recipe.load(name, overrides)
    return str(caught.value).splitlines()


def test_every_wrong_name_is_said_at_once():
    found = faults(
        "init_from=fivesenses",
        "init_fresh=[heads.algin]",
        "model.freeze=[trnk,~trunk.norms,trunk.blocks.0-3]",
        "learner.optim.lr_scales={modalities.imag: 0.1}",
        "learner.unfreeze.every=3",
        "learner.unfreeze.stages=[[trunk],[heds]]",
        "balance=pcgrad",
        "learner.shared=[trunk,truk.blocks]",
    )
    starts = [
        "init_from: fivesenses: no such thing; expected a run folder",
        f"model.freeze: 'trnk' {NO_PART} 'trunk'",
        f"model.freeze: 'trunk.blocks.3' {NO_PART} 'trunk.blocks.2'",
        f"learner.optim.lr_scales: 'modalities.imag' {NO_PART} 'modalities.image'",
        f"learner.unfreeze.stages: 'heds' {NO_PART} 'heads'",
        f"init_fresh: 'heads.algin' {NO_PART} 'heads.align'",
        "learner.shared: no parameter under 'truk.blocks'; expected some. Did you mean 'trunk.blocks'",
    ]
    assert len(found) == len(starts)
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start), line


def test_targets_of_factors_are_checked_with_the_rest():
    found = faults("model.lora.rank=4", "model.lora.targets=[qkw]", "model.freeze=[trnk]")
    assert found[0].startswith("model.lora.targets: 'qkw' names no linear map")
    assert found[1].startswith("model.freeze: 'trnk'")


def test_right_names_pass_and_draw_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    overrides = [
        "init_from=five_senses_tiny",
        "model.lora.rank=4",
        "model.lora.targets=[qkv,ffn]",
        "model.freeze=[trunk,~trunk.norms,modalities.fmri,heads.align,'*.bias']",
        "balance=pcgrad",
    ]
    assert recipe.load("five_senses", overrides).model.lora.rank == 4
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_is_outlined_only_where_something_names_its_parts(monkeypatch: pytest.MonkeyPatch):
    """Up to half a second a load, for the largest models."""
    asked: list[str] = []

    def outline(whole: Any, named: Any) -> Any:
        asked.append(type(whole).__qualname__)
        raise ConfigError("outlined")

    monkeypatch.setattr(named_parts, "_outline", outline)
    for name in ("five_senses", "driving", "indoor", "onepeace_vqa"):
        recipe.load(name)
    assert asked == []
    for override in (
        "model.freeze=[trunk]",
        "balance=pcgrad",
        "model.lora.rank=2",
        "init_fresh=[trunk]",
        "learner.cosine_every=5",
        "+learner.optim.lr_scales={trunk: 0.1}",
        "learner.unfreeze={stages: [[trunk]], every: 5}",
    ):
        with pytest.raises(ConfigError, match="outlined"):
            recipe.load("five_senses", [override])


def test_what_only_data_know_is_taken_on_trust():
    """Numbers of classes and names of subjects come with the data."""
    parts = "model.freeze=[modalities.fmri.subjects.sub-7,heads.classify]"
    recipe.load("haxby", ["model.freeze=[modalities.fmri.subjects]"])
    recipe.load("haxby", [parts, "learner.optim.lr_scales={modalities.fmri.core: 0.5}"])
    (line,) = faults("model.freeze=[modalities.fmri.subjets]", name="haxby")
    assert "Did you mean 'modalities.fmri.subjects'" in line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{folder}", "{folder}: a folder without weights; expected export/model.safetensors or checkpoints"),
        ("file:{folder}/none.ckpt", "{folder}/none.ckpt: no such thing"),
        ("local-dir:{folder}/none", "{folder}/none: no such thing"),
        ("hf://one", "'hf://one': no repository; expected hf://org/repo[@revision]"),
    ],
)
def test_weights_that_are_nowhere(tmp_path: pathlib.Path, source: str, message: str):
    (line,) = faults(f"init_from={source.format(folder=tmp_path)}")
    assert line.startswith("init_from: " + message.format(folder=tmp_path))


def test_weights_elsewhere_are_not_fetched_to_be_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMZOO_OFFLINE", "1")
    for source in ("hf://org/repo@main", "https://nowhere.example/x.ckpt", "onepeace_4b.laion2b"):
        assert recipe.load("five_senses", [f"init_from={source}"]).init_from == source


@pytest.mark.parametrize("joint", ["image+image2", "text+image+image2", "image+image"])
def test_a_modality_beside_a_view_of_itself_is_refused(joint: str):
    task = f"+tasks.same={{target: action, head: linear, objective: cross_entropy, passes: [{joint}]}}"
    (line,) = faults("+model.views={image2: image}", task)
    own = joint.replace("+", ", ")
    assert line == (
        f"heads.same.passes: {joint!r}; expected each modality once, views included. "
        f"Make them passes of their own: [{own}]."
    )
    (line,) = faults("tasks.align.passes=[image,text+imag]")
    assert line.startswith("heads.align.passes: 'text+imag'; expected modalities of the model. Did you mean")


@pytest.mark.parametrize(
    ("name", "override", "proposal"),
    [
        ("five_senses", "lr=1", "learner.optim.lr"),
        ("five_senses", "model.mixer.type=attention", "model.trunk.mixer.type"),
        ("real_five", "data.root=x", "data.sets.cifar10.root or data.sets.fsdd.root or data.sets.haxby.root"),
        ("five_senses", "learner.optim.lrr=1", "'lr'"),
    ],
)
def test_an_option_further_down_is_proposed(name: str, override: str, proposal: str):
    (line,) = faults(override, name=name)
    assert line.endswith(f". Did you mean {proposal}?")


def test_options_of_factors_without_a_rank_are_refused():
    (line,) = faults("model.lora.targets=[w_in]", "model.lora.dropout_prob=0.1")
    assert line == (
        "model.lora: lora.rank: 0 (off), but dropout_prob and targets given; expected 1 or more then. "
        "Set model.lora.rank=8, or leave dropout_prob and targets out."
    )
    assert issubclass(ConfigError, MmzooError)
