"""Fine-tuning recipes build and learn at tiny size on made data, from made files in the released layouts."""

from __future__ import annotations

import argparse
import logging
import pathlib
import pickle

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from mmzoo import recipe, zoo
from mmzoo.cli.main import main
from mmzoo.errors import CheckpointError
from mmzoo.heads.choice import ChoiceMlpHead
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.onepeace.interop import Layout, buffers, to_onepeace

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`"),
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
]
TRUNK = [
    "model.trunk.dim=48",
    "model.trunk.depth=2",
    "model.trunk.num_heads=3",
    "model.trunk.ffn.hidden_dim=60",
]
TEXT = ["model.modalities.text.preprocess.tokenizer={type: bytes}", "model.modalities.text.num_bias_tables=2"]
IMAGE = ["model.modalities.image.preprocess.size=[64, 64]", "model.modalities.image.num_bias_tables=2"]
AUDIO = [
    "model.modalities.audio.num_bias_tables=2",
    "model.modalities.audio.conv_layers=[[8, 10, 80], [8, 2, 4]]",
]
SHORT = [
    "trainer.max_epochs=-1",
    "trainer.max_steps=1",
    "trainer.accumulate=1",
    "trainer.precision=32-true",
    "data.loader.batch_size=4",
]
HEAD = ["tasks.classify.head.pool_heads=3"]
RECIPES = {
    "onepeace_coco": [*TEXT, *IMAGE],
    "onepeace_flickr30k": [*TEXT, *IMAGE],
    "onepeace_audio_text": [*TEXT, *AUDIO],
    "onepeace_avqa": [*TEXT, *AUDIO, *HEAD],
    "onepeace_nlvr2": [*TEXT, *IMAGE, *HEAD],
    "onepeace_vqa": [*TEXT, *IMAGE, *HEAD],
    "onepeace_refcoco": [*TEXT, *IMAGE, *HEAD],
    "onepeace_refcoco_plus": [*TEXT, *IMAGE, *HEAD],
    "onepeace_refcocog": [*TEXT, *IMAGE, *HEAD],
    "onepeace_vggsound": [*AUDIO, *HEAD],
    "onepeace_fsd50k": [*AUDIO, *HEAD],
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Write eight samples with everything that any of the recipes reads."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    columns = "caption,sentence,question,image,left,right,audio,label,labels,answers,choices,answer"
    columns += ",split,x1,y1,x2,y2"
    lines = [columns]
    for i in range(8):
        for side in ("a", "b"):
            Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
                folder / f"{i}{side}.png"
            )
        soundfile.write(folder / f"{i}.wav", draw.standard_normal(16000).astype(np.float32), 16000)
        words = f"a thing number {i}"
        split = "train" if i < 6 else "val"
        files = f"{i}a.png,{i}a.png,{i}b.png,{i}.wav"
        labels = f"{i % 2},x|{i % 3},y:0.6|{i % 3}"
        choices, box = f"a cat|a dog|rain|wind,{i % 4}", f"{i},{i + 1},{i + 20},{i + 15}"
        lines.append(f"{words},{words},what is {i},{files},{labels},{choices},{split},{box}")
    path = folder / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def tiny(name: str, manifest: pathlib.Path) -> list[str]:
    column = {"onepeace_coco": "image", "onepeace_flickr30k": "image", "onepeace_audio_text": "audio"}.get(
        name
    )
    inputs = [f"data.inputs={{text: caption, {column}: {column}}}"] if column else []
    if name.startswith("onepeace_refcoco"):
        inputs = ["data.inputs={text: sentence, image: image}"]
    if name in ("onepeace_vggsound", "onepeace_fsd50k"):
        inputs = ["data.inputs={audio: audio}"]
    return [f"data.path={manifest}", *inputs, *TRUNK, *RECIPES[name], *SHORT]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_builds_and_every_part_learns(name: str, manifest: pathlib.Path) -> None:
    built = recipe.build(recipe.load(name, tiny(name, manifest)))
    batch = next(iter(built.datamodule.train_dataloader()))
    built.model.train()
    loss = torch.zeros(())
    for task in built.learner.tasks.values():
        loss = loss + task.loss(built.model(batch, [task.name]), batch).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    still = [n for n, p in built.model.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []


def test_dry_run(manifest: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "onepeace_nlvr2", *tiny("onepeace_nlvr2", manifest), "--dry-run"]) == 0
    assert "views" in capsys.readouterr().out


def released(model: MultimodalModel, path: pathlib.Path, layout: Layout = Layout.FULL) -> dict[str, Tensor]:
    """Write a model's weights, moved from their start, as the reference would, with objects of its own."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    state = to_onepeace(model.state_dict(), layout)
    content = {"model": {**state, **buffers(state)}, "cfg": argparse.Namespace(task=argparse.Namespace(a=1))}
    if layout is Layout.VISION:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return state


def source(manifest: pathlib.Path, *more: str) -> MultimodalModel:
    one = [f"model.modalities.{m}.num_bias_tables=1" for m in ("text", "image")]
    small = [*tiny("onepeace_coco", manifest), *one, "model.modalities.image.preprocess.size=[32, 32]"]
    return recipe.build(recipe.load("onepeace_coco", [*small, *more])).model


def test_fine_tuning_from_a_released_file(
    manifest: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "one-peace.pt"
    theirs = released(source(manifest), path)
    options = [*tiny("onepeace_coco", manifest), f"init_from={path}"]
    with caplog.at_level(logging.INFO):
        built = recipe.build(recipe.load("onepeace_coco", options))
    state = built.model.state_dict()
    text = theirs["encoder_wrapper.text_adapter.rel_pos_table_list.0.weight"]
    assert torch.equal(state["adapters.text.biases.0.table"], text)
    assert torch.equal(state["adapters.text.biases.1.table"], text)
    assert torch.equal(
        state["trunk.blocks.1.gamma_2"], theirs["encoder_wrapper.fusion_model.layers.1.gamma_2"]
    )
    assert torch.equal(state["heads.align.projections.image.bias"], theirs["image_proj.bias"])
    for line in (
        f"{len(state)} of {len(state)} tensors taken",
        "resized (3): adapters.image.biases.0.table 12x3 -> 52x3",
        "copied (1): adapters.text.biases.1.table from adapters.text.biases.0.table",
        "left out, refused (1): argparse.Namespace",
    ):
        assert line in caplog.text
    run = tmp_path / "run"
    assert main(["train", "onepeace_coco", *options, f"run_dir={run}"]) == 0
    tuned = zoo.load(run).state_dict()
    moved = [k for k in state if not torch.equal(tuned[k], state[k])]
    assert "heads.align.projections.image.weight" in moved
    assert all((tuned[k] - state[k]).abs().max() < 1e-3 for k in state)


def test_a_partial_load_must_be_allowed(
    manifest: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "one-peace.pt"
    released(source(manifest), path)
    options = [*tiny("onepeace_nlvr2", manifest), f"init_from={path}"]
    with pytest.raises(
        CheckpointError,
        match=r"2 tensors it does not give \(adapters\.text\.type_embedding.*Add allow_partial",
    ):
        recipe.build(recipe.load("onepeace_nlvr2", [*options, "allow_partial=false"]))
    with caplog.at_level(logging.INFO):
        built = recipe.build(recipe.load("onepeace_nlvr2", options))
    assert "adapters.image.type_embedding" in caplog.text
    assert not built.model.state_dict()["adapters.image.type_embedding"].any()


def test_a_file_loads_as_the_model_it_holds(manifest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = source(manifest)
    released(model, tmp_path / "one-peace.pt")
    found = zoo.load(tmp_path / "one-peace.pt").state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def test_a_file_that_scores_answers_loads_as_one(manifest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = recipe.build(recipe.load("onepeace_avqa", tiny("onepeace_avqa", manifest))).model
    theirs = released(model, tmp_path / "finetune_aqa.pt")
    assert theirs["classify_head.classifier.3.weight"].shape == (1, 96)
    found = zoo.load(tmp_path / "finetune_aqa.pt")
    assert found.passes == {"classify": ("text+audio",)}
    assert isinstance(found.heads["classify"], ChoiceMlpHead)
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(found.state_dict()[k], v) for k, v in model.state_dict().items())


def test_the_vision_branch_loads_and_starts_a_model(manifest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    options = ["model.modalities.text=null", "tasks.align.target=label", "tasks.align.metrics=[]"]
    options += ["tasks.align.objective={type: cross_entropy}"]
    head = "+tasks.align.head={type: linear, norm: true}"
    more = [*options, head, "data.targets=[label]", "model.trunk.final_norm=none"]
    kept = [o for o in tiny("onepeace_coco", manifest) if "modalities.text" not in o]
    model = recipe.build(
        recipe.load("onepeace_coco", [*kept, "model.modalities.image.num_bias_tables=1", *more])
    ).model
    classify = {k.replace("heads.align.", "heads.classify."): v for k, v in model.state_dict().items()}
    state = to_onepeace(classify, Layout.VISION)
    assert {
        "encoder.layers.0.image_ffn.0.wi_0.weight",
        "image_adapter.cls_embedding",
        "fc_norm.weight",
    } <= state.keys()
    path = tmp_path / "vision.pkl"
    path.write_bytes(pickle.dumps({"model": state}))
    found = zoo.load(path).state_dict()
    assert found.keys() == classify.keys()
    assert all(torch.equal(found[k], v) for k, v in classify.items())
