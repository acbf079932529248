"""What a training leaves behind where it fails: nothing where the user can mend it before a step is taken,
else the run folder with its mark; and the log of a run, from before it had a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from mmzoo import recipe, run_folder
from mmzoo.cli import logs, main, training
from mmzoo.errors import ConfigError, DataError
from mmzoo.learners.multitask import MultitaskLearner
from mmzoo.learners.trainer import TrainerConfig, build_trainer
from mmzoo.recipe import Built
from mmzoo.run_folder import CHOSEN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),  # of the learner, as meant
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]
SMALL = [
    "data.num_train=4", "data.num_val=2", "data.num_test=2", "data.loader.batch_size=2", "model.dim=16",
    "model.neck_channels=8", "model.hidden_dim=16", "model.layers=1", "model.num_boxes=5",
    "model.grid.cells=8", "model.grid.map_cells=10", "trainer.max_steps=2", "trainer.val_every_steps=1",
    "trainer.log_every_steps=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in (CHOSEN, *run_folder.RANKS):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop(CHOSEN, None)


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def failed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    assert main.main(["train", *words]) == code
    return capsys.readouterr().err.splitlines()[-1]


def test_data_that_are_not_there_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(capsys, "fsdd", "data.root=nowhere")
    assert line.startswith("mmzoo: error: nowhere: nothing there; expected the data set.")
    assert left(tmp_path) == []
    (tmp_path / "empty").mkdir()
    failed(capsys, "fsdd", "data.root=nowhere", "run_dir=empty")
    failed(capsys, "fsdd", "data.root=nowhere", "run_dir=a/b")
    assert left(tmp_path) == ["empty"]


def test_data_without_a_sample_to_train_on_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(capsys, "driving", *SMALL, "data.num_train=0")
    assert line.startswith("mmzoo: error: data: no sample to train on; expected at least one.")
    assert left(tmp_path) == []


def test_what_is_found_wrong_when_training_begins_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    endless = ["trainer.max_steps=0", "trainer.max_minutes=1", "runs_root=."]
    assert "an unknown number of steps" in failed(capsys, "driving", *SMALL, *endless)
    assert left(tmp_path) == ["kept.txt"]


def test_a_run_that_got_somewhere_is_kept_and_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(capsys, "driving", *SMALL, "trainer.monitor=val/nothing", "run_dir=run")
    assert line.startswith("mmzoo: error: trainer.monitor: 'val/nothing'; expected a figure of validation.")
    assert run_folder.read_json(tmp_path / "run/status.json")["status"] == "failed"
    assert (tmp_path / "run/metrics.jsonl").read_text()
    again = failed(capsys, "driving", *SMALL, "data.num_train=0", "run_dir=run", "overwrite=true")
    assert "no sample to train on" in again
    assert (tmp_path / "run/metrics.jsonl").read_text()  # replaced by what can run, not by what cannot


def test_a_crash_keeps_the_folder_for_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(self: MultitaskLearner, *args: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(MultitaskLearner, "training_step", boom)
    line = failed(capsys, "driving", *SMALL, "run_dir=run", code=1)
    assert line.startswith("mmzoo: failed: RuntimeError: out of luck")
    assert run_folder.read_json(tmp_path / "run/status.json")["status"] == "failed"
    assert "out of luck" in (tmp_path / "run/train.log").read_text()


def test_a_run_that_another_filled_meanwhile_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = training.recipe.build

    def slow(*args: object, **options: object) -> Built:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/config.yaml").write_text("name: other")
        return build(*args, **options)  # pyright: ignore[reportArgumentType] as they came

    monkeypatch.setattr(training.recipe, "build", slow)
    assert "run is not empty" in failed(capsys, "driving", *SMALL, "run_dir=run")
    assert left(tmp_path) == ["run", "run/config.yaml"]


def test_the_log_holds_what_was_said_before_there_was_a_file(tmp_path: Path) -> None:
    logs.setup()
    lines = logs.RunLog()
    log = logging.getLogger("mmzoo.test")
    log.info("first")
    assert left(tmp_path) == []
    lines.to_file(tmp_path / "train.log")
    log.info("second")
    lines.close()
    log.info("third")
    said = [line.split(": ", 1)[1] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert said == ["first", "second"]


def test_a_failed_build_keeps_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("name: before")

    def wrong(*args: object, **options: object) -> Built:
        raise DataError("data: none")

    monkeypatch.setattr(training.recipe, "build", wrong)
    assert main.main(["train", "driving", "run_dir=run", "overwrite=true"]) == 2
    assert (tmp_path / "run/config.yaml").read_text() == "name: before"


def test_batch_norms_of_several_gpus_are_one():
    options = {"max_steps": 1, "accelerator": "cpu", "sync_batchnorm": True}
    made = build_trainer(TrainerConfig(strategy="ddp", **options), None, [], None)
    sync = made.strategy._layer_sync
    assert isinstance(sync.apply(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))[0], torch.nn.SyncBatchNorm)
    with pytest.raises(ConfigError, match=r"trainer\.sync_batchnorm: 2 processes on a CPU; expected GPUs"):
        build_trainer(TrainerConfig(devices=2, **options), None, [], None)
    assert recipe.load("nyud").trainer.sync_batchnorm
