"""The dense recipe by the real command: planned, trained, evaluated, continued, loaded."""

from __future__ import annotations

import json

import pytest
import torch

from mmzoo import zoo
from mmzoo.batch import Batch, ModalityInput

from .conftest import Command

SMALL = [
    "data.num_train=8", "data.num_val=4", "data.num_test=4", "data.size=[32,32]", "data.loader.batch_size=4",
    "model.modalities.image.preprocess.size=[32,32]", "model.trunk.dim=16", "model.trunk.num_heads=2",
    "model.decoder.width=8", "trainer.max_steps=2", "trainer.val_every_steps=2", "trainer.threads=1",
    "run_dir=run",
]  # fmt: skip


def test_the_recipe_from_plan_to_export(mmzoo: Command):
    options = ["model=indoor_mlore_tiny", *SMALL]
    plan = mmzoo("train", "indoor", *options, "--dry-run").stdout
    assert "decoder" in plan
    mmzoo("train", "indoor", *options)
    run = mmzoo.folder / "run"
    figures = json.loads((run / "eval.json").read_text())["test"]["metrics"]
    wanted = {
        "semseg/mIoU",
        "human_parts/mIoU",
        "sal/F_maxf",
        "normals/mErr_deg",
        "edge/odsF@0.0075",
        "depth/rmse_m",
    }
    assert wanted <= figures.keys() | {"human_parts/mIoU"}  # four images may well show nobody
    again = json.loads(mmzoo("eval", "run", "--json").stdout)
    assert again["metrics"]["depth/rmse_m"] == pytest.approx(figures["depth/rmse_m"])
    continued = [x for x in options if not x.startswith("trainer.max_steps")]
    mmzoo("train", "indoor", *continued, "trainer.max_steps=3", "resume=auto")
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    model = zoo.load(run)
    image = ModalityInput(torch.zeros(1, 3, 32, 32), torch.tensor([0]), torch.tensor([[3, 32, 32]]))
    found = model(Batch(("a",), {"image": image})).predictions
    assert found["semseg"]["image"].values.shape == (1, 14, 32, 32)
    assert set(found) == {"semseg", "human_parts", "sal", "normals", "edge", "depth"}
