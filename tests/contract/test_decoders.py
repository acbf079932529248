"""What every decoder must do, whichever rows the table has; and every head that reads a decoder's map."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.fakes import INFO, NAMES, TARGET
from mmzoo import registry, schema
from mmzoo.batch import FeatureMap, PredictionKind
from mmzoo.decoders.base import Decoded, Decoder
from mmzoo.heads.base import Head

ROWS = sorted(registry.table("decoders"))
HEADS = sorted(k for k in registry.table("heads") if getattr(registry.find("heads", k), "reads_maps", False))
DIMS, TASKS, WIDTH = (6, 6, 10), ("colour", "shape"), 8
SMALL: dict[str, dict[str, Any]] = {
    "mlore": {"ranks": [1, 2, 3], "top_k": 3, "task_rank": 2, "pool_grid": [4, 3]}
}


def options(name: str, **changes: Any) -> Any:
    tree = {"width": WIDTH, **SMALL.get(name, {}), **changes}
    return schema.parse(registry.find("decoders", name).Config, tree)


def build(name: str, seed: int = 0, **changes: Any) -> Decoder:
    torch.manual_seed(seed)
    made = options(name, **changes).build(dims=DIMS, tasks=TASKS)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return made


def levels(rows: int = 3, grid: tuple[int, int] = (4, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, dim, *grid, generator=generator) for dim in DIMS]


def run(made: Decoder, given: list[Tensor], tasks: tuple[str, ...] = TASKS) -> Decoded:
    return made(dict.fromkeys(tasks, given), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ROWS)
def test_builds_from_defaults(name: str):
    config = registry.find("decoders", name).Config()
    made = config.build(dims=(12, 12), tasks=("a",))
    assert made.width == config.width
    found = made.eval()({"a": [torch.randn(1, 12, 5, 6)] * 2})
    assert found.features["a"].shape == (1, config.width, 5, 6)


@pytest.mark.parametrize("name", ROWS)
def test_shape_dtype_and_aux(name: str):
    found = run(build(name), levels())
    assert {t: tuple(x.shape) for t, x in found.features.items()} == dict.fromkeys(TASKS, (3, WIDTH, 4, 3))
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in found.features.values())
    assert all(value.ndim == 0 for value in found.aux.values())


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_tasks_do_not_depend_on_what_is_beside_them(name: str):
    made, given = build(name).eval(), levels()
    whole = run(made, given).features
    for row in range(3):
        alone = run(made, [x[row : row + 1] for x in given], ("shape",)).features
        torch.testing.assert_close(alone["shape"], whole["shape"][row : row + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_levels_of_its_own_for_each_task_are_read_as_such(name: str):
    made, first, second = build(name).eval(), levels(3), levels(2)
    found = made({"colour": first, "shape": [x.clone() for x in first]}).features
    for task in TASKS:
        torch.testing.assert_close(found[task], run(made, first).features[task], atol=1e-5, rtol=1e-5)
    mixed = made({"colour": first, "shape": second}).features
    torch.testing.assert_close(mixed["shape"], run(made, second).features["shape"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_coarser_levels_are_brought_to_the_finest_grid(name: str):
    made, given = build(name).eval(), levels()
    coarse = [given[0], torch.nn.functional.avg_pool2d(given[1], (2, 1)), given[2]]
    wanted = [given[0], torch.nn.functional.interpolate(coarse[1], (4, 3), mode="bilinear"), given[2]]
    torch.testing.assert_close(run(made, coarse).features, run(made, wanted).features)


@pytest.mark.parametrize("name", ROWS)
def test_every_parameter_and_the_input_get_a_gradient(name: str):
    made, given = build(name).train(), [x.requires_grad_() for x in levels()]
    found = run(made, given)
    generator = torch.Generator().manual_seed(2)
    total = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in found.features.values())
    (total + sum(found.aux.values())).backward()  # pyright: ignore[reportAttributeAccessIssue] a tensor by now
    assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(x.grad is not None and bool(x.grad.flatten(1).any(1).all()) for x in given)


@pytest.mark.parametrize("name", ROWS)
def test_same_seed_same_bits_and_state_survives(name: str):
    made, again, other, given = build(name), build(name), build(name, seed=1), levels()
    first = run(made, given).features
    assert all(torch.equal(x, first[t]) for t, x in run(again, given).features.items())
    assert not torch.equal(run(other, given).features["shape"], first["shape"])
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    wanted = run(made.eval(), given).features
    assert all(torch.equal(x, wanted[t]) for t, x in run(other.eval(), given).features.items())


@pytest.mark.parametrize("name", ROWS)
def test_config_round_trip(name: str):
    config = options(name)
    assert schema.parse(type(config), config.to_dict()) == config


def dense_head(name: str, seed: int = 0) -> Head:
    cls = registry.find("heads", name)
    torch.manual_seed(seed)
    return cls.resolve(cls.Config(), INFO, TARGET).build(dim=WIDTH, passes=("image",))


def feature_map(generator: torch.Generator) -> FeatureMap:
    return FeatureMap(torch.randn(2, WIDTH, 4, 3, generator=generator), torch.tensor([1, 4]), (37, 29))


@pytest.mark.parametrize("name", HEADS)
def test_dense_head_predicts_every_pixel(name: str, generator: torch.Generator):
    head = dense_head(name)
    found = head(feature_map(generator), "image")
    assert head.gives is PredictionKind.DENSE
    assert found.values.shape == (2, len(NAMES), 37, 29)
    assert found.values.dtype == torch.float32
    assert found.index.tolist() == [1, 4]
    (found.values * torch.randn(found.values.shape, generator=generator)).sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    config = head.config
    assert schema.parse(type(config), config.to_dict()) == config


@pytest.mark.parametrize("name", HEADS)
def test_dense_head_of_a_seed_is_the_same_and_its_state_survives(name: str, generator: torch.Generator):
    given = feature_map(generator)
    first, again, other = dense_head(name), dense_head(name), dense_head(name, seed=1)
    expected = first.eval()(given, "image").values
    assert torch.equal(expected, again.eval()(given, "image").values)
    assert not torch.equal(expected, other.eval()(given, "image").values)
    other.load_state_dict(first.state_dict())
    assert torch.equal(expected, other(given, "image").values)
