"""The run folder: one place for everything a run is and leaves, laid out the same way each time.

`runs/<name>/<YYYY-mm-dd_HH-MM-SS>[_tag]/` holds config.yaml (resolved), overrides.txt, command.txt, env.json,
train.log, metrics.jsonl, metrics.csv, checkpoints/{last,best}.ckpt, export/, plots/, {eval,model}.json,
report.html and status.json. Rank zero chooses it once; the processes it starts read the choice from the
environment.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from mmzoo.errors import ConfigError, close_matches

CHOSEN = "MMZOO_RUN_DIR"
"""Environment variable by which rank zero tells the processes it starts where the run lives."""
PACKAGES = (
    "mmzoo",
    "torch",
    "pytorch-lightning",
    "timm",
    "open_clip_torch",
    "torchaudio",
    "numpy",
    "omegaconf",
)


OUTPUTS = (
    "config.yaml", "overrides.txt", "command.txt", "env.json", "train.log", "status.json", "metrics.jsonl",
    "metrics.csv", "eval.json", "model.json", "report.html", "checkpoints", "export", "plots", "tensorboard",
)  # fmt: skip
"""Everything a run writes into its folder."""
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Environment variables by which launchers tell a process its rank."""


class Status(str, Enum):
    """How far a run has come."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


class Existing(str, Enum):
    """What to do with a folder that already holds something."""

    REFUSE = "refuse"
    RESUME = "resume"
    OVERWRITE = "overwrite"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path
    made: tuple[Path, ...] = field(default=(), compare=False)
    """the folder, and those above it, that were not there before this run chose it; innermost first"""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """The log of all commands run on this folder."""
        return self.path / "train.log"

    @property
    def metrics(self) -> Path:
        """The history, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """The checkpoint to continue from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint that did best on validation."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def export(self) -> Path:
        """The published form: model.safetensors and config.json."""
        return self.path / "export"

    @property
    def plots(self) -> Path:
        """The pictures."""
        return self.path / "plots"

    @property
    def evaluation(self) -> Path:
        """The figures of the final evaluation, by split."""
        return self.path / "eval.json"

    @property
    def report(self) -> Path:
        """The report, one self-contained file."""
        return self.path / "report.html"

    def status(self) -> dict[str, Any]:
        """Return what status.json says, empty where there is none."""
        return read_json(self.path / "status.json")

    def mark(self, status: Status, **facts: Any) -> None:
        """Write how far the run has come."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(self.path / "status.json", {"status": status.value, "time": now, **facts})

    def clear(self) -> None:
        """Remove what an earlier run left here: the known names only, never anything else in the folder."""
        for name in OUTPUTS:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def has_results(self) -> bool:
        """Say whether training got anywhere: a line of its history, or a checkpoint."""
        lines = self.metrics.stat().st_size if self.metrics.is_file() else 0
        return bool(lines) or any(self.last.parent.glob("*.ckpt"))

    def discard(self) -> None:
        """Remove what this run wrote, and the folders that were made for it."""
        self.clear()
        self.release()

    def release(self) -> None:
        """Remove the folders that were made for this run, as far as they hold nothing."""
        for folder in self.made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def record(self, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        """Write down what is about to run: configuration, overrides, command, environment."""
        for folder in (self.path, self.last.parent, self.plots):
            folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_text(self.config, text)
        write_text(self.path / "overrides.txt", "".join(f"{o}\n" for o in overrides))
        name = Path(sys.argv[0]).name
        program = ["python", "-m", "mmzoo"] if name == "__main__.py" else [name]
        write_text(self.path / "command.txt", shlex.join([*program, *sys.argv[1:]]) + "\n")
        write_json(self.path / "env.json", environment())


def choose(
    name: str, root: str, *, run_dir: str = "", tag: str = "", existing: Existing = Existing.REFUSE
) -> RunFolder:
    """Decide where a run lives; the first process of a run decides, those it starts follow.

    With `existing` resume and no `run_dir`, the newest run of that name that did not finish is taken. A new
    name is reserved by an empty folder: two runs that start in the same second get two.
    """
    if rank() > 0:
        given = os.environ.get(CHOSEN) or run_dir
        if not given:
            do = "Launchers that start every process themselves need run_dir=…."
            raise ConfigError.at("run_dir", f"rank {rank()} was not told", "the folder of rank 0", do)
        return RunFolder(Path(given))
    if run_dir:
        folder = RunFolder(Path(run_dir), _absent(Path(run_dir)))
        check_existing(folder, existing)
    else:
        parent = Path(root) / name
        unfinished = newest(parent, unfinished=True) if existing is Existing.RESUME else None
        folder = unfinished or _reserve(parent, tag)
    os.environ[CHOSEN] = str(folder.path.absolute())
    return folder


def rank() -> int:
    """Return this process's rank as the launcher's environment tells it, 0 where there is no launcher."""
    for name in RANKS:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0


def forget_choice() -> None:
    """Let the next run of this process choose anew."""
    if rank() == 0:
        os.environ.pop(CHOSEN, None)


def newest(parent: Path, *, unfinished: bool = False) -> RunFolder | None:
    """Return the youngest run below a folder (those that can be continued, if so asked), or None."""
    found = [RunFolder(p.parent) for p in parent.glob("*/config.yaml")]
    if unfinished:
        found = [f for f in found if f.last.is_file() and f.status().get("status") != Status.FINISHED.value]
    return max(found, key=lambda f: (f.config.stat().st_mtime_ns, f.path.name), default=None)


def find(text: str) -> RunFolder:
    """Return the run at a path; raise where there is none."""
    folder = RunFolder(Path(text))
    if folder.config.is_file():
        return folder
    below = newest(folder.path) or newest(Path("runs") / text)
    if below is not None:
        return below
    known = [p.parent.as_posix() for p in Path("runs").glob("*/*/config.yaml")]
    raise ConfigError.at("run", f"{text!r} holds no config.yaml", "a run folder", close_matches(text, known))


def environment() -> dict[str, Any]:
    """Return versions, machine and commit: what is needed to run the same again."""
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "gpus": _gpus(),
        "git": _git(),
        "versions": {package: _version(package) for package in PACKAGES},
        "variables": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("MMZOO_", "OMP_NUM", "CUDA_VIS"))
        },
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is absent or broken is empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_existing(folder: RunFolder, existing: Existing) -> None:
    """Raise ConfigError where something is in the way of a new run."""
    if not folder.path.exists() or existing is Existing.OVERWRITE:
        return
    if not folder.path.is_dir():
        raise ConfigError.at("run_dir", f"{folder.path} is a file", "a folder", "Choose another run_dir=….")
    if any(folder.path.iterdir()) and existing is Existing.REFUSE:
        do = "Add resume=auto to continue it, overwrite=true to replace it, or choose another run_dir=…."
        raise ConfigError.at("run_dir", f"{folder.path} is not empty", "a new or empty folder", do)


def _absent(path: Path) -> tuple[Path, ...]:
    """Return the path and those above it as far as they do not exist."""
    return tuple(p for p in (path, *path.parents) if not p.exists())


def _reserve(parent: Path, tag: str) -> RunFolder:
    """Make a folder that nobody has yet, named by the time and the tag."""
    stamp = datetime.datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{tag}" if tag else "")
    path, number = parent / stamp, 1
    while True:
        made = _absent(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = parent / f"{stamp}_{number}"
        else:
            return RunFolder(path, made)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _git() -> dict[str, Any]:
    """Return the commit of the working folder and whether it has changes; empty outside a repository."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(ask("status", "--porcelain", "-uno"))} if commit else {}
    except (OSError, subprocess.TimeoutExpired):
        return {}
