"""Views of a modality: the modality's tokens and one vector, and lines for names that do not fit."""

from __future__ import annotations

import torch

from mmzoo.batch import TokenSequence
from mmzoo.models.views import Views, view_faults, with_views

NAMES = {"image2": "image", "sketch": "image"}


def sequence(generator: torch.Generator) -> TokenSequence:
    tokens = torch.randn(2, 3, 4, generator=generator)
    return TokenSequence(tokens, torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 1]), "image")


def test_a_view_starts_as_its_modality_is_and_moves_by_its_own_vector(generator: torch.Generator) -> None:
    views, given = Views(NAMES, 4), sequence(generator)
    torch.testing.assert_close(views.mark("image2", given).tokens, given.tokens, rtol=0, atol=0)
    vector = torch.arange(4.0)
    views["image2"].data += vector
    torch.testing.assert_close(views.mark("image2", given).tokens, given.tokens + vector, rtol=0, atol=0)
    for other in ("sketch", "image"):
        torch.testing.assert_close(views.mark(other, given).tokens, given.tokens, rtol=0, atol=0)
    assert {k: tuple(v.shape) for k, v in views.state_dict().items()} == dict.fromkeys(NAMES, (1, 1, 4))


def test_inputs_are_the_modalities_and_then_their_views() -> None:
    assert list(with_views({"text": 1, "image": 2}, NAMES).items()) == [
        ("text", 1),
        ("image", 2),
        ("image2", 2),
        ("sketch", 2),
    ]


def test_views_of_nothing_and_views_of_a_taken_name_are_said() -> None:
    assert view_faults(NAMES, {"image": 1}) == []
    none, taken = view_faults({"a": "imgae", "image": "image"}, {"image": 1})
    assert none.startswith("views.a: 'imgae'; expected another modality of the model. Did you mean 'image'?")
    assert taken.startswith("views.image: ")
