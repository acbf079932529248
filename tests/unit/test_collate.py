"""Collation: rows, padding, masks, labels."""

from __future__ import annotations

import pytest
import torch

from mmzoo.batch import Batch, Item, Sample
from mmzoo.datamodules.collate import collate
from mmzoo.errors import ShapeError


def mixed(generator: torch.Generator) -> list[Sample]:
    """Five samples with different modalities, sizes and labels."""
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731 short for a test
    mask = torch.tensor([[[True], [False]], [[True], [True]]])
    return [
        Sample("a", {"audio": Item(rand(4)), "image": Item(rand(3, 2, 5))}, {"label": torch.tensor(2)}),
        Sample("b", {"text": Item(torch.tensor([7, 8]))}, {"tags": torch.tensor([1.0, 0.0])}),
        Sample(
            "c", {"audio": Item(rand(6)), "fmri": Item(rand(3), subject="s1")}, {"label": torch.tensor(0)}
        ),
        Sample("d", {"skeleton": Item(rand(2, 2, 2, 1), valid=mask), "fmri": Item(rand(5), subject="s2")}),
        Sample("e", {"skeleton": Item(rand(2, 3, 2, 1)), "image": Item(rand(3, 4, 1))}, source="there"),
    ]


def test_every_value_lies_where_its_sample_says(generator: torch.Generator) -> None:
    samples = mixed(generator)
    batch = collate(samples).validate()
    assert batch.ids == ("a", "b", "c", "d", "e")
    for name, part in batch.inputs.items():
        having = [i for i, s in enumerate(samples) if name in s.inputs]
        assert part.index.tolist() == having
        for row, i in enumerate(having):
            item = samples[i].inputs[name]
            assert part.sizes[row].tolist() == list(item.values.shape)
            whole = torch.zeros_like(part.values[row])
            whole[tuple(slice(n) for n in item.values.shape)] = item.values
            assert torch.equal(part.values[row], whole)


def test_masks_are_false_in_the_padding_and_true_where_none_was_given(generator: torch.Generator) -> None:
    part = collate(mixed(generator)).inputs["skeleton"]
    assert part.valid is not None
    assert part.valid[0, :, :, 0].tolist() == [[True, False], [True, True], [False, False]]
    assert part.valid[1].all()
    assert collate(mixed(generator)).inputs["audio"].valid is None


def test_subjects_labels_and_sources(generator: torch.Generator) -> None:
    batch = collate(mixed(generator))
    assert batch.inputs["fmri"].subjects == ("s1", "s2")
    assert batch.inputs["audio"].subjects is None
    assert batch.targets["label"].values.tolist() == [2, 0]
    assert batch.targets["label"].index.tolist() == [0, 2]
    assert batch.targets["tags"].values.tolist() == [[1.0, 0.0]]
    assert batch.source == ("", "", "", "", "there")
    assert collate(mixed(generator)[:2]).source == ()


def test_one_sample_is_a_batch() -> None:
    batch = collate([Sample("x", {"text": Item(torch.tensor([1, 2, 3]))})])
    assert isinstance(batch, Batch)
    assert batch.inputs["text"].values.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("second", "line"),
    [
        (
            Sample("b", {"audio": Item(torch.zeros(2, 2))}),
            "sample b/audio: 2 axes of torch.float32; expected 1 of torch.float32 as in a. "
            "Mend the Preprocess.",
        ),
        (
            Sample("b", {"audio": Item(torch.zeros(2, dtype=torch.int64))}),
            "sample b/audio: 1 axes of torch.int64; expected 1 of torch.float32 as in a. "
            "Mend the Preprocess.",
        ),
        (
            Sample("b", {"audio": Item(torch.zeros(2))}, {"label": torch.zeros(3)}),
            "sample b/label: (3,) torch.float32; expected () torch.int64 as in a. Give all labels one form.",
        ),
    ],
)
def test_samples_that_do_not_fit_are_named(second: Sample, line: str) -> None:
    first = Sample("a", {"audio": Item(torch.zeros(3))}, {"label": torch.tensor(1)})
    with pytest.raises(ShapeError) as caught:
        collate([first, second])
    assert str(caught.value) == line


def test_finite_values_whose_sum_overflows_are_sound() -> None:
    for values in (torch.full((8,), 3e38), torch.full((70_000,), 1.0, dtype=torch.float16)):
        Sample("x", {"audio": Item(values)}).validate()
    for broken in ([1.0, float("nan")], [float("inf"), -float("inf")], [3e38, 3e38, float("inf")]):
        with pytest.raises(ShapeError, match="NaN or infinity"):
            Sample("x", {"audio": Item(torch.tensor(broken))}).validate()
