from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmzoo.batch import Batch, DataInfo, Prediction
from mmzoo.errors import ConfigError
from mmzoo.metrics.base import MetricContext
from mmzoo.metrics.retrieval import Retrieval, recall, standing

CONTEXT = MetricContext(DataInfo())


def vectors(generator, size, width=4):
    return F.normalize(torch.randn(size, width, generator=generator), dim=1)


def given(batch_ids, **passes):
    """Predictions from pass -> {sample number: vector}."""
    made = {
        name: Prediction(torch.stack(list(rows.values())), torch.tensor(list(rows)))
        for name, rows in passes.items()
    }
    return made, Batch(tuple(batch_ids))


def run(metric, *cases):
    states = [metric.update(predictions, batch, "") for predictions, batch in cases]
    state = states[0]
    for other in states[1:]:
        state = metric.merge(state, other)
    return metric.compute(state, CONTEXT), metric.figures(state, CONTEXT)


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_every_ordered_pair_against_a_loop(generator, chunk):
    has = {"image": [0, 1, 2, 4, 5, 7, 8, 9], "text": [0, 1, 2, 3, 4, 5, 6, 9], "audio": [1, 2, 5, 8]}
    passes = {m: dict(zip(rows, vectors(generator, len(rows)), strict=True)) for m, rows in has.items()}
    found, drawn = run(Retrieval.Config(ks=[1, 3], chunk=chunk).build(), given("abcdefghij", **passes))
    expected = {}
    for a, b in itertools.permutations(passes, 2):
        both = [i for i in passes[a] if i in passes[b]]
        places = [
            1 + sum(float(passes[a][i] @ passes[b][j]) > float(passes[a][i] @ passes[b][i]) for j in both)
            for i in both
        ]
        expected |= {f"{a}->{b}/R@{k}": float(np.mean([p <= k for p in places])) for k in (1, 3)}
        expected[f"{a}->{b}/MedR"] = float(np.median(places))
    for figure in ("R@1", "R@3", "MedR"):
        expected[f"mean/{figure}"] = float(
            np.mean([v for k, v in expected.items() if k.endswith("/" + figure)])
        )
    expected["mean/chance"] = (2 / 6 + 2 / 4 + 2 / 3) / 6
    assert found == {k: pytest.approx(v) for k, v in expected.items()}
    names = list(passes)
    for (i, a), (j, b) in itertools.permutations(enumerate(names), 2):
        assert drawn["retrieval"][i, j] == pytest.approx(expected[f"{a}->{b}/R@1"])
    assert np.isnan(drawn["retrieval"].diagonal()).all()


def test_direction_says_what_is_given():
    """Both images look like text 0: given an image half is found; given a text only the first is nearest."""
    image = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    case = given("ab", image={0: image[0], 1: image[1]}, text={0: text[0], 1: text[1]})
    found, _ = run(Retrieval.Config().build(), case)
    assert found["image->text/R@1"] == 0.5
    assert found["text->image/R@1"] == 1.0


def test_collapsed_vectors_score_exactly_chance(generator):
    same = vectors(generator, 1, 64)[0]
    rows = dict.fromkeys(range(50), same)
    found, _ = run(Retrieval.Config().build(), given([str(i) for i in range(50)], image=rows, text=rows))
    assert found["image->text/R@1"] == pytest.approx(1 / 50)
    assert found["image->text/R@5"] == pytest.approx(5 / 50)
    assert found["text->image/MedR"] == pytest.approx(25.5)
    assert found["mean/chance"] == pytest.approx(1 / 50)


def test_two_samples_of_one_caption_share_the_place():
    image = torch.eye(3)
    text = torch.stack([image[0], image[0], image[2]])
    case = given("abc", image=dict(enumerate(image)), text=dict(enumerate(text)))
    nearer, equal = standing(image.numpy(), text.numpy(), 2)
    assert nearer.tolist() == [0, 0, 0]
    assert equal.tolist() == [1, 2, 0]
    found, _ = run(Retrieval.Config(ks=[1, 2]).build(), case)
    assert found["image->text/R@1"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert found["image->text/R@2"] == pytest.approx((1 + 2 / 3 + 1) / 3)


def test_expected_recall_is_the_mean_over_orders_of_the_tied(generator):
    for nearer, equal, k in itertools.product(range(4), range(4), range(1, 6)):
        order = [nearer + 1 + i for i in range(equal + 1)]
        expected = np.mean([place <= k for place in order])
        assert recall(np.array([float(nearer)]), np.array([float(equal)]), k) == pytest.approx(expected)


def test_batches_and_ranks_merge_and_a_padded_sample_counts_once(generator):
    image, text = vectors(generator, 9), vectors(generator, 9)
    metric = Retrieval.Config(ks=[1, 2]).build()

    def part(rows):
        return given(
            [f"s{i}" for i in rows],
            image={n: image[i] for n, i in enumerate(rows)},
            text={n: text[i] for n, i in enumerate(rows)},
        )

    whole, _ = run(metric, part(range(9)))
    parts, _ = run(metric, part([3, 0, 5]), part([1, 2, 4, 3]), part([6, 7, 8, 0]))
    assert parts == {k: pytest.approx(v) for k, v in whole.items()}


def test_one_pass_gives_nothing(generator):
    case = given("ab", image=dict(enumerate(vectors(generator, 2))))
    assert run(Retrieval.Config().build(), case) == ({}, {})
    alone = given("ab", image={0: torch.ones(2)}, text={1: torch.ones(2)})
    found, drawn = run(Retrieval.Config().build(), alone)
    assert found == {}
    assert np.isnan(drawn["retrieval"]).all()


def test_order_of_passes_survives_a_batch_that_lacks_one(generator):
    rows = dict(enumerate(vectors(generator, 2)))
    metric = Retrieval.Config().build()
    less, more = given("ab", text=rows), given("cd", image=rows, text=rows, audio=rows)
    state = metric.merge(metric.update(*less, ""), metric.update(*more, ""))
    assert list(state) == ["image", "text", "audio"]


def test_mindeye_directions(shared: pathlib.Path):
    """Golden: what the reference calls forward is: given the image, find the brain sample."""
    from safetensors.torch import load_file

    golden = load_file(shared / "parity/mindeye2_a.safetensors")
    rows = {m: dict(enumerate(golden[f"in.retr_{m}"])) for m in ("brain", "image")}
    found, _ = run(Retrieval.Config(ks=[1, 5]).build(), given([str(i) for i in range(60)], **rows))
    for name, direction in {"fwd": "image->brain", "bwd": "brain->image"}.items():
        for k in (1, 5):
            assert found[f"{direction}/R@{k}"] == pytest.approx(golden[f"metric.ref_{name}_top{k}"].item())
    assert found["image->brain/R@1"] == pytest.approx(golden["metric.given_image_pick_brain_top1"].item())


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match=r"ks: \[0\]; expected at least one number, each 1 or more"):
        Retrieval.Config(ks=[0])
    with pytest.raises(ConfigError, match="chunk: 0; expected a positive number of rows"):
        Retrieval.Config(chunk=0)
