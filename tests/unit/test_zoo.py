"""Models by name and by path: what is exported loads again, bit for bit; what does not fit is said."""

from __future__ import annotations

import json
import logging
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mmzoo
from mmzoo import recipe, zoo
from mmzoo.batch import DataInfo
from mmzoo.checkpoints import cards, files
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.recipe import Built

WHO = "+tasks.who={target: action, head: linear, objective: cross_entropy}"


@pytest.fixture
def built(small: list[str]) -> Built:
    return recipe.build(recipe.load("five_senses", [*small, WHO]))


@pytest.fixture
def export(built: Built, tmp_path: pathlib.Path) -> pathlib.Path:
    return zoo.export(built.model, tmp_path / "run" / "export", built.learner.meta)


def test_an_export_loads_to_the_same_embeddings_bit_for_bit(built: Built, export: pathlib.Path):
    batch = next(iter(built.datamodule.loader("test")))
    model, saved = zoo.load_with_config(export)
    assert not model.training
    with torch.no_grad():
        expected, found = built.model.eval().embed(batch), model.embed(batch)
    assert list(found) == list(expected) == ["image", "audio", "text", "fmri", "skeleton"]
    for name, prediction in expected.items():
        assert torch.equal(found[name].values, prediction.values), name
    assert saved["labels"]["action"] == list(built.info.labels["action"])
    assert saved["subjects"] == dict(built.info.subjects)
    assert saved["sha256"] == files.sha256_of(export / files.WEIGHTS)
    again = recipe.from_dict(saved["recipe"]).to_dict()
    assert again == json.loads(json.dumps(built.config.to_dict()))
    assert load_file(export / files.WEIGHTS).keys() == built.model.state_dict().keys()


def test_a_run_folder_an_export_and_a_checkpoint_all_load(
    built: Built, export: pathlib.Path, tmp_path: pathlib.Path
):
    run = export.parent
    same = zoo.load(run).state_dict()
    state = {f"model.{k}": v + 1 for k, v in built.model.state_dict().items()}
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        path.parent.mkdir(exist_ok=True)
        torch.save({"state_dict": state, "mmzoo": built.learner.meta}, path)
        state = {k: v + 1 for k, v in state.items()}
    for name, tensor in built.model.state_dict().items():
        assert torch.equal(same[name], tensor)
        assert torch.equal(zoo.load(run / "checkpoints/best.ckpt").state_dict()[name], tensor + 1)
    (export / files.WEIGHTS).unlink()
    export.joinpath(files.CONFIG).unlink()
    export.rmdir()
    key = "trunk.blocks.0.norm1.weight"
    assert torch.equal(zoo.load(run).state_dict()[key], built.model.state_dict()[key] + 1)


def test_create_model_gives_random_weights_and_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        model = mmzoo.create_model("fmri_tiny", info=DataInfo(subjects={"a": 12}))
    assert "model fmri_tiny: no weights of it are here, so these are random" in caplog.text
    assert not model.training
    assert model.adapter("fmri").config.subjects == {"a": 12}
    caplog.clear()
    zoo.create_model("image_conv_tiny", pretrained=False)
    assert not caplog.text
    assert set(zoo.list_models("*_conv_*")) == {"image_conv_tiny"}
    assert "five_senses_tiny" in mmzoo.list_models()


def card_of(name: str, **facts: Any) -> cards.Card:
    arch, _, tag = name.partition(".")
    return cards.Card(arch=arch, tag=tag, **facts)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> dict[str, cards.Card]:
    """Let there be no cards but those that a test adds, and no weights in the package."""
    found: dict[str, cards.Card] = {}
    monkeypatch.setattr(cards, "cards", lambda: found)
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "weights")
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path / "home"))
    return found


def test_shipped_weights_are_taken_where_there_are_some(
    built: Built, export: pathlib.Path, known: dict[str, cards.Card], caplog: pytest.LogCaptureFixture
):
    name = "five_senses_tiny.world"
    known[name] = card_of(name, default=True, deprecated_names=["five_old"])
    known["five_senses_tiny.far"] = card_of("five_senses_tiny.far")
    (cards.SHIPPED).mkdir()
    export.rename(cards.SHIPPED / name)
    key = "trunk.blocks.0.norm1.weight"
    made = [
        zoo.create_model("five_senses_tiny"),
        zoo.create_model("five_senses_tiny", pretrained=True),
        zoo.create_model("five_senses_tiny", pretrained="world"),
        zoo.create_model(name),
        zoo.load("five_senses_tiny"),
        zoo.load(name),
        zoo.load("five_old"),
    ]
    for model in made:
        assert model.embedding_task() == "align"
        assert torch.equal(model.state_dict()[key], built.model.state_dict()[key])
    assert "'five_old' is a former name; write 'five_senses_tiny.world'" in caplog.text
    assert mmzoo.list_models("five*", pretrained=True) == [name, "five_senses_tiny.far"]
    with pytest.raises(CheckpointError, match="Did you mean 'world'"):
        zoo.create_model("five_senses_tiny", pretrained="wrld")
    with pytest.raises(CheckpointError, match=r"five_senses_tiny\.far: a card without weights"):
        zoo.create_model("five_senses_tiny", pretrained="far")


def test_init_from_takes_what_fits_and_says_what_does_not(
    small: list[str], built: Built, export: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.5)
    zoo.export(built.model, export, built.learner.meta)
    other = "+tasks.who={target: setting, head: linear, objective: cross_entropy}"
    assert len(built.info.labels["setting"]) != len(built.info.labels["action"])
    more = "+tasks.side={target: side, head: linear, objective: cross_entropy}"
    with caplog.at_level(logging.INFO):
        tuned = recipe.build(
            recipe.load("five_senses", [*small, other, more, f"init_from={export.parent}"])
        ).model.state_dict()
    fresh = recipe.build(recipe.load("five_senses", [*small, other, more])).model.state_dict()
    for name, tensor in tuned.items():
        new = name.startswith(("heads.who.layers", "heads.side"))
        assert torch.equal(tensor, fresh[name] if new else built.model.state_dict()[name]), name
    text = caplog.text
    assert f"init_from {export.parent}: {len(tuned) - 4} of {len(tuned)} tensors taken" in text
    assert "init_from: reshaped (2): heads.who.layers.1.bias " in text
    assert "init_from: missing (2): heads.side.layers.1.bias, heads.side.layers.1.weight" in text


def message(source: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        zoo.load(source)
    return str(caught.value)


def test_what_cannot_be_loaded_is_said_in_a_line(built: Built, export: pathlib.Path, tmp_path: pathlib.Path):
    assert "no such thing; expected a run folder, an export folder" in message("nowhere")
    (tmp_path / "empty").mkdir()
    assert "a folder without weights; expected export/model.safetensors" in message(tmp_path / "empty")
    torch.save({"state_dict": {}, "mmzoo": {}}, tmp_path / "bare.ckpt")
    assert "weights without a model" in message(tmp_path / "bare.ckpt")
    state = dict(built.model.state_dict())
    state["extra"] = state.pop("trunk.blocks.0.norm1.weight")
    files.write_export(tmp_path / "odd", state, built.learner.meta)
    assert "1 missing and 1 unexpected tensors (trunk.blocks.0.norm1.weight, extra…)" in message(
        tmp_path / "odd"
    )
    (export / files.WEIGHTS).write_bytes((export / files.WEIGHTS).read_bytes()[:-1] + b"\0")
    assert "sha256" in message(export)
    with pytest.raises(CheckpointError, match="no checkpoint 'fmri_tiny'"):
        zoo.create_model("fmri_tiny", pretrained=True)
    with pytest.raises(ConfigError, match="Did you mean 'fmri_tiny'"):
        zoo.create_model("fmri_tny", pretrained=False)
    files.write_export(tmp_path / "other", {"a": torch.zeros(2)}, built.learner.meta)
    with pytest.raises(CheckpointError, match="no tensor fits"):
        zoo.start_from(built.model, tmp_path / "other")
