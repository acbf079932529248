"""Averages of the weights and gradual unfreezing: what they do, what is kept of them, exact resume."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from mmzoo import recipe, zoo
from mmzoo.errors import ConfigError
from mmzoo.learners.callbacks import run_callbacks
from mmzoo.learners.ema import Ema, EmaConfig
from mmzoo.learners.tracker import Tracker
from mmzoo.learners.trainer import TrainerConfig
from mmzoo.learners.unfreeze import UnfreezeConfig, Unfreezing, Unit
from mmzoo.models.finetune.freeze import learning
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.recipe import Built
from tests.unit.test_finetune_parts import build

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),  # of the learner, as meant
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),  # frozen parts are
]
SHORT = ["~model.modalities.audio", "~model.modalities.skeleton", "~model.modalities.image"]
TUNED = [
    "trainer.ema.decay=0.8",
    "learner.unfreeze.every=2",
    "model.lora.rank=2",
    "model.freeze=[~modalities.text,~trunk.norms]",
    "learner.optim.layer_decay=0.8",
]
"""All at once, so that a resume has everything to lose."""


class Steps(pl.Callback):
    """Keeps the weights after each step, before they are averaged or saved, and which of them moved."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.weights.append(_copy(pl_module.model))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.validated.append(_copy(pl_module.model))


def _copy(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def fit(
    folder: pathlib.Path, overrides: Sequence[str], resume: pathlib.Path | None = None
) -> tuple[Built, Steps]:
    config, steps = recipe.load("five_senses", overrides), Steps()
    callbacks = run_callbacks(config.trainer, folder / "metrics.jsonl", folder)
    built = recipe.build(config, callbacks=[steps, *callbacks])
    path = None if resume is None else str(resume)
    built.trainer.fit(built.learner, datamodule=built.datamodule, ckpt_path=path, weights_only=True)
    return built, steps


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stored(path: pathlib.Path, key: str = "state_dict") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)[key]
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def test_the_average_is_what_is_validated_kept_and_exported(tmp_path: pathlib.Path, small: list[str]):
    built, steps = fit(tmp_path, [*small, *SHORT, "trainer.ema.decay=0.75", "trainer.val_every_steps=2"])
    expected = steps.weights[0]
    averages = [expected]
    for weights in steps.weights[1:]:
        expected = {n: 0.75 * expected[n] + 0.25 * weights[n] for n in expected}
        averages.append(expected)
    for found, at in ((steps.validated[0], 1), (_copy(built.model), 3), (stored(tmp_path / "last.ckpt"), 3)):
        for name, tensor in averages[at].items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)
    last = stored(tmp_path / "last.ckpt", "current_model_state")
    assert same({n: last[n] for n in averages[3]}, steps.weights[3])
    best = stored(tmp_path / "best.ckpt")
    assert any(all(torch.equal(best[n], v[n]) for n in v) for v in steps.validated)
    loaded = zoo.load(tmp_path / "last.ckpt")
    assert all(torch.equal(p, stored(tmp_path / "last.ckpt")[n]) for n, p in loaded.named_parameters())


def test_figures_that_need_the_model_are_those_of_the_average(
    tmp_path: pathlib.Path, small: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Class names are embedded at the end of a validation, by the weights that its samples met."""
    seen: list[dict[str, Tensor]] = []
    compute = Tracker.compute

    def spied(self: Tracker, model: MultimodalModel) -> Any:
        seen.append(_copy(model))
        return compute(self, model)

    monkeypatch.setattr(Tracker, "compute", spied)
    _, steps = fit(tmp_path, [*small, *SHORT, "trainer.ema.decay=0.75", "trainer.val_every_steps=2"])
    assert len(seen) == 2
    assert same(seen[0], steps.validated[0])
    assert same(seen[1], steps.validated[-1])
    assert not same(seen[1], steps.weights[-1])


def test_a_balancer_that_remembers_gradients_can_be_averaged(tmp_path: pathlib.Path, small: list[str]):
    options = ["learner.balance.type=db_mtl", "trainer.ema.decay=0.75", "trainer.max_steps=2"]
    built, steps = fit(tmp_path, [*small, *SHORT, *options, "trainer.val_every_steps=2"])
    first, second = steps.weights
    for name, p in built.model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.75 * first[name] + 0.25 * second[name])
    memory = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["balancer.average"]
    assert memory.shape[1] > 0


def test_before_its_start_the_average_is_a_copy(tmp_path: pathlib.Path, small: list[str]):
    options = ["trainer.ema.decay=0.5", "trainer.ema.start_step=2", "trainer.val_every_steps=2"]
    built, steps = fit(tmp_path, [*small, *SHORT, *options])
    assert same(steps.validated[0], steps.weights[1])
    third, fourth = steps.weights[2:]
    for name, p in built.model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.5 * third[name] + 0.5 * fourth[name])


def test_no_average_unless_asked(tmp_path: pathlib.Path):
    plain = run_callbacks(TrainerConfig(max_steps=1), tmp_path / "m", tmp_path)
    assert not any(isinstance(c, Ema) for c in plain)
    with pytest.raises(ConfigError, match=r"ema\.decay: 1\.0; expected 0 \(off\) or a share below 1"):
        EmaConfig(decay=1.0)
    with pytest.raises(ConfigError, match=r"ema\.start_step: -1"):
        EmaConfig(start_step=-1)


def test_a_resumed_fine_tune_repeats_the_uninterrupted_one(tmp_path: pathlib.Path, small: list[str]):
    options = [*small, *SHORT, *TUNED, "trainer.val_every_steps=3", "trainer.max_steps=6"]
    whole, told = fit(tmp_path / "whole", options)
    stopping = [*options, "trainer.max_steps=6"]
    config = recipe.load("five_senses", stopping)
    callbacks = run_callbacks(config.trainer, tmp_path / "part" / "m.jsonl", tmp_path / "part")
    kept = tmp_path / "kept.ckpt"

    class Copy(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not kept.exists():
                trainer.save_checkpoint(kept)

    built = recipe.build(config, callbacks=[*callbacks, Copy()])
    built.trainer.fit(built.learner, datamodule=built.datamodule)
    again, retold = fit(tmp_path / "again", options, resume=kept)
    assert len(retold.weights) == 3
    for found, expected in zip(retold.weights, told.weights[3:], strict=True):
        assert same(found, expected)
    assert same(_copy(again.model), _copy(whole.model))
    assert not same(_copy(whole.model), told.weights[-1])


def test_blocks_begin_to_learn_from_the_last_to_the_first(
    tmp_path: pathlib.Path, small: list[str], caplog: pytest.LogCaptureFixture
):
    options = ["learner.unfreeze.every=1", "learner.optim.warmup=0", "model.freeze=[modalities.text]"]
    with caplog.at_level(logging.INFO, logger="mmzoo"):
        built, steps = fit(tmp_path, [*small, *SHORT, *options])
    start = recipe.build(recipe.load("five_senses", [*small, *SHORT, *options])).model
    before = _copy(start)
    moved: list[set[str]] = []
    for weights in steps.weights:
        changed = {n for n in weights if not torch.equal(weights[n], before[n])}
        moved.append(
            {".".join(n.split(".")[:3]) if "blocks" in n else n.split(".")[0] for n in changed} - {""}
        )
        before = weights
    assert {"heads"} <= moved[0] <= {"heads", "trunk"}
    assert "trunk.blocks.1" in moved[1]
    assert "trunk.blocks.0" not in moved[1]
    assert "trunk.blocks.0" in moved[2]
    assert "adapters" not in moved[2]
    assert "adapters" in moved[3]
    assert not any("adapters.text" in n for n in learning(built.model))
    assert "unfreezing: step 2, stage 2 of 3: trunk.blocks.0" in caplog.text


def test_stages_of_ones_own_and_by_epoch():
    model = build(freeze=["modalities.image"])
    config = UnfreezeConfig(every=2, unit=Unit.EPOCHS, stages=[["trunk.blocks.1-2"], ["trunk", "modalities"]])
    plan = Unfreezing(config, model)
    assert plan.plan()[0] == (2, ["trunk.blocks.1", "trunk.blocks.2"])
    assert plan.plan()[1][0] == 4
    assert [plan.num_open(step=1000, epoch=e) for e in range(6)] == [0, 0, 1, 1, 2, 2]
    assert plan.update(step=0, epoch=0)
    assert {n.split(".")[0] for n in learning(model)} == {"heads"}
    model.train()
    assert not model.trunk.training
    assert not plan.update(step=5, epoch=1)
    assert plan.update(step=9, epoch=2)
    model.train()
    assert [b.training for b in model.trunk.blocks] == [False, True, True]
    plan.update(step=20, epoch=5)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("adapters.image.")}


def test_wrong_plans_are_told():
    with pytest.raises(ConfigError, match=r"learner\.unfreeze\.stages: 'trnk' is no part"):
        Unfreezing(UnfreezeConfig(every=1, stages=[["trnk"]]), build())
    with pytest.raises(ConfigError, match=r"unfreeze\.stages: stages, but every is 0"):
        UnfreezeConfig(stages=[["trunk"]])
    with pytest.raises(ConfigError, match=r"unfreeze\.every: -1"):
        UnfreezeConfig(every=-1)
