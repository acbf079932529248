"""Evaluation: what batches and ranks hold merges to the figures of the whole, each under its own name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from mmzoo import recipe
from mmzoo.batch import Batch
from mmzoo.datamodules.collate import collate
from mmzoo.errors import ConfigError
from mmzoo.learners.evaluate import evaluate
from mmzoo.learners.tasks import Task, TaskConfig
from mmzoo.learners.tracker import Tracker
from mmzoo.recipe import Built

ALIGN = (
    "tasks.align.metrics=[retrieval, {type: knn, k: 3}, linear_probe, {type: zero_shot, target: side},"
    " {type: zero_shot, target: action, templates: ['someone does {}']},"
    " {type: zero_shot, target: action, templates: ['{}']}]"
)
TASKS = [
    ALIGN,
    "tasks.align.target=action",
    "+tasks.who={target: action, head: linear, objective: cross_entropy, weight: 0.5, "
    "metrics: [accuracy, {type: accuracy, topk: [2]}]}",
]


@pytest.fixture(scope="module")
def built(small: list[str]) -> Built:
    fewer = ["~model.modalities.audio", "~model.modalities.skeleton"]
    return recipe.build(recipe.load("five_senses", [*small, *fewer, *TASKS]))


def samples(built: Built, split: str = "test") -> list[Any]:
    source = built.datamodule.source(split)
    return [source.get(i, None) for i in range(len(source))]


def figures(built: Built, batches: Iterable[Batch]) -> dict[str, float]:
    tracker = Tracker(built.learner.tasks, built.info)
    for batch in batches:
        tracker.update(built.model.eval(), batch)
    return tracker.compute(built.model)[0]


def test_single_task_baselines_give_delta_m(built: Built):
    found, baselines = samples(built), {"who/top1": 0.5, "who/loss": 2.0}
    tracker = Tracker(built.learner.tasks, built.info, baselines)
    tracker.update(built.model.eval(), collate(found))
    whole = tracker.compute(built.model)[0]
    gains = (whole["who/top1"] - 0.5) / 0.5, -(whole["who/loss"] - 2.0) / 2.0
    assert whole["delta_m"] == pytest.approx(50 * sum(gains))
    with pytest.raises(ConfigError, match="more than 0"):
        dataclasses.replace(built.learner.config, baselines={"who/top1": 0.0})
    wrong = dataclasses.replace(built.learner.config, baselines={"whom/top1": 0.5})
    with pytest.raises(ConfigError, match="'who'"):
        wrong.build(built.model, built.config.tasks, built.info)
    never = dataclasses.replace(built.learner.config, baselines={"who/top7": 0.5})
    with pytest.raises(ConfigError, match=r"no figure 'who/top7'; .* Did you mean 'who/top5'"):
        never.build(built.model, built.config.tasks, built.info)


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("align/image->txt/R@1", "'align/image->text/R@1'"),
        ("align/text->text/R@1", "'align/image->text/R@1'"),
        ("align/top1", "'align/knn/top1'"),
        ("align/side/text/top1", "'align/side/image/top1'"),  # zero-shot leaves out what may name the class
        ("align/side/knn/top1", "'align/knn/top1'"),
        ("who/image/fmri/top1", "'who/image/top1'"),
    ],
)
def test_a_baseline_is_checked_by_its_whole_name(built: Built, name: str, do: str):
    wrong = dataclasses.replace(built.learner.config, baselines={name: 0.5})
    with pytest.raises(ConfigError) as caught:
        wrong.build(built.model, built.config.tasks, built.info)
    line = (
        f"learner.baselines: no figure {name!r}; expected a loss or a metric of {name.split('/')[0]}. Did you"
    )
    assert str(caught.value).startswith(line)
    assert do in str(caught.value)


def test_every_figure_of_an_evaluation_may_be_a_baseline(built: Built):
    found = evaluate(built.learner, built.datamodule, "test").metrics
    mine = {name: 0.5 for name in found if name.split("/")[0] in built.learner.tasks}
    some = {"align/knn/image/top1", "align/side/image/top1", "align/mean/R@1", "who/accuracy2/top2"}
    assert some <= set(mine)
    learner = dataclasses.replace(built.learner.config, baselines=mine)
    learner.build(built.model, built.config.tasks, built.info)


def test_a_figure_that_a_split_cannot_give_leaves_delta_m_out_and_is_said_once(
    built: Built, caplog: pytest.LogCaptureFixture
):
    """Without a labelled sample of a task there is no such figure; training goes on."""
    baselines = {"who/top1": 0.5, "who/audio/top1": 0.5}
    tracker = Tracker(built.learner.tasks, built.info, baselines)
    for _ in range(2):
        tracker.reset()
        tracker.update(built.model.eval(), collate(samples(built)))
        assert "delta_m" not in tracker.compute(built.model)[0]
    said = [r.message for r in caplog.records if "delta_m" in r.message]
    assert said == ["delta_m is left out where there is no figure who/audio/top1"]


def test_parts_merge_to_the_whole_in_any_order(built: Built):
    found = samples(built)
    whole = figures(built, [collate(found)])
    parts = figures(built, [collate(found[5:]), collate(found[:1]), collate(found[1:5])])
    contrast = {k for k in whole if k.startswith("align/loss") or k == "loss"}  # a batch is its own world
    assert whole.keys() == parts.keys()
    for name in whole.keys() - contrast:
        assert parts[name] == pytest.approx(whole[name], abs=1e-6), name
    assert "who/loss" in whole
    expected = whole["align/loss"] + 0.5 * whole["who/loss"]
    assert whole["loss"] == pytest.approx(expected)


def test_ranks_merge_to_the_whole(built: Built, monkeypatch: pytest.MonkeyPatch):
    """Two trackers stand for two ranks; what gathers objects is played."""
    found = samples(built)
    ranks = [Tracker(built.learner.tasks, built.info) for _ in range(2)]
    for tracker, part in zip(ranks, (found[:3], found[3:]), strict=True):
        tracker.update(built.model.eval(), collate(part))
    whole = Tracker(built.learner.tasks, built.info)
    for part in (found[:3], found[3:]):
        whole.update(built.model, collate(part))
    expected = whole.compute(built.model)[0]
    whole.keep_as_reference()

    def gather(parts: list[Any], mine: Any) -> None:
        parts[:] = [(r.losses, r.states) for r in ranks]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert ranks[1].compute(built.model)[0] == pytest.approx(expected)
    ranks[1].keep_as_reference()
    for key in ("knn", "linear_probe"):
        held = ranks[1].reference["align"][key]["image"]
        assert [i for rows in held for i in rows.ids] == [s.id for s in found]
        assert held[1].ids == whole.reference["align"][key]["image"][1].ids
    assert ranks[1].states == {}


def test_every_metric_of_a_task_reports_under_a_name_of_its_own(built: Built):
    found = evaluate(built.learner, built.datamodule, "test").metrics
    for name in ("align/knn/top1", "align/linear_probe/top1", "align/side/top1", "align/action/top1"):
        assert name in found
        assert f"{name.removesuffix('top1')}image/top1" in found
    assert "align/action/zero_shot3/top1" in found
    assert "who/top1" in found
    assert "who/accuracy2/top2" in found
    assert "align/image->text/R@1" in found


def test_probes_are_fitted_on_the_training_split(built: Built):
    """kNN with an independent formula on the vectors that the model gives."""
    held = evaluate(built.learner, built.datamodule, "test").metrics
    model = built.model.eval()
    with torch.no_grad():
        vectors, labels = {}, {}
        for split in ("train", "test"):
            batch = collate(samples(built, split))
            vectors[split] = model.embed(batch)["text"].values
            labels[split] = batch.targets["action"].values
    cosine = vectors["test"] @ vectors["train"].T
    right = 0
    for row, label in zip(cosine, labels["test"].tolist(), strict=True):
        votes = torch.zeros(len(built.info.labels["action"]))
        for j in row.argsort(descending=True)[:3].tolist():
            votes[labels["train"][j]] += torch.exp(row[j] / 0.07)
        right += int(votes.argmax()) == label
    assert held["align/knn/text/top1"] == pytest.approx(right / len(labels["test"]))


def test_the_training_split_is_evaluated_whole_in_order_and_unaugmented(built: Built):
    asked: list[str] = []

    class Spy:
        def loader(self, split: str) -> Iterable[Batch]:
            asked.append(split)
            return built.datamodule.loader(split)

    done: list[int] = []
    found = evaluate(built.learner, Spy(), "train", done.append)
    assert asked == ["reference", "reference"]
    assert done[-1] == built.info.counts["train"]
    assert found.metrics["align/knn/top1"] <= 1
    with pytest.raises(ConfigError, match="split: 'reference'; expected train, val or test"):
        evaluate(built.learner, built.datamodule, "reference")


def test_matrices_are_in_the_models_order_whatever_came_first(built: Built):
    """The first batches lack pictures; rows and names of the matrices must not care."""
    found = samples(built)
    poor = [dataclasses.replace(s, inputs={m: s.inputs[m] for m in ("fmri", "text")}) for s in found[:4]]
    rich = [dataclasses.replace(s, inputs={m: s.inputs[m] for m in ("image", "text")}) for s in found[4:]]

    class Loader:
        def loader(self, split: str) -> Iterable[Batch]:
            return [collate(poor), collate(rich)]

    seen = evaluate(built.learner, Loader(), "test")
    assert seen.labels["align/retrieval"] == ("image", "text", "fmri")
    table = seen.figures["align/retrieval"]
    assert np.isnan(table[0, 2])
    assert table[0, 1] == pytest.approx(seen.metrics["align/image->text/R@1"])
    assert table[2, 1] == pytest.approx(seen.metrics["align/fmri->text/R@1"])
    assert seen.labels["who/image/confusion"] == built.info.labels["action"]
    assert seen.labels["align/side/image/zero_shot"] == built.info.labels["side"]


def test_the_mode_of_the_model_is_restored(built: Built):
    built.model.train()
    evaluate(built.learner, built.datamodule, "val")
    assert built.model.training


def test_without_reference_or_class_vectors_a_metric_is_left_out(built: Built):
    task = Task("align", built.config.tasks["align"])
    assert task.compute({"knn": {}, "zero_shot": {}}, built.info, {}) == ({}, {})


def test_metrics_of_one_kind_get_prefixes_of_their_own():
    from mmzoo import schema

    config = schema.parse(
        TaskConfig,
        {"objective": "infonce", "metrics": ["knn", {"type": "knn", "k": 5}, "retrieval", "retrieval"]},
    )
    assert Task("t", config).prefixes == {
        "knn": "t/knn",
        "knn2": "t/knn2",
        "retrieval": "t",
        "retrieval2": "t/retrieval2",
    }
