"""Class names become sentences and vectors: in order, for every template, whatever the batch."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmzoo import recipe
from mmzoo.datamodules.collate import collate
from mmzoo.errors import ConfigError
from mmzoo.learners import prompts
from mmzoo.learners.evaluate import evaluate
from mmzoo.recipe import Built

ZERO = "tasks.align.metrics=[{type: zero_shot, target: action, templates: ['a {} b', '{}'], topk: [1, 2]}]"


@pytest.fixture
def few(small: list[str]) -> list[str]:
    return [*small, "~model.modalities.audio", "~model.modalities.skeleton", "~model.modalities.fmri", ZERO]


@pytest.fixture
def built(few: list[str]) -> Built:
    made = recipe.build(recipe.load("five_senses", few))
    made.model.eval()
    return made


def test_every_class_and_template_has_the_vector_of_its_sentence(built: Built):
    classes = [f"thing_{i}" for i in range(140)]  # more than one batch of 256 sentences
    found = prompts.embed_prompts(built.model, "align", classes, ["a {} b", "{}"])
    assert found.shape == (140, 2, 16)
    for i in (0, 70, 127, 128, 139):
        alone = built.model.encode(text=[f"a thing {i} b", f"thing {i}"])["text"]
        assert torch.allclose(found[i], alone, atol=1e-6)


def test_zero_shot_agrees_with_its_formula(built: Built, few: list[str]):
    source = built.datamodule.source("test")
    batch = collate([source.get(i, None) for i in range(len(source))])
    with torch.no_grad():
        images = built.model.embed(batch)["image"].values
    names = [n.replace("_", " ") for n in built.info.labels["action"]]
    text = torch.stack([built.model.encode(text=[f"a {n} b", n])["text"].mean(0) for n in names])
    order = (images @ F.normalize(text, dim=1).T).argsort(dim=1, descending=True)
    labels = batch.targets["action"].values[:, None]
    found = evaluate(built.learner, built.datamodule, "test")
    for k in (1, 2):
        expected = float((order[:, :k] == labels).any(dim=1).float().mean())
        assert found.metrics[f"align/action/top{k}"] == pytest.approx(expected)
    table = found.figures["align/action/zero_shot"]
    for true, predicted in zip(labels.flatten().tolist(), order[:, 0].tolist(), strict=True):
        assert table[true, predicted] >= 1
    assert np.sum(table) == len(labels)
    assert found.labels["align/action/zero_shot"] == built.info.labels["action"]


def test_what_is_missing_is_said(built: Built, few: list[str], tmp_path: pathlib.Path):
    silent = [*few, "~model.modalities.text", "+tasks.align.passes=[image]"]
    made = recipe.build(recipe.load("five_senses", silent))
    with pytest.raises(ConfigError, match=r"tasks\.align: no text pass; expected a head that reads a text"):
        prompts.embed_prompts(made.model, "align", ["a"], ["{}"])
    bare = built.info.__class__(modalities=("image",))
    with pytest.raises(ConfigError, match=r"tasks\.align: no class names of 'action'"):
        prompts.class_vectors(built.model, built.learner.tasks, bare)
