"""M3Net: operators against loops, batch safety, learning, losses and figures against hand-made cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mmzoo import registry
from mmzoo.batch import IGNORE, Batch, DataInfo, Item, ModalityInput, Target
from mmzoo.datamodules.world_driving.scene import DRIVABLE, NUM_VOXEL_CLASSES
from mmzoo.datamodules.world_driving.views import DrivingConfig, Scenes, lidar_channels, scenes
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.layers.channel_scaling import Gate, TaskChannelScaling
from mmzoo.layers.deformable import DeformableAttention
from mmzoo.layers.lift import frustum, lift, to_cells
from mmzoo.layers.mafi import ChannelAttention, Mafi
from mmzoo.models.m3net import losses as m3losses
from mmzoo.models.m3net.geometry import area, clip, corners, iou_3d
from mmzoo.models.m3net.grid import GridConfig, MapSampling
from mmzoo.models.m3net.heads import decode_boxes, encode_boxes
from mmzoo.models.m3net.interop import from_head
from mmzoo.models.m3net.losses import MatchConfig
from mmzoo.models.m3net.model import M3Net
from mmzoo.models.m3net.options import BOXES, MAP, OCCUPANCY, Compat, Fusion, M3NetConfig
from mmzoo.models.m3net.parts import PositionEmbedding
from mmzoo.models.m3net.queries import OccupancyQueries

WORLD = DrivingConfig(cells=12, range_m=24.0, map_cells=10, map_range_m=20.0, levels=3, camera_channels=5)
GRID = GridConfig(cells=12, range_m=24.0, map_cells=10, map_range_m=20.0)


def options(**changes: object) -> M3NetConfig:
    small: dict[str, object] = {
        "camera_channels": 5, "lidar_channels": lidar_channels(WORLD), "neck_channels": 8, "dim": 16,
        "num_heads": 4, "layers": 2, "hidden_dim": 16, "num_boxes": 6, "levels": 3, "grid": GRID,
    }  # fmt: skip
    return M3NetConfig(**{**small, **changes})  # pyright: ignore[reportArgumentType] options by name


def batch_of(made: Scenes) -> Batch:
    """Return simulated scenes as the datamodule would."""
    size, index = len(made.boxes), torch.arange(len(made.boxes))
    views = {"camera": made.camera, "lidar": made.lidar, "occupied": made.occupied}
    inputs = {m: ModalityInput.stack([Item(v) for v in x], index) for m, x in views.items()}
    boxes = [torch.cat([b, k[:, None].float()], dim=1) for b, k in zip(made.boxes, made.classes, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)
    targets = {
        BOXES: Target(padded, index, torch.tensor([len(b) for b in boxes])),
        MAP: Target(made.map, index),
        OCCUPANCY: Target(made.occupancy, index),
    }
    return Batch(tuple(map(str, range(size))), inputs, targets)


def losses(model: M3Net, batch: Batch, tasks: list[str] | None = None) -> dict[str, Tensor]:
    out = model(batch, tasks)
    made = {task: registry.find("objectives", f"m3net_{task}").Config().build() for task in out.predictions}
    return {task: made[task](found, batch, task).mean() for task, found in out.predictions.items()}


# ---- operators


@pytest.mark.parametrize("axes", [2, 3])
def test_deformable_attention_equals_a_loop(axes: int, generator: torch.Generator):
    size = (3, 5) if axes == 2 else (2, 3, 5)
    layer = DeformableAttention(8, num_heads=2, num_points=3, axes=axes)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    query, value = torch.randn(2, 4, 8, generator=generator), torch.randn(2, 8, *size, generator=generator)
    reference = torch.rand(2, 4, axes, generator=generator)
    found = layer(query, reference, value)
    volume = layer.value_proj(value.movedim(1, -1))  # b *size d
    offsets = layer.sampling_offsets(query).view(2, 4, 2, 3, axes)
    weights = layer.attention_weights(query).view(2, 4, 2, 3).softmax(dim=-1)
    expected = torch.zeros(2, 4, 8)
    for b, q, h, p in itertools.product(range(2), range(4), range(2), range(3)):
        at = reference[b, q] * torch.tensor(size[::-1]) + offsets[b, q, h, p] - 0.5  # in cells, x first
        low = at.floor().long()
        for corner in itertools.product((0, 1), repeat=axes):
            place = low + torch.tensor(corner)
            share = math.prod(float((1 - abs(at[i] - place[i])).detach()) for i in range(axes))
            if all(0 <= int(place[i]) < size[::-1][i] for i in range(axes)):
                row = volume[(b, *[int(i) for i in place.flip(0)])][h * 4 : h * 4 + 4]
                expected[b, q, h * 4 : h * 4 + 4] += weights[b, q, h, p] * share * row
    torch.testing.assert_close(found, layer.output_proj(expected), rtol=1e-4, atol=1e-5)


def test_deformable_heads_start_looking_in_different_directions():
    offsets = DeformableAttention(16, num_heads=8, num_points=2).sampling_offsets.bias.view(8, 2, 2)
    assert torch.allclose(offsets[:, 1], 2 * offsets[:, 0])
    assert len({tuple(round(v, 3) for v in row) for row in offsets[:, 0].tolist()}) == 8


def test_mafi_shares_or_separates_its_attention(generator: torch.Generator):
    a, b = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 4, 4, generator=generator)
    shared = Mafi(3, 5, 6, ChannelAttention.SHARED).eval()
    fused = shared.joint(torch.cat([a, b], dim=1))
    gates = [
        torch.sigmoid(
            (shared.gate_second.weight[:, :, 0, 0] @ branch(x).mean(dim=(2, 3)).T).T + shared.gate_second.bias
        )
        for branch, x in ((shared.second, b), (shared.first, a))
    ]
    torch.testing.assert_close(shared(a, b), fused * (gates[0] + gates[1])[:, :, None, None])
    separate = Mafi(3, 5, 6)
    assert separate.gate_first is not None
    separate.load_state_dict(shared.state_dict(), strict=False)
    assert not torch.allclose(separate.eval()(a, b), shared(a, b))


@pytest.mark.parametrize("kind", list(Gate))
def test_channel_scaling(kind: Gate, generator: torch.Generator):
    tcs = TaskChannelScaling(4, ["a", "b"], kind)
    x = torch.randn(2, 3, 4, generator=generator)
    if kind is Gate.OFF:
        assert tcs(x, "a") is x
        assert not list(tcs.parameters())
        return
    assert not torch.allclose(tcs(x, "a"), tcs(x, "b"))
    torch.testing.assert_close(tcs(x, "a"), x * tcs.gate(x, "a"))
    assert kind is Gate.LINEAR or bool((tcs.gate(x, "a") > 0).all())


def test_lifting_equals_a_loop(generator: torch.Generator):
    intrinsics = torch.tensor([[4.0, 0.0, 6.0], [0.0, 4.0, 4.0], [0.0, 0.0, 1.0]])[None].repeat(2, 1, 1)
    points = frustum((2, 3), 4.0, torch.tensor([1.0, 5.0]), intrinsics)
    torch.testing.assert_close(points[0, 1, 0, 0], 5 * torch.tensor([(2 - 6) / 4, (2 - 4) / 4, 1.0]))
    points = points[..., [2, 0, 1]]  # forward is x of the vehicle
    features, depth = (
        torch.randn(2, 4, 2, 3, generator=generator),
        torch.rand(2, 2, 2, 3, generator=generator),
    )
    found = lift(features, depth, points, (4, 4), 6.0)
    expected = torch.zeros(2, 4, 4, 4)
    for b, d, h, w in itertools.product(range(2), range(2), range(2), range(3)):
        x, y = (math.floor((float(points[b, d, h, w, i]) + 6) / 12 * 4) for i in (0, 1))
        if 0 <= x < 4 and 0 <= y < 4:
            expected[b, :, y, x] += depth[b, d, h, w] * features[b, :, h, w]
    torch.testing.assert_close(found, expected)
    _, inside = to_cells(torch.tensor([[0.0, 7.0, 0.0], [0.0, -6.0, 0.0]]), (4, 4), 6.0)
    assert inside.tolist() == [False, True]


# ---- the model


def test_a_batch_gives_what_its_scenes_give_alone():
    torch.manual_seed(0)
    model, batch = M3Net(options()).eval(), scenes(WORLD, 0, range(3))
    whole = model.predict(batch.camera, batch.lidar)
    assert whole.occupancy is not None
    for i in range(3):
        alone = model.predict(batch.camera[i : i + 1], batch.lidar[i : i + 1])
        torch.testing.assert_close(alone.boxes["boxes"][0], whole.boxes["boxes"][i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.map["logits"][0], whole.map["logits"][i], rtol=1e-4, atol=1e-4)
        assert alone.occupancy is not None
        torch.testing.assert_close(alone.occupancy[0], whole.occupancy[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compat", list(Compat))
def test_every_parameter_learns_and_tasks_can_be_left_out(compat: Compat):
    torch.manual_seed(0)
    model, batch = M3Net(options(compat=compat)), scenes(WORLD, 0, range(2))
    found = losses(model, batch_of(batch))
    assert set(found) == {BOXES, MAP, OCCUPANCY}
    torch.stack(list(found.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == (
        ["body.occupancy_head.empty"] if model.body.occupancy_head.empty.grad is None else []
    )
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    some = model.predict(batch.camera, batch.lidar, tasks=[MAP])
    assert not some.boxes
    assert some.occupancy is None
    unlabelled = Batch(("0", "1"), batch_of(batch).inputs)
    assert [float(loss.detach()) for loss in losses(model, unlabelled).values()] == [0.0, 0.0, 0.0]


def test_known_voxels_are_asked_each_by_itself():
    torch.manual_seed(0)
    model, batch = M3Net(options(tasks=[OCCUPANCY])).eval(), scenes(WORLD, 0, range(2))
    occupied = batch.occupancy[:, :, :, :] > 0
    occupied[:, 0] = False
    out = model.predict(batch.camera, batch.lidar, occupied)
    owner = out.queries[OCCUPANCY].extra["owner"]
    assert torch.equal(owner >= 0, occupied.flatten(1))
    for row in owner:
        assert sorted(row[row >= 0].tolist()) == list(range(int((row >= 0).sum())))
    assert out.occupancy is not None
    assert out.occupancy.shape == (2, NUM_VOXEL_CLASSES, 3, 12, 12)


def test_it_learns_two_streets():
    torch.manual_seed(0)
    model, batch = M3Net(options(fusion=Fusion.CONV)), scenes(WORLD, 0, range(2))
    labelled = batch_of(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    seen: list[dict[str, float]] = []
    for _ in range(25):
        found = losses(model, labelled)
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimizer.step()
        seen.append({k: float(v.detach()) for k, v in found.items()})
    for task in (BOXES, MAP, OCCUPANCY):
        assert seen[-1][task] < 0.8 * seen[0][task], task


def test_the_map_is_sampled_at_its_cells_centres():
    """A view that holds its cells' positions gives those of the map: interpolation is linear."""
    metres = GRID.centres().T.reshape(1, 2, 12, 12) * GRID.cell_m - GRID.range_m
    at = (torch.arange(10) + 0.5) * 4.0 - 20.0
    y, x = torch.meshgrid(at, at, indexing="ij")
    torch.testing.assert_close(GRID.to_map(metres)[0], torch.stack([x, y]))
    torch.testing.assert_close(
        GRID.map_centres() * GRID.cell_m - GRID.range_m, torch.stack([x, y], dim=-1).reshape(-1, 2)
    )
    released = GRID.map_centres(MapSampling.RELEASED) * GRID.cell_m - GRID.range_m
    torch.testing.assert_close(released[0], torch.tensor([-20.0, -20.0]) * 11 / 12)
    whole = GridConfig(cells=12, range_m=24.0, map_cells=10, map_range_m=24.0)
    torch.testing.assert_close(whole.to_map(torch.ones(1, 1, 12, 12)), torch.ones(1, 1, 10, 10))


def test_small_classes_follow_the_datas_names():
    config = options(targets={BOXES: "boxes"})
    few = M3Net.resolve(config, DataInfo({"boxes": ("van", "pedestrian", "cow")}))
    assert (few.num_classes, few.small_classes) == (3, [1])
    M3Net(few)
    ten = M3Net.resolve(config, DataInfo({"boxes": ("pedestrian", *"abcdefghi")}))
    assert ten.small_classes == [0]
    assert M3Net.resolve(config, DataInfo({})).small_classes == [8, 9]
    with pytest.raises(ConfigError, match=r"small_classes: \[7\]; expected classes 0 to 2"):
        M3Net.resolve(
            options(targets={BOXES: "boxes"}, small_classes=[7]), DataInfo({"boxes": ("a", "b", "c")})
        )


def test_padded_voxels_leave_the_statistics_alone():
    """Scenes of few and many occupied voxels: what fills the short row up counts for nothing."""
    queries, embed = OccupancyQueries(3, 1), PositionEmbedding(3, 8)
    occupied = torch.zeros(2, 3, 12, 12, dtype=torch.bool)
    occupied[0, 0, 0, 0] = True
    occupied[1, 1, 4] = True
    seen: list[int] = []
    embed.norm.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    queries(torch.zeros(2, 8, 12, 12), embed, occupied)
    queries(torch.zeros(2, 8, 12, 12), embed, torch.zeros_like(occupied))
    assert seen == [13, 2]
    embed.eval()
    alone = [queries(torch.zeros(1, 8, 12, 12), embed, row[None]).embedding[0] for row in occupied]
    together = queries(torch.zeros(2, 8, 12, 12), embed, occupied).embedding
    torch.testing.assert_close(together[0, :1], alone[0])
    torch.testing.assert_close(together[1], alone[1])


def test_heat_maps_start_where_the_focal_loss_wants_them():
    torch.manual_seed(0)
    out = M3Net(options()).predict(torch.randn(2, 5, 12, 12), torch.randn(2, lidar_channels(WORLD), 12, 12))
    for logits in (out.queries[BOXES].extra["heatmap"], out.boxes["heatmap"]):
        assert (logits.sigmoid() - 0.1).abs().median() < 0.05


def test_options_that_do_not_fit_are_told():
    with pytest.raises(ConfigError, match="expected some of boxes, map, occupancy"):
        options(tasks=["lanes"])
    for name in ("stripes", "layers", "pool", "num_boxes", "dim"):
        with pytest.raises(ConfigError, match=f"{name}: 0; expected 1 or more. Leave it out"):
            options(**{name: 0})
    with pytest.raises(ConfigError, match=r"small_classes: \[12\]; expected classes 0 to 9"):
        options(small_classes=[12])
    with pytest.raises(ConfigError, match=r"3 stripes of 10 rows; expected a divisor"):
        options(stripes=3)
    with pytest.raises(ConfigError, match="a multiple of num_heads"):
        options(num_heads=3)
    with pytest.raises(ConfigError, match="a map within the view"):
        GridConfig(map_range_m=60.0)
    with pytest.raises(CheckpointError, match=r"'what\.weight': unknown"):
        from_head({"what.weight": torch.zeros(1)})


# ---- boxes, losses, figures


def box(x: float = 0.0, y: float = 0.0, length: float = 4.0, width: float = 2.0, yaw: float = 0.0) -> Tensor:
    return torch.tensor([x, y, 1.0, length, width, 1.5, yaw, 1.0, -2.0])


def test_boxes_survive_their_code():
    made = torch.stack([box(3, -5, yaw=2.5), box(-20, 11, 1, 0.5, -3.0)])
    code = encode_boxes(made, GRID)
    names = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    parts = dict(zip(names, code[None].split(list(names.values()), dim=-1), strict=True))
    torch.testing.assert_close(decode_boxes(parts, GRID)[0], made)


def test_overlap_of_rotated_boxes():
    one = box().double().numpy()[None]
    same, turned = box(yaw=math.pi).double().numpy()[None], box(yaw=math.pi / 2).double().numpy()[None]
    moved, far = box(x=2.0).double().numpy()[None], box(x=9.0).double().numpy()[None]
    assert iou_3d(one, same)[0, 0] == pytest.approx(1)
    assert iou_3d(one, turned)[0, 0] == pytest.approx(4 / 12)  # 2x2 of 8 + 8 - 4
    assert iou_3d(one, moved)[0, 0] == pytest.approx(4 / 12)
    assert iou_3d(one, far)[0, 0] == 0
    square = corners(box(0, 0, 2, 2).double().numpy()[None])[0]
    diamond = corners(box(0, 0, 2, 2, math.pi / 4).double().numpy()[None])[0]
    assert area(clip(square, diamond)) == pytest.approx(8 * (math.sqrt(2) - 1))  # a regular octagon


def test_matching_is_the_cheapest_assignment(generator: torch.Generator):
    logits = torch.randn(4, 3, generator=generator)
    boxes = torch.stack([box(x=float(x)) for x in (0, 5, -8, 3)])
    wanted, kinds = torch.stack([box(x=4.6), box(x=-7.0), box(x=0.4)]), torch.tensor([0, 1, 2])
    flat = MatchConfig(cost_class=0.0)
    rows, columns = m3losses.match(logits, boxes, wanted, kinds, GRID, flat)
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 2, 2: 0}
    with pytest.raises(ConfigError, match=r"boxes: predictions that are not finite; .* lower learner"):
        m3losses.match(logits * torch.nan, boxes, wanted, kinds, GRID, MatchConfig())


def test_focal_losses_against_their_formulas():
    logits, target = torch.tensor([[[[0.3, -1.2]]]]), torch.tensor([[[[1.0, 0.0]]]])
    p = logits.sigmoid()
    by_hand = (
        -((1 - p[0, 0, 0, 0]) ** 2) * p[0, 0, 0, 0].log() - p[0, 0, 0, 1] ** 2 * (1 - p[0, 0, 0, 1]).log()
    )
    torch.testing.assert_close(m3losses.map_focal(logits, target), by_hand[None] / 2)
    soft = torch.tensor([[[[1.0, 0.6]]]])
    by_hand = -((1 - p[0, 0, 0, 0]) ** 2) * p[0, 0, 0, 0].log()
    by_hand = by_hand - p[0, 0, 0, 1] ** 2 * 0.4**4 * (1 - p[0, 0, 0, 1]).log()
    torch.testing.assert_close(m3losses.gaussian_focal(logits, soft), by_hand)


def test_the_heat_maps_peak_is_at_the_boxs_cell_and_its_radius_keeps_the_overlap():
    heat = m3losses.heatmap_target(
        [torch.cat([box(x=5.0, y=-9.0), torch.tensor([2.0])])[None]], torch.zeros(1, 3, 12, 12), GRID
    )
    assert [int(i) for i in (heat == 1).nonzero()[0]] == [0, 2, int((-9 + 24) / 4), int((5 + 24) / 4)]
    assert heat[:, :2].abs().sum() == 0
    length, width = 40.0, 25.0
    r = m3losses.gaussian_radius(length, width, 0.3)
    both = [
        (length - r) * (width - r) / (2 * length * width - (length - r) * (width - r)),
        (length - 2 * r) * (width - 2 * r) / (length * width),
        length * width / ((length + 2 * r) * (width + 2 * r)),
    ]
    assert min(both) == pytest.approx(0.3, abs=1e-6)


def test_lovasz_is_the_jaccard_loss_at_the_corners():
    labels = torch.tensor([0, 0, 1, 1, 1])
    guessed = torch.tensor([0, 1, 1, 1, 0])
    p = torch.nn.functional.one_hot(guessed, 2).float()
    expected = 1 - torch.tensor([1 / 3, 2 / 4])
    torch.testing.assert_close(m3losses.lovasz(p, labels), expected.mean())


def occupancy_loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    return torch.stack(list(m3losses.occupancy_losses(logits, target, counts).values())).sum()


def test_occupancy_loss_falls_with_being_right_and_leaves_out_the_unknown():
    target = torch.randint(0, 4, (1, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    right = 8.0 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1).float()
    counts = torch.full((4,), 100.0)
    good, bad = (occupancy_loss(x, target, counts) for x in (right, -right))
    assert float(good) < 0.05 < float(bad)
    hidden, garbage = target.clone(), right.clone()
    hidden[0, 0, 0, 0] = IGNORE
    garbage[0, :, 0, 0, 0] = 99.0
    torch.testing.assert_close(occupancy_loss(garbage, hidden, counts), occupancy_loss(right, hidden, counts))


# ---- the world


def test_streets_depend_on_their_number_alone_and_agree_with_themselves():
    a, b = scenes(WORLD, 3, [4, 5]), scenes(WORLD, 3, [5])
    assert torch.equal(a.camera[1], b.camera[0])
    assert torch.equal(a.boxes[1], b.boxes[0])
    assert not torch.equal(scenes(WORLD, 4, [5]).camera, b.camera)
    for i in range(2):
        cells = ((a.boxes[i][:, :2] + WORLD.range_m) / (2 * WORLD.range_m) * WORLD.cells).long()
        kinds = a.occupancy[i, 1, cells[:, 1], cells[:, 0]]
        agree = kinds == a.classes[i] + 1
        assert float(agree.float().mean()) > 0.6  # neighbours may share a cell
        assert set(a.map[i].unique().tolist()) <= {0.0, 1.0}
    assert int((a.occupancy[:, 0] == DRIVABLE).sum()) > 0
