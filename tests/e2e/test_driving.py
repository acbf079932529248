"""The recipe of driving by the real command: trained, continued bit for bit, evaluated, loaded."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from mmzoo import zoo
from mmzoo.checkpoints import files

from .conftest import Command
from .test_commands import history, stop, weights

SMALL = [
    "data.num_train=12", "data.num_val=2", "data.num_test=4", "data.loader.batch_size=2", "model.dim=16",
    "model.neck_channels=8", "model.hidden_dim=16", "model.layers=1", "model.num_boxes=6",
    "model.grid.cells=12", "model.grid.map_cells=10", "trainer.val_every_steps=4", "trainer.threads=1",
    "trainer.log_every_steps=1", "trainer.max_steps=8",
]  # fmt: skip


def test_the_recipe_trains_to_its_export_and_a_stopped_run_goes_on_bit_for_bit(mmzoo: Command):
    mmzoo("train", "driving", *SMALL, "run_dir=whole")
    whole = mmzoo.folder / "whole"
    figures = json.loads((whole / "eval.json").read_text())["test"]["metrics"]
    assert {"boxes/NDS4", "map/mIoU", "occupancy/mIoU", "occupancy/sc_IoU"} <= set(figures)
    again = json.loads(mmzoo("eval", "whole", "--json").stdout)["metrics"]
    assert again == pytest.approx(figures)
    assert (whole / "plots" / "scenes.png").is_file()
    assert "What it sees around the vehicle" in (whole / "report.html").read_text()

    refused = mmzoo("embed", "whole", "test", "-o", "out.npz", code=2)
    assert "a model that embeds its inputs" in refused.stderr

    code, _ = stop(mmzoo, ["driving", *SMALL, "run_dir=run"], 2, signal.SIGINT)
    assert code == 130
    mmzoo("train", "driving", "run_dir=run", "resume=auto")
    assert history(mmzoo.folder / "run") == history(whole)
    assert weights(mmzoo.folder / "run") == weights(whole)

    model, config = zoo.load_with_config(whole)
    assert (config["architecture"], config["model"]["type"]) == ("M3Net", "m3net")
    assert config["labels"]["boxes"][0] == "car"
    best = files.read_checkpoint(whole / "checkpoints" / "best.ckpt")["state_dict"]
    assert all(torch.equal(best[f"model.{name}"], tensor) for name, tensor in model.state_dict().items())
