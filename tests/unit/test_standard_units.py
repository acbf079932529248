"""Numbers are learned in standard units and reported in the data's own, from the recipe to the export."""

from __future__ import annotations

import json
import pathlib
import statistics
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mmzoo
from mmzoo import schema
from mmzoo.batch import (
    Batch,
    DataInfo,
    ModalityInput,
    Moments,
    NumericKind,
    Prediction,
    Target,
    TokenSequence,
)
from mmzoo.cli.main import main
from mmzoo.cli.sources import trained
from mmzoo.datamodules.manifest import Manifest
from mmzoo.datamodules.shard_write import pack_data
from mmzoo.datamodules.shards import Shards
from mmzoo.errors import ConfigError
from mmzoo.heads.numbers import BoxHead, RegressionHead, RegressionMlpHead, Units
from mmzoo.learners.evaluate import evaluate
from mmzoo.objectives.base import Objective
from mmzoo.objectives.numbers import AbsoluteError, SmoothL1, SquaredError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`"),
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
]
INFO = DataInfo(
    labels={"price": ("price",), "pose": ("x", "y"), "box": ("x1", "y1", "x2", "y2"), "what": ("a", "b")},
    numeric={"price": NumericKind.NUMBERS, "pose": NumericKind.NUMBERS, "box": NumericKind.BOXES},
    moments={"price": Moments(9, (1000.0,), (50.0,)), "pose": Moments(9, (1.0, -2.0), (0.5, 0.0))},
)
HEADS = [RegressionHead, RegressionMlpHead]
RECIPE = """
base: [model/five_senses_tiny]
name: price
model:
  trunk: {dim: 48, depth: 1, num_heads: 3, ffn: {hidden_dim: 96}}
  modalities: {audio: null, fmri: null, skeleton: null, text: null, image: {preprocess: {size: [32, 32]}}}
data: {type: manifest, path: PATH, targets: [], numbers: {price: {}}, loader: {batch_size: 32}}
tasks:
  price: {passes: [image], target: price, head: {type: regression}, objective: {type: mse}}
learner: {optim: {lr: 2.0e-3}}
trainer: {max_steps: 30, threads: 1}
"""


def tokens(generator: torch.Generator, rows: int = 3) -> TokenSequence:
    values = torch.randn(rows, 5, 8, generator=generator)
    return TokenSequence(values, torch.ones(rows, 5, dtype=torch.bool), torch.arange(rows), "image")


@pytest.mark.parametrize("kind", HEADS)
def test_layers_give_deviations_from_the_mean(kind: Any, generator: torch.Generator) -> None:
    filled = kind.resolve(kind.Config(), INFO, "pose")
    assert (filled.num_classes, filled.mean, filled.std) == (2, [1.0, -2.0], [0.5, 1.0])
    head = filled.build(dim=8, passes=("image",)).eval()
    given = tokens(generator)
    found = head(given, "image")
    raw = head.layers(head.features(given)[0])
    torch.testing.assert_close(found.values, raw * torch.tensor([0.5, 1.0]) + torch.tensor([1.0, -2.0]))
    assert found.spread.tolist() == [0.5, 1.0]
    assert found.values.dtype == torch.float32
    assert (
        head.state_dict().keys()
        == kind.Config(num_classes=2).build(dim=8, passes=("image",)).state_dict().keys()
    )


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (AbsoluteError.Config(), lambda e: abs(e)),
        (SquaredError.Config(), lambda e: e * e),
        (SmoothL1.Config(beta=0.5), lambda e: e * e if abs(e) < 0.5 else abs(e) - 0.25),
    ],
)
def test_losses_count_in_standard_deviations(objective: Any, formula: Any) -> None:
    values, labels, std = [[1010.0, 5.0], [900.0, 1.0]], [[1000.0, 4.0], [1000.0, 1.0]], [50.0, 2.0]
    built: Objective = objective.build()
    batch = Batch(("a", "b"), targets={"y": Target(torch.tensor(labels), torch.arange(2))})
    rows = torch.arange(2)
    spread = Prediction(torch.tensor(values), rows, spread=torch.tensor(std))
    pairs = list(zip(values, labels, strict=True))
    errors = [
        [(p - y) / s for p, y, s in zip(*row, std, strict=True)] for row in zip(values, labels, strict=True)
    ]
    expected = statistics.mean(statistics.mean(map(formula, row)) for row in errors)
    assert float(built({"p": spread}, batch, "y").mean()) == pytest.approx(expected)
    plain = Prediction(torch.tensor(values), rows)
    errors = [[p - y for p, y in zip(*row, strict=True)] for row in pairs]
    expected = statistics.mean(statistics.mean(map(formula, row)) for row in errors)
    assert float(built({"p": plain}, batch, "y").mean()) == pytest.approx(expected)


@pytest.mark.parametrize("kind", HEADS)
def test_options_given_are_kept_and_wrong_ones_refused(kind: Any, generator: torch.Generator) -> None:
    given = kind.Config(mean=[10.0], std=[2.0])
    assert kind.resolve(given, INFO, "price").mean == [10.0]
    plain = kind.resolve(kind.Config(units=Units.DATA), INFO, "price")
    assert plain.mean == plain.std == []
    assert plain.build(dim=8, passes=("image",))(tokens(generator), "image").spread is None
    assert kind.resolve(kind.Config(), INFO, "box").mean == []
    told = DataInfo(labels=INFO.labels, numeric=INFO.numeric)
    with pytest.raises(ConfigError, match=r"numbers 'price' that the data do not sum up; expected their"):
        kind.resolve(kind.Config(), told, "price")
    assert kind.resolve(given, told, "price").num_classes == 1
    for wrong, said in (
        ({"mean": [1.0]}, r"1 means and 0 deviations; expected 1 each, or neither"),
        ({"mean": [1.0], "std": [0.0]}, r"std: \[0\.0\]; expected numbers above 0"),
        ({"mean": [1.0], "std": [1.0], "num_classes": 2}, r"1 means and 1 deviations; expected 2 each"),
        ({"units": "data", "mean": [1.0], "std": [1.0]}, r"units: data, but 1 means"),
    ):
        with pytest.raises(ConfigError, match=said):
            schema.parse(kind.Config, wrong)
    with pytest.raises(ConfigError, match=r"3 means|2 each"):
        kind.resolve(kind.Config(mean=[1.0] * 3, std=[1.0] * 3), INFO, "pose")


def test_boxes_have_no_units() -> None:
    assert not {"units", "mean", "std"} & set(BoxHead.Config().to_dict())


def test_a_head_keeps_the_units_it_was_trained_in() -> None:
    new, before = RegressionHead.Config(), RegressionHead.Config(num_classes=1, mean=[3.0], std=[2.0])
    assert RegressionHead.as_trained(new, before).mean == [3.0]
    older = RegressionHead.as_trained(new, RegressionHead.Config(num_classes=1))
    assert older.units is Units.DATA, "trained before there were units"
    told = RegressionHead.Config(mean=[5.0], std=[1.0])
    assert RegressionHead.as_trained(told, before) is told


def test_moments_join(generator: torch.Generator) -> None:
    values = torch.randn(10, 2, generator=generator, dtype=torch.float64).numpy() * [3, 70] + [5, -900]

    def of(rows: np.ndarray) -> Moments:
        return Moments(len(rows), tuple(rows.mean(axis=0)), tuple(rows.std(axis=0)))

    found, expected = of(values[:3]).merge(of(values[3:])), of(values)
    assert found.count == 10
    assert found.mean == pytest.approx(expected.mean)
    assert found.std == pytest.approx(expected.std)


def prices(folder: pathlib.Path, mean: float, count: int = 96) -> pathlib.Path:
    """Write grey squares whose price is in how bright they are."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    lines = ["image,price,split"]
    for i in range(count):
        shade = float(draw.normal())
        noise = draw.normal(0, 4, (8, 8, 3))
        Image.fromarray((128 + 30 * shade + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < count - 32 else "val" if i < count - 16 else "test"
        lines.append(f"{i}.png,{mean + 50 * shade},{split}")
    (folder / "rows.csv").write_text("\n".join(lines))
    return folder / "rows.csv"


def test_moments_are_those_of_the_training_split(tmp_path: pathlib.Path) -> None:
    path = prices(tmp_path / "a", 1000.0, 40)
    tree = {"path": str(path), "targets": [], "numbers": {"price": {}}}
    data = Manifest(schema.parse(Manifest.Config, tree), {})
    found = data.info().moments["price"]
    own = [float(row.split(",")[1]) for row in path.read_text().splitlines()[1:] if row.endswith("train")]
    assert found.count == len(own) == 8
    assert found.mean[0] == pytest.approx(statistics.fmean(own))
    assert found.std[0] == pytest.approx(statistics.pstdev(own))
    pack_data(tmp_path / "s", data)
    named = {split: f"{split}-*.tar" for split in ("train", "val", "test")}
    packed = Shards(schema.parse(Shards.Config, {"root": str(tmp_path / "s"), **named}), {})
    assert packed.info().moments == {"price": found}
    far = {split: f"https://h/{split}-0.tar" for split in named}
    told = Shards(schema.parse(Shards.Config, {"root": str(tmp_path / "s"), **far}), {})
    assert told.info().moments == {"price": found}


def test_a_target_of_mean_1000_is_learned_in_few_steps_and_exported(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_file, path = tmp_path / "price.yaml", prices(tmp_path / "a", 1000.0)
    recipe_file.write_text(RECIPE.replace("PATH", str(path)))
    metrics = "tasks.price.metrics=[{type: regression_error}]"
    run = tmp_path / "run"
    assert main(["train", str(recipe_file), metrics, f"run_dir={run}"]) == 0
    capsys.readouterr()
    figures: list[dict[str, float]] = []
    for source in (run, run / "export"):
        assert main(["eval", str(source), "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["metrics"])
    assert figures[0] == figures[1]
    assert figures[0]["price/MAE"] < 15
    assert figures[0]["price/R2"] > 0.8
    assert figures[0]["price/loss"] < 0.3
    head = yaml.safe_load((run / "config.yaml").read_text())["model"]["heads"]["price"]["head"]
    assert head["units"] == "standard"
    assert head["mean"][0] == pytest.approx(1000, abs=20)
    assert head["std"][0] == pytest.approx(50, abs=15)

    dear = prices(tmp_path / "b", 5000.0)
    other = trained(str(run), [f"data.path={dear}"]).built
    assert other.model.config.heads["price"].head.mean == head["mean"], "not those of the data asked about"
    found = evaluate(other.learner, other.datamodule, "test").metrics
    assert found["price/MAE"] == pytest.approx(4000, abs=50)

    model = mmzoo.load(run / "export")
    prepare = model.preprocesses()["image"]
    item = prepare(prepare.open(str(tmp_path / "a" / "95.png")))
    batch = Batch(("x",), {"image": ModalityInput.stack([item], torch.zeros(1, dtype=torch.int64))})
    with torch.no_grad():
        given = model(batch).predictions["price"]["image"].values.item()
    wanted = float(path.read_text().splitlines()[-1].split(",")[1])
    assert given == pytest.approx(wanted, abs=40)
