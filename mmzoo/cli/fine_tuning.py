"""What fine-tuning does in a run, in facts for `--dry-run --json` and lines for the plan and the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmzoo.learners.optim import OptimConfig, parameter_groups
from mmzoo.models.base import TaskModel
from mmzoo.models.finetune.freeze import learning
from mmzoo.models.finetune.graft import donors
from mmzoo.models.finetune.lora import is_factor, lora_layers
from mmzoo.models.finetune.parts import summarise
from mmzoo.recipe import Built
from mmzoo.zoo import pretrained

SHOWN = 6
"""Names in a line before the rest is counted."""


def facts(built: Built) -> dict[str, Any]:
    """Return what is switched on, and nothing else."""
    config, model = built.config, built.model
    learner = built.learner.config
    found = {
        "init_from": config.init_from,
        "trunk_from": getattr(getattr(config.model, "trunk", None), "init_from", ""),
        "anew": pretrained.anew(model, built.started),
        "ffn_from": donors(config.model.modalities),
        "frozen": frozen(model),
        "frozen_at_random": pretrained.untrained(model, built.started),
        "lora": _lora(model),
        "learning_rates": learning_rates(model, learner.optim),
        "unfreeze": _unfreeze(built),
        "ema": config.trainer.ema.to_dict() if config.trainer.ema.decay else {},
    }
    return {name: fact for name, fact in found.items() if fact}


def lines(built: Built) -> dict[str, str]:
    """Return the facts as text, a line each."""
    found = facts(built)
    said = {
        "starts from": " and ".join(v for k in ("init_from", "trunk_from") if (v := found.get(k, ""))),
        "starts anew": _listed(found.get("anew", [])),
        "FFN copied": ", ".join(f"{new} from {old}" for new, old in found.get("ffn_from", {}).items()),
        "frozen": _listed(found.get("frozen", [])),
        "frozen at random": _listed(found.get("frozen_at_random", [])),
        "LoRA": _lora_line(found.get("lora", {})),
        "rates by part": ", ".join(f"{r['part']} {r['lr']:.2e}" for r in found.get("learning_rates", [])),
        "unfreezing": "; ".join(
            f"{s['unit'].removesuffix('s')} {s['at']} {_listed(s['parts'])}"
            for s in found.get("unfreeze", [])
        ),
        "EMA": ", ".join(f"{k} {v:g}" for k, v in found.get("ema", {}).items()),
    }
    return {name: text for name, text in said.items() if text}


def frozen(model: TaskModel) -> list[str]:
    """Name the parts that do not learn."""
    able = set(learning(model))
    return summarise(model, [name for name, _ in model.named_parameters() if name not in able])


def learning_rates(model: TaskModel, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the peak rate of each group of parameters, where they are not all the same."""
    groups = parameter_groups(model, optim)
    rates: dict[float, list[str]] = {}
    for group in groups:
        rates.setdefault(group.lr_scale, []).extend(name for name, _ in group.parameters)
    if set(rates) <= {1.0}:
        return []
    return [
        {"part": _listed(summarise(model, names)), "lr": optim.lr * scale, "tensors": len(names)}
        for scale, names in sorted(rates.items())
    ]


def _lora(model: TaskModel) -> Mapping[str, Any]:
    options = model.config.lora
    if not options.rank:
        return {}
    entries = sum(p.numel() for n, p in model.named_parameters() if is_factor(n))
    facts = {"rank": options.rank, "scale": options.scale, "dropout_prob": options.dropout_prob}
    return {**facts, "layers": list(lora_layers(model)), "parameters": entries}


def _lora_line(lora: Mapping[str, Any]) -> str:
    if not lora:
        return ""
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in lora["layers"])
    where = f"{len(lora['layers'])} linear maps ({', '.join(kinds)})"
    return f"rank {lora['rank']}, scale {lora['scale']:g}, {lora['parameters']:,} parameters on {where}"


def _unfreeze(built: Built) -> list[dict[str, Any]]:
    unit = built.learner.config.unfreeze.unit.value
    plan = built.learner.unfreezing.plan()
    return [{"at": at, "unit": unit, "parts": parts} for at, parts in plan]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
