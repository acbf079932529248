"""A tiny world and a tiny model, trained once for all tests by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TINY = [
    "data.num_events=96", "data.num_val=12", "data.num_test=16", "data.image_size=32", "data.keep=all",
    "data.loader.batch_size=8", "data.loader.eval_batch_size=8",
    "model.modalities.image.preprocess.size=[32,32]", "model.modalities.fmri.hidden_dim=32",
    "model.trunk.dim=32", "model.trunk.depth=1", "model.trunk.num_heads=2", "model.trunk.ffn.hidden_dim=32",
    "trainer.val_every_steps=8", "trainer.log_every_steps=1", "trainer.threads=1", "learner.optim.lr=1e-3",
]  # fmt: skip
"""Overrides that make five_senses train in a second; an epoch has 8 steps."""
STEPS = 20


class Command:
    """Runs `mmzoo` in a folder, offline, as a user would; the environment is the tests' own."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MMZOO_")}
        extra = {
            "MMZOO_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(folder),
        }
        self.environment = {**kept, **extra}

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        pipes: Mapping[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        }
        command = [sys.executable, "-m", "mmzoo", *args]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes)

    def __call__(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        running = self.start(*args)
        out, err = running.communicate(timeout=300)
        assert running.returncode == code, err
        return subprocess.CompletedProcess(args, running.returncode, out, err)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rendered world is kept."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def mmzoo(home: Path, tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    return Command(home, tmp_path)


@pytest.fixture(scope="session")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("trained")
    Command(home, folder)("train", "five_senses", *TINY, f"trainer.max_steps={STEPS}", "run_dir=run")
    return folder / "run"
