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
from mmzoo.metrics.retrieval import Both, Retrieval, Standing, compare

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
    rows = np.arange(3)
    standing = compare(Both(image.numpy(), text.numpy(), rows, rows), 2)
    assert standing.nearer.tolist() == [0, 0, 0]
    assert standing.equal.tolist() == [1, 2, 0]
    assert standing.own.tolist() == [1, 1, 1]
    found, _ = run(Retrieval.Config(ks=[1, 2]).build(), case)
    assert found["image->text/R@1"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert found["image->text/R@2"] == pytest.approx((1 + 2 / 3 + 1) / 3)


def test_expected_recall_is_the_mean_over_orders_of_the_tied(generator):
    """All places that s own and t other candidates can take among themselves, each as likely."""
    for nearer, equal, own in itertools.product(range(3), range(4), range(1, 4)):
        standing = Standing(*(np.array([float(x)]) for x in (nearer, equal, own)))
        first = [nearer + 1 + min(places) for places in itertools.combinations(range(equal + own), own)]
        assert standing.rank()[0] == pytest.approx(np.mean(first))
        for k in range(1, 9):
            assert standing.recall(k) == pytest.approx(np.mean([place <= k for place in first]))


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


def entries(batch_ids, **passes):
    """Predictions from pass -> [(sample number, vector), …], several rows a sample."""
    made = {
        name: Prediction(torch.stack([v for _, v in rows]), torch.tensor([i for i, _ in rows]))
        for name, rows in passes.items()
    }
    return made, Batch(tuple(batch_ids))


def slow_several(image, text, k):
    """Recall of pictures among captions and back, by sorting every list; `text` has (picture, vector)."""
    hits_any, hits_each = [], []
    for picture, vector in image.items():
        order = sorted(range(len(text)), key=lambda j: -float(vector @ text[j][1]))
        hits_any.append(any(text[j][0] == picture for j in order[:k]))
    for picture, vector in text:
        order = sorted(image, key=lambda i: -float(vector @ image[i]))
        hits_each.append(picture in order[:k])
    return float(np.mean(hits_any)), float(np.mean(hits_each))


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_several_captions_against_a_loop(generator, chunk):
    """Any of a picture's captions hits; every caption asks; the names say which."""
    counts = [5, 3, 1, 5, 5, 2]
    owners = [i for i, n in enumerate(counts) for _ in range(n)]
    image = dict(enumerate(vectors(generator, len(counts))))
    near = vectors(generator, len(owners)) + torch.stack([image[i] for i in owners])
    text = list(zip(owners, F.normalize(near, dim=1), strict=True))
    case = entries("abcdef", image=list(image.items()), text=text)
    metric = Retrieval.Config(ks=[1, 2, 5], chunk=chunk).build()
    found, drawn = run(metric, case)
    for k in (1, 2, 5):
        hit_any, hit_each = slow_several(image, text, k)
        assert found[f"image->text/any/R@{k}"] == pytest.approx(hit_any)
        assert found[f"text->image/each/R@{k}"] == pytest.approx(hit_each)
        assert found[f"mean/R@{k}"] == pytest.approx((hit_any + hit_each) / 2)
    assert {k.rpartition("/")[0] for k in found} == {"image->text/any", "text->image/each", "mean"}
    assert found.keys() <= set(metric.figure_names(("image", "text")))
    assert drawn["retrieval"][0, 1] == pytest.approx(found["image->text/any/R@1"])
    guess_any = np.mean([n / len(owners) for n in counts])
    assert found["mean/chance"] == pytest.approx((guess_any + 1 / len(counts)) / 2)


def test_several_captions_of_a_collapsed_model_score_chance(generator):
    same = vectors(generator, 1, 8)[0]
    text = [(i, same) for i in range(10) for _ in range(5)]
    found, _ = run(
        Retrieval.Config(ks=[1]).build(), entries("abcdefghij", image=[*enumerate([same] * 10)], text=text)
    )
    assert found["image->text/any/R@1"] == pytest.approx(5 / 50)
    assert found["text->image/each/R@1"] == pytest.approx(1 / 10)
    assert found["mean/chance"] == pytest.approx(1 / 10)


def test_several_entries_merge_and_count_once(generator):
    """Batches in any order, with a sample seen twice, one batch whose samples have a single caption."""
    image, text = vectors(generator, 4), vectors(generator, 4 * 3).view(4, 3, 4)
    counts = [3, 2, 1, 1]

    def part(rows):
        return entries(
            [f"s{i}" for i in rows],
            image=[(n, image[i]) for n, i in enumerate(rows)],
            text=[(n, text[i, j]) for n, i in enumerate(rows) for j in range(counts[i])],
        )

    metric = Retrieval.Config(ks=[1, 2]).build()
    whole, _ = run(metric, part(range(4)))
    parts, _ = run(metric, part([2, 3]), part([1, 0]), part([0, 2]))
    assert parts == {k: pytest.approx(v) for k, v in whole.items()}
    assert "image->text/any/R@1" in whole


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
