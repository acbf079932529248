"""Where everything meets: a recipe is the whole tree of options, and five lines build what it says."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from mmzoo import compose, configs, schema, zoo
from mmzoo.batch import DataInfo
from mmzoo.checkpoints.loading import LoadReport
from mmzoo.datamodules.base import DataModule
from mmzoo.errors import ConfigError, MmzooError, close_matches
from mmzoo.learners.baselines import check_baselines
from mmzoo.learners.multitask import MultitaskLearner
from mmzoo.learners.named_parts import check_parts
from mmzoo.learners.optim import moment_options
from mmzoo.learners.tasks import Task, TaskConfig, faults_of, modalities_of, passes_of, with_heads
from mmzoo.learners.teaching import open_classroom
from mmzoo.learners.trainer import TrainerConfig, allow_several_backward_passes, build_trainer
from mmzoo.models.base import TaskModel, owner_of
from mmzoo.zoo import pretrained


class Resume(str, Enum):
    """What to do where a run already exists."""

    NEVER = "never"
    AUTO = "auto"


@dataclass(kw_only=True)
class RecipeConfig(schema.Config):
    """The whole tree."""

    shorthands: ClassVar[Mapping[str, str]] = {"balance": "learner.balance"}

    name: str = "recipe"
    """names the run folder"""
    seed: int = 0
    """of weights, data order, augmentation and everything random"""
    model: Any = schema.one("architectures", "multimodal")
    """the model; heads come from the tasks"""
    data: Any = schema.one("datamodules")
    """where samples come from"""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """task name -> head, objective, metrics"""
    teachers: dict[str, Any] = schema.many("teachers")
    """name -> frozen model that a distillation learns from (tasks.NAME.teacher)"""
    only: list[str] = field(default_factory=list)
    """names of the tasks to keep, such as one, for its single-task model; empty: all"""
    learner: Any = schema.one("learners", "multitask")
    """how to train"""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """how long, where, how precisely"""
    init_from: str = ""
    """run, checkpoint or model name whose weights to start from; heads whose shapes differ start anew, said
    aloud"""
    init_fresh: list[str] = field(default_factory=list)
    """parts that start anew though `init_from` has them, named as in model.freeze: heads.align.log_scale"""
    allow_partial: bool = False
    """start even where `init_from` lacks tensors of the model, or has some that it has no place for"""
    resume: Resume = Resume.NEVER
    """auto: continue the run folder's last checkpoint"""
    overwrite: bool = False
    """replace an existing run folder"""
    runs_root: str = "runs"
    """folder of run folders"""
    run_dir: str = ""
    """run folder; empty: <runs_root>/<name>/<time>[_tag]"""
    tag: str = ""
    """ending of the run folder's name"""
    plugins: list[str] = field(default_factory=list)
    """modules to import first, whose tables extend mmzoo's"""


@dataclass(frozen=True)
class Built:
    """What a recipe builds, and the options with everything left open filled in."""

    config: RecipeConfig
    model: TaskModel
    datamodule: DataModule
    learner: MultitaskLearner
    trainer: pl.Trainer
    info: DataInfo
    started: LoadReport | None = None
    """what became of the tensors of `init_from`"""


def load(name: str, overrides: Sequence[str] = ()) -> RecipeConfig:
    """Compose a recipe by name or file, with overrides, and check it whole."""
    return from_dict(compose.read(configs.find("recipe", name), "recipe"), overrides)


def from_dict(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> RecipeConfig:
    """Check a tree, such as the config.yaml of a run, with overrides applied."""
    overrides, card = pretrained.expand(overrides)
    _import(tree.get("plugins"))
    config = _parsed(tree, overrides)
    if card:
        used = modalities_of(config.tasks, tuple(config.model.modalities), tuple(config.model.inputs))
        config = _parsed(tree, pretrained.advised(overrides, card, used))
        config = dataclasses.replace(config, model=pretrained.used_only(config.model, used))
    check_names(config)
    return config


def _parsed(tree: Mapping[str, Any], overrides: Sequence[str]) -> RecipeConfig:
    whole = compose.override(RecipeConfig, copy.deepcopy(tree), overrides, "recipe")
    _import(whole.get("plugins"))
    return schema.parse(RecipeConfig, _chosen_tasks(whole))


def check_names(config: RecipeConfig) -> None:
    """Raise where a recipe names what does not exist: weights, parts of the model, an optimiser, figures."""
    faults: list[str] = []
    try:
        if config.init_from:
            zoo.check_source(config.init_from)
    except MmzooError as error:
        faults.append(f"init_from: {error}")
    learner = config.learner
    for check in (
        lambda: check_parts(config.model, config.tasks, learner, config.init_fresh),
        lambda: moment_options(learner.optim),
        lambda: _check_baselines(config),
    ):
        try:
            check()
        except ConfigError as error:  # noqa: PERF203 all faults at once
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))


def _check_baselines(config: RecipeConfig) -> None:
    tasks = {name: Task(name, options) for name, options in config.tasks.items()}
    if config.learner.baselines:
        heads = with_heads(config.model, config.tasks).heads
        passes = passes_of(tasks, {name: tuple(spec.passes) for name, spec in heads.items()})
        check_baselines(config.learner.baselines, tasks, passes)


def _chosen_tasks(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree with the tasks that `only` names; one that is not there gets its close matches."""
    names, tasks = tree.get("only") or (), tree.get("tasks") or {}
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in tasks:
            raise ConfigError.at(
                "only", f"no task {name!r}", "tasks of the recipe", close_matches(name, tasks)
            )
    kept = {k: v for k, v in tasks.items() if k in names} if names else tasks
    return {**tree, "only": names, "tasks": kept}


def _import(plugins: Sequence[str] | None) -> None:
    for plugin in plugins or ():
        try:
            importlib.import_module(plugin)
        except ImportError as error:  # noqa: PERF203 a handful
            do = "Install it, or drop it from plugins."
            raise ConfigError.at("plugins", f"{plugin!r} ({error})", "modules to import", do) from error


def build(
    config: RecipeConfig,
    run_dir: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Any = None,
    *,
    fetch: bool = True,
    teach: bool = True,
) -> Built:
    """Build data, model, learner and trainer of a recipe; `config` itself stays as it is.

    With `fetch=False` no published weights are fetched: the model's own are loaded next. With `teach=False`
    there are no teachers, which only training needs.
    """
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.seed)
    options = with_heads(config.model, config.tasks)
    used = modalities_of(config.tasks, tuple(options.modalities), tuple(options.inputs))
    classroom = open_classroom(config.teachers, config.tasks if teach else {}, options, zoo.load_with_config)
    used = tuple(m for m in options.inputs if m in {*used, *classroom.inputs})
    preprocesses = {m: c.preprocess.build() for m, c in options.inputs.items() if m in used}
    datamodule: DataModule = config.data.build(classroom.beside(preprocesses), seed=config.seed)
    info = datamodule.info()
    _check(config.tasks, options, used, info)
    classroom.learn_classes(info.labels)
    owner = owner_of(options)
    options = classroom.fitted(owner.resolve(options, info))
    model = owner(options if fetch else owner.bare(options))
    learner: MultitaskLearner = config.learner.build(model, config.tasks, info, seed=config.seed)
    learner.log_every_steps, learner.classroom = config.trainer.log_every_steps, classroom
    started: LoadReport | None = None
    if config.init_from:
        started = zoo.start_from(
            model, config.init_from, fresh=config.init_fresh, allow_partial=config.allow_partial
        )
    if fetch:
        pretrained.warn(model, started)
        model.start()
    model.speed_up(checkpointing=config.trainer.checkpointing.value, compiled=config.trainer.compile)
    if config.trainer.compile and learner.balancing.compares:
        allow_several_backward_passes()
    trainer = build_trainer(config.trainer, run_dir, callbacks, loggers)
    config = dataclasses.replace(config, model=options)
    learner.meta = {**zoo.describe(model, info, config.to_dict()), "teachers": classroom.describe()}
    return Built(config, model, datamodule, learner, trainer, info, started)


def _check(
    tasks: Mapping[str, TaskConfig],
    options: Any,
    used: tuple[str, ...],
    info: DataInfo,
) -> None:
    """Raise one error that lists everything the tasks want and the data or the model lack."""
    faults: list[str] = []
    missing = [m for m in used if m not in info.modalities]
    if missing:
        found, have = f"no {', '.join(missing)} in the data", [m for m in used if m in info.modalities]
        do = f"Set tasks.NAME.passes=[{','.join(have)}], or use data that has {missing[0]}."
        faults.append(str(ConfigError.at("data", found, f"modalities {', '.join(used)}", do)))
    for name, task in tasks.items():
        faults += faults_of(name, task, options.heads.get(task.head_of or name), info)
    if faults:
        raise ConfigError("\n".join(faults))
