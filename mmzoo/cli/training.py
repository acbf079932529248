"""A training run from its first file to its report.

The run folder is filled once model, data and trainer stand; what goes wrong before leaves nothing behind.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from mmzoo import recipe, run_folder
from mmzoo.cli import console, fine_tuning, finish, logs, sources
from mmzoo.errors import ConfigError, MmzooError
from mmzoo.learners.callbacks import run_callbacks
from mmzoo.learners.keeper import Interrupted
from mmzoo.recipe import Built, RecipeConfig, Resume
from mmzoo.run_folder import Existing, RunFolder, Status

log = logging.getLogger(__name__)


def train(name: str, config: RecipeConfig, overrides: Sequence[str], *, as_json: bool = False) -> int:
    """Train in a run folder of its own and say what came out; returns the exit code."""
    folder = run_folder.choose(
        config.name, config.runs_root, run_dir=config.run_dir, tag=config.tag, existing=_existing(config)
    )
    resumes = config.resume is Resume.AUTO and folder.last.is_file()
    lines = logs.RunLog()
    try:
        if resumes:
            config = sources.saved_config(folder, overrides)
        built = _build(config, folder, resumes=resumes)
        return _run(name, built, folder, overrides, lines, resumes=resumes, as_json=as_json)
    finally:
        run_folder.forget_choice()
        lines.close()


def _build(config: RecipeConfig, folder: RunFolder, *, resumes: bool) -> Built:
    """Build what the recipe says, and open its data: what is wrong with them is said here."""
    try:
        loggers = _loggers(config, folder)
        built = recipe.build(config, folder.path, _callbacks(config, folder), loggers, fetch=not resumes)
        for split in ("train", "val"):
            built.datamodule.loader(split)
        if run_folder.rank() == 0 and not resumes:
            run_folder.check_existing(folder, _existing(config))
    except BaseException:
        folder.release()
        raise
    return built


def _run(
    name: str,
    built: Built,
    folder: RunFolder,
    overrides: Sequence[str],
    lines: logs.RunLog,
    *,
    resumes: bool,
    as_json: bool,
) -> int:
    """Train what was built and finish the folder; returns the exit code."""
    try:
        if run_folder.rank() == 0:
            _open(folder, built.config, overrides, resumes=resumes)
            lines.to_file(folder.log)
            for part, text in fine_tuning.lines(built).items():
                log.info("%s: %s", part, text)
        _fit(built, folder, resumes=resumes)
        finish.after_training(built, folder, as_json=as_json)
    except (Interrupted, KeyboardInterrupt):
        return _interrupted(name, folder)
    except MmzooError:
        if run_folder.rank() == 0 and folder.has_results():
            folder.mark(Status.FAILED)
        elif run_folder.rank() == 0:
            lines.close()
            folder.discard()
        raise
    except BaseException:
        if run_folder.rank() == 0:
            folder.mark(Status.FAILED)
        raise
    return 0


def _existing(config: RecipeConfig) -> Existing:
    if config.resume is Resume.AUTO:
        return Existing.RESUME
    return Existing.OVERWRITE if config.overwrite else Existing.REFUSE


def _open(folder: RunFolder, config: RecipeConfig, overrides: Sequence[str], *, resumes: bool) -> None:
    if config.overwrite and not resumes:
        folder.clear()
    folder.record(config.to_dict(), overrides)
    folder.mark(Status.RUNNING)
    console.note(f"run: {folder.path}" + (f" (continues from {folder.last})" if resumes else ""))


def _callbacks(config: RecipeConfig, folder: RunFolder) -> list[pl.Callback]:
    highlights = [config.trainer.monitor.removeprefix("val/")]
    return run_callbacks(config.trainer, folder.metrics, folder.last.parent, highlights)


def _loggers(config: RecipeConfig, folder: RunFolder) -> Any:
    if not config.trainer.tensorboard:
        return None
    from pytorch_lightning.loggers import TensorBoardLogger

    try:
        return [TensorBoardLogger(str(folder.path), name="", version="tensorboard")]
    except ModuleNotFoundError as error:
        do = "Install it with `pip install 'mmzoo[log]'`, or set trainer.tensorboard=false."
        found = "tensorboard is not installed"
        raise ConfigError.at("trainer.tensorboard", found, "the extra `log`", do) from error


def _fit(built: Built, folder: RunFolder, *, resumes: bool) -> None:
    """Run the trainer. After a second Ctrl-C Lightning leaves through SystemExit: an interruption too."""
    checkpoint = str(folder.last) if resumes else None
    try:
        built.trainer.fit(built.learner, datamodule=built.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as leave:
        raise KeyboardInterrupt from leave


def _interrupted(name: str, folder: RunFolder) -> int:
    if run_folder.rank() == 0:
        folder.mark(Status.INTERRUPTED)
        if folder.last.is_file():
            console.note(f"interrupted; the checkpoint is {folder.last}")
            console.note(f"next: mmzoo train {name} run_dir={folder.path} resume=auto")
        else:
            console.note("interrupted before a checkpoint was due")
    return 130
