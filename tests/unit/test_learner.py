"""Training: what changes speed or memory changes no number, and an interrupted run repeats the whole."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from mmzoo import recipe
from mmzoo.errors import ConfigError
from mmzoo.learners.callbacks import run_callbacks
from mmzoo.learners.keeper import Interrupted
from mmzoo.learners.optim import OptimConfig, build_optimizer
from mmzoo.recipe import Built

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),  # of the learner, as meant
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]


class Recorder(pl.Callback):
    """Keeps each step's loss and gradients as the optimiser sees them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.grads: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = pl_module.model.named_parameters()
        self.grads.append({n: p.grad.clone() for n, p in parameters if p.grad is not None})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.losses.append(float(pl_module.last_losses["train/loss"]))


def fit(
    overrides: Sequence[str], *callbacks: pl.Callback, resume: pathlib.Path | None = None
) -> tuple[Built, Recorder]:
    recorder = Recorder()
    built = recipe.build(recipe.load("five_senses", overrides), callbacks=[recorder, *callbacks])
    path = None if resume is None else str(resume)
    built.trainer.fit(built.learner, datamodule=built.datamodule, ckpt_path=path, weights_only=True)
    return built, recorder


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        scale = float(b[name].abs().max()) + 1e-12
        assert float((tensor - b[name]).abs().max()) <= tolerance * scale, name


@pytest.fixture
def small(small: list[str]) -> list[str]:
    """Leave two modalities out: it saves time."""
    return [*small, "~model.modalities.audio", "~model.modalities.skeleton"]


@pytest.fixture
def plain(small: list[str]) -> list[str]:
    """Two steps without validation, with stochastic depth."""
    return [*small, "trainer.max_steps=2", "trainer.val_every_steps=50", "model.trunk.drop_path_prob=0.3"]


@pytest.mark.parametrize("mode", ["block", "ffn"])
def test_activation_checkpointing_changes_no_number(plain: list[str], mode: str):
    _, kept = fit(plain)
    _, recomputed = fit([*plain, f"trainer.checkpointing={mode}"])
    assert recomputed.losses == pytest.approx(kept.losses, rel=1e-6)
    for a, b in zip(recomputed.grads, kept.grads, strict=True):
        close(a, b, 1e-5)


def test_bfloat16_autocast_trains_close_to_float32(plain: list[str]):
    built, mixed = fit([*plain, "trainer.precision=bf16-mixed"])
    _, full = fit(plain)
    assert mixed.losses != full.losses
    assert mixed.losses == pytest.approx(full.losses, rel=0.02)
    assert all(p.dtype == torch.float32 for p in built.model.parameters())
    flat = [torch.cat([g.flatten() for g in r.grads[0].values()]) for r in (mixed, full)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


COMPILED = """
import sys, torch
from mmzoo import recipe
built = recipe.build(recipe.load("five_senses", [*sys.argv[2:], "trainer.compile=true"]))
built.trainer.fit(built.learner, datamodule=built.datamodule)
torch.save(built.model.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
def test_compiled_blocks_train_the_same(plain: list[str], tmp_path: pathlib.Path):
    """In a process of its own: compilers do not see through the run-time checks of shapes."""
    calm = [*plain, "learner.optim.eps=1e-3"]
    built, _ = fit(calm)
    command = [sys.executable, "-c", COMPILED, str(tmp_path / "x.pt"), *calm]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close(torch.load(tmp_path / "x.pt"), built.model.state_dict(), 1e-4)


def test_accumulation_averages_the_batches_of_a_step(plain: list[str]):
    still = [*plain, "learner.optim.lr=1e-30", "trainer.grad_clip=0"]
    _, single = fit([*still, "trainer.max_steps=4"])
    _, double = fit([*still, "trainer.accumulate=2"])
    assert len(single.grads) == 4
    assert len(double.grads) == 2
    for i, grads in enumerate(double.grads):
        pair = single.grads[2 * i], single.grads[2 * i + 1]  # a batch may lack a subject, and its gradient
        close(grads, {n: sum((p[n] for p in pair if n in p), start=torch.zeros(())) / 2 for n in grads}, 1e-5)


class Press(pl.Callback):
    """Presses Ctrl-C during a step."""

    def __init__(self, step: int) -> None:
        self.step, self.done = step, False

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step - 1 and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)


# workers that are stopped with batches under way may find their queue closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (3, []),
        (4, []),
        (6, ["trainer.accumulate=2"]),
        (5, ["data.loader.num_workers=2"]),
    ],
)
def test_an_interrupted_run_repeats_the_uninterrupted_one(
    small: list[str], tmp_path: pathlib.Path, stop: int, changes: list[str]
):
    steps = ["trainer.max_steps=8", "trainer.val_every_steps=4", "model.trunk.drop_path_prob=0.3"]
    options = [*small, *steps, *changes]
    config = recipe.load("five_senses", options).trainer

    def keep(name: str) -> list[pl.Callback]:
        return run_callbacks(config, tmp_path / name / "metrics.jsonl", tmp_path / name / "checkpoints")

    whole, first = fit(options, *keep("whole"))
    with pytest.raises(Interrupted, match=f"stopped at step {stop}"):
        fit(options, *keep("parts"), Press(stop))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    again, rest = fit(options, *keep("parts"), resume=last)
    assert again.trainer.global_step == 8
    batches = 8 * config.accumulate
    assert len(first.losses) == batches
    assert rest.losses == first.losses[stop * config.accumulate :]
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
    states = [b.trainer.optimizers[0].state_dict()["state"] for b in (again, whole)]
    for key, state in states[1].items():
        assert torch.equal(states[0][key]["exp_avg_sq"], state["exp_avg_sq"])
    assert (tmp_path / "parts/metrics.jsonl").read_text().count("\n") == (
        tmp_path / "whole/metrics.jsonl"
    ).read_text().count("\n")


def test_batches_without_what_a_task_needs_are_no_error(plain: list[str]):
    """Two tasks; batches lack the labels of one, and every modality of both."""
    who = "+tasks.who={target: action, head: linear, objective: cross_entropy, passes: [image]}"
    built = recipe.build(recipe.load("five_senses", [*plain, who, "trainer.max_steps=3"]))
    loader = built.datamodule.loader("train")
    batches = list(loader)[:3]
    batches[0] = dataclasses.replace(batches[0], targets={})
    batches[1] = batches[1].select(["fmri"])
    batches[2] = batches[2].select([])
    recorder = Recorder()
    built.trainer.callbacks.append(recorder)
    before = {n: p.clone() for n, p in built.model.named_parameters()}
    given = torch.utils.data.DataLoader(batches, batch_size=None)
    built.trainer.fit(built.learner, given, built.datamodule.loader("val"))
    assert recorder.losses[0] > 0
    assert recorder.losses[1:] == [0.0, 0.0]
    assert all(torch.isfinite(p).all() for p in built.model.parameters())
    assert not torch.equal(before["trunk.blocks.0.norm1.weight"], built.model.trunk.blocks[0].norm1.weight)


def test_a_task_of_weight_zero_is_reported_but_not_trained(plain: list[str]):
    who = "+tasks.who={target: action, head: linear, objective: cross_entropy, weight: 0}"
    built, recorder = fit([*plain, who, "trainer.val_every_steps=2"])
    assert all(not any("heads.who" in n for n in grads) for grads in recorder.grads)
    assert "val/who/loss" in built.trainer.callback_metrics
    expected = built.trainer.callback_metrics["val/align/loss"]
    assert built.trainer.callback_metrics["val/loss"] == pytest.approx(float(expected))
    with pytest.raises(ConfigError, match="weight 0 for align; expected at least one task to train"):
        fit([*plain, "tasks.align.weight=0"])


def test_time_alone_needs_a_schedule_without_an_end(small: list[str]):
    minutes = [*small, "trainer.max_steps=-1", "trainer.max_minutes=0.0001", "trainer.val_every_steps=0"]
    with pytest.raises(ConfigError, match=r"cosine with warmup 0\.05 over an unknown number of steps"):
        fit(minutes)
    constant = ["learner.optim.decay=constant", "learner.optim.warmup=0"]
    _, recorder = fit([*minutes, *constant])
    assert 1 <= len(recorder.losses) <= 8


def test_large_seeds_train(plain: list[str]):
    _, recorder = fit([*plain, "seed=9000000000000", "trainer.max_steps=1"])
    assert len(recorder.losses) == 1


def test_optimisers_of_timm_update_and_unknown_ones_are_named():
    model = torch.nn.Linear(2, 2)
    for name in ("sgd", "lion", "lamb"):
        optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1))
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.0]
        before = model.weight.clone()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert not torch.equal(before, model.weight)
    with pytest.raises(ConfigError, match=r"optim\.name: 'adamwx'; expected adamw or an optimiser of timm"):
        build_optimizer(model, OptimConfig(name="adamwx"))
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(model.requires_grad_(requires_grad=False), OptimConfig())


def command(options: Sequence[str], folder: pathlib.Path) -> pathlib.Path:
    """Train by the command line, in processes of its own; return the only run folder there is."""
    still = [f"model.modalities.fmri.{name}=0" for name in ("dropout", "subject_dropout")]
    words = [f"runs_root={folder}", "learner.optim.eps=1e-3", *still, *options]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MMZOO_RUN")}
    done = subprocess.run(
        [sys.executable, "-m", "mmzoo", "train", "five_senses", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**variables, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "five_senses").iterdir()
    return run


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_batch_of_both(small: list[str], tmp_path: pathlib.Path):
    steps = [*small, "trainer.max_steps=3", "trainer.val_every_steps=3"]
    one = command([*steps, "data.loader.batch_size=16"], tmp_path / "one")
    two = command([*steps, "trainer.devices=2", "trainer.strategy=ddp"], tmp_path / "two")
    last = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (two, one)
    ]
    close(*last, 1e-5)
    found = [json.loads((run / "eval.json").read_text())["test"]["metrics"] for run in (two, one)]
    for name, value in found[1].items():
        if "/loss" not in name and name != "loss":  # the contrast of a rank's own batches
            assert found[0][name] == pytest.approx(value, abs=1e-6), name
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
