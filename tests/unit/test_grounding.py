"""Made pictures with sentences and boxes, or questions and scored answers: true to what they show, and
learned from end to end."""

from __future__ import annotations

import csv
import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo import recipe
from mmzoo.cli.main import main
from mmzoo.datamodules.shapes_make import (
    COLOURS,
    Shape,
    draw_shapes,
    sentences_of,
    write_grounding,
    write_vqa,
)
from mmzoo.errors import ConfigError, DataError
from mmzoo.learners.evaluate import evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`"),
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
]
TINY = [
    "model.trunk={dim: 48, depth: 1, num_heads: 3, layer_scale_init: null, ffn: {hidden_dim: 96}}",
    "trainer.max_epochs=-1",
    "trainer.max_steps=2",
    "trainer.threads=1",
    "data.loader.batch_size=16",
]


def table(folder: pathlib.Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_box_holds_what_the_sentence_names(tmp_path: pathlib.Path) -> None:
    """Every pixel of the named colour nearest the box lies inside, and reaches its edges."""
    said = write_grounding(tmp_path / "g", 40, seed=3)
    rows = table(tmp_path / "g")
    assert said.startswith("40 rows in manifest.csv")
    assert [r["split"] for r in rows] == ["train"] * 30 + ["val"] * 5 + ["test"] * 5
    assert len({r["text"] for r in rows}) > 10
    for row in rows:
        pixels = np.asarray(Image.open(tmp_path / "g" / row["image"])).astype(int)
        x1, y1, x2, y2 = (int(row[k]) for k in ("x1", "y1", "x2", "y2"))
        colour = next(c for c in COLOURS if c in row["text"].split(" the ")[0].split())
        inside = (np.abs(pixels - COLOURS[colour]).max(axis=2) == 0)[y1:y2, x1:x2]
        assert inside[[0, -1]].any(axis=1).all()
        assert inside[:, [0, -1]].any(axis=0).all()
        assert inside.mean() > 0.4
    again = tmp_path / "again"
    write_grounding(again, 40, seed=3)
    assert (again / "manifest.csv").read_bytes() == (tmp_path / "g" / "manifest.csv").read_bytes()


def test_sentences_speak_of_one_shape_only() -> None:
    left, right = Shape("circle", "red", 2, 20, 12), Shape("circle", "red", 44, 22, 12)
    square = Shape("square", "blue", 24, 2, 14)
    scene = [left, right, square]
    assert sentences_of(square, scene) == ["the blue square"]
    assert sentences_of(left, scene) == ["the left red circle", "the red circle left of the blue square"]
    assert sentences_of(right, scene) == ["the right red circle", "the red circle right of the blue square"]
    for seed in range(20):
        shapes = draw_shapes(np.random.default_rng(seed))
        said = [text for shape in shapes for text in sentences_of(shape, shapes)]
        assert len(said) == len(set(said)) > 0


def test_answers_are_scored_as_people_give_them(tmp_path: pathlib.Path) -> None:
    write_vqa(tmp_path / "v", 60)
    scores = [[float(a.split(":")[1]) for a in row["answers"].split("|")] for row in table(tmp_path / "v")]
    assert all(s[0] == 1 and min(s) > 0 for s in scores)
    assert {s for row in scores for s in row} <= {1.0, 0.667, 0.333}
    assert any(len(s) == 2 for s in scores)


def test_what_cannot_be_made(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        write_vqa(tmp_path / "x", 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="something is there already"):
        write_grounding(tmp_path / "full", 10)
    assert main(["data", "make", "grounding", str(tmp_path / "g"), "--n", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"].startswith("8 rows")


def learn(name: str, options: list[str], steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures on the training split before and after so many steps on its first batch."""
    built = recipe.build(recipe.load(name, options))
    (task,) = built.learner.tasks.values()
    before = evaluate(built.learner, built.datamodule, "train").metrics
    batch = next(iter(built.datamodule.loader("reference")))
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=3e-3, weight_decay=0.0)
    built.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(built.model(batch, [task.name]), batch).mean().backward()
        optimizer.step()
    return dict(before), dict(evaluate(built.learner, built.datamodule, "train").metrics)


def test_boxes_are_learned_by_heart_and_by_the_command(tmp_path: pathlib.Path) -> None:
    write_grounding(tmp_path / "g", 12)
    options = [*TINY, f"data.path={tmp_path / 'g' / 'manifest.csv'}", "tasks.ground.head.pool_heads=3"]
    before, after = learn("grounding", options, 80)
    assert before["ground/mean_IoU"] < 0.25
    assert after["ground/mean_IoU"] > 0.5
    assert after["ground/Acc@0.5"] > 0.5 > before["ground/Acc@0.5"]
    run = tmp_path / "run"
    assert main(["train", "grounding", *options, f"run_dir={run}"]) == 0
    assert "val/ground/Acc@0.5" in (run / "metrics.jsonl").read_text()


def test_scored_answers_train_the_vqa_recipe(tmp_path: pathlib.Path) -> None:
    write_vqa(tmp_path / "v", 16)
    options = [
        f"data.path={tmp_path / 'v' / 'manifest.csv'}",
        "model.trunk={dim: 48, depth: 1, num_heads: 3, layer_scale_init: null, ffn: {hidden_dim: 96}}",
        "model.modalities.text={type: text, preprocess: {tokenizer: {type: bytes}}}",
        "model.modalities.image={type: image, preprocess: {size: [64, 64]}}",
        "tasks.classify.head.pool_heads=3",
        "trainer.precision=32-true",
        "data.loader.batch_size=16",
    ]
    before, after = learn("onepeace_vqa", options, 60)
    assert after["classify/loss"] < 0.7 * before["classify/loss"]
    assert after["classify/accuracy"] > 0.25 > before["classify/accuracy"] + 0.1
    built = recipe.build(recipe.load("onepeace_vqa", options))
    scores = next(iter(built.datamodule.loader("reference"))).targets["answers"].values
    assert len(scores.unique()) > 2, "some answers count in part"
