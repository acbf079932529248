"""Several entries of one modality a sample: answers to choose from, scored in one joint pass each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, Item, ModalityInput, Prediction, Sample, Target
from mmzoo.datamodules.collate import collate
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.heads.choice import ChoiceMlpHead
from mmzoo.learners.tasks import TaskConfig, faults_of, with_heads
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.choice import ChoiceAccuracy
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.objectives.choice import Against, ChoiceCrossEntropy, ChoiceHinge

CONV = [[8, 10, 80], [8, 2, 4]]
TREE: dict[str, Any] = {
    "modalities": {
        "text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 24}},
        "audio": {"type": "audio", "conv_layers": CONV, "position_depth": 1},
        "image": {"type": "image", "preprocess": {"size": [32, 32]}},
    },
    "trunk": {"dim": 16, "depth": 2, "num_heads": 2, "ffn": {"type": "modality", "hidden_dim": 16}},
    "heads": {
        "ask": {"head": {"type": "choice_mlp"}, "passes": ["text+audio"], "target": "answer"},
        "look": {"head": {"type": "choice_mlp", "pooling": "attention"}, "passes": ["text+image"]},
        "align": {"head": {"type": "contrastive"}, "passes": ["text", "audio", "text+audio"]},
        "name": {"head": {"type": "linear", "num_classes": 3}, "passes": ["text+audio"]},
    },
}
ANSWERS = (("a cat", "a dog", "a very loud bell"), ("two", "one"), ("yes", "no", "maybe", "a bird"))
RIGHT = (2, 0, 3)


@pytest.fixture
def model() -> MultimodalModel:
    torch.manual_seed(0)
    made = MultimodalModel(schema.parse(MultimodalModel.Config, TREE)).eval()
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return made


@pytest.fixture
def samples(model: MultimodalModel, generator: torch.Generator) -> list[Sample]:
    read = model.preprocesses()["text"]
    return [
        Sample(
            f"s{i}",
            {
                "audio": Item(torch.randn(1600 + 400 * i, generator=generator)),
                "image": Item(torch.randn(3, 32, 32, generator=generator)),
            },
            {"answer": torch.tensor(right)},
            several={"text": tuple(read(text) for text in answers)},
        )
        for i, (answers, right) in enumerate(zip(ANSWERS, RIGHT, strict=True))
    ]


def scores(model: MultimodalModel, batch: Batch, task: str = "ask") -> Prediction:
    (found,) = model(batch, [task]).predictions[task].values()
    return found


def single(sample: Sample, number: int) -> Sample:
    """Return the sample with one of its answers, as if there were no others."""
    inputs = {**sample.inputs, "text": sample.several["text"][number]}
    return Sample(f"{sample.id}-{number}", inputs)


@pytest.mark.parametrize("task", ["ask", "look"])
def test_each_answer_is_scored_as_if_it_were_alone(
    model: MultimodalModel, samples: list[Sample], task: str
) -> None:
    """Whatever the padding, the other answers and the other samples; rows in the order of the answers."""
    found = scores(model, collate(samples).validate(), task)
    assert found.index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert found.values.shape == (9, 1)
    alone = [
        scores(model, collate([single(s, n)]), task).values[0]
        for s in samples
        for n in range(len(s.several["text"]))
    ]
    torch.testing.assert_close(found.values, torch.stack(alone), rtol=1e-4, atol=2e-6)
    assert len(found.values.unique()) == 9


def test_gradients_are_those_of_separate_passes(model: MultimodalModel, samples: list[Sample]) -> None:
    weights = torch.randn(9, 1, generator=torch.Generator().manual_seed(1))

    def gradients(total: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together = gradients((scores(model, collate(samples)).values * weights).sum())
    apart = collate([single(s, n) for s in samples for n in range(len(s.several["text"]))])
    separate = gradients((scores(model, apart).values * weights).sum())
    assert together.keys() == separate.keys()
    for name, value in together.items():
        torch.testing.assert_close(value, separate[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_sound_is_embedded_once(model: MultimodalModel, samples: list[Sample]) -> None:
    seen: list[int] = []
    model.adapters["audio"].register_forward_hook(lambda module, args, out: seen.append(len(out)))
    scores(model, collate(samples))
    assert seen == [3]


def test_order_of_answers_only_moves_the_scores(model: MultimodalModel, samples: list[Sample]) -> None:
    objective, metric = ChoiceHinge.Config().build(), ChoiceAccuracy.Config().build()
    turned = [
        dataclasses.replace(
            s,
            several={"text": s.several["text"][::-1]},
            targets={"answer": len(s.several["text"]) - 1 - s.targets["answer"]},
        )
        for s in samples
    ]
    batches = [collate(samples), collate(turned)]
    found = [scores(model, b) for b in batches]
    for sample in range(3):
        here, there = (f.values[f.index == sample] for f in found)
        torch.testing.assert_close(here, there.flip(0))
    losses = [objective({"p": f}, b, "answer").mean() for f, b in zip(found, batches, strict=True)]
    torch.testing.assert_close(losses[0], losses[1])
    states = [metric.update({"p": f}, b, "answer") for f, b in zip(found, batches, strict=True)]
    context = MetricContext(DataInfo())
    assert metric.compute(states[0], context) == metric.compute(states[1], context)


def test_a_sample_that_lacks_the_sound_is_scored_by_its_texts(
    model: MultimodalModel, samples: list[Sample]
) -> None:
    deaf = dataclasses.replace(samples[1], inputs={"image": samples[1].inputs["image"]})
    found = scores(model, collate([samples[0], deaf, samples[2]]).validate())
    whole = scores(model, collate(samples))
    assert torch.equal(found.index, whole.index)
    kept = found.index != 1
    torch.testing.assert_close(found.values[kept], whole.values[kept])
    assert not torch.allclose(found.values[~kept], whole.values[~kept], atol=1e-4)


def test_vectors_of_each_entry(model: MultimodalModel, samples: list[Sample]) -> None:
    with torch.no_grad():
        found = model.embed(collate(samples), "align")
    assert found["text"].index.tolist() == found["text+audio"].index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert found["audio"].index.tolist() == [0, 1, 2]


def test_what_cannot_tell_entries_apart_says_so(model: MultimodalModel, samples: list[Sample]) -> None:
    batch = collate(samples)
    with pytest.raises(ShapeError, match=r"heads\.name: samples with several entries of text; expected one"):
        model(batch, ["name"])
    twice = dataclasses.replace(
        samples[0],
        inputs={},
        several={**samples[0].several, "audio": (samples[0].inputs["audio"],) * 2},
    )
    with pytest.raises(ShapeError, match=r"pass text\+audio: several entries of text and of audio"):
        model(collate([twice]), ["ask"])
    with pytest.raises(ShapeError, match="text in inputs and in several"):
        dataclasses.replace(samples[0], inputs={"text": samples[0].several["text"][0]}).validate()


# -- the losses


def case(
    generator: torch.Generator, counts: list[int], right: dict[int, int], grad: bool = False
) -> tuple[dict[str, Prediction], Batch, Tensor]:
    index = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)])
    values = (2 * torch.randn(len(index), 1, generator=generator)).requires_grad_(grad)
    target = Target(torch.tensor(list(right.values())), torch.tensor(list(right)))
    ids = tuple(f"s{i}" for i in range(len(counts)))
    return {"text+audio": Prediction(values, index)}, Batch(ids, targets={"answer": target}), values


def slow_hinge(lists: dict[int, list[float]], right: dict[int, int], margin: float, itself: bool) -> float:
    total = 0.0
    for sample, answer in right.items():
        own = lists[sample][answer]
        for j, score in enumerate(lists[sample]):
            if itself or j != answer:
                total += max(0.0, margin + score - own)
    return total / len(right)


@pytest.mark.parametrize("against", list(Against))
@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_hinge_against_a_loop(generator: torch.Generator, against: Against, margin: float) -> None:
    """Different numbers of answers, a sample without a label."""
    right = {0: 1, 1: 0, 3: 4, 4: 2}
    found, batch, values = case(generator, [3, 2, 4, 5, 4], right, grad=True)
    state = ChoiceHinge.Config(margin=margin, against=against).build()(found, batch, "answer")
    index = found["text+audio"].index
    lists = {i: values.detach()[index == i, 0].tolist() for i in range(5)}
    expected = slow_hinge(lists, right, margin, against is Against.ALL)
    assert state.mean().item() == pytest.approx(expected, rel=1e-6)
    assert state.total.count.item() == len(right)
    state.mean().backward()
    assert values.grad is not None
    assert not values.grad[index == 2].any()
    assert values.grad.any()


def test_the_right_answer_itself_adds_the_margin_and_no_gradient(generator: torch.Generator) -> None:
    grads: list[Tensor] = []
    losses: list[float] = []
    for against in Against:
        found, batch, values = case(torch.Generator().manual_seed(3), [4, 4], {0: 1, 1: 3}, grad=True)
        loss = ChoiceHinge.Config(against=against).build()(found, batch, "answer").mean()
        loss.backward()
        assert values.grad is not None
        grads.append(values.grad)
        losses.append(loss.item())
    assert torch.equal(*grads)
    assert losses[1] - losses[0] == pytest.approx(1.0)


def test_cross_entropy_against_a_loop(generator: torch.Generator) -> None:
    right = {0: 1, 2: 3}
    found, batch, values = case(generator, [3, 2, 4], right)
    state = ChoiceCrossEntropy.Config().build()(found, batch, "answer")
    index, expected = found["text+audio"].index, 0.0
    for sample, answer in right.items():
        own = values[index == sample, 0].double().exp()
        expected -= float((own[answer] / own.sum()).log())
    assert state.mean().item() == pytest.approx(expected / 2, rel=1e-5)


def test_an_answer_that_is_not_there_is_refused(generator: torch.Generator) -> None:
    found, batch, _ = case(generator, [3, 2], {0: 1, 1: 2})
    with pytest.raises(ShapeError, match="answer 2 of 2; expected the number of one of them"):
        ChoiceHinge.Config().build()(found, batch, "answer")
    with pytest.raises(ShapeError, match="answer 2 of 2"):
        ChoiceAccuracy.Config().build().update(found, batch, "answer")
    with pytest.raises(ConfigError, match="margin: 0; expected a positive number"):
        ChoiceHinge.Config(margin=0.0)


def test_accuracy_against_a_loop_and_ties_count_as_guesses(generator: torch.Generator) -> None:
    counts, right = [3, 2, 4, 5], {0: 1, 1: 0, 3: 4}
    found, batch, values = case(generator, counts, right)
    metric, context = ChoiceAccuracy.Config().build(), MetricContext(DataInfo())
    index = found["text+audio"].index
    hits = [int(values[index == i, 0].argmax()) == answer for i, answer in right.items()]
    figures = metric.compute(metric.update(found, batch, "answer"), context)
    guess = np.mean([1 / counts[i] for i in right])
    assert figures == {"top1": pytest.approx(np.mean(hits)), "chance": pytest.approx(guess)}
    same = {"p": Prediction(torch.zeros(len(index), 1), index)}
    flat = metric.compute(metric.update(same, batch, "answer"), context)
    assert flat["top1"] == pytest.approx(flat["chance"]) == pytest.approx(guess)


# -- what fits together


def faults(task: dict[str, Any], info: DataInfo) -> list[str]:
    config = schema.parse(TaskConfig, task)
    options = with_heads(schema.parse(MultimodalModel.Config, {**TREE, "heads": {}}), {"ask": config})
    return faults_of("ask", config, options.heads["ask"], info)


TASK = {
    "passes": ["text+audio"],
    "target": "answer",
    "head": {"type": "choice_mlp"},
    "objective": {"type": "choice_hinge"},
    "metrics": [{"type": "choice_accuracy"}],
}
SEVERAL = DataInfo(labels={"answer": ("0", "1")}, modalities=("text", "audio"), several={"text": 2})


def test_data_and_parts_must_agree_on_several_entries() -> None:
    assert faults(TASK, SEVERAL) == []
    (line,) = faults(TASK, dataclasses.replace(SEVERAL, several={}))
    assert "tasks.ask.head: answers to choose from; expected data with several entries" in line
    single_answer = {**TASK, "head": {"type": "linear", "num_classes": 2}, "metrics": []}
    lines = faults({**single_answer, "objective": {"type": "cross_entropy"}}, SEVERAL)
    assert len(lines) == 2
    assert "tasks.ask.head: takes one entry a sample; expected 2 of text" in lines[0]
    vectors = {**TASK, "head": {"type": "contrastive"}, "objective": {"type": "infonce"}, "target": ""}
    (line,) = faults({**vectors, "metrics": [{"type": "retrieval"}, {"type": "knn"}]}, SEVERAL)
    assert "tasks.ask.metrics.1: takes one entry a sample" in line


def test_one_logit_an_answer() -> None:
    with pytest.raises(ConfigError, match="num_classes: 4; expected 1"):
        ChoiceMlpHead.Config(num_classes=4)


def test_rows_of_a_sample_stand_together(samples: list[Sample]) -> None:
    batch = collate(samples)
    text = batch.inputs["text"]
    assert text.index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [int(n) for n in text.sizes[:, 0]] == [len(i.values) for s in samples for i in s.several["text"]]
    mixed = dataclasses.replace(text, index=text.index.flip(0))
    with pytest.raises(ShapeError, match="ascending"):
        dataclasses.replace(batch, inputs={"text": mixed}).validate()
    assert (
        ModalityInput.stack(list(samples[0].several["text"]), torch.zeros(3).long()).index.tolist() == [0] * 3
    )
