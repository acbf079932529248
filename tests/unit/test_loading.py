"""What becomes of every tensor: taken, resized, copied or listed; what must be allowed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmzoo import schema
from mmzoo.checkpoints.loading import InMemory, load_weights, require_whole
from mmzoo.errors import CheckpointError
from mmzoo.layers.positions import GridPositions, RelativeBias2d, resize_grid, resize_relative_table
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.zoo import starting

TEXT = {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 8}, "max_positions": 10}
IMAGE = {"type": "image", "preprocess": {"size": [32, 32]}}


class Grids(nn.Module):
    """A position table, a table a layer, a plain weight."""

    def __init__(self, side: int, layers: int) -> None:
        super().__init__()
        self.positions = GridPositions(side, 4)
        self.biases = nn.ModuleList(RelativeBias2d(side, 2) for _ in range(layers))
        self.plain = nn.Linear(3, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def build(*modalities: str, **more: object) -> MultimodalModel:
    known = {"text": TEXT, "image": IMAGE, "second": TEXT}
    tree = {
        "modalities": {m: known[m] for m in modalities},
        "trunk": {"dim": 16, "depth": 2, "num_heads": 2},
        "heads": {"align": {"head": {"type": "contrastive"}}},
        **more,
    }
    return MultimodalModel(schema.parse(MultimodalModel.Config, tree))


def test_tables_of_other_grids_are_resized_and_one_serves_every_layer():
    small, large = Grids(3, 1), Grids(5, 2)
    report = load_weights(large, InMemory(small.state_dict()))
    torch.testing.assert_close(large.positions.table, resize_grid(small.positions.table, 5, 5))
    expected = resize_relative_table(small.biases[0].table, 5)
    assert all(torch.equal(bias.table, expected) for bias in large.biases)
    assert report.resized == {
        "positions.table": "10x4 -> 26x4",
        "biases.0.table": "28x2 -> 84x2",
        "biases.1.table": "28x2 -> 84x2",
    }
    same = Grids(3, 2)
    report = load_weights(same, InMemory(small.state_dict()))
    assert report.copied == {"biases.1.table": "biases.0.table"}
    assert torch.equal(same.biases[1].table, small.biases[0].table)
    assert report.taken == len(same.state_dict())
    require_whole(report, "x")


def test_what_does_not_fit_is_listed_and_kept_fresh():
    module = Grids(3, 1)
    before = copy.deepcopy(module.state_dict())
    state = {"plain.weight": torch.zeros(5, 3), "other": torch.zeros(1), "positions.table": torch.ones(10, 4)}
    report = load_weights(module, InMemory(state))
    assert report.loaded == ["positions.table"]
    assert report.reshaped == {"plain.weight": "5x3 -> 2x3"}
    assert report.missing == ["biases.0.table", "plain.bias"]
    assert report.unexpected == ["other"]
    assert report.lines() == [
        "reshaped (1): plain.weight 5x3 -> 2x3",
        "missing (2): biases.0.table, plain.bias",
        "unexpected (1): other",
    ]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items() if k != "positions.table")
    with pytest.raises(
        CheckpointError, match=r"x: 3 tensors it does not give .* and 1 that the model has no place"
    ):
        require_whole(report, "x")
    require_whole(report, "x", optional=("plain.", "biases.", "other"))


def test_branches_of_modalities_that_the_model_lacks_are_dropped_and_listed():
    both, image = build("text", "image"), build("image")
    report = starting.start(image, InMemory(both.state_dict()), "x")
    assert report.missing == []
    parts = {".".join(name.split(".")[:2]) for name in report.unexpected}
    assert parts == {"adapters.text", "trunk.blocks", "trunk.norm", "heads.align"}
    assert all("text" in name for name in report.unexpected)


def test_a_modality_that_weights_lack_must_be_allowed():
    both, image = build("text", "image"), build("image")
    with pytest.raises(CheckpointError, match=r"tensors it does not give \(adapters\.text"):
        starting.start(both, InMemory(image.state_dict()), "x")
    report = starting.start(build("text", "image"), InMemory(image.state_dict()), "x", allow_partial=True)
    assert "adapters.text.positions" in report.missing


def test_heads_start_anew_and_named_parts_too():
    given = build("image").state_dict()
    head = {"type": "linear", "num_classes": 3}
    other = build("image", heads={"sort": {"head": head, "passes": ["image"]}})
    report = starting.start(other, InMemory(given), "x")
    assert report.missing == ["heads.sort.layers.1.weight", "heads.sort.layers.1.bias"]
    fresh = build("image")
    kept = fresh.state_dict()["heads.align.log_scale"].clone()
    given["heads.align.log_scale"] = kept + 1
    starting.start(fresh, InMemory(given), "x", anew=["heads.align.log_scale"])
    assert torch.equal(fresh.state_dict()["heads.align.log_scale"], kept)
    with pytest.raises(CheckpointError, match="no tensor fits"):
        starting.start(build("image"), InMemory({"a": torch.zeros(1)}), "x")
