"""Denoising contrast over several processes: each part's mean is that of all hidden tokens, on every rank."""

from __future__ import annotations

import multiprocessing
import os
import pathlib

import pytest
import torch
from torch import Tensor, nn

from mmzoo.batch import Batch, TokenPrediction
from mmzoo.layers import distributed
from mmzoo.objectives.denoise import DenoisingContrast
from mmzoo.state import LossState

WORLD = 2
CASES = {
    "even": {"image": (3, 3), "text": (2, 2)},
    "ragged": {"image": (5, 1), "text": (1, 4), "image+text/text": (2, 3)},
    "one rank hides none": {"image": (4, 0), "text": (1, 3)},
    "one rank without a part": {"image": (4, 2), "text": (0, 3)},
    "one rank without anything": {"image": (4, 0)},
}
"""Case -> part -> hidden tokens of each rank; 0 in the last two cases means that the part is not there."""
DROPS = ("one rank without a part", "one rank without anything")
CONFIG = DenoisingContrast.Config(weights={"text": 0.5, "image+text": 2.0}, chunk=2)


class Towers(nn.Module):
    """A linear map a part."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)])
        made = torch.Generator().manual_seed(5)
        for p in self.parameters():
            nn.init.normal_(p, generator=made)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        """Map the queries of each part."""
        return [tower(x) for tower, x in zip(self.towers, xs, strict=False)]


def state(model: nn.Module, case: str, rank: int) -> tuple[LossState, Tensor]:
    """Return a rank's loss state, and zero tied to all of the model."""
    made = torch.Generator().manual_seed(7 + rank)
    sizes = [pair[rank] for pair in CASES[case].values()]
    found = model([torch.randn(n, 4, generator=made) for n in sizes])
    parts: dict[str, TokenPrediction] = {}
    for name, values, n in zip(CASES[case], found, sizes, strict=True):
        keys = torch.randn(6 + rank, 4, generator=made)
        index = torch.zeros(n, dtype=torch.int64)
        if n or case not in DROPS:
            parts[name] = TokenPrediction(values, index, keys=keys, own=torch.arange(n))
    return CONFIG.build()(parts, Batch(("a",)), ""), sum(v.sum() for v in found) * 0.0


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def work(rank: int, folder: str) -> None:
    """One process: every case's loss and gradients, and a loss without gradient."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    found = {}
    for case in CASES:
        model = nn.parallel.DistributedDataParallel(Towers(), find_unused_parameters=True)
        own, loose = state(model, case, rank)
        count = own.total.count.clone()
        torch.distributed.all_reduce(count)
        (own.total.sum * WORLD / count + loose).backward()
        share = own.total.sum.detach().clone()
        torch.distributed.all_reduce(share)
        with torch.no_grad():
            alone = state(model.module, case, rank)[0].total.mean()
        found[case] = (gradients(model), share / count, alone)
    torch.save(found, f"{folder}/{rank}")
    torch.distributed.barrier()
    os._exit(0)  # see test_distributed: gloo's thread and the interpreter lock


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Run both processes once."""
    path = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["torch", "torch._dynamo", "mmzoo.objectives.denoise"])
    torch.multiprocessing.start_processes(work, (str(path),), nprocs=WORLD, start_method="forkserver")
    return path


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_all_hidden_tokens(folder: pathlib.Path, case: str):
    """One process sees both halves, each contrasted with its own keys, as ranks do."""
    model = Towers()
    halves = [state(model, case, rank)[0] for rank in range(WORLD)]
    expected = halves[0].merge(halves[1]).mean()
    by_hand = sum(
        CONFIG.build().weight(name)
        * sum(h.parts[name].sum for h in halves if name in h.parts)
        / sum(CASES[case][name])
        for name in CASES[case]
    )
    torch.testing.assert_close(expected, by_hand)
    expected.backward()
    for rank in range(WORLD):
        grads, loss, alone = torch.load(folder / str(rank))[case]
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grads, gradients(model))
        torch.testing.assert_close(alone, halves[rank].total.mean().detach())


def test_merged_batches_weigh_by_hidden_tokens():
    """In evaluation a long batch counts for more, so that the loss is the weighted sum of its parts."""
    halves = [state(Towers(), "ragged", rank)[0] for rank in range(WORLD)]
    both = halves[0].merge(halves[1])
    parts = {name: float(part.mean().detach()) for name, part in both.parts.items()}
    expected = parts["image"] + 0.5 * parts["text"] + 2.0 * parts["image+text/text"]
    assert float(both.mean().detach()) == pytest.approx(expected, rel=1e-6)
    assert float(both.mean().detach()) != pytest.approx(float(both.total.mean().detach()), rel=1e-3)
    assert distributed.world_size() == 1
