"""What watches and keeps a run: history, checkpoints and signals, speed, progress; on a toy model."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, ModalityInput
from mmzoo.errors import ConfigError
from mmzoo.learners import meter, progress
from mmzoo.learners.history import History, read_history, write_csv
from mmzoo.learners.keeper import Interrupted, Keeper
from mmzoo.learners.meter import Meter
from mmzoo.models.multimodal import MultimodalModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*not resumable"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]
BATCHES = 6


class Toy(pl.LightningModule):
    """One weight; the loss falls, and validation's figure is best in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.model.weight, 2.0)
        self.last_losses: dict[str, Tensor] = {}
        self.validations = 0
        self.signal_at = -1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.model.weight.square().sum()
        self.last_losses = {"train/loss": loss.detach()}
        if self.global_step == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validations += 1
            self.log("val/score", float([1, 5, 3, 4][self.validations % 4]), batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}
        ]


class Numbers(torch.utils.data.Dataset[list[int]]):
    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> list[int]:
        return [index, index]


def loaders() -> dict[str, Any]:
    make = torch.utils.data.DataLoader
    return {
        "train_dataloaders": make(Numbers(), batch_size=None),
        "val_dataloaders": make(Numbers(), batch_size=None),
    }


def trainer(callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_steps": 10, "val_check_interval": 4, "check_val_every_n_epoch": None, **options},
    )


def keeper(folder: Path, **options: Any) -> Keeper:
    return Keeper(folder, **{"monitor": "val/score", "mode": "max", "save_every_s": 1e9, **options})


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def test_history_has_the_first_step_every_few_the_last_and_each_validation(tmp_path: Path):
    heard: list[dict[str, Any]] = []
    history = History(tmp_path / "run" / "metrics.jsonl", Meter(), 4, (heard.append,))
    trainer([history]).fit(Toy(), **loaders())
    lines = read_history(history.path)
    assert [(line["step"], "val/score" in line) for line in lines] == [
        (1, False), (4, False), (4, True), (8, False), (8, True), (10, False),
    ]  # fmt: skip
    assert heard == lines
    assert [line["val/score"] for line in lines if "val/score" in line] == [5.0, 3.0]


def test_history_holds_the_rate_and_loss_of_the_step_itself(tmp_path: Path):
    """The weight is 2 at first and shrinks by 1 - 2 · 0.1 · 0.5^k at step k."""
    history = History(tmp_path / "metrics.jsonl", Meter(), 1)
    trainer([history], max_steps=5, val_check_interval=100).fit(Toy(), **loaders())
    weight = 2.0
    for k, line in enumerate(read_history(history.path)):
        assert line["lr"] == pytest.approx(0.1 * 0.5**k)
        assert line["train/loss"] == pytest.approx(weight**2, rel=1e-5)
        weight *= 1 - 2 * line["lr"]


def test_a_resumed_run_rewrites_what_came_after_its_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": s, "time_s": 100.0 + s, "old": 1}) + "\n" for s in (1, 4, 5, 9))
    )
    first = trainer([keep := keeper(tmp_path, save_every_s=1e9)], max_steps=4)
    first.fit(Toy(), **loaders())
    assert step_of(keep.last_path) == 4
    history = History(path, Meter(), 1)
    trainer([history, keep], max_steps=6).fit(
        Toy(), **loaders(), ckpt_path=str(keep.last_path), weights_only=True
    )
    lines = read_history(path)
    assert [(line["step"], "old" in line) for line in lines] == [(1, True), (4, True), (5, False), (6, False)]
    assert lines[2]["time_s"] >= 104.0


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "trai')
    assert read_history(path) == [{"step": 1}, {"step": 2}]
    assert read_history(tmp_path / "nothing") == []


def test_the_table_has_a_row_a_step_and_empty_cells(tmp_path: Path):
    write_csv([{"step": 1, "a": 0.5}, {"step": 2, "a": 0.25}, {"step": 2, "b": 7}], tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "a": "0.5", "b": ""},
            {"step": "2", "a": "0.25", "b": "7"},
        ]


def test_best_is_kept_by_the_figure_and_last_is_the_end(tmp_path: Path):
    keep = keeper(tmp_path)
    trainer([keep], max_steps=16).fit(Toy(), **loaders())
    assert (keep.best, step_of(keep.best_path), step_of(keep.last_path)) == (5.0, 4, 16)
    assert "optimizer_states" not in torch.load(keep.best_path, weights_only=True)
    low = keeper(tmp_path / "low", mode="min")
    trainer([low], max_steps=16).fit(Toy(), **loaders())
    assert (low.best, step_of(low.best_path)) == (1.0, 16)


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path: Path):
    class Late(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.validations += 1
                self.log("val/score", float("nan") if self.validations == 1 else 2.0, batch_size=1)

    keep = keeper(tmp_path)
    trainer([keep], max_steps=8).fit(Late(), **loaders())
    assert keep.best == 2.0
    assert step_of(keep.best_path) > 0


def test_a_resumed_run_knows_what_was_best(tmp_path: Path):
    keep = keeper(tmp_path)
    trainer([keep], max_steps=6).fit(Toy(), **loaders())
    again = keeper(tmp_path)
    trainer([again], max_steps=12).fit(Toy(), **loaders(), ckpt_path=str(again.last_path), weights_only=True)
    assert (again.best, step_of(again.best_path)) == (5.0, 4)


def test_without_validation_the_end_is_the_best(tmp_path: Path):
    keep = keeper(tmp_path)
    trainer([keep], max_steps=3, limit_val_batches=0).fit(Toy(), **loaders())
    assert (step_of(keep.best_path), step_of(keep.last_path)) == (3, 3)


def test_an_unknown_monitor_gets_its_close_match(tmp_path: Path):
    keep = keeper(tmp_path, monitor="val/scroe")
    with pytest.raises(ConfigError, match=r"trainer.monitor: 'val/scroe'; .* Did you mean 'val/score'\?"):
        trainer([keep]).fit(Toy(), **loaders())


def test_last_is_saved_as_often_as_asked(tmp_path: Path):
    seen: list[int] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if (tmp_path / "last.ckpt").is_file():
                seen.append(step_of(tmp_path / "last.ckpt"))

    trainer([keeper(tmp_path, save_every_s=0.0), Look()], max_steps=5, limit_val_batches=0).fit(
        Toy(), **loaders()
    )
    assert seen == [1, 2, 3, 4]


def test_no_checkpoint_falls_between_accumulated_batches(tmp_path: Path):
    keep = keeper(tmp_path, save_every_s=0.0)
    saved: list[tuple[int, int]] = []
    save = keep._save_last

    def spy(running: pl.Trainer) -> None:
        saved.append((running.fit_loop.total_batch_idx + 1, running.global_step))
        save(running)

    keep._save_last = spy  # type: ignore[method-assign] a spy
    trainer([keep], max_steps=4, accumulate_grad_batches=3, limit_val_batches=0).fit(Toy(), **loaders())
    assert saved == [(3, 1), (6, 2), (9, 3), (12, 4), (12, 4)]


@pytest.mark.parametrize("at", [1, 3])
def test_ctrl_c_finishes_the_step_saves_and_leaves(tmp_path: Path, at: int):
    """Step 4 validates: there the checkpoint is written after the validation."""
    toy, before = Toy(), signal.getsignal(signal.SIGINT)
    toy.signal_at = at
    keep = keeper(tmp_path)
    with pytest.raises(Interrupted, match=f"stopped at step {at + 1}"):
        trainer([keep]).fit(toy, **loaders())
    assert step_of(keep.last_path) == at + 1
    assert toy.validations == (1 if at == 3 else 0)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_at_once_without_a_checkpoint(tmp_path: Path):
    class Hasty(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().training_step(batch, batch_idx)

    with pytest.raises(SystemExit):
        trainer([keeper(tmp_path)]).fit(Hasty(), **loaders())
    assert not list(tmp_path.iterdir())


def test_rates_are_counts_over_seconds(monkeypatch: pytest.MonkeyPatch):
    now = iter([10.0, 10.0, 14.0, 14.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(now))
    watch = Meter()
    watch._since, watch.samples, watch.tokens = 8.0, 100, 3000
    watch.flops_per_token, watch.peak = 50.0, 1e5
    assert watch.read(world_size=2) == {
        "samples_per_s": 50.0,
        "tokens_per_s": 3000.0,
        "mfu": 3000 * 50.0 / 2 / 1e5,
    }
    watch.samples = 8
    assert watch.read()["samples_per_s"] == 2.0


def test_validation_time_does_not_count(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    watch, nobody = Meter(), pl.LightningModule()
    watch.samples, now[0] = 30, 2.0
    watch.on_validation_start(trainer([]), nobody)
    now[0] = 100.0
    watch.on_validation_end(trainer([]), nobody)
    now[0] = 101.0
    assert watch.read()["samples_per_s"] == 10.0


def test_the_peak_is_the_best_of_the_tries(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, *(0.0, 0.0, 0.5), *(0.5, 0.5, 0.75), *(0.75, 0.75, 5.0), 6.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(torch, "mm", lambda a, b: a)
    assert meter.gemm_peak(torch.device("cpu"), torch.float32, seconds=1.0) == 2 * 1024**3 / 0.25


@pytest.fixture
def model() -> MultimodalModel:
    tree = {
        "modalities": {"text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 16}}},
        "trunk": {"dim": 16, "depth": 2, "num_heads": 2, "ffn": {"type": "modality", "hidden_dim": 24}},
        "heads": {"align": {"head": {"type": "contrastive"}}},
    }
    return MultimodalModel(schema.parse(MultimodalModel.Config, tree))


def text_batch(model: MultimodalModel) -> Batch:
    prepare = model.preprocesses()["text"]
    items = [prepare("abc"), prepare("abcdefgh"), prepare("x" * 40)]
    return Batch(("a", "b", "c"), {"text": ModalityInput.stack(items, torch.arange(3))})


def test_trunk_flops_are_those_of_the_formula_for_real_tokens_only(model: MultimodalModel):
    batch = text_batch(model)
    lengths = model.tokens(batch)["text"].valid.sum(1).tolist()
    flops = meter.forward_flops(model.eval(), lambda: model(batch))
    by_hand = sum(2 * 2 * n * 16 * 4 * 16 / 2 + 4 * n * n * 16 + 6 * n * 16 * 24 for n in lengths) * 2
    assert flops["trunk"] == by_hand == model.trunk.flops(lengths)


@pytest.mark.parametrize(
    ("frozen", "times"),
    [
        ((), (2, 3, 3)),
        (("adapters",), (1, 3, 3)),
        (("adapters", "trunk"), (1, 1, 2)),
        (("trunk",), (2, 2, 3)),
    ],
)
def test_a_step_costs_more_where_gradients_are_needed(
    model: MultimodalModel, frozen: tuple[str, ...], times: tuple[int, int, int]
):
    """Forward once, once more for the gradient of the input where that is needed, once for the weights."""
    for name in frozen:
        model.get_submodule(name).requires_grad_(requires_grad=False)
    batch = text_batch(model)
    parts = meter.forward_flops(model, lambda: model(batch))
    flops, tokens = meter.step_cost(model, batch)
    expected = zip(times, ("adapters.text", "trunk", "heads.align"), strict=True)
    assert flops == sum(n * parts[name] for n, name in expected)
    assert tokens == int(model.tokens(batch)["text"].valid.sum())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if not n.startswith(frozen or ("-",))}


def test_counting_draws_no_random_numbers_and_leaves_no_gradient(model: MultimodalModel):
    model.train()
    torch.manual_seed(3)
    meter.step_cost(model, text_batch(model))
    after = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(()))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_training_line_says_loss_rate_and_speed():
    line = {
        "step": 3,
        "train/loss": 2.34567,
        "lr": 3e-4,
        "samples_per_s": 1234.5,
        "tokens_per_s": 45678.0,
        "mfu": 0.612,
    }
    assert progress.train_figures(line) == "loss 2.346  lr 3.0e-04  1,234 samples/s  45.7k tokens/s  MFU 61%"


def test_the_bar_fits_into_eighty_columns():
    line = {"train/loss": 2.34567, "samples_per_s": 12345.6, "tokens_per_s": 945678.0, "mfu": 0.612}
    assert progress.bar_figures(line) == "loss 2.346  12,346/s  945.7k tok/s  MFU 61%"
    assert len("train ━━━━━━━━ 12345/50000  0:12:34") + len(progress.bar_figures(line)) < 80


def test_a_validation_line_says_the_loss_and_what_matters():
    line = {"step": 8, "val/loss": 1.5, "val/a/loss/x": 1.0, "val/a/top1": 0.25, "val/a/top5": 0.5}
    assert progress.val_line(line, ("a/top5",)) == "step 8  validation  loss 1.5  a/top5 0.5"
    assert progress.val_line(line, ()) == "step 8  validation  loss 1.5  a/top1 0.25  a/top5 0.5"


def test_plain_lines_come_at_most_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    caplog.set_level("INFO")
    shown = progress.Progress()
    shown.total, shown._start, shown._first = 100, 100.0, 0
    for step in range(1, 101):
        now[0] += 1.0
        shown.hear({"step": step, "train/loss": 1.0})
    told = [r.getMessage() for r in caplog.records]
    assert [int(t.split("/")[0].split()[1]) for t in told] == [1, *range(6, 100, 5), 100]
    assert told[2] == "step 11/100  loss 1  left 1m29s"


def test_no_bar_where_nobody_watches(monkeypatch: pytest.MonkeyPatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    monkeypatch.delenv("MMZOO_NO_PROGRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert progress.wants_bar()
    monkeypatch.setenv("MMZOO_NO_PROGRESS", "1")
    assert not progress.wants_bar()
    monkeypatch.delenv("MMZOO_NO_PROGRESS")
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.wants_bar()


def test_bfloat16_runs_are_measured_against_a_bfloat16_peak():
    assert meter._dtype("bf16-mixed") is torch.bfloat16
    assert meter._dtype("16-mixed") is torch.float16
    assert meter._dtype("32-true") is torch.float32
    assert math.isfinite(meter.gemm_peak(torch.device("cpu"), torch.float32, seconds=0.01))
