"""Several gloo processes against one: gathers, and the contrasts' gradients under DistributedDataParallel."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmzoo.batch import Batch, Prediction
from mmzoo.errors import ShapeError
from mmzoo.layers import distributed
from mmzoo.objectives.contrast import InfoNce, SigLip

WORLDS = (2, 4)
CASES = {
    "even": {"image": range(16), "text": range(16), "audio": range(16)},
    "ragged": {"image": range(16), "text": [0, 1, 2, 5, 8, 9, 13], "audio": [2, 3, 4, 5, 6, 8, 12, 15]},
    "one rank without rows": {"image": range(16), "text": range(8), "audio": range(3, 8)},
    "one rank without a pass": {"image": range(16), "text": range(8), "audio": range(16)},
}
"""Case -> pass -> which of the 16 samples have it; rank r of W holds samples 16 r / W … 16 (r + 1) / W."""
OBJECTIVES = {
    "infonce": InfoNce.Config(chunk=3),
    "infonce, smoothed, two pairs": InfoNce.Config(
        chunk=3, label_smoothing=0.1, pairs=[("image", "text"), ("audio", "image")]
    ),
    "siglip": SigLip.Config(chunk=3),
}
DROPS = "one rank without a pass"
"""In this case a rank without rows of a pass has no key for it at all, as a model's output would be."""


class Towers(nn.Module):
    """A tower a pass and the scalars of a contrastive head."""

    def __init__(self) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(5)
        self.towers = nn.ModuleDict({m: nn.Linear(6, 4) for m in ("image", "text", "audio")})
        self.log_scale, self.offset = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0))
        for p in self.towers.parameters():
            nn.init.normal_(p, generator=made)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return unit vectors by pass, and the scalars."""
        vectors = {m: F.normalize(self.towers[m](x), dim=1) for m, x in inputs.items()}
        return {**vectors, "scale": self.log_scale.exp(), "offset": self.offset * 1.0}


def step(model: nn.Module, case: str, config: Any, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Return the summed loss and the count of samples start … end."""
    data = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(7))
    rows = {
        m: torch.tensor([i for i in own if start <= i < end], dtype=torch.int64)
        for m, own in CASES[case].items()
    }
    inputs = {m: data[n, rows[m]] for n, m in enumerate(rows)}
    found = model(inputs)
    if case == DROPS:
        rows = {m: r for m, r in rows.items() if len(r)}
    scalars = found.pop("scale"), found.pop("offset")
    predictions = {m: Prediction(found[m], r - start, *scalars) for m, r in rows.items()}
    state = config.build()(predictions, Batch(tuple(str(i) for i in range(end - start))), "")
    loose = sum(v.sum() for m, v in found.items() if m not in rows) * 0.0
    return state.total.sum + scalars[1] * 0.0 + loose, state.total.count


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        k.removeprefix("module."): p.grad.clone() for k, p in model.named_parameters() if p.grad is not None
    }


def work(rank: int, world: int, folder: str) -> None:
    """One process: run everything, keep rank 0's gradients and each rank's gathers."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    found: dict[str, Any] = {}
    size = 16 // world
    for case in CASES:
        for name, config in OBJECTIVES.items():
            model = nn.parallel.DistributedDataParallel(Towers())
            total, count = step(model, case, config, rank * size, (rank + 1) * size)
            everyone = count.clone()
            torch.distributed.all_reduce(everyone)
            (total * world / everyone).backward()
            share = total.detach().clone()
            torch.distributed.all_reduce(share)
            found[f"{case}/{name}"] = (gradients(model), share / everyone)
            with torch.no_grad():
                alone, _ = step(model.module, case, config, rank * size, (rank + 1) * size)
            found[f"{case}/{name}/alone"] = alone
    found["gather"] = gather(rank, world)
    torch.save(found, f"{folder}/{world}.{rank}")
    torch.distributed.barrier()
    # The reducer holds the process group's last reference: its destructor would join gloo's thread with the
    # interpreter lock held, which that thread may wait for (torch 2.12: a process that never ended).
    os._exit(0)


def gather(rank: int, world: int) -> dict[str, Any]:
    sizes = [3, 0, 2, 1][:world]
    x = (torch.arange(sizes[rank] * 2.0).reshape(-1, 2) + 10 * rank).requires_grad_()
    rows = distributed.gather_rows_with_gradient(x, sizes)
    weights = torch.arange(float(rows.numel())).reshape(rows.shape) + 100 * rank
    (rows * weights).sum().backward()
    return {
        "rows": rows.detach(),
        "plain": distributed.gather_rows(x, sizes),
        "grad": x.grad,
        "objects": distributed.gather_objects({"rank": rank}),
        "world": (distributed.rank(), distributed.world_size(), str(distributed.device())),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Run 2 and 4 processes once, and return where they left their results."""
    path = tmp_path_factory.mktemp("ranks")
    # a fork server imports these (the second is what DistributedDataParallel needs) once, not once a process
    multiprocessing.set_forkserver_preload(["torch", "torch._dynamo", "mmzoo.objectives.contrast"])
    for world in WORLDS:
        torch.multiprocessing.start_processes(
            work, (world, str(path)), nprocs=world, start_method="forkserver"
        )
    return path


def close(found: Tensor, expected: Tensor) -> bool:
    """The gate: cosine at least 0.999999 and norm ratio 1 ± 1e-4."""
    cosine = F.cosine_similarity(found.double().flatten(), expected.double().flatten(), dim=0)
    ratio = found.double().norm() / expected.double().norm()
    return cosine.item() >= 0.999999 and abs(ratio.item() - 1) <= 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_those_of_the_whole_batch(folder, world, case, name):
    model = Towers()
    total, count = step(model, case, OBJECTIVES[name], 0, 16)
    (total / count).backward()
    expected = gradients(model)
    for rank in range(world):
        found, loss = torch.load(folder / f"{world}.{rank}")[f"{case}/{name}"]
        torch.testing.assert_close(loss, (total / count).detach(), rtol=1e-5, atol=1e-6)
        assert set(found) == set(expected)
        for key, grad in expected.items():
            if key == "offset" and name.startswith("infonce"):
                assert not found[key].any()
            else:
                assert close(found[key], grad), (key, found[key], grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_gradient_a_rank_keeps_to_itself(folder, name):
    with torch.no_grad():
        expected = [step(Towers(), "ragged", OBJECTIVES[name], s, s + 8)[0] for s in (0, 8)]
    found = [torch.load(folder / f"2.{r}")[f"ragged/{name}/alone"] for r in range(2)]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("world", WORLDS)
def test_gather_and_its_gradient(folder, world):
    sizes = [3, 0, 2, 1][:world]
    parts = [torch.arange(n * 2.0).reshape(-1, 2) + 10 * r for r, n in enumerate(sizes)]
    weights = [torch.arange(sum(sizes) * 2.0).reshape(-1, 2) + 100 * r for r in range(world)]
    grads = sum(weights).split(sizes)
    for rank in range(world):
        found = torch.load(folder / f"{world}.{rank}")["gather"]
        assert torch.equal(found["rows"], torch.cat(parts))
        assert torch.equal(found["plain"], torch.cat(parts))
        assert torch.equal(found["grad"], grads[rank])
        assert found["objects"] == [{"rank": r} for r in range(world)]
        assert found["world"] == (rank, world, "cpu")


def test_alone_everything_is_the_identity(generator):
    x = torch.randn(3, 2, generator=generator).requires_grad_()
    rows = distributed.gather_rows_with_gradient(x, [3])
    rows.sum().backward()
    assert torch.equal(rows, x)
    assert torch.equal(x.grad, torch.ones(3, 2))
    assert torch.equal(distributed.reduce_rows(x, [3]), x)
    assert distributed.gather_objects("x") == ["x"]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(
        ShapeError, match=r"gather_rows: 2 rows on rank 0 of 1, sizes \[3\]; expected one size a rank"
    ):
        distributed.gather_rows(torch.zeros(2, 2), [3])
    with pytest.raises(ShapeError, match=r"reduce_rows: 2 rows; expected sum of \[1, 2\]"):
        distributed.reduce_rows(torch.zeros(2, 2), [1, 2])
