"""Mixtures: how often each set is drawn, whose labels are whose, names and sources."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections import Counter

import pytest
import torch

from mmzoo import registry, schema
from mmzoo.batch import SceneKind
from mmzoo.datamodules.mixture import Mixture, Sampling
from mmzoo.datamodules.order import Rank
from mmzoo.errors import ConfigError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.bev import BevGrid, BevPreprocess

Reads = dict[str, Preprocess]


@pytest.fixture
def preprocesses() -> Reads:
    return {"text": registry.find("modalities", "text").Config().preprocess.build()}


def write(path: pathlib.Path, count: int, labels: str, test: int = 2) -> dict[str, object]:
    rows = [
        f"{path.stem} {i},{labels[i % len(labels)]},{'test' if i < test else 'train'}" for i in range(count)
    ]
    path.write_text("text,label,split\n" + "\n".join(rows) + "\n")
    return {"type": "manifest", "path": str(path), "split": {"val_share": 0.0}}


def mixture(folder: pathlib.Path, preprocesses: Reads, seed: int = 0, **options: object) -> Mixture:
    sets = {
        "small": write(folder / "small.csv", 10, "ab"),
        "mid": write(folder / "mid.csv", 34, "bc"),
        "large": write(folder / "large.csv", 130, "cab"),
    }
    tree = {"sets": sets, "loader": {"batch_size": 16, "drop_last": False}, **options}
    return Mixture(schema.parse(Mixture.Config, tree), preprocesses, seed=seed)


SIZES = {"small": 8, "mid": 32, "large": 128}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"small": 8, "mid": 32, "large": 128}),
        ({"sampling": "uniform"}, {"small": 56, "mid": 56, "large": 56}),
        ({"sampling": "square_root", "epoch_samples": 700}, None),
        ({"sampling": "annealed"}, {"small": 8, "mid": 32, "large": 128}),
        ({"sampling": "round_robin", "epoch_samples": 31}, {"small": 10, "mid": 11, "large": 10}),
        ({"sampling": "temperature", "temperature": 2.0, "epoch_samples": 700}, None),
        (
            {"weights": {"small": 4.0, "large": 0.0}, "epoch_samples": 64},
            {"small": 32, "mid": 32, "large": 0},
        ),
    ],
)
def test_how_often_each_set_is_drawn(
    options: dict[str, object], expected: dict[str, int] | None, tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    source = mixture(tmp_path, preprocesses, **options).source("train")
    if expected is None:
        roots = {n: s**0.5 for n, s in SIZES.items()}
        expected = {n: round(700 * r / sum(roots.values())) for n, r in roots.items()}
    assert dict(zip(SIZES, source.counts(), strict=True)) == expected
    order = source.order_at(0, torch.Generator().manual_seed(0))
    ends = [8, 40, 168]
    drawn = Counter(next(n for n, end in zip(SIZES, ends, strict=True) if i < end) for i in order.tolist())
    assert {n: drawn[n] for n in SIZES} == expected
    times = Counter(order.tolist())
    for start, (name, size) in zip([0, 8, 40], SIZES.items(), strict=True):
        often = {times[i] for i in range(start, start + size)}
        assert max(often) - min(often) <= 1, f"{name}: every sample as often as the others"


def test_round_robin_takes_one_of_each_in_turn(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    data = mixture(tmp_path, preprocesses, sampling="round_robin", epoch_samples=48, loader={"batch_size": 6})
    for batch in data.loader("train"):
        assert batch.source == ("small", "mid", "large") * 2


@pytest.mark.parametrize("batches", ["mixed", "one_set"])
def test_round_robin_keeps_its_weights_all_through_an_epoch(
    batches: str, tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    weights = {"small": 3.0, "large": 0.0}
    source = mixture(
        tmp_path,
        preprocesses,
        sampling="round_robin",
        weights=weights,
        batches=batches,
        epoch_samples=64,
        loader={"batch_size": 4},
    ).source("train")
    order = source.order_at(0, torch.Generator().manual_seed(0))
    for quarter in order.chunk(4):
        assert int((quarter < 8).sum()) == 12
        assert int(((quarter >= 8) & (quarter < 40)).sum()) == 4


def test_round_robin_in_turn_shows_every_rank_all_sets(
    tmp_path: pathlib.Path, preprocesses: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sampling": "round_robin", "weights": {"large": 0.0}, "epoch_samples": 64}
    alone = mixture(tmp_path, preprocesses, **options).source("train")
    order = alone.order_at(0, torch.Generator().manual_seed(0))
    monkeypatch.setattr(Rank, "current", staticmethod(lambda: Rank(0, 2)))
    both = alone.order_at(0, torch.Generator().manual_seed(0))
    for rank in range(2):
        assert 8 <= int((both[rank::2] < 8).sum()) <= 24, f"rank {rank} of 2"
    assert both.reshape(-1, 2).sort(dim=1).values.tolist() == order.reshape(-1, 2).sort(dim=1).values.tolist()


def test_annealing_goes_from_proportional_towards_uniform(
    tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    source = mixture(
        tmp_path, preprocesses, sampling="annealed", anneal_epochs=5, epoch_samples=10000
    ).source("train")
    for epoch, power in ((0, 1.0), (2, 0.6), (4, 0.2), (9, 0.2)):
        wanted = {n: s**power for n, s in SIZES.items()}
        expected = [10000 * w / sum(wanted.values()) for w in wanted.values()]
        assert source.counts(epoch) == pytest.approx(expected, abs=1)
    data = mixture(tmp_path, preprocesses, sampling="annealed", anneal_epochs=3, epoch_samples=160)
    loader = data.loader("train")
    shares = [Counter(s for b in loader for s in b.source)["large"] for _ in range(3)]
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize(
    ("options", "unit"),
    [({"sampling": "proportional"}, 16), ({"sampling": "uniform", "weights": {"small": 0.01}}, 1)],
)
def test_a_set_too_small_for_an_epoch_has_its_turn_over_several(
    options: dict[str, object], unit: int, tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    source = mixture(tmp_path, preprocesses, epoch_samples=10 * unit, **options).source("train")
    epochs = 400
    counts = torch.tensor([source.counts(epoch, unit) for epoch in range(epochs)])
    assert counts.sum(dim=1).tolist() == [10 * unit] * epochs
    exact = {16: (8.0, 32.0, 128.0), 1: (0.01, 1.0, 1.0)}[unit]
    wanted = torch.tensor(exact) / sum(exact) * 10 * unit
    assert bool((counts - wanted).abs().lt(unit).all())
    total = counts.cumsum(dim=0) - wanted * torch.arange(1, epochs + 1)[:, None]
    assert float(total.abs().max()) < 3 * unit
    assert int(counts[:, 0].count_nonzero()) > 15


def test_a_mixture_within_another_gives_small_sets_their_turn(
    tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    source = mixture(tmp_path, preprocesses, batches="one_set").source("train")
    drawn = sum(int((source.order(torch.Generator().manual_seed(s)) < 8).sum()) for s in range(200))
    assert drawn == pytest.approx(200 * 160 * 8 / 168, rel=0.2)


@pytest.mark.parametrize("sampling", ["uniform", "round_robin", "temperature"])
def test_batches_of_one_set_are_the_same_set_on_every_rank(
    sampling: str, tmp_path: pathlib.Path, preprocesses: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sampling": sampling, "batches": "one_set", "epoch_samples": 200, "loader": {"batch_size": 8}}
    seen: list[list[str]] = []
    ids: list[list[str]] = []
    for rank in range(2):
        monkeypatch.setattr(Rank, "current", staticmethod(lambda rank=rank: Rank(rank, 2)))
        batches = list(mixture(tmp_path, preprocesses, **options).loader("train"))
        assert all(len(set(b.source)) == 1 for b in batches)
        seen.append([b.source[0] for b in batches])
        ids.append([i for b in batches for i in b.ids])
    assert seen[0] == seen[1]
    assert ids[0] != ids[1]
    assert len(seen[0]) == 12  # 200 // (8 * 2)
    assert set(seen[0]) == set(SIZES)
    if sampling == "round_robin":
        assert seen[0] == ["small", "mid", "large"] * 4


def test_batches_of_one_set_resume_exactly(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    options = {"batches": "one_set", "sampling": "annealed", "anneal_epochs": 2, "loader": {"batch_size": 8}}
    whole = mixture(tmp_path, preprocesses, **options).loader("train")
    first, second = ([b.ids for b in whole] for _ in range(2))
    part = mixture(tmp_path, preprocesses, **options).loader("train")
    iterator = iter(part)
    half = [next(iterator).ids for _ in range(5)]
    again = mixture(tmp_path, preprocesses, **options).loader("train")
    again.load_state_dict(part.state_dict())
    assert half + [b.ids for b in again] == first
    assert [b.ids for b in again] == second


def test_batches_hold_nearly_the_same_share_of_each_set(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    data = mixture(tmp_path, preprocesses, sampling="uniform", loader={"batch_size": 12})
    for batch in data.loader("train"):
        shares = Counter(batch.source)
        assert all(2 <= shares[name] <= 6 for name in SIZES)


def test_samples_carry_names_sources_and_labels_of_their_set(
    tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    data = mixture(tmp_path, preprocesses)
    info = data.info()
    assert info.labels == {"small/label": ("a", "b"), "mid/label": ("b", "c"), "large/label": ("a", "b", "c")}
    assert info.counts == {"train": 168, "val": 0, "test": 6}
    ids: list[str] = []
    for batch in data.loader("train"):
        batch.validate()
        ids += batch.ids
        for name in SIZES:
            target = batch.targets.get(f"{name}/label")
            rows = [i for i, s in enumerate(batch.source) if s == name]
            assert (target.index.tolist() if target else []) == rows
            for row, label in zip(rows, target.values.tolist() if target else [], strict=True):
                number = int(batch.ids[row].rpartition("-")[2]) - 1
                labels = {"small": "ab", "mid": "bc", "large": "cab"}[name]
                assert info.labels[f"{name}/label"][label] == labels[number % len(labels)]
    assert Counter(i.split("/")[0] for i in ids) == SIZES


def test_shared_labels_have_one_numbering(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    data = mixture(tmp_path, preprocesses, targets="shared")
    assert data.info().labels == {"label": ("a", "b", "c")}
    for batch in data.loader("test"):
        assert batch.source == ("small", "small", "mid", "mid", "large", "large")
        assert ["abc"[i] for i in batch.targets["label"].values] == list("abbcca")


def test_shared_multi_labels_move_with_their_names(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    sets: dict[str, object] = {}
    for name, tags in {"one": "x|z", "two": "z|y"}.items():
        (tmp_path / f"{name}.csv").write_text(f"text,tags\nhello,{tags}\nthere,{tags}\nyou,{tags[0]}\n")
        split = {"val_share": 0.0, "test_share": 0.0}
        sets[name] = {"type": "manifest", "path": str(tmp_path / f"{name}.csv"), "split": split}
    data = Mixture(schema.parse(Mixture.Config, {"sets": sets, "targets": "shared"}), preprocesses)
    assert data.info().labels == {"tags": ("x", "z", "y")}
    source = data.source("train")
    assert [source.get(i, None).targets["tags"].tolist() for i in (0, 3)] == [[1, 1, 0], [0, 1, 1]]


def test_a_set_drawn_many_times_is_augmented_anew(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    data = mixture(tmp_path, preprocesses, sampling="uniform")
    loader = data.loader("train")
    draws = loader._plan().pairs()
    repeats = [repeat for index, repeat in draws if index == 0]
    assert sorted(repeats) == list(range(7))


def test_resume_is_exact(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    options = {"sampling": "temperature"}
    first = mixture(tmp_path, preprocesses, **options).loader("train")
    whole = [b.ids for b in first]
    again = mixture(tmp_path, preprocesses, **options).loader("train")
    again.load_state_dict({**first.state_dict(), "batches": 4})
    assert [b.ids for b in again] == whole[4:]
    assert [b.ids for b in mixture(tmp_path, preprocesses, seed=1, **options).loader("train")] != whole


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"sets": {}}, "sets: none; expected at least one data set"),
        ({"weights": {"smal": 1.0}}, "weights: 'smal'; expected a set. Did you mean 'small'?"),
        ({"weights": {"small": -1.0}}, "weights.small: -1; expected 0 or more"),
        ({"temperature": 0.0}, "mixture: temperature 0, epoch_samples None; expected numbers above 0"),
        ({"sampling": "equal"}, "sampling: str 'equal'; expected one of proportional, uniform"),
        (
            {"sets": {"x": {"type": "foldr"}}},
            "sets.x.type: 'foldr' is unknown; expected a row of the datamodules table",
        ),
    ],
)
def test_wrong_options_are_said(
    options: dict[str, object], line: str, tmp_path: pathlib.Path, preprocesses: Reads
) -> None:
    with pytest.raises(ConfigError) as caught:
        mixture(tmp_path, preprocesses, **options)
    assert line in str(caught.value)


def test_sets_must_agree_on_subjects(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    data = mixture(tmp_path, preprocesses)
    infos = data.infos()
    for name, voxels in {"small": 5, "mid": 6}.items():
        object.__setattr__(infos[name], "subjects", {"s1": voxels})
    with pytest.raises(ConfigError, match=r"subject 's1' with 6 voxels in mid; expected 5 as in another set"):
        data.info()


def test_all_weights_zero_is_said(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    data = mixture(tmp_path, preprocesses, weights=dict.fromkeys(SIZES, 0.0))
    with pytest.raises(ConfigError, match="weights: all sets have 0"):
        len(data.loader("train"))
    assert data.config.sampling is Sampling.PROPORTIONAL


GRID = BevGrid(cells=8, range_m=24.0, map_cells=6, map_range_m=20.0, bottom_m=-1.0, top_m=4.0)


def streets(targets: str) -> Mixture:
    """Return two towns of a few streets each, and nothing else."""
    reads: Reads = {m: BevPreprocess.Config(grid=GRID, levels=3).build() for m in ("camera", "lidar")}
    town = {"type": "driving", "num_train": 3, "num_val": 2, "num_test": 2}
    sets = {"here": {**town, "world_seed": 1}, "there": {**town, "world_seed": 2}}
    tree = {"sets": sets, "targets": targets, "loader": {"batch_size": 6, "drop_last": False}}
    return Mixture(schema.parse(Mixture.Config, tree), reads, seed=0)


@pytest.mark.parametrize("targets", ["shared", "namespaced"])
def test_scenes_keep_boxes_maps_and_voxels(targets: str) -> None:
    data = streets(targets)
    prefixes = ("",) if targets == "shared" else ("here/", "there/")
    info, own = data.info(), data.sets["here"].info()
    assert info.scene == {f"{p}{t}": kind for p in prefixes for t, kind in own.scene.items()}
    assert info.labels == {f"{p}{t}": names for p in prefixes for t, names in own.labels.items()}
    times = 2.0 if targets == "shared" else 1.0
    assert info.class_counts == {
        f"{p}{t}": {word: times * count for word, count in counts.items()}
        for p in prefixes
        for t, counts in own.class_counts.items()
    }
    source = data.source("train")
    for number in range(6):
        name = "here" if number < 3 else "there"
        sample, alone = source.get(number, None), data.sets[name].source("train").get(number % 3, None)
        prefix = "" if targets == "shared" else f"{name}/"
        for found, wanted in ((sample.targets, alone.targets), (sample.lists, alone.lists)):
            assert list(found) == [f"{prefix}{t}" for t in wanted]
            assert all(torch.equal(found[f"{prefix}{t}"], value) for t, value in wanted.items())
    (batch,) = data.loader("reference")
    boxes = batch.targets["boxes" if targets == "shared" else "there/boxes"]
    assert boxes.index.tolist() == (list(range(6)) if targets == "shared" else [3, 4, 5])
    assert boxes.sizes is not None


def test_scenes_of_other_classes_share_no_label() -> None:
    data = streets("shared")
    info = data.sets["there"].info()
    fewer = dataclasses.replace(info, labels={**info.labels, "boxes": info.labels["boxes"][:2]})
    data.infos()["there"] = fewer
    with pytest.raises(ConfigError, match=r"label 'boxes' is boxes_3d \(\w+, \w+\) in there; expected box"):
        data.info()
    data.infos()["there"] = dataclasses.replace(info, scene={**info.scene, "map": SceneKind.VOXELS})
    with pytest.raises(ConfigError, match=r"label 'map' is voxels .* Set data\.targets=namespaced"):
        data.info()


def test_counts_that_one_set_does_not_know_are_left_out() -> None:
    data = streets("shared")
    data.infos()["there"] = dataclasses.replace(data.infos()["there"], class_counts={})
    assert data.info().class_counts == {}


def test_numbers_have_the_moments_of_all_sets(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    for name, values in {"a": (1.0, 3.0), "b": (5.0, 6.0, 13.0)}.items():
        rows = "\n".join(f"{name} {i},{value},train" for i, value in enumerate(values))
        (tmp_path / f"{name}.csv").write_text(f"text,age,split\n{rows}\nheld out,1e6,test\n")
    read = {"type": "manifest", "numbers": {"age": {}}, "split": {"val_share": 0.0}}
    sets = {name: {**read, "path": str(tmp_path / f"{name}.csv")} for name in "ab"}
    infos = {
        targets: Mixture(
            schema.parse(Mixture.Config, {"sets": sets, "targets": targets}), preprocesses
        ).info()
        for targets in ("shared", "namespaced")
    }
    whole = infos["shared"].moments["age"]
    assert (whole.count, whole.mean) == (5, pytest.approx((5.6,)))
    assert whole.std == pytest.approx((statistics.pstdev([1, 3, 5, 6, 13]),))
    assert {t: m.mean for t, m in infos["namespaced"].moments.items()} == {"a/age": (2.0,), "b/age": (8.0,)}


def test_the_reference_is_what_evaluation_sees(tmp_path: pathlib.Path, preprocesses: Reads) -> None:
    lines = [json.dumps({"image": f"{i}.png", "caption": ["one", "two"]}) for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    whole = {"val_share": 0.0, "test_share": 0.0}
    sets = {"a": {"type": "manifest", "path": str(tmp_path / "rows.jsonl"), "split": whole}}
    data = Mixture(schema.parse(Mixture.Config, {"sets": sets}), preprocesses)
    assert len(data.reference().get(0, None).several["text"]) == 2
    assert "text" in data.source("train").get(0, torch.Generator()).inputs
