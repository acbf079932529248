from __future__ import annotations

import pytest
import torch

from mmzoo.batch import Batch, Item, ModalityInput, Sample, Target
from mmzoo.errors import ShapeError, close_matches


def rows(n: int = 2) -> ModalityInput:
    return ModalityInput.stack([Item(torch.ones(3, 4 + i)) for i in range(n)], torch.arange(n))


def test_stack_pads_the_end_of_each_axis_and_keeps_the_real_extent():
    items = [Item(torch.ones(2, 3)), Item(torch.full((4, 1), 2.0))]
    made = ModalityInput.stack(items, torch.tensor([0, 2]))
    assert made.sizes.tolist() == [[2, 3], [4, 1]]
    expected = torch.zeros(2, 4, 3)
    expected[0, :2] = 1
    expected[1, :, :1] = 2
    assert torch.equal(made.values, expected)
    assert made.subjects is None


def test_stack_keeps_masks_and_subjects():
    mask = torch.tensor([[True, False]])
    items = [Item(torch.ones(1, 1, 2), mask, "anna"), Item(torch.ones(1, 2, 2), None, "ben")]
    made = ModalityInput.stack(items, torch.arange(2))
    assert made.subjects == ("anna", "ben")
    assert made.valid is not None
    assert made.valid.tolist() == [[[True, False], [False, False]], [[True, True], [True, True]]]


def test_batch_shows_shapes_and_says_nothing_of_absent_modalities():
    batch = Batch(("a", "b"), {"image": rows()}, {"label": Target(torch.tensor([1]), torch.tensor([1]))})
    assert repr(batch.validate()) == "Batch(2 samples: image (2, 3, 5) float32 | targets: label (1,) int64)"
    assert len(batch.select(["audio"]).inputs) == 0
    assert (
        repr(Sample("a", {"text": Item(torch.arange(3))})) == "Sample('a': text (3,) int64 | targets: none)"
    )


def test_to_moves_values_and_leaves_masks_on_the_host():
    moved = Batch(("a", "b"), {"image": rows()}, {"y": Target(torch.ones(2), torch.arange(2))}).to("meta")
    assert moved.inputs["image"].values.device.type == "meta"
    assert moved.inputs["image"].index.device.type == "cpu"
    assert moved.targets["y"].values.device.type == "meta"
    assert Sample("a", {"t": Item(torch.ones(2))}).to("meta").inputs["t"].values.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(("a", "a")), "an id twice"),
        (Batch(("a",), {"image": rows()}), r"index \[0, 1\]; expected ascending in 0..0"),
        (
            Batch(
                ("a", "b"),
                {
                    "x": ModalityInput(
                        torch.tensor([[float("nan")]]),
                        torch.zeros(1, dtype=torch.int64),
                        torch.ones(1, 1, dtype=torch.int64),
                    )
                },
            ),
            "NaN or infinity",
        ),
        (Batch(("a", "b"), {}, {"y": Target(torch.ones(2), torch.tensor([1, 0]))}), "expected ascending"),
        (
            Batch(
                ("a", "b"),
                {
                    "x": ModalityInput(
                        torch.ones(1, 2), torch.tensor([0]), torch.ones(1, 2, dtype=torch.int64)
                    )
                },
            ),
            "sizes",
        ),
    ],
)
def test_validate_names_the_fault(batch: Batch, message: str):
    with pytest.raises(ShapeError, match=message):
        batch.validate()


def test_sample_without_any_modality_is_refused():
    with pytest.raises(ShapeError, match="sample a: no modality; expected at least one"):
        Sample("a").validate()


def test_close_matches_names_neighbours_or_all():
    assert close_matches("imge", ["image", "audio"]) == "Did you mean 'image'?"
    assert close_matches("zzz", ["image", "audio"]) == "Choose one of: audio, image."
    many = [f"name{i:02}" for i in range(40)]
    assert close_matches("zzz", many).endswith("name10, name11 … (40 in all).")
    assert close_matches("zzz", many, listing="mmzoo list") == "`mmzoo list` shows all 40."
    assert close_matches("zzz", many[:12], listing="mmzoo list").endswith("name11.")
    assert close_matches("zzz", []) == "There is nothing to choose from."
