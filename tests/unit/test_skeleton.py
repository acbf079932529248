"""Window tokens: the partition's formula, masks, and rows of a ragged batch against each motion alone."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from mmzoo.batch import ModalityInput
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.modalities.skeleton import SkeletonAdapter
from mmzoo.modalities.windows import WindowMode, any_real, partition
from mmzoo.schema import parse

MODES = pytest.mark.parametrize("mode", list(WindowMode))


def adapter(**options: object) -> SkeletonAdapter:
    torch.manual_seed(0)
    small: dict[str, object] = {
        "preprocess": {"layout": "ntu25"},
        "window": {"frames": 3, "joints": 10, "entities": 1},
    }
    made = SkeletonAdapter(parse(SkeletonAdapter.Config, small | options), name="body", dim=8, num_heads=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def ragged(extents: list[tuple[int, int]], filler: float = 0.0, share: float = 0.8) -> ModalityInput:
    generator = torch.Generator().manual_seed(1)
    frames, entities = (max(e[i] for e in extents) for i in range(2))
    values = torch.full((len(extents), 3, frames, 25, entities), filler)
    valid = torch.zeros(len(extents), frames, 25, entities, dtype=torch.bool)
    for row, (t, p) in enumerate(extents):
        values[row, :, :t, :, :p] = torch.randn(3, t, 25, p, generator=generator)
        valid[row, :t, :, :p] = torch.rand(t, 25, p, generator=generator) < share
    sizes = torch.tensor([[3, t, 25, p] for t, p in extents])
    return ModalityInput(values, torch.arange(len(extents)), sizes, valid)


def source(size: int, window: int, mode: WindowMode, i: int, j: int) -> int:
    """Return which element is the i-th of window j, before clamping to the axis."""
    count = -(-size // window)
    return i * count + j if mode is WindowMode.STRIDED else j * window + i


@MODES
@pytest.mark.parametrize("window", [(4, 1, 2), (5, 4, 2), (2, 3, 1), (9, 9, 9)])
def test_partition_is_the_formula(mode: WindowMode, window: tuple[int, int, int]) -> None:
    extent = (7, 5, 3)
    x = torch.randn(2, 3, *extent)
    seen = torch.rand(2, *extent) < 0.3
    made, real = partition(x, window, mode), any_real(seen, window, mode)
    counts = [-(-s // w) for s, w in zip(extent, window, strict=True)]
    assert made.shape == (2, 3, window[0], window[1] * window[2], counts[0] * counts[1] * counts[2])
    for u, (t, j, e) in enumerate(itertools.product(*map(range, counts))):
        shown = torch.zeros(2, dtype=torch.bool)
        for a, b, c in itertools.product(*map(range, window)):
            place = [
                source(s, w, mode, i, n)
                for s, w, i, n in zip(extent, window, (a, b, c), (t, j, e), strict=True)
            ]
            inside = [min(p, s - 1) for p, s in zip(place, extent, strict=True)]
            assert torch.equal(made[:, :, a, b * window[2] + c, u], x[:, :, inside[0], inside[1], inside[2]])
            if place == inside:
                shown |= seen[:, place[0], place[1], place[2]]
        assert torch.equal(real[:, u], shown)


@MODES
@pytest.mark.parametrize("embedding", ["linear", "pointwise"])
def test_a_motion_in_a_ragged_batch_equals_the_motion_alone(mode: WindowMode, embedding: str) -> None:
    model = adapter(mode=mode.value, embedding=embedding, position_blocks=3)
    x = ragged([(13, 2), (4, 1), (13, 1), (4, 2), (1, 2)], filler=50.0)
    together = model(x)
    for row, (_, t, _, p) in enumerate(x.sizes.tolist()):
        assert x.valid is not None
        part = ModalityInput(
            x.values[row : row + 1, :, :t, :, :p],
            x.index[:1],
            x.sizes[row : row + 1],
            x.valid[row : row + 1, :t, :, :p],
        )
        alone = model(part)
        n = alone.tokens.shape[1]
        real = alone.valid[0]
        assert torch.equal(together.valid[row, :n], real)
        assert not together.valid[row, n:].any()
        torch.testing.assert_close(together.tokens[row, :n][real], alone.tokens[0][real], rtol=0, atol=1e-5)


def test_what_was_not_seen_changes_nothing_but_zero_does() -> None:
    model, x = adapter(), ragged([(6, 2)])
    assert x.valid is not None
    other = ModalityInput(torch.where(x.valid[:, None], x.values, 99.0), x.index, x.sizes, x.valid)
    assert torch.equal(model(x).tokens, model(other).tokens)
    seen_as_zero = ModalityInput(x.values * x.valid[:, None], x.index, x.sizes, torch.ones_like(x.valid))
    assert not torch.allclose(model(x).tokens, model(seen_as_zero).tokens, atol=1e-3)


def test_missing_persons_have_no_tokens() -> None:
    model, x = adapter(), ragged([(6, 2), (6, 2)], share=1.0)
    assert x.valid is not None
    full = model(x)
    assert full.valid.all()
    assert full.grids == ((2, 3, 2), (2, 3, 2))
    x.valid[1, ..., 1] = False
    half = model(x)
    assert half.grids is None
    assert half.valid[0].all()
    assert half.valid[1, 1:].tolist() == [True, False] * 6


def test_tokens_follow_the_formula() -> None:
    model, x = adapter(), ragged([(5, 2)])
    out, state = model(x), model.state_dict()
    assert x.valid is not None
    extent, window = (5, 25, 2), (3, 10, 1)
    for u, (t, j, e) in enumerate(itertools.product(range(2), range(3), range(2))):
        content = torch.zeros(4, 3, 10)
        for a, b in itertools.product(range(3), range(10)):
            place = min(t * 3 + a, 4), min(j * 10 + b, 24), e
            seen = x.valid[0][place].float()
            content[:3, a, b] = x.values[0, :, place[0], place[1], place[2]] * seen
            content[3, a, b] = seen
        position = state["frame_positions.table"][t] + state["joint_positions.table"][j]
        expected = state["projection.weight"] @ content.flatten() + state["projection.bias"] + position
        expected = expected + state["entity_positions.table"][e]
        torch.testing.assert_close(out.tokens[0, 1 + u], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(out.tokens[0, 0], state["cls_token"][0, 0])
    assert out.num_prefix == 1
    assert out.tokens.shape[1] == 1 + 2 * 3 * 2 == 1 + len(list(itertools.product(*map(range, (2, 3, 2)))))
    assert [-(-s // w) for s, w in zip(extent, window, strict=True)] == [2, 3, 2]


def test_pointwise_embeds_each_joint_by_itself() -> None:
    model, x = adapter(embedding="pointwise", point_dim=4), ragged([(3, 1)], share=1.0)
    state = model.state_dict()
    points = x.values[0].permute(1, 2, 3, 0) @ state["point.linear.weight"].T + state["point.linear.bias"]
    points = F.layer_norm(points, (4,), state["point.norm.weight"], state["point.norm.bias"])
    points = torch.where(points > 0, points, 0.1 * points)
    first = points[:, :10, 0].permute(2, 0, 1).flatten()
    tables = ("frame_positions", "joint_positions", "entity_positions")
    position = sum((state[f"{table}.table"][0] for table in tables), torch.zeros(8))
    expected = state["projection.weight"] @ first + state["projection.bias"] + position
    torch.testing.assert_close(model(x).tokens[0, 1], expected, rtol=1e-4, atol=1e-4)


def test_windows_default_to_all_joints_and_one_person() -> None:
    model = adapter(window={"frames": 3})
    assert model.config.window_size == (3, 25, 1)
    assert adapter(window={"frames": 2, "entities": None}).config.window_size == (2, 25, 2)
    assert model(ragged([(6, 2)])).tokens.shape[1] == 1 + 2 * 2


def test_wrong_input_and_options_are_refused() -> None:
    model, x = adapter(), ragged([(5, 2)])
    with pytest.raises(
        ShapeError, match=r"body: values \(1, 2, 5, 25, 2\); expected \(k, 3, frames, 25, at most 2\)"
    ):
        model(ModalityInput(x.values[:, :2], x.index, x.sizes, x.valid))
    with pytest.raises(ConfigError, match="window: 3 x 0 x 1; expected one or more, or null"):
        adapter(window={"frames": 3, "joints": 0})
    with pytest.raises(ConfigError, match="point_dim, position_blocks: 16, 0"):
        adapter(position_blocks=0)


def test_fake_input_is_ragged_with_gradients_everywhere(generator: torch.Generator) -> None:
    model = adapter()
    x = SkeletonAdapter.fake_input(model.config, 6, generator)
    assert len(set(x.sizes[:, 1].tolist())) > 1
    out = model(x)
    assert not out.valid.all()
    assert out.valid[:, 1].all()
    out.tokens[out.valid].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
