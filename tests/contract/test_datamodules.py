"""Every row of the datamodules table keeps the same promises; a new row is tested by its `fake()` alone."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo import registry, schema
from mmzoo.batch import IGNORE, Batch, DataInfo, DenseKind, Sample, SceneKind, Target
from mmzoo.datamodules.base import DataModule
from mmzoo.datamodules.files import KINDS
from mmzoo.datamodules.loader import LoaderConfig, ResumableLoader, SampleSource
from mmzoo.datamodules.scene import CAMERA, LIDAR, OCCUPIED
from mmzoo.errors import DataError
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.bev import BevGrid, BevPreprocess, VoxelPreprocess

ROWS = sorted(registry.table("datamodules"))
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def every_preprocess() -> dict[str, Preprocess]:
    """Return each modality's own, the picture's small."""
    options = {kind: registry.find("modalities", kind).Config().preprocess for kind in KINDS}
    options["image"] = dataclasses.replace(options["image"], size=(16, 16))
    grid = BevGrid(cells=8, range_m=24.0, map_cells=6, map_range_m=20.0, bottom_m=-1.0, top_m=4.0)
    options |= {m: BevPreprocess.Config(grid=grid, levels=3) for m in (CAMERA, LIDAR)}
    options[OCCUPIED] = VoxelPreprocess.Config(grid=grid, levels=3)
    return {kind: option.build() for kind, option in options.items()}


@pytest.fixture(scope="module", params=ROWS)
def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the options of each row's tiny data set, batches of four."""
    config = registry.find("datamodules", request.param).fake(tmp_path_factory.mktemp(request.param))
    config.loader = LoaderConfig(batch_size=4, drop_last=False)
    return config


@pytest.fixture(scope="module")
def preprocesses(fake: Any, every_preprocess: dict[str, Preprocess]) -> dict[str, Preprocess]:
    """Return those that the row's data have a use for."""
    own = fake.build(every_preprocess, seed=1).info().modalities
    return {name: made for name, made in every_preprocess.items() if name in own}


@pytest.fixture(scope="module")
def data(fake: Any, preprocesses: dict[str, Preprocess]) -> DataModule:
    return fake.build(preprocesses, seed=1)


def bits(batch: Batch) -> tuple[Any, ...]:
    """Return all that a batch holds, in a form that `==` compares exactly."""
    inputs = {
        m: (
            i.values.tolist(),
            i.index.tolist(),
            i.sizes.tolist(),
            i.subjects,
            i.valid is None or i.valid.tolist(),
        )
        for m, i in batch.inputs.items()
    }
    targets = {
        t: (v.values.tolist(), v.index.tolist(), v.sizes is None or v.sizes.tolist())
        for t, v in batch.targets.items()
    }
    subjects = [i.subjects for i in batch.inputs.values()]
    return batch.ids, batch.source, inputs, targets, subjects


def test_options_survive_a_round_trip(fake: Any) -> None:
    assert schema.parse(type(fake), fake.to_dict()) == fake


def test_batches_are_valid_and_as_the_info_says(
    data: DataModule, preprocesses: dict[str, Preprocess]
) -> None:
    info = data.info()
    seen: dict[str, set[str]] = {}
    modalities: set[str] = set()
    for split in SPLITS:
        ids: list[str] = []
        for batch in data.loader(split):
            batch.validate()
            ids += batch.ids
            modalities |= set(batch.inputs)
            check_labels(batch, info)
            for part in batch.inputs.values():
                for row, subject in enumerate(part.subjects or ()):
                    assert info.subjects[subject] == int(part.sizes[row, -1])
        assert len(set(ids)) <= info.counts.get(split, 0)
        if split != "train":
            assert len(ids) == len(set(ids)) == info.counts.get(split, 0)
        seen[split] = set(ids)
    assert seen["train"]
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    assert modalities == set(info.modalities) & set(preprocesses)


def check_labels(batch: Batch, info: DataInfo) -> None:
    labels = info.labels
    for name, target in batch.targets.items():
        assert name in labels
        if name in info.dense:
            check_dense(target.values, info.dense[name], len(labels[name]), batch)
        elif name in info.scene:
            check_scene(target, info.scene[name], len(labels[name]))
        elif target.values.ndim == 1:
            assert target.values.dtype == torch.int64
            assert 0 <= int(target.values.min()) <= int(target.values.max()) < len(labels[name])
        else:
            assert target.values.shape[1] == len(labels[name])
            assert set(target.values.unique().tolist()) <= {0.0, 1.0}


def check_dense(values: Tensor, kind: DenseKind, channels: int, batch: Batch) -> None:
    assert values.shape[-2:] == batch.inputs["image"].values.shape[-2:]
    real = values[values != IGNORE]
    if kind in (DenseKind.CLASSES, DenseKind.SALIENCY):
        assert (values.ndim, values.dtype) == (3, torch.int64)
        assert not len(real) or 0 <= int(real.min()) <= int(real.max()) < channels
        return
    assert values.dtype == torch.float32
    assert values.shape[1] == channels == (3 if kind is DenseKind.NORMALS else 1)
    if kind is DenseKind.NORMALS:
        length = values.norm(dim=1)[(values != IGNORE).all(dim=1)]
        torch.testing.assert_close(length, torch.ones_like(length), atol=0.02, rtol=0)
    else:
        assert (real >= 0).all()
        assert kind is DenseKind.DEPTH or (real <= 1).all()


def check_scene(target: Target, kind: SceneKind, classes: int) -> None:
    values = target.values
    if kind is SceneKind.BOXES_3D:
        assert target.sizes is not None
        boxes = torch.cat(target.rows())
        assert (boxes.ndim, boxes.shape[1], boxes.dtype) == (2, 10, torch.float32)
        assert bool((boxes[:, 3:6] > 0).all())
        assert bool((boxes[:, 9] == boxes[:, 9].round()).all())
        assert not len(boxes) or 0 <= float(boxes[:, 9].min()) <= float(boxes[:, 9].max()) < classes
    elif kind is SceneKind.GROUND_MAP:
        assert (values.ndim, values.shape[1], values.dtype) == (4, classes, torch.float32)
        assert set(values.unique().tolist()) <= {0.0, 1.0}
    else:
        assert (values.ndim, values.dtype) == (4, torch.int64)
        real = values[values != IGNORE]
        assert 0 <= int(real.min()) <= int(real.max()) < classes


def test_same_seed_same_bits_other_seed_other_order(fake: Any, preprocesses: dict[str, Preprocess]) -> None:
    epochs = [[bits(b) for b in fake.build(preprocesses, seed=s).loader("train")] for s in (1, 1, 2)]
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    assert sum(len(b[0]) for b in epochs[0]) == sum(len(b[0]) for b in epochs[2])


def test_evaluation_does_not_depend_on_the_seed(fake: Any, preprocesses: dict[str, Preprocess]) -> None:
    for split in ("val", "reference"):
        a, b = ([bits(x) for x in fake.build(preprocesses, seed=s).loader(split)] for s in (1, 2))
        assert a == b


def test_resume_in_mid_epoch_is_exact(fake: Any, preprocesses: dict[str, Preprocess]) -> None:
    whole = fake.build(preprocesses, seed=1).loader("train")
    first, second = ([bits(b) for b in whole] for _ in range(2))
    interrupted = fake.build(preprocesses, seed=1).loader("train")
    iterator = iter(interrupted)
    half = [bits(next(iterator)) for _ in range(len(first) // 2)]
    resumed = fake.build(preprocesses, seed=1).loader("train")
    resumed.load_state_dict(pickle.loads(pickle.dumps(interrupted.state_dict())))
    assert half + [bits(b) for b in resumed] == first
    assert [bits(b) for b in resumed] == second


def test_workers_change_nothing_in_evaluation(fake: Any, preprocesses: dict[str, Preprocess]) -> None:
    options = dataclasses.replace(fake, loader=LoaderConfig(batch_size=4, num_workers=2))
    here, there = (c.build(preprocesses, seed=1).loader("test") for c in (fake, options))
    assert [bits(b) for b in here] == [bits(b) for b in there]


class Damaged:
    """A source of which one sample cannot be read."""

    name = "damaged"

    def __init__(self, source: SampleSource) -> None:
        self.source = source
        self.bad = source.get(1, None).id

    def __len__(self) -> int:
        return len(self.source)

    def get(self, index: int, generator: torch.Generator | None) -> Sample:
        if index == 1:
            raise DataError.at(self.bad, "cut short", "a whole file", "Remove it.")
        return self.source.get(index, generator)


def test_a_corrupt_sample_is_skipped_and_named(data: DataModule, caplog: pytest.LogCaptureFixture) -> None:
    source = Damaged(data.source("train"))
    options = LoaderConfig(batch_size=4, drop_last=False, max_bad_share=0.5)
    with caplog.at_level(logging.WARNING):
        ids = {i for b in ResumableLoader(source, options, train=True, seed=0) for i in b.validate().ids}
    assert source.bad not in ids
    assert len(ids) >= (len(source) - 1) // 2
    assert sum(source.bad in record.getMessage() for record in caplog.records) == 1
    strict = LoaderConfig(batch_size=4, drop_last=False, max_bad_share=0.0)
    with pytest.raises(DataError, match="unreadable"):
        list(ResumableLoader(source, strict, train=False, seed=0))


def test_only_the_models_modalities_are_read(
    fake: Any, preprocesses: dict[str, Preprocess], data: DataModule
) -> None:
    name = next(m for m in data.info().modalities if m in preprocesses)
    module = fake.build({name: preprocesses[name]}, seed=1)
    for batch in module.loader("train"):
        assert set(batch.inputs) == {name}


def test_missing_data_are_one_line_with_the_cure(fake: Any, preprocesses: dict[str, Preprocess]) -> None:
    field = next((f for f in ("root", "path") if hasattr(fake, f)), None)
    if field is None:
        return  # made, not read (five_senses), or made of others (mixture)
    where = pathlib.Path("there") / "is" / f"none{pathlib.Path(getattr(fake, field)).suffix}"
    gone = dataclasses.replace(fake, **{field: str(where), "get": "Ask the owner."})
    with pytest.raises(DataError) as caught:
        gone.build(preprocesses, seed=1).info()
    line = str(caught.value)
    assert "\n" not in line
    assert str(where) in line
    assert line.endswith("Ask the owner.")


def test_sources_travel_to_workers_by_pickle(data: DataModule) -> None:
    source = data.source("train")
    copy = pickle.loads(pickle.dumps(source))
    a, b = source.get(0, None), copy.get(0, None)
    assert a.id == b.id
    assert all(torch.equal(a.inputs[m].values, b.inputs[m].values) for m in a.inputs)
