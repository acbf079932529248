from __future__ import annotations

import numpy as np
import pytest
import torch

from mmzoo.batch import Batch, DataInfo, Prediction, Target
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.classify import Accuracy, MeanAveragePrecision
from mmzoo.metrics.probe import Knn, LinearProbe, ridge
from mmzoo.metrics.rows import each_labelled
from mmzoo.metrics.scores import average_precision, per_class, ranks
from mmzoo.metrics.zero_shot import ZeroShot, class_centres

CONTEXT = MetricContext(DataInfo(), "y")


def case(values, labels, *, rows=None, name="image", first=0):
    """One pass; sample i has id `s<first + i>`; rows says which samples have the pass."""
    values, labels = torch.as_tensor(values), torch.as_tensor(labels)
    index = torch.arange(len(values)) if rows is None else torch.tensor(rows)
    size = max(len(labels), int(index.max()) + 1)
    ids = tuple(f"s{first + i}" for i in range(size))
    batch = Batch(ids, targets={"y": Target(labels, torch.arange(len(labels)))})
    return {name: Prediction(values.float(), index)}, batch


def run(metric, *cases, context=CONTEXT):
    states = [metric.update(predictions, batch, "y") for predictions, batch in cases]
    state = states[0]
    for other in states[1:]:
        state = metric.merge(state, other)
    return metric.compute(state, context), metric.figures(state, context)


def test_accuracy_by_hand():
    logits = [[3, 2, 1], [1, 3, 2], [3, 1, 2], [0, 1, 2], [5, 4, 3]]
    found, drawn = run(Accuracy.Config(topk=[1, 2, 3]).build(), case(logits, [0, 2, 2, 2, 1]))
    assert drawn["confusion"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert found["top1"] == pytest.approx(2 / 5)
    assert found["top2"] == pytest.approx(1.0)
    assert "top3" not in found
    assert found["mean_class"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    f1 = [2 * 1 / (1 + 3), 0, 2 * 1 / (3 + 1)]
    assert found["macro_f1"] == pytest.approx(sum(f1) / 3)


def test_accuracy_leaves_out_unlabelled_rows_and_classes_that_do_not_occur():
    found, drawn = run(
        Accuracy.Config().build(), case([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 0], rows=[1, 4, 5])
    )
    assert found == {"top1": 1.0, "mean_class": 1.0, "macro_f1": 1.0}
    assert drawn["confusion"].sum() == 1


def test_passes_are_reported_and_averaged():
    image, batch = case([[1, 0], [0, 1]], [0, 1])
    audio, _ = case([[1, 0], [1, 0]], [0, 1], name="audio")
    found, drawn = run(Accuracy.Config().build(), ({**image, **audio}, batch))
    assert (found["image/top1"], found["audio/top1"], found["top1"]) == (1.0, 0.5, 0.75)
    assert drawn["audio/confusion"].tolist() == [[1, 0], [1, 0]]


def test_merged_ranks_count_a_padded_sample_once(generator):
    logits, labels = torch.randn(10, 4, generator=generator), torch.randint(4, (10,), generator=generator)
    whole = run(Accuracy.Config(topk=[1, 2]).build(), case(logits, labels))
    first, second = case(logits[:6], labels[:6]), case(logits[4:], labels[4:], first=4)
    parts = run(Accuracy.Config(topk=[1, 2]).build(), first, second)
    assert parts[0] == whole[0]
    assert np.array_equal(parts[1]["confusion"], whole[1]["confusion"])


def test_nothing_labelled_gives_no_figures():
    predictions, batch = case([[1.0, 2.0]], [0])
    for kind in (Accuracy, MeanAveragePrecision, ZeroShot):
        metric = kind.Config().build()
        state = metric.update(predictions, Batch(batch.ids), "y")
        context = MetricContext(DataInfo(), "y", {"y": torch.eye(2)[:, None]})
        assert metric.compute(metric.merge(state, state), context) == {}


def test_ranks_break_ties_in_index_order():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    assert ranks(scores, np.array([0, 1, 0]), "x").tolist() == [0, 1, 2]


def test_scores_agree_with_sklearn(generator):
    sk = pytest.importorskip("sklearn.metrics")
    logits, labels = torch.randn(200, 7, generator=generator).numpy(), np.arange(200) % 6
    predicted = logits.argmax(1)
    found, _ = run(Accuracy.Config(topk=[1, 3]).build(), case(logits, labels))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["mean_class"] == pytest.approx(
        sk.recall_score(labels, predicted, average="macro", labels=range(6))
    )
    assert found["top3"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=3, labels=range(7)))
    scores = torch.randint(5, (50,), generator=generator).double().numpy()
    positive = torch.randint(2, (50,), generator=generator).numpy()
    assert average_precision(scores, positive) == pytest.approx(sk.average_precision_score(positive, scores))


def slow_average_precision(scores, positive):
    """Mean over positives of the precision at the positive's threshold, all of its equals taken in."""
    found = []
    for s, p in zip(scores, positive, strict=True):
        if p:
            taken = [q for t, q in zip(scores, positive, strict=True) if t >= s]
            found.append(sum(taken) / len(taken))
    return sum(found) / len(found)


def test_map_against_the_definition(generator):
    scores = torch.randint(6, (30, 4), generator=generator).float()
    labels = (torch.rand(30, 4, generator=generator) < 0.3).float()
    labels[:, 2] = 0
    found, _ = run(
        MeanAveragePrecision.Config().build(),
        case(scores[:11], labels[:11]),
        case(scores[11:], labels[11:], first=11),
    )
    slow = [slow_average_precision(scores[:, c].tolist(), labels[:, c].tolist()) for c in (0, 1, 3)]
    assert found == {"mAP": pytest.approx(sum(slow) / 3)}


def clusters(generator, size, classes=4, width=6, noise=0.5):
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(classes, (size,), generator=generator)
    return centres[labels] + noise * torch.randn(size, width, generator=generator), labels


def with_reference(metric, reference):
    return MetricContext(DataInfo(), "y", reference=metric.update(*reference, "y"))


@pytest.mark.parametrize("chunk", [3, 1024])
def test_knn_against_a_loop(generator, chunk):
    x, y = clusters(generator, 40, noise=1.5)
    q, truth = clusters(generator, 25, noise=1.5)
    metric = Knn.Config(k=7, temperature=0.2, chunk=chunk).build()
    context = with_reference(metric, case(x, y, first=1000))
    right = {c: [] for c in range(4)}
    for vector, label in zip(q, truth.tolist(), strict=True):
        cosines = [float(vector @ v / vector.norm() / v.norm()) for v in x]
        votes = dict.fromkeys(range(4), 0.0)
        for i in sorted(range(40), key=lambda i: -cosines[i])[:7]:
            votes[int(y[i])] += np.exp(cosines[i] / 0.2)
        right[label].append(max(votes, key=votes.get) == label)
    found, _ = run(metric, case(q, truth), context=context)
    assert found["top1"] == pytest.approx(np.mean([r for found in right.values() for r in found]))
    assert found["mean_class"] == pytest.approx(np.mean([np.mean(r) for r in right.values() if r]))
    assert 0.3 < found["top1"] < 1


def test_knn_does_not_let_a_sample_vote_for_itself():
    vectors = torch.eye(4)
    metric = Knn.Config(k=1).build()
    context = with_reference(metric, case(vectors, [0, 1, 2, 3]))
    found, _ = run(metric, case(vectors, [0, 1, 2, 3]), context=context)
    assert found["top1"] == 0
    found, _ = run(metric, case(vectors, [0, 1, 2, 3], first=50), context=context)
    assert found["top1"] == 1


def test_ridge_solves_the_normal_equations(generator):
    x, y = clusters(generator, 30)
    q, _ = clusters(generator, 5)
    x[:, 2] = 3.0
    q[:, 2] = 7.0
    found = ridge(x.numpy(), y.numpy(), q.numpy(), [0.01, 2.0], 4)
    std = x.double().std(0, correction=0).clamp(min=1e-12)
    std[2] = 1.0
    a, b = (x.double() - x.double().mean(0)) / std, (q.double() - x.double().mean(0)) / std
    hot = torch.eye(4, dtype=torch.float64)[y]
    for penalty, scores in zip([0.01, 2.0], found, strict=True):
        w = torch.linalg.solve(a.T @ a + 30 * penalty * torch.eye(6), a.T @ (hot - hot.mean(0)))
        torch.testing.assert_close(
            torch.from_numpy(scores), (b @ w + hot.mean(0)).float(), rtol=1e-4, atol=1e-5
        )


def test_linear_probe_separates_what_is_linear_and_ignores_merge_order(generator):
    x, y = clusters(generator, 120, noise=0.3)
    q, truth = clusters(generator, 60, noise=0.3)
    metric = LinearProbe.Config().build()
    halves = [
        metric.update(*case(x[s], y[s], first=f), "y")
        for s, f in ((slice(0, 50), 500), (slice(50, 120), 550))
    ]
    found = [
        metric.compute(
            metric.update(*case(q, truth), "y"), MetricContext(DataInfo(), "y", reference=metric.merge(*h))
        )
        for h in (halves, halves[::-1])
    ]
    assert found[0] == found[1]
    assert found[0]["top1"] > 0.95
    shuffled, _ = run(metric, case(q, truth.roll(1)), context=with_reference(metric, case(x, y, first=500)))
    assert shuffled["top1"] < 0.6


def test_linear_probe_chooses_its_penalty_on_the_reference(generator):
    """Few samples, many noise features: the least penalty overfits, and the held-out part sees it."""

    def noisy(size):
        x, y = clusters(generator, size, noise=0.5)
        return torch.cat([x, torch.randn(size, 60, generator=generator)], dim=1), y

    (x, y), (q, truth) = noisy(70), noisy(400)
    context = with_reference(LinearProbe.Config().build(), case(x, y, first=1000))
    figures = {
        name: run(LinearProbe.Config(penalties=p).build(), case(q, truth), context=context)[0]["top1"]
        for name, p in {"least": [1e-6], "chosen": [1e-6, 0.5], "most": [0.5]}.items()
    }
    assert figures["chosen"] == figures["most"] > figures["least"] + 0.05


def test_probes_need_a_reference():
    for kind in (Knn, LinearProbe):
        metric = kind.Config().build()
        assert metric.needs_reference
        state = metric.update(*case([[1.0, 0.0]], [0]), "y")
        with pytest.raises(DataError, match="metric: no reference; expected the state of the training split"):
            metric.compute(state, CONTEXT)


def test_zero_shot_averages_prompts_and_leaves_text_out(generator):
    prompts = torch.randn(3, 2, 5, generator=generator)
    q = torch.randn(20, 5, generator=generator)
    labels = torch.randint(3, (20,), generator=generator)
    image, batch = case(q, labels)
    given = {**image, "text": image["image"], "image+text": image["image"]}
    context = MetricContext(DataInfo(), "y", {"y": prompts})
    found, drawn = run(ZeroShot.Config(topk=[1, 2, 5]).build(), (given, batch), context=context)
    right = {1: 0, 2: 0}
    for vector, label in zip(q, labels.tolist(), strict=True):
        centres = [sum(p / p.norm() for p in prompts[c]) / 2 for c in range(3)]
        order = sorted(range(3), key=lambda c: -float(vector @ centres[c] / centres[c].norm()))
        right = {k: n + (label in order[:k]) for k, n in right.items()}
    assert found["top1"] == pytest.approx(right[1] / 20)
    assert found["top2"] == pytest.approx(right[2] / 20)
    assert set(found) == {"top1", "top2", "mean_class"}
    assert drawn["zero_shot"].sum() == 20
    torch.testing.assert_close(class_centres(prompts).norm(dim=1), torch.ones(3))


def test_zero_shot_may_name_another_target():
    predictions, batch = case(torch.eye(2), [1, 0])
    other = Batch(batch.ids, targets={"z": Target(torch.tensor([0, 1]), torch.arange(2))})
    context = MetricContext(DataInfo(), "y", {"z": torch.eye(2)[:, None]})
    found, _ = run(ZeroShot.Config(target="z").build(), (predictions, other), context=context)
    assert found["top1"] == 1.0


@pytest.mark.parametrize(
    ("act", "error", "line"),
    [
        (lambda: Accuracy.Config(topk=[]), ConfigError, "topk: []; expected at least one number"),
        (lambda: Knn.Config(k=0), ConfigError, "k: [0]; expected at least one number"),
        (lambda: Knn.Config(temperature=0.0), ConfigError, "temperature: 0.0; expected a positive number"),
        (
            lambda: LinearProbe.Config(penalties=[0.0]),
            ConfigError,
            "penalties: [0.0]; expected positive numbers",
        ),
        (lambda: LinearProbe.Config(held_out=1.0), ConfigError, "held_out: 1.0; expected a share in (0, 1)"),
        (
            lambda: ZeroShot.Config(templates=["a cat"]),
            ConfigError,
            "templates: 'a cat'; expected sentences with one {}",
        ),
        (
            lambda: ZeroShot.Config(templates=[]),
            ConfigError,
            "templates: none; expected sentences with one {} each",
        ),
        (
            lambda: Accuracy.Config().build().update(*case([[1.0, 0.0]], [0]), ""),
            ConfigError,
            "metric: no target; expected the name of a label",
        ),
        (
            lambda: Accuracy.Config().build().update(*case([[1.0, 0.0]], [2]), "y"),
            ShapeError,
            "batch.targets.y: class 2; expected 0..1",
        ),
        (
            lambda: MeanAveragePrecision.Config().build().update(*case([[1.0, 0.0]], [[1.0]]), "y"),
            ShapeError,
            "batch.targets.y: labels (1, 1) for predictions (1, 2)",
        ),
        (
            lambda: Accuracy.Config().build().update(*case(torch.zeros(1, 2, 2), [0]), "y"),
            ShapeError,
            "metric/image: predictions (1, 2, 2); expected (rows, width)",
        ),
        (
            lambda: run(ZeroShot.Config().build(), case([[1.0, 0.0]], [0])),
            DataError,
            "metric/zero_shot: no class vectors of 'y'; expected class vectors",
        ),
        (
            lambda: run(
                ZeroShot.Config().build(),
                case([[1.0, 0.0]], [0]),
                context=MetricContext(DataInfo(), "y", {"y": torch.ones(2, 1, 3)}),
            ),
            ShapeError,
            "metric/image: vectors of 2, class vectors of 3; expected one width",
        ),
    ],
)
def test_errors_are_one_clear_line(act, error, line):
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_per_class_counts_classes_that_were_only_predicted_against_f1():
    table = np.array([[1, 1], [0, 0]])
    assert per_class(table) == {"mean_class": 0.5, "macro_f1": pytest.approx((2 / 3 + 0) / 2)}


def test_labelled_samples_of_every_pass_stand_beside_their_own_labels():
    batch = Batch(
        ("a", "b", "c"),
        targets={"y": Target(torch.tensor([[5, 6], [7, 0]]), torch.tensor([2, 0]), torch.tensor([2, 1]))},
    )
    passes = {
        "both": Prediction(torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64), torch.tensor([0, 1, 2])),
        "none": Prediction(torch.tensor([[9.0]]), torch.tensor([1])),
        "last": Prediction(torch.tensor([[3.0]], requires_grad=True), torch.tensor([2])),
    }
    both, last = each_labelled(passes, batch, "y")
    assert (both.name, both.ids, last.name, last.ids) == ("both", ("a", "c"), "last", ("c",))
    assert both.values.tolist() == [[0.0], [2.0]]
    assert both.values.dtype == torch.float32
    assert [row.tolist() for row in both.true] == [[7], [5, 6]]
    assert not last.values.requires_grad
    assert list(each_labelled(passes, batch, "z")) == []
    with pytest.raises(ConfigError, match="metric: no target"):
        list(each_labelled(passes, batch, ""))
