"""`train --dry-run`: the model and one real batch, and what training on such batches would cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmzoo import recipe
from mmzoo.batch import Batch
from mmzoo.cli import console, fine_tuning, pass_plan, teaching
from mmzoo.learners.meter import gemm_peak, step_cost
from mmzoo.learners.optim import lr_factor
from mmzoo.models.base import TaskModel
from mmzoo.recipe import Built, RecipeConfig

ASSUMED_MFU = 0.5
"""Share of the GEMM peak assumed for the estimate of time."""
MOMENTS = 2
"""Running averages that Adam-like optimisers keep of each trainable parameter."""


def run(name: str, config: RecipeConfig, overrides: Sequence[str], *, as_json: bool) -> int:
    """Build, measure, print."""
    built = recipe.build(config)
    device = built.trainer.strategy.root_device
    built.learner.to(device)
    plain = next(iter(built.datamodule.loader("train"))).to(device)
    batch = built.learner.taught(plain)
    plan = {
        "recipe": config.name,
        "device": str(device),
        "parameters": parameters(built.model),
        "teachers": teaching.facts(built, batch),
        "data": data_mix(built, plain),
        "step": step(built, batch),
        "hidden_passes": pass_plan.facts(built, batch),
        "memory": memory(built, batch),
        "schedule": schedule(built),
        "fine_tuning": fine_tuning.facts(built),
    }
    plan["estimate"] = _estimate(plan, built, device)
    if as_json:
        console.dump(plan)
        return 0
    _print(plan, fine_tuning.lines(built))
    console.note(f"next: mmzoo train {' '.join([name, *overrides])}")
    return 0


def parameters(model: TaskModel) -> dict[str, dict[str, int]]:
    """Count trainable and frozen parameters by part."""
    every, trainable = model.num_params(), model.num_params(trainable_only=True)
    return {k: {"trainable": trainable[k], "frozen": every[k] - trainable[k]} for k in every}


def data_mix(built: Built, batch: Batch) -> dict[str, Any]:
    """Return the splits' sizes and who is in the batch: sources, share of samples with each modality."""
    sources = Counter(batch.source) if batch.source else Counter({"data": len(batch)})
    return {
        "samples": dict(built.info.counts),
        "batch": len(batch),
        "sources": {k: n / len(batch) for k, n in sources.items()},
        "modalities": {m: len(x.index.unique()) / len(batch) for m, x in batch.inputs.items()},
        "shapes": {m: list(rows.values.shape[1:]) for m, rows in batch.inputs.items()},
        "labels": {k: len(t.index) / len(batch) for k, t in batch.targets.items()},
    }


def step(built: Built, batch: Batch) -> dict[str, Any]:
    """Return tokens, FLOPs and the first loss of a training step (all processes and accumulated batches)."""
    flops, tokens = step_cost(built.model, batch, built.learner.reading)
    times = built.config.trainer.devices * built.config.trainer.accumulate
    with torch.no_grad():
        output = built.model(batch, built.learner.reading)
        losses = {n: float(built.learner.tasks[n].loss(output, batch).mean()) for n in built.learner.trained}
    return {
        "samples": len(batch) * times,
        "tokens": tokens * times,
        "flops": flops * times,
        "first_loss": losses,
    }


def memory(built: Built, batch: Batch) -> dict[str, int]:
    """Estimate the bytes a process needs: weights, gradients, optimiser, and what one backward pass keeps."""
    trainable = built.model.num_params(trainable_only=True)["total"]
    every = sum(p.numel() * p.element_size() for p in built.model.parameters())
    parts = {
        "weights": every,
        "gradients": trainable * 4,
        "optimizer": trainable * 4 * MOMENTS,
        "teachers": teaching.num_bytes(built),
        "activations": activation_bytes(built, batch),
    }
    return {**parts, "total": sum(parts.values())}


def activation_bytes(built: Built, batch: Batch) -> int:
    """Return the bytes of all tensors that autograd keeps for the backward pass, each storage once."""
    owned = {p.untyped_storage().data_ptr() for p in built.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    built.model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        built.trainer.precision_plugin.forward_context(),
    ):
        output = built.model(batch, built.learner.reading)
        losses = [built.learner.tasks[n].loss(output, batch).mean() for n in built.learner.trained]
    del output, losses
    return sum(kept.values())


def schedule(built: Built) -> dict[str, Any]:
    """Return how many steps there will be, and the learning rate along them."""
    options, optim = built.config.trainer, built.learner.config.optim
    per_epoch = math.ceil(len(built.datamodule.loader("train")) / options.accumulate)
    known = [n for n in (options.max_steps, options.max_epochs * per_epoch) if n > 0]
    steps = min(known) if known else None
    facts: dict[str, Any] = {"steps": steps, "steps_per_epoch": per_epoch, "max_minutes": options.max_minutes}
    if steps:
        facts["epochs"] = steps / per_epoch
        places = {"first": 0, "peak": int(optim.warmup * steps), "half": steps // 2, "last": steps - 1}
        facts["lr"] = {
            k: {"step": s + 1, "lr": optim.lr * lr_factor(s, steps, optim)} for k, s in places.items()
        }
    return facts


def _estimate(plan: dict[str, Any], built: Built, device: torch.device) -> dict[str, Any]:
    """Guess the time from a measured GEMM peak; real training prints the real MFU."""
    dtype = torch.bfloat16 if built.config.trainer.precision.startswith("bf16") else torch.float32
    peak = gemm_peak(device, dtype) * built.config.trainer.devices
    taught = sum(facts["flops"] for facts in plan["teachers"].values())
    seconds = (plan["step"]["flops"] + taught) / (peak * ASSUMED_MFU)
    steps = plan["schedule"]["steps"]
    return {
        "gemm_peak": peak,
        "mfu": ASSUMED_MFU,
        "s_per_step": seconds,
        "s_total": steps * seconds if steps else None,
    }


def _print(plan: dict[str, Any], tuning: dict[str, str]) -> None:
    rows = [(k, f"{v['trainable']:,}", f"{v['frozen']:,}") for k, v in plan["parameters"].items()]
    console.say(console.table(("part", "trainable", "frozen"), rows, right=(1, 2)) + "\n")
    data, cost, size = plan["data"], plan["step"], plan["memory"]
    console.say(_mix_table(data) + "\n")
    if plan["teachers"]:
        console.say(teaching.table(plan["teachers"]) + "\n")
    if plan["hidden_passes"]:
        console.say(pass_plan.table(plan["hidden_passes"]) + "\n")
    losses = ", ".join(f"{k} {v:.3f}" for k, v in cost["first_loss"].items())
    facts = {
        "samples": ", ".join(f"{k} {n:,}" for k, n in data["samples"].items()),
        "sources": ", ".join(f"{k} {share:.0%}" for k, share in data["sources"].items()),
        "a step": _cost(cost),
        "first loss": losses,
        "memory": ", ".join(f"{k} {v / 2**20:,.0f} MiB" for k, v in size.items()) + f" on {plan['device']}",
        "steps": _steps(plan["schedule"]),
        "learning rate": _rates(plan["schedule"]),
        **tuning,
        "time": _time(plan["estimate"]),
    }
    console.say(console.pairs({k: v for k, v in facts.items() if v}))


def _cost(cost: dict[str, Any]) -> str:
    return f"{cost['samples']} samples, {cost['tokens']:,} tokens, {console.short(cost['flops'], 'FLOP')}"


def _mix_table(data: dict[str, Any]) -> str:
    rows = [
        (m, f"{share:.0%}", "×".join(map(str, data["shapes"][m])) or "scalar")
        for m, share in data["modalities"].items()
    ]
    rows += [(f"label {k}", f"{share:.0%}", "–") for k, share in data["labels"].items()]
    return console.table((f"in a batch of {data['batch']}", "present", "padded shape"), rows, right=(1,))


def _steps(facts: dict[str, Any]) -> str:
    if facts["steps"] is None:
        return f"until {facts['max_minutes']:g} minutes have passed, {facts['steps_per_epoch']} an epoch"
    return f"{facts['steps']:,} ({facts['epochs']:.2g} epochs of {facts['steps_per_epoch']:,})"


def _rates(facts: dict[str, Any]) -> str:
    return ", ".join(f"{v['lr']:.2e} at step {v['step']}" for v in facts.get("lr", {}).values())


def _time(estimate: dict[str, Any]) -> str:
    whole = f", {console.clock(estimate['s_total'])} in all" if estimate["s_total"] else ""
    reached = f"{estimate['mfu']:.0%} of the GEMM peak {console.short(estimate['gemm_peak'], 'FLOP/s')}"
    return f"{estimate['s_per_step']:.3g} s a step{whole}, if {reached} is reached"
