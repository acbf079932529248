"""The recipe of driving in parts: scenes in batches, M3Net behind the doors of every model, its pictures."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import torch

from mmzoo import recipe, schema, zoo
from mmzoo.batch import Batch, DataInfo, Prediction, Sample, Target
from mmzoo.cli.scene_panels import Frame, View, colour_of, from_above, plan, sheet
from mmzoo.datamodules.collate import collate
from mmzoo.datamodules.driving import Driving
from mmzoo.datamodules.scene import Scene
from mmzoo.datamodules.world_driving.scene import NUM_VOXEL_CLASSES
from mmzoo.errors import CheckpointError, ConfigError, ShapeError
from mmzoo.layers.channel_scaling import Gate
from mmzoo.learners.balance.balancing import Place
from mmzoo.learners.meter import step_cost
from mmzoo.modalities.bev import BevGrid, BevPreprocess, VoxelPreprocess
from mmzoo.models.base import Need
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.model import M3Net
from mmzoo.models.m3net.objectives import OccupancyObjective
from mmzoo.models.m3net.options import BOXES, MAP, OCCUPANCY, M3NetConfig, Voxels
from mmzoo.models.multimodal import MultimodalModel

GRID = GridConfig(cells=8, range_m=24.0, map_cells=10, map_range_m=20.0, bottom_m=-1.0, top_m=4.0)
PASS = "camera+lidar"
SMALL = [
    "data.num_train=4", "data.num_val=2", "data.num_test=2", "data.loader.batch_size=2", "model.dim=16",
    "model.neck_channels=8", "model.hidden_dim=16", "model.layers=1", "model.num_boxes=5",
    "model.grid.cells=8", "model.grid.map_cells=10",
]  # fmt: skip


def options(**changes: object) -> M3NetConfig:
    small: dict[str, object] = {
        "camera_channels": 5, "lidar_channels": 6, "neck_channels": 8, "dim": 16, "num_heads": 4,
        "layers": 1, "hidden_dim": 16, "num_boxes": 5, "levels": 3, "grid": GRID,
    }  # fmt: skip
    return M3NetConfig(**{**small, **changes})  # pyright: ignore[reportArgumentType] options by name


def driving(config: M3NetConfig) -> Driving:
    views = {m: view.preprocess.build() for m, view in config.inputs.items()}
    return Driving.Config(num_train=4, num_val=2, num_test=2).build(views, seed=0)


# ---- labels that are lists


def test_lists_are_padded_to_the_longest_and_cut_again(generator: torch.Generator):
    boxes = [torch.randn(n, 10, generator=generator) for n in (2, 0, 3)]
    samples = [Sample(str(i), targets={}, lists={"boxes": b}) for i, b in enumerate(boxes)]
    target = collate([*samples, Sample("none")]).targets["boxes"]
    assert (target.values.shape, target.index.tolist()) == ((3, 3, 10), [0, 1, 2])
    assert all(torch.equal(a, b) for a, b in zip(target.rows(), boxes, strict=True))
    assert not target.values[0, 2:].any()
    other = dataclasses.replace(samples[0], lists={"boxes": boxes[0][:, :9]})
    with pytest.raises(ShapeError, match="Give all labels one form"):
        collate([samples[2], other])
    wrong = Batch(("a",), targets={"boxes": Target(boxes[0][None], torch.tensor([0]))})
    object.__setattr__(wrong.targets["boxes"], "sizes", torch.tensor([1, 2]))  # which types refuse, too
    with pytest.raises(ShapeError, match=r"sizes \(2,\); expected \(1,\)"):
        wrong.validate()


def test_a_scene_without_a_label_leaves_its_key_out():
    grid = BevGrid(cells=4, range_m=8.0, map_cells=4, map_range_m=8.0)
    prepare = {"lidar": BevPreprocess.Config(grid=grid, levels=2).build()}
    prepare["occupied"] = VoxelPreprocess.Config(grid=grid, levels=2).build()
    views = {"camera": np.ones((3, 4, 4)), "lidar": np.ones((2, 4, 4))}
    views["occupied"] = np.eye(4)[None].repeat(2, 0)
    sample = Scene(views, boxes=np.zeros((0, 10))).sample("a", prepare)
    assert (set(sample.inputs), set(sample.targets)) == ({"lidar", "occupied"}, set())
    assert sample.inputs["occupied"].values.dtype == torch.bool
    assert sample.lists["boxes"].shape == (0, 10)
    with pytest.raises(ShapeError, match=r"\(2, 4, 4\); expected \(7, 4, 4\)"):
        BevPreprocess.Config(grid=grid, channels=7).build()(views["lidar"])


def test_streets_are_drawn_on_the_models_grid():
    config = options(voxels=Voxels.OCCUPIED)
    batch = next(iter(driving(config).loader("val")))
    assert batch.inputs["camera"].values.shape == (2, 5, 8, 8)
    assert batch.inputs["occupied"].values.shape == batch.targets[OCCUPANCY].values.shape == (2, 3, 8, 8)
    assert bool((batch.targets[OCCUPANCY].values[batch.inputs["occupied"].values] > 0).all())
    assert batch.targets[MAP].values.shape == (2, 6, 10, 10)
    with pytest.raises(ConfigError, match=r"Set model\.lidar_channels=6\."):
        driving(options(lidar_channels=9))


# ---- M3Net as one of the models


def test_scenes_that_lack_a_view_are_left_out_and_the_others_unchanged():
    torch.manual_seed(0)
    config = options()
    model, batch = M3Net(config).eval(), next(iter(driving(config).loader("val")))
    whole = model(batch).predictions
    lidar = batch.inputs["lidar"]
    half = dataclasses.replace(lidar, values=lidar.values[1:], index=lidar.index[1:], sizes=lidar.sizes[1:])
    part = model(dataclasses.replace(batch, inputs={**batch.inputs, "lidar": half})).predictions
    for task in (BOXES, MAP, OCCUPANCY):
        assert part[task][PASS].index.tolist() == [1]
        alone, among = part[task][PASS].values[0], whole[task][PASS].values[1]
        torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-4)
    assert model(batch.select(["camera"])).predictions == {BOXES: {}, MAP: {}, OCCUPANCY: {}}
    assert set(model(batch, [MAP]).predictions) == {MAP}
    with pytest.raises(ConfigError, match="no head 'lanes'"):
        model(batch, ["lanes"])


def test_recipes_choose_tasks_labels_and_nothing_else():
    made = options().for_tasks({MAP: Need(None, (PASS,), "map"), BOXES: Need(None, (), "boxes")})
    assert (made.tasks, made.targets) == ([BOXES, MAP], {BOXES: "boxes", MAP: "map"})
    filled = M3Net.resolve(made, DataInfo({"map": ("a", "b"), "boxes": ("c",) * 9}))
    assert (filled.map_classes, filled.num_classes, filled.occupancy_classes) == (2, 9, 17)
    assert list(options(voxels=Voxels.OCCUPIED).inputs) == ["camera", "lidar", "occupied"]
    assert list(options(voxels=Voxels.OCCUPIED, tasks=[MAP]).inputs) == ["camera", "lidar"]
    with pytest.raises(ConfigError) as caught:
        options().for_tasks(
            {"lanes": Need(None, (), ""), BOXES: Need(object(), (), ""), MAP: Need(None, ("camera",), "")}
        )
    for word in ("no head in M3Net", "M3Net's own", "Leave passes out"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="it has no trunk"):
        options(lora=schema.parse(type(options().lora), {"rank": 4}))


def test_doors_of_every_model():
    torch.manual_seed(0)
    model = M3Net(options(freeze=["fusion", "near"]))
    learning = model.num_params(trainable_only=True)
    assert learning["fusion"] == learning["near"] == 0 < learning["body.decoder"]
    assert model.num_params()["total"] == sum(p.numel() for p in model.parameters())
    model.train()
    assert not model.fusion.training
    assert model.far.training
    batch = model.fake_batch(0)
    flops, tokens = step_cost(model, batch)
    model.requires_grad_(requires_grad=False)
    still, _ = step_cost(model, batch)
    assert tokens == 64
    assert still < flops < 3 * still
    with pytest.raises(ConfigError, match="M3Net has no trunk"):
        model.speed_up(checkpointing="block", compiled=False)
    with pytest.raises(ConfigError, match="a model that embeds its inputs"):
        model.encode(camera=torch.zeros(5, 8, 8))


def test_options_and_weights_survive_the_zoo(tmp_path: pathlib.Path):
    torch.manual_seed(0)
    model = M3Net(options(gate=Gate.OFF, targets={BOXES: "boxes"}))
    info = DataInfo({"boxes": tuple("abcdefghij")})
    zoo.export(model, tmp_path, zoo.describe(model, info))
    again, config = zoo.load_with_config(tmp_path)
    assert isinstance(again, M3Net)
    assert again.config == model.config
    assert config["preprocessing"]["lidar"]["channels"] == 6
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_options_without_a_type_are_a_multimodal_models():
    assert isinstance(zoo.model_options({"trunk": {"depth": 2}}), MultimodalModel.Config)
    assert recipe.load("five_senses").to_dict()["model"]["type"] == "multimodal"
    with pytest.raises(ConfigError, match="Did you mean 'm3net'"):
        zoo.model_options({"type": "m3ne"})


def test_a_joint_run_starts_a_single_task_model(tmp_path: pathlib.Path):
    torch.manual_seed(0)
    joint = M3Net(options())
    zoo.export(joint, tmp_path, zoo.describe(joint, DataInfo()))
    alone = M3Net(options(tasks=[MAP]))
    report = zoo.start_from(alone, tmp_path)
    assert report.taken == len(alone.state_dict())
    back = M3Net(options())
    zoo.export(alone, tmp_path / "alone", zoo.describe(alone, DataInfo()))
    zoo.start_from(back, tmp_path / "alone")  # what the other tasks need starts anew
    assert torch.equal(back.body.shared.weight, alone.body.shared.weight)


def test_weights_of_another_program_are_refused(tmp_path: pathlib.Path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="expected weights of M3Net"):
        zoo.start_from(M3Net(options()), tmp_path / "model.pt")


def test_overrides_switch_parts_and_balance_works():
    config = recipe.load("driving", [*SMALL, "model.fusion=conv", "model.gate=off", "balance=pcgrad"])
    assert (config.model.fusion.value, config.model.gate) == ("conv", Gate.OFF)
    built = recipe.build(config)
    batch = next(iter(built.datamodule.loader("train")))
    states = {n: t.loss(built.model(batch), batch) for n, t in built.learner.tasks.items()}
    at = built.learner.balancing
    total, _ = at.total(states, [], lambda part: part.mean(), built.model, Place(0, 0, 0))
    total.backward()
    assert torch.isfinite(total)
    assert built.model.body.shared.weight.grad is not None
    alone = recipe.build(recipe.load("driving", [*SMALL, "only=[map]"]))
    assert alone.model.config.tasks == [MAP]
    assert set(alone.datamodule.preprocesses) == {"camera", "lidar"}


# ---- how much a class of voxels weighs


def entropy(data: DataInfo, counts: dict[str, float], expected: list[float] | None) -> None:
    """Compare with a cross-entropy whose classes weigh 1 / log(count), in the order of the logits."""
    logits = torch.randn(1, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[[0, 1], [2, 2]]]])
    objective = OccupancyObjective.Config(counts=counts).build()
    objective.learn_classes(data, "what")
    given = {PASS: Prediction(logits, torch.tensor([0]))}
    batch = Batch(("a",), targets={"what": Target(labels, torch.tensor([0]))})
    weight = 1 / torch.log(torch.tensor(expected or [2.0, 2.0, 2.0]) + 1e-3)  # a batch's own: at least 2
    found = objective(given, batch, "what").parts["entropy"].mean()
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels, weight=weight))


def test_voxels_weigh_by_counts_of_their_names_else_by_the_datas_else_by_the_batchs() -> None:
    names, of_data = ("free", "car", "bus"), {"car": 30.0, "free": 900.0, "bus": 7.0}
    known = DataInfo({"what": names}, class_counts={"what": of_data})
    entropy(known, {}, [900.0, 30.0, 7.0])
    entropy(known, {"bus": 50.0, "car": 40.0, "free": 60.0}, [60.0, 40.0, 50.0])
    entropy(DataInfo({"what": names}), {}, None)


@pytest.mark.parametrize(
    ("counts", "found", "do"),
    [
        ({"free": 9.0, "cars": 5.0, "bus": 7.0}, "no class cars; no count of car", "Did you mean 'car'?"),
        ({"free": 9.0}, "no count of car, bus", "Add them, or leave counts out."),
    ],
)
def test_counts_of_other_classes_are_refused(counts: dict[str, float], found: str, do: str) -> None:
    objective = OccupancyObjective.Config(counts=counts).build()
    with pytest.raises(ConfigError) as caught:
        objective.learn_classes(DataInfo({"what": ("free", "car", "bus")}), "what")
    assert str(caught.value) == f"counts: {found}; expected one for each class of what. {do}"


def test_counts_of_the_recipe_are_checked_before_anything_is_trained() -> None:
    with pytest.raises(
        ConfigError, match=r"tasks\.occupancy\.objective\.counts: no class house; no count of"
    ):
        recipe.build(recipe.load("driving", [*SMALL, "tasks.occupancy.objective.counts={free: 9, house: 5}"]))
    with pytest.raises(ConfigError, match=r"counts\.car: -1; expected 0 or more"):
        OccupancyObjective.Config(counts={"car": -1.0})
    counts = recipe.build(recipe.load("driving", SMALL)).learner.tasks["occupancy"].objective.counts
    assert len(counts) == NUM_VOXEL_CLASSES
    assert (counts[0], counts[-1]) == (1_617_000, 32_700)


# ---- pictures


def test_a_box_lies_where_it_is_and_up_is_up():
    frame = Frame(20.0, 20.0, {"boxes": ("car",)})
    here = View(boxes=np.array([[10.0, 10.0, 8.0, 4.0, 0.0, 0]]))
    pixels = np.asarray(plan(here, frame))
    marked = np.argwhere((pixels == colour_of("boxes", 0)).all(axis=-1))
    (top, left), (bottom, right) = marked.min(axis=0), marked.max(axis=0)
    side = pixels.shape[0]
    assert np.allclose([left, right], [side * 26 / 40, side * 34 / 40], atol=2)
    assert np.allclose([top, bottom], [side * 8 / 40, side * 12 / 40], atol=2)


def test_the_highest_voxel_is_seen_brighter_the_higher():
    voxels = np.zeros((3, 2, 2), dtype=np.int64)
    voxels[0, 0, 0], voxels[:, 0, 1], voxels[:, 1, 1] = 1, 1, 255
    pixels = np.asarray(from_above(View(voxels=voxels), Frame(1.0, 1.0, {})))
    low, high = pixels[-1, 0].astype(int), pixels[-1, -1].astype(int)
    assert high.tolist() == list(colour_of("occupancy", 1))
    assert low.sum() < high.sum()
    assert pixels[0, 0].tolist() == list(colour_of("occupancy", 0))
    assert len({tuple(p) for p in pixels.reshape(-1, 3)}) == 4


def test_the_sheet_has_a_row_for_each_scene_and_only_what_is_predicted():
    ground = np.zeros((2, 4, 4), dtype=bool)
    views = [(View(ground=ground), View(ground=ground))] * 3
    frame = Frame(20.0, 20.0, {"map": ("road", "walk")})
    small = sheet(views, frame)
    both = View(ground=ground, voxels=np.zeros((2, 4, 4), dtype=np.int64))
    wide = sheet([(both, both)] * 3, frame)
    assert wide.width > 1.8 * small.width
    assert sheet(views[:1], frame).height < 0.5 * small.height
