"""Speed: samples and tokens a second, and the share of the machine's matrix-multiply peak that is used (MFU).

MFU = useful FLOPs / seconds / peak, where useful means the model's own arithmetic on real tokens (no padding,
no recomputation) and peak is what one large GEMM reaches on this device in this precision, measured at first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmzoo.batch import Batch
from mmzoo.models.base import TaskModel

log = logging.getLogger(__name__)


class Meter(pl.Callback):
    """Counts what passes through the model; `read()` gives the rates since it was last read.

    FLOPs are counted once, on the first batch's forward pass, and scaled by tokens afterwards; a part costs
    once more for the gradient of its input and once more for that of its weights, where it needs them.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.samples, self.tokens, self.seconds = 0, 0, 0.0
        self.flops_per_token, self.peak = 0.0, 0.0
        self._since = 0.0
        self._hook: Any = None
        self._learner: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the peak and begin to count tokens."""
        self.peak, self._learner = gemm_peak(pl_module.device, _dtype(trainer.precision)), pl_module
        model = pl_module.model
        if isinstance(model, TaskModel):
            self._hook = model.watch_tokens(self._count_tokens)
        self._since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the FLOPs of the first batch."""
        if self.flops_per_token or not isinstance(pl_module.model, TaskModel):
            return
        with trainer.precision_plugin.forward_context():
            flops, tokens = step_cost(pl_module.model, batch, getattr(pl_module, "reading", None))
        self.flops_per_token = flops / max(tokens, 1)
        self.tokens, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the samples."""
        self.samples += len(batch) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it again."""
        self._since = time.perf_counter()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the model as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def read(self, world_size: int = 1) -> dict[str, float]:
        """Return samples/s and tokens/s of all processes and the MFU of this one, since the last reading."""
        seconds = self.seconds + time.perf_counter() - self._since
        rates = {
            "samples_per_s": self.samples / seconds,
            "tokens_per_s": self.tokens * world_size / seconds,
            "mfu": self.tokens * self.flops_per_token / seconds / self.peak if self.peak else 0.0,
        }
        self.samples, self.tokens, self.seconds, self._since = 0, 0, 0.0, time.perf_counter()
        return rates

    def _count_tokens(self, tokens: int) -> None:
        learner = self._learner
        if learner is not None and learner.model.training and not getattr(learner, "looks_back", False):
            self.tokens += tokens


def step_cost(model: TaskModel, batch: Batch, tasks: list[str] | None = None) -> tuple[float, int]:
    """Return the FLOPs of a training step on this batch and the number of its real tokens.

    Runs one forward pass without gradients, in evaluation mode, so that no random number is drawn. What the
    model runs without gradient in training too (a masked head's teachers) costs the trunk once.
    """
    tokens = 0

    def count(number: int) -> None:
        nonlocal tokens
        tokens += number

    hook, training = model.watch_tokens(count), model.training
    model.eval()
    try:
        parts = forward_flops(model, lambda: model(batch, tasks))
        still = model.still_share(batch, tasks)
    finally:
        hook.remove()
        model.train(training)
    total, before = 0.0, False
    for stage in model.stages():
        learns = {name: _learns(model.get_submodule(name)) for name in stage.parts}
        for name, learning in learns.items():
            back = int(before or (stage.chain and learning)) + int(learning)
            total += parts[name] * (1 + back * (1 - still if stage.chain else 1))
        before = before or any(learns.values())
    return total, tokens


def _learns(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def forward_flops(model: TaskModel, run: Callable[[], Any]) -> dict[str, int]:
    """Return the FLOPs of a call of the model by part: `adapters.image`, `trunk`, `decoder`, `heads.x`."""
    prefix = f"{type(model).__name__}."
    counts = {
        k.removeprefix(prefix): sum(v.values()) for k, v in _counted(model, run).get_flop_counts().items()
    }
    names = [name for stage in model.stages() for name in stage.parts]
    return {name: int(counts.get(name, 0)) for name in names}


def total_flops(model: TaskModel, run: Callable[[], Any]) -> int:
    """Return the FLOPs of whatever `run` does with the model."""
    return int(_counted(model, run).get_total_flops())


def run_flops(run: Callable[[], Any]) -> int:
    """Return the FLOPs of whatever `run` does with modules of which nothing learns."""
    with torch.compiler.set_stance("force_eager"), _counter() as counter:
        run()
    return int(counter.get_total_flops())


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, depth=3, custom_mapping=_mapping())


def _counted(model: TaskModel, run: Callable[[], Any]) -> FlopCounterMode:
    counter = _counter()
    learning = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(requires_grad=False)  # the counter trips over views of learned tables otherwise
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
            run()
    finally:
        for parameter in learning:
            parameter.requires_grad_()
    return counter


def gemm_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Return the FLOP/s that one large matrix product reaches here, at best within a fraction of a second."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds or best == float("inf"):
        before = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    return 2.0 * size**3 / best


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def _mapping() -> dict[Any, Any]:
    """Count the attention kernels that torch's table leaves out on CPU."""

    def flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops}
