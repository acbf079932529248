"""The loader: order, exact resume (with Lightning too), ranks, workers, unreadable samples."""

from __future__ import annotations

import logging
import pathlib
from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from mmzoo import schema
from mmzoo.batch import Batch, Item, Sample
from mmzoo.datamodules import loader as loader_module
from mmzoo.datamodules.loader import LoaderConfig, ResumableLoader, SampleSource
from mmzoo.datamodules.order import Rank, eval_draws, generator_for, repeats, train_draws
from mmzoo.errors import ConfigError, DataError


class Numbers:
    """Samples whose value tells their number; training adds noise; some are unreadable."""

    name = "numbers"

    def __init__(self, count: int, bad: tuple[int, ...] = (), nan: tuple[int, ...] = ()) -> None:
        self.count, self.bad, self.nan = count, bad, nan

    def __len__(self) -> int:
        return self.count

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        if index in self.bad:
            raise DataError.at(f"file{index}", "cut", "whole", "Remove it.")
        value = torch.full((2,), float("nan") if index in self.nan else float(index))
        noise = torch.rand(2, generator=generator) / 2 if generator is not None else torch.zeros(2)
        return Sample(f"s{index}", {"audio": Item(value + noise)}, {"label": torch.tensor(index % 2)})


class Ordered(Numbers):
    """Draws each sample twice an epoch."""

    def order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(2 * self.count, generator=generator) % self.count


def make(
    count: int = 23, *, train: bool = True, seed: int = 1, source: Numbers | None = None, **options: object
):
    config = schema.parse(LoaderConfig, {"batch_size": 5, **options})
    return ResumableLoader(source or Numbers(count), config, train=train, seed=seed)


def bits(batches: list[Batch]) -> list[tuple[tuple[str, ...], list[float]]]:
    return [(b.ids, b.inputs["audio"].values.flatten().tolist()) for b in batches]


def test_an_epoch_draws_each_sample_once_in_an_order_of_seed_and_epoch() -> None:
    loader = make(drop_last=False)
    first, second = bits(list(loader)), bits(list(loader))
    assert Counter(i for ids, _ in first for i in ids) == {f"s{i}": 1 for i in range(23)}
    assert len(first) == len(loader) == 5
    assert first != second
    assert bits(list(make(drop_last=False))) == first
    assert bits(list(make(drop_last=False, seed=2))) != first


def test_evaluation_keeps_order_and_every_sample() -> None:
    loader = make(train=False, eval_batch_size=4)
    for _ in range(2):
        batches = list(loader)
        assert [i for b in batches for i in b.ids] == [f"s{i}" for i in range(23)]
        assert batches[1].inputs["audio"].values[:, 0].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert len(loader) == 6


def test_drop_last_keeps_the_only_batch() -> None:
    assert [len(b) for b in make(23)] == [5, 5, 5, 5]
    assert [len(b) for b in make(3)] == [3]


def test_augmentation_depends_on_epoch_and_sample_not_on_batches() -> None:
    def noise(loader: ResumableLoader) -> dict[str, list[float]]:
        return {i: v.tolist() for b in loader for i, v in zip(b.ids, b.inputs["audio"].values, strict=True)}

    five, seven = make(drop_last=False), make(drop_last=False, batch_size=7)
    assert noise(five) == noise(seven)
    assert noise(five)["s3"] != noise(make(drop_last=False))["s3"]


def test_a_sample_drawn_again_in_an_epoch_is_augmented_anew_and_once_a_batch() -> None:
    loader = make(source=Ordered(20), batch_size=8, drop_last=False)
    batches = [b.validate() for b in loader]
    values = [
        v for b in batches for i, v in zip(b.ids, b.inputs["audio"].values.tolist(), strict=True) if i == "s7"
    ]
    assert len(loader) == 5
    assert 1 <= len(values) <= 2
    twice = Counter(i for b in batches for i in b.ids)
    name = next(i for i, n in twice.items() if n == 2)
    drawn = [
        v for b in batches for i, v in zip(b.ids, b.inputs["audio"].values.tolist(), strict=True) if i == name
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_goes_on_with_exactly_the_batches_not_seen(workers: int) -> None:
    whole = make(num_workers=workers)
    epochs = [bits(list(whole)) for _ in range(3)]
    for seen in range(len(whole) + 1):
        loader = make(num_workers=0)
        loader.set_epoch(1)
        iterator = iter(loader)
        for _ in range(seen):
            next(iterator)
        again = make(num_workers=workers if seen == 2 else 0)
        again.load_state_dict(loader.state_dict())
        assert bits(list(again)) == epochs[1][seen:]
        assert bits(list(again)) == epochs[2]


def test_an_abandoned_epoch_is_followed_by_the_next() -> None:
    loader = make(num_workers=2)
    next(iter(loader))
    fresh = make()
    fresh.set_epoch(1)
    assert bits(list(loader)) == bits(list(fresh))


def test_iter_alone_changes_nothing() -> None:
    loader = make()
    for _ in range(3):
        iter(loader)
    assert bits(list(loader)) == bits(list(make()))


def test_other_data_are_refused_at_resume() -> None:
    state = make().state_dict()
    for other in (make(24), make(seed=2), make(batch_size=4)):
        with pytest.raises(DataError, match=r"resume of numbers: .* expected .*Resume with the same data"):
            other.load_state_dict(state)


def test_two_ranks_read_what_one_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [set(b.ids) for b in make(23, batch_size=6)]
    shares = []
    for index in range(2):
        monkeypatch.setattr(loader_module.Rank, "current", staticmethod(lambda index=index: Rank(index, 2)))
        shares.append([set(b.ids) for b in make(23, batch_size=3)])
    assert [a | b for a, b in zip(*shares, strict=True)] == whole
    assert all(not a & b for a, b in zip(*shares, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 7, 24])
def test_ranks_get_equal_shares_and_evaluation_loses_none(world: int, count: int) -> None:
    evaluated = [eval_draws(count, Rank(r, world)).index.tolist() for r in range(world)]
    assert len({len(e) for e in evaluated}) == 1
    assert {i for e in evaluated for i in e} == set(range(count))
    assert all(len(set(e)) == len(e) for e in evaluated)
    for drop_last in (True, False):
        order = torch.randperm(count)
        trained = [
            train_draws(order, 4, Rank(r, world), drop_last=drop_last).index.tolist() for r in range(world)
        ]
        assert len({len(t) for t in trained}) == 1
        assert trained[0]
        drawn = [i for t in trained for i in t]
        assert len(drawn) == len(set(drawn)) or count < world
        assert len(drawn) > count - max(world, 4 * world if drop_last else 0)


def test_repeats_counts_earlier_draws() -> None:
    order = torch.randint(0, 9, (60,), generator=torch.Generator().manual_seed(0))
    slow = [order[:i].tolist().count(int(v)) for i, v in enumerate(order)]
    assert repeats(order).tolist() == slow


def test_generators_of_neighbouring_keys_are_unrelated() -> None:
    keys = [(s, e, i) for s in range(8) for e in range(8) for i in range(16)]
    draws = torch.stack([torch.rand(4, generator=generator_for(*k)) for k in keys])
    assert len({tuple(d.tolist()) for d in draws}) == len(keys)
    correlation = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(float(correlation)) < 0.1  # 1,023 pairs: standard deviation 0.03
    assert abs(float(draws.mean()) - 0.5) < 0.03


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_samples_are_skipped_counted_and_named_once(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = make(
        source=Numbers(40, bad=(3, 17), nan=(5,)), num_workers=workers, max_bad_share=0.1, drop_last=False
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ids = {i for b in loader for i in b.validate().ids}
            assert ids == {f"s{i}" for i in range(40)} - {"s3", "s17", "s5"}
    lines = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(lines) == 3
    counts = [r.getMessage() for r in caplog.records if "were" in r.getMessage()]
    assert counts == ["numbers: 3 of 40 samples were unreadable"]
    for name in ("file3", "file17", "s5"):
        assert sum(f"{name}" in line for line in lines) == 1
    assert loader.faults.summary() == "numbers: 3 unreadable samples skipped"


def test_too_many_unreadable_samples_end_the_run() -> None:
    loader = make(source=Numbers(40, bad=(3, 17, 30)), max_bad_share=0.05, drop_last=False)
    with pytest.raises(DataError) as caught:
        list(loader)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("numbers: 3 of 40 samples are unreadable (the first: file")
    assert line.endswith("Mend the data, or raise loader.max_bad_share.")


def test_a_batch_unreadable_as_a_whole_takes_later_samples() -> None:
    bad = tuple(range(5, 10))
    batches = list(make(source=Numbers(40, bad=bad), train=False, max_bad_share=0.2))
    assert len(batches) == 8
    assert batches[1].ids == ("s10",)
    assert {i for b in batches for i in b.ids} == {f"s{i}" for i in range(40) if i not in bad}


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(make())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 0}, "loader.batch_size: 0; expected at least 1. Set loader.batch_size=1."),
        ({"num_workers": -1}, "loader.num_workers: -1; expected at least 0. Set loader.num_workers=0."),
        ({"max_bad_share": 2.0}, "loader.max_bad_share: 2; expected a share in 0..1. Set e.g. 0.05."),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.parse(LoaderConfig, options, "data")
    assert str(caught.value) == f"data: {line}"


def test_numbers_is_a_source() -> None:
    assert isinstance(Numbers(1), SampleSource)


class Recorder(pl.LightningModule):
    """Writes down what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[tuple[tuple[str, ...], list[float]]] = []

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.seen.extend(bits([batch]))
        return self.layer(batch.inputs["audio"].values).sum()

    def validation_step(self, batch: Batch) -> None:
        assert len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(workers: int, folder: pathlib.Path, resume: pathlib.Path | None = None, **options: object):
    recorder = Recorder()
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        **options,
    )
    loaders = make(num_workers=workers), make(train=False)
    trainer.fit(recorder, *loaders, ckpt_path=None if resume is None else str(resume), weights_only=False)
    return recorder.seen


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Lightning 2.6 uses a deprecated name of torch's pytree
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    ("workers", "options"),
    [(0, {}), (0, {"limit_train_batches": 3}), (0, {"val_check_interval": 2}), (2, {})],
    ids=["plain", "limited", "validated mid-epoch", "workers"],
)
def test_lightning_resumes_at_the_next_batch(
    workers: int, options: dict[str, object], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "pytorch_lightning")
    whole = train(workers, tmp_path / "whole", **options)
    steps = (1, 4, 5) if workers == 0 else (3,)
    for step in steps:
        saved = tmp_path / "whole" / f"step={step}.ckpt"
        rest = train(workers, tmp_path / f"from-{step}", resume=saved, **options)
        assert rest == whole[step:]
