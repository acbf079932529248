"""One task's part of a routed model: which experts its tokens choose is measured on the run's own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmzoo import zoo
from mmzoo.cli import sources
from mmzoo.errors import ConfigError
from mmzoo.models.moe.submodel import extract_submodel, kept_experts, measure_use
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.trunk.routing_stats import RoutingUse, whole


@dataclass(frozen=True)
class Extracted:
    """What is written, and the lines that say what was kept."""

    config: dict[str, Any]
    state: Mapping[str, Tensor]
    lines: list[str]


def extract(source: str, task: str, min_share: float) -> Extracted:
    """Measure a task's choices on the validation data of the run (training data where it has none) and cut.

    The recipe kept beside the weights becomes that of the one task, so that eval and embed work as before.
    """
    if not 0 <= min_share <= 1:
        raise ConfigError.at("--min-share", str(min_share), "0 to 1", "Give a share of choices.")
    found = sources.trained(source, ())
    model = found.built.model
    if not isinstance(model, MultimodalModel):
        do = "Only models of adapters, trunk and heads have one."
        raise ConfigError.at("--extract-task", type(model).__name__, "a model with a trunk", do)
    split = "val" if found.built.info.counts.get("val") else "train"
    use = measure_use(model, found.built.datamodule.make_loader(split), task)
    made = extract_submodel(model, task, use, min_share=min_share)
    config = zoo.describe(made, found.built.info, _recipe_of(found.built.config.to_dict(), made, task))
    tokens = next(whole(own).tokens for own in use.values())
    said = f"{task}: choices of {tokens:,} tokens of {found.source} ({split})"
    return Extracted(config, made.state_dict(), [said, *_lines(model, use, min_share)])


def _lines(model: MultimodalModel, use: RoutingUse, min_share: float) -> list[str]:
    lines: list[str] = []
    for layer, experts in kept_experts(model, use, min_share).items():
        share = whole(use[str(layer)]).share
        named = ", ".join(map(str, experts))
        part = f"{100 * float(share[experts].sum()):.1f} % of its choices"
        lines.append(f"block {layer}: {len(experts)} of {len(share)} experts ({named}), {part}")
    return lines


def _recipe_of(tree: dict[str, Any], made: MultimodalModel, task: str) -> dict[str, Any]:
    """Return the recipe with this task alone, and no option that speaks of others."""
    tasks = {name: own for name, own in tree["tasks"].items() if task in (name, own.get("head_of"))}
    learner = {name: value for name, value in tree["learner"].items() if name != "balance"}
    baselines = learner.get("baselines") or {}
    learner["baselines"] = {name: value for name, value in baselines.items() if name.split("/")[0] in tasks}
    trainer = {name: value for name, value in tree["trainer"].items() if name != "monitor"}
    options = made.config.to_dict()
    model = {**tree["model"], "trunk": options["trunk"], "heads": options["heads"]}
    return {**tree, "model": model, "tasks": tasks, "only": [], "learner": learner, "trainer": trainer}
