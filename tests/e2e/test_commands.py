"""The real commands, in processes of their own: train, stop, resume, evaluate, embed, fine-tune, fail."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmzoo import run_folder

from .conftest import STEPS, TINY, Command

SPEED = ("time_s", "samples_per_s", "tokens_per_s", "mfu")
SENSES = ["audio", "fmri", "image", "skeleton", "text"]


def history(run: Path) -> list[dict[str, Any]]:
    """The lines of a run without what a clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in SPEED} for line in lines]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "export" / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_a_complete_folder(trained: Path):
    found = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    drawn = ["loss", "metrics_align", "learning_rate", "speed", "align_retrieval", "retrieval"]
    wanted = {
        "config.yaml", "overrides.txt", "command.txt", "env.json", "train.log", "status.json", "eval.json",
        "metrics.jsonl", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "export/model.safetensors", "export/config.json", "model.json", "report.html",
    }  # fmt: skip
    assert found == wanted | {f"plots/{name}.png" for name in drawn}
    assert (trained / "overrides.txt").read_text().split() == [
        *TINY,
        f"trainer.max_steps={STEPS}",
        "run_dir=run",
    ]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["trunk"]["dim"] == 32
    assert config["model"]["trunk"]["final_norm"] == "per_modality"
    assert run_folder.read_json(trained / "status.json")["status"] == "finished"
    assert [line["step"] for line in history(trained) if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in history(trained) if "val/loss" in line] == [8, 16]
    assert f"step {STEPS}/{STEPS}" in (trained / "train.log").read_text()


def test_training_learns_something(trained: Path):
    losses = [line["train/loss"] for line in history(trained) if "train/loss" in line]
    assert np.mean(losses[-4:]) < losses[0] - 0.5


def stop(mmzoo: Command, args: list[str], at: int, signum: int) -> tuple[int, str]:
    """Start a training, send it a signal once its history has step `at`; return its exit code and stderr."""
    metrics, err = mmzoo.folder / "run" / "metrics.jsonl", mmzoo.folder / "err"
    with err.open("w") as log, mmzoo.start("train", *args, stdout=None, stderr=log) as running:
        while running.poll() is None and not (metrics.is_file() and f'"step": {at},' in metrics.read_text()):
            time.sleep(0.01)
        running.send_signal(signum)
        code = running.wait(timeout=120)
    return code, err.read_text()


@pytest.mark.parametrize(
    ("signum", "code", "at"), [(signal.SIGINT, 130, 11), (signal.SIGTERM, 130, 8), (signal.SIGKILL, -9, 13)]
)
def test_a_stopped_run_resumes_bit_for_bit(
    mmzoo: Command, trained: Path, signum: signal.Signals, code: int, at: int
):
    """Stopped mid-epoch, at a validation, and killed outright; only the folder is named when it goes on."""
    often = ["trainer.save_every_s=0"] if signum == signal.SIGKILL else []
    args = ["five_senses", *TINY, f"trainer.max_steps={STEPS}", "run_dir=run", *often]
    left, err = stop(mmzoo, args, at, signum)
    assert left == code
    assert at <= history(mmzoo.folder / "run")[-1]["step"] < STEPS
    if code == 130:
        assert err.splitlines()[-1] == "next: mmzoo train five_senses run_dir=run resume=auto"
    mmzoo("train", "five_senses", "run_dir=run", "resume=auto")
    assert history(mmzoo.folder / "run") == history(trained)
    assert weights(mmzoo.folder / "run") == weights(trained)


def test_eval_prints_one_json_object_with_the_figures_of_training(mmzoo: Command, trained: Path):
    done = mmzoo("eval", str(trained), "--json")
    printed = json.loads(done.stdout)
    kept = run_folder.read_json(trained / "eval.json")["test"]
    assert printed["metrics"] == pytest.approx(kept["metrics"], abs=1e-6)
    assert {f"align/{a}->{b}/R@1" for a in SENSES for b in SENSES if a != b} <= set(printed["metrics"])
    assert printed["samples"] == 16


def test_eval_of_a_checkpoint_prints_a_table(mmzoo: Command, trained: Path):
    done = mmzoo("eval", str(trained / "checkpoints" / "last.ckpt"), "--split", "val")
    assert done.stdout.startswith("val: 12 samples")
    rows = [line.split() for line in done.stdout.splitlines()[-5:]]
    assert sorted(row[0] for row in rows) == SENSES
    assert all(len(row) == 6 and row.count("–") == 1 for row in rows)


def test_embed_writes_a_row_for_each_sample_and_sense(mmzoo: Command, trained: Path):
    done = mmzoo("embed", str(trained), "test", "-o", "out.npz", "--shard-size", "5")
    assert (
        done.stdout == "out.npz: 80 vectors of 32 numbers (16 samples, audio, fmri, image, skeleton, text)\n"
    )
    with np.load(mmzoo.folder / "out.npz") as file:
        ids, modality, vectors = file["ids"], file["modality"], file["vectors"]
    assert len({*zip(ids, modality, strict=True)}) == 80
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert sorted(p.name for p in mmzoo.folder.iterdir()) == ["out.npz"]
    kept = run_folder.read_json(trained / "eval.json")["test"]["metrics"]
    image, text = (vectors[modality == m][np.argsort(ids[modality == m])] for m in ("image", "text"))
    top1 = (image @ text.T).argmax(axis=1) == np.arange(16)
    assert top1.mean() == pytest.approx(kept["align/image->text/R@1"])


def test_one_override_fine_tunes_what_a_run_has_learned(mmzoo: Command, trained: Path):
    mmzoo("train", "five_senses", *TINY, "trainer.max_steps=2", "run_dir=tuned", f"init_from={trained}")
    first, before = history(mmzoo.folder / "tuned")[0], history(trained)
    assert first["train/loss"] < before[0]["train/loss"] - 0.3
    assert "tensors taken" in (mmzoo.folder / "tuned" / "train.log").read_text()


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(mmzoo: Command):
    done = mmzoo("train", *TINY, f"trainer.max_steps={STEPS}", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["parameters"]["total"]["trainable"] == sum(
        v["trainable"] for k, v in plan["parameters"].items() if k != "total"
    )
    assert plan["data"]["samples"] == {"train": 68, "val": 12, "test": 16}
    assert plan["data"]["modalities"] == dict.fromkeys(plan["data"]["modalities"], 1.0)
    assert plan["step"]["samples"] == 8
    assert plan["step"]["flops"] > 1e6
    assert plan["memory"]["optimizer"] == 2 * plan["memory"]["gradients"]
    assert plan["schedule"]["steps"] == STEPS
    assert plan["schedule"]["lr"]["peak"]["lr"] == pytest.approx(1e-3)
    assert plan["schedule"]["lr"]["last"]["lr"] < 5e-5
    assert not list(mmzoo.folder.iterdir())


def test_an_existing_folder_is_refused(mmzoo: Command, trained: Path):
    done = mmzoo("train", "five_senses", f"run_dir={trained}", code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mmzoo: error: run_dir: {trained} is not empty; expected a new or empty folder.")


def test_a_crash_is_one_line_and_a_traceback_in_the_log(mmzoo: Command):
    (mmzoo.folder / "boom.py").write_text(
        "from mmzoo.learners.multitask import MultitaskLearner\n"
        "def training_step(self, batch, batch_idx):\n    raise RuntimeError('out of luck')\n"
        "MultitaskLearner.training_step = training_step\n"
    )
    done = mmzoo(
        "train", "five_senses", *TINY, "trainer.max_steps=2", "run_dir=run", "plugins=[boom]", code=1
    )
    log = mmzoo.folder / "run" / "train.log"
    told = f"mmzoo: failed: RuntimeError: out of luck. The traceback is in {log.relative_to(mmzoo.folder)}"
    assert done.stderr.splitlines()[-1].startswith(told)
    assert "Traceback (most recent call last)" not in done.stderr
    assert "raise RuntimeError('out of luck')" in log.read_text()
    assert run_folder.read_json(mmzoo.folder / "run" / "status.json")["status"] == "failed"


def test_a_checkpoint_that_is_none_is_told(mmzoo: Command):
    (mmzoo.folder / "x.ckpt").write_bytes(b"not a checkpoint")
    done = mmzoo("eval", "x.ckpt", code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmzoo: error: x.ckpt: unreadable")


def test_two_processes_share_one_run_folder(mmzoo: Command):
    two = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=4", "trainer.val_every_steps=4"]
    mmzoo("train", "five_senses", *TINY, *two)
    (run,) = (mmzoo.folder / "runs" / "five_senses").iterdir()
    lines = history(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert run_folder.read_json(run / "eval.json")["test"]["samples"] == 16
    assert run_folder.read_json(run / "status.json")["status"] == "finished"
