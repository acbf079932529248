"""The LightningModule that trains a model on weighted tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, ModelOutput
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.balancing import RANK_SLOT, Balancing, Over, Place
from mmzoo.learners.balance.base import Moment
from mmzoo.learners.baselines import check_baselines
from mmzoo.learners.optim import OptimConfig, build_optimizer, check_schedule, lr_factor
from mmzoo.learners.routing import step_figures
from mmzoo.learners.tasks import Task, TaskConfig, heads_of, passes_of
from mmzoo.learners.tracker import Tracker
from mmzoo.learners.unfreeze import UnfreezeConfig, Unfreezing
from mmzoo.models.base import TaskModel
from mmzoo.models.teachers.classroom import Classroom
from mmzoo.state import Sum
from mmzoo.trunk.base import MixerContext


class MultitaskLearner(pl.LightningModule, schema.Configurable):
    """Minimises sum over tasks of weight · mean loss, or what its balancer makes of the tasks' losses;
    validates with each task's metrics.

    Under several processes every task's mean is that of the global batch: loss_rank = sum_rank · world /
    count_global, so that DDP's average of gradients is exactly the single-process gradient. Randomness
    inside the model (dropout, stochastic depth) is seeded anew each batch from (seed, batch number, rank),
    so that a resumed run repeats it.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """How to train."""

        optim: OptimConfig = field(default_factory=OptimConfig)
        """optimiser and schedule"""
        aux_weight: float = 1.0
        """factor on auxiliary losses that mixers and routers return"""
        unfreeze: UnfreezeConfig = field(default_factory=UnfreezeConfig)
        """gradual unfreezing: when which part of the model begins to learn"""
        balance: Any = schema.one("balancers", "static")
        """how the tasks' losses become one step"""
        balance_over: Over = Over.TASKS
        """what is balanced: tasks, or parts (each pair of a contrast, each pass of a classifier)"""
        shared: list[str] = field(default_factory=lambda: ["trunk"])
        """beginnings of the names of the parameters whose gradients are balanced and compared"""
        baselines: dict[str, float] = field(default_factory=dict[str, float])
        """figure `task/figure` -> its value with a model for that task alone; the figure delta_m compares"""
        cosine_every: int = 0
        """steps between logged cosines of every two tasks' gradients; 0: never"""

        def __post_init__(self) -> None:
            """Check the range."""
            if self.cosine_every < 0:
                do = "Set cosine_every=0 to log none."
                raise ConfigError.at("cosine_every", str(self.cosine_every), "0 or more", do)
            for name, value in self.baselines.items():
                if not value > 0:
                    raise ConfigError.at(f"baselines.{name}", f"{value:g}", "more than 0", "Mend it.")

    def __init__(
        self,
        config: Config,
        model: TaskModel,
        tasks: Mapping[str, TaskConfig],
        info: DataInfo,
        *,
        seed: int = 0,
    ) -> None:
        """Wire model and tasks; `info` gives class names to objectives and metrics."""
        super().__init__()
        if not tasks:
            raise ConfigError.at(
                "tasks", "none", "at least one task", "Add tasks: {name: {head: …, objective: …}}."
            )
        self.config, self.model, self.info, self.seed = config, model, info, seed
        self.tasks = {name: Task(name, c, info) for name, c in tasks.items()}
        check_baselines(config.baselines, self.tasks, passes_of(self.tasks, model.passes))
        self.trained = [n for n, t in self.tasks.items() if t.config.weight > 0]
        trained = {n: self.tasks[n] for n in self.trained}
        self.reading = heads_of(trained)
        """heads that a training step runs"""
        self.classroom: Classroom | None = None
        """who teaches; no part of the module, so that it is in no checkpoint and no gradient reaches it"""
        self.balancing = Balancing(config, trained, passes_of(self.tasks, model.passes))
        self.balancer = self.balancing.balancer
        self._replay: tuple[Batch, int, Moment] | None = None
        self.looks_back = False
        """whether the forward pass under way is the balancer's second look, which no rate counts"""
        self.line_due = False
        """whether this step has figures that most have not, so that the history needs a line of it"""
        self.unfreezing = Unfreezing(config.unfreeze, model)
        self.tracker = Tracker(self.tasks, info, config.baselines)
        self.last_losses: dict[str, Tensor] = {}
        self.meta: dict[str, Any] = {}
        self.log_every_steps = 10

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the parts learn whose turn has come; what still waits is in evaluation mode."""
        if self.unfreezing.update(self.global_step, self.current_epoch):
            self.model.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; parts are kept in `last_losses` and logged every few steps."""
        number = self.trainer.fit_loop.total_batch_idx
        batch = self.taught(batch)
        output = self._forward(batch, number)
        logged: dict[str, Tensor] = {}
        states = {name: self.tasks[name].loss(output, batch) for name in self.trained}
        for name, state in states.items():
            logged |= {f"train/{name}/loss/{k}": p.mean().detach() for k, p in state.parts.items()}
            logged[f"train/{name}/loss"] = state.total.mean().detach()
        logged |= {f"train/aux/{key}": value.detach() for key, value in output.aux.items()}
        aux = [self.config.aux_weight * value for value in output.aux.values()]
        at = Place(self.global_step, self.current_epoch, self._seed_of(number, RANK_SLOT))
        total, now = self.balancing.total(states, aux, self._mean, self.model, at)
        self._replay = (batch, number, now) if self.balancer.looks_back else None
        logged |= self.balancing.figures
        self.line_due = self.balancing.compares_at(self.global_step)
        logged["train/loss"] = total.detach()
        if (self.global_step + 1) % self.log_every_steps == 0 or self.global_step == 0:
            found = step_figures(output.stats)
            logged |= {f"train/{k}": torch.tensor(v, device=total.device) for k, v in found.items()}
        self.last_losses = logged
        if (self.global_step + 1) % self.log_every_steps == 0:  # when Lightning hands over to its loggers
            self.log_dict(logged, batch_size=len(batch))
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the model's gradient; a balancer's own numbers neither count in its norm nor are clipped."""
        learned = [(p, p.grad) for p in self.balancer.parameters()]
        for p, _ in learned:
            p.grad = None
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for p, grad in learned:
            p.grad = grad

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step; a balancer that looks back then sees the last batch's losses under the new parameters."""
        super().optimizer_step(*args, **kwargs)
        if self._replay is None:
            return
        (batch, number, now), self._replay = self._replay, None
        # contrast between ranks needs a graph, see objectives.contrast
        autocast = self.trainer.precision_plugin.forward_context()
        self.looks_back = True
        with torch.set_grad_enabled(self.trainer.world_size > 1), autocast:
            output = self._forward(batch, number)
            states = {name: self.tasks[name].loss(output, batch) for name in self.trained}
            values = self.balancing.values(states, self._mean, now)
        self.looks_back = False
        with torch.no_grad():
            self.balancer.after_step(values.detach(), now)

    def _forward(self, batch: Batch, number: int) -> ModelOutput:
        """Run the model with the random numbers of batch `number`."""
        torch.manual_seed(self._seed_of(number, self.global_rank))
        return self.model(batch, self.reading, MixerContext(training=True, step=self.global_step))

    def _seed_of(self, number: int, slot: int) -> int:
        return ((self.seed * 1_000_003 + number) * 4096 + slot) % 2**63

    def _mean(self, part: Sum) -> Tensor:
        """Return this rank's loss such that the average over ranks of its gradient is the global one."""
        world = self.trainer.world_size
        if world == 1:
            return part.mean()
        count = part.count.detach().clone()
        torch.distributed.all_reduce(count)
        return part.sum * world / torch.where(count > 0, count, torch.ones_like(count))

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's states."""
        self.tracker.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Merge a batch into the states."""
        self.tracker.update(self.model, self.taught(batch))

    def on_validation_epoch_end(self) -> None:
        """Merge the ranks' states, compute, log as `val/…`."""
        figures, _ = self.tracker.compute(self.model)
        self.log_dict({f"val/{k}": v for k, v in figures.items()}, rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its per-step schedule."""
        if not self.trained:
            found = f"weight 0 for {', '.join(self.tasks)}"
            raise ConfigError.at("tasks", found, "at least one task to train", "Set tasks.NAME.weight=1.")
        self.balancing.check(self.trainer.strategy, str(self.trainer.precision))
        optimizer = build_optimizer(self.model, self.config.optim)
        learned = list(self.balancer.parameters())
        if learned:
            optimizer.add_param_group({"params": learned, "lr": self.balancer.lr, "weight_decay": 0.0})
        total = self.trainer.estimated_stepping_batches
        check_schedule(total, self.config.optim)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: lr_factor(s, total, self.config.optim)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def taught(self, batch: Batch) -> Batch:
        """Return the batch with what its teachers give for it, where there are any."""
        return self.classroom.teach(batch) if self.classroom else batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move values; masks and indices stay on the host."""
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights what is needed to build the model again."""
        checkpoint["mmzoo"] = self.meta

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise where the teachers are no longer those that the run began with."""
        if self.classroom:
            self.classroom.check_same(checkpoint["mmzoo"].get("teachers", {}))
