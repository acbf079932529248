"""Every head that hides tokens, and every objective that reads what it gives; and every mask recipe."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from torch import Tensor

from mmzoo import registry, schema
from mmzoo.batch import Batch, PredictionKind, TokenPrediction, TokenSequence
from mmzoo.heads.masked import Hidden, InputFacts, MaskedHead
from mmzoo.layers.masking import Maskable, dense
from mmzoo.objectives.base import Objective

HEADS = sorted(k for k in registry.table("heads") if issubclass(registry.find("heads", k), MaskedHead))
OBJECTIVES = sorted(
    k for k in registry.table("objectives") if registry.find("objectives", k).reads is PredictionKind.TOKENS
)
MASKS = sorted(registry.table("masks"))
DIM = 8
PASSES = ("image", "text", "text+image")
INPUTS = {"image": InputFacts("image", (3, 3)), "text": InputFacts("text", (12,))}
SMALL = {"decoder": {"dim": 8, "num_heads": 2, "depth": 1}}
BATCH = Batch(("a", "b", "c", "d"))


def build(name: str, seed: int = 0) -> MaskedHead:
    torch.manual_seed(seed)
    config = schema.parse(registry.find("heads", name).Config, SMALL)
    return config.build(dim=DIM, passes=PASSES, inputs=INPUTS)


def whole(generator: torch.Generator) -> dict[str, TokenSequence]:
    """Pictures of three by three patches (samples 0, 1, 3); texts of 4, 7 and 9 words (0, 2, 3)."""
    image = TokenSequence(
        torch.randn(3, 10, DIM, generator=generator),
        torch.ones(3, 10, dtype=torch.bool),
        torch.tensor([0, 1, 3]),
        "image",
        ((3, 3),) * 3,
        1,
    )
    lengths = torch.tensor([4, 7, 9])
    valid = torch.arange(10) <= lengths[:, None]
    tokens = torch.randn(3, 10, DIM, generator=generator).masked_fill(~valid[..., None], 1e4)
    text = TokenSequence(tokens, valid, torch.tensor([0, 2, 3]), "text", tuple((int(n),) for n in lengths), 1)
    return {"image": image, "text": text}


def maskable(s: TokenSequence) -> Maskable:
    eligible = s.valid.clone()
    eligible[:, 0] = False
    words = torch.where(eligible, eligible.cumsum(1) - 1, -1)
    steps = words // 3 if s.modality == "image" else words
    return Maskable(words, dense(torch.where(eligible, steps, -1)))


def views(head: MaskedHead, seed: int) -> tuple[dict, dict, Hidden]:
    """What a trunk that changes nothing would hand over: hidden tokens are zeros in what students see."""
    generator = torch.Generator().manual_seed(seed)
    made = whole(generator)
    hidden = head.draw({m: maskable(s) for m, s in made.items()}, generator)
    students = {
        p: [
            dataclasses.replace(
                made[m],
                valid=made[m].valid & ~own,
                tokens=made[m].tokens.masked_fill(~(made[m].valid & ~own)[..., None], 0.0),
            )
            for m, own in parts.items()
        ]
        for p, parts in hidden.items()
    }
    teachers = {p: [made[m] for m in p.split("+")] for p in head.teachers()}
    return students, teachers, hidden


def values(head: MaskedHead, seed: int = 0) -> Tensor:
    return torch.cat([p.values for p in head.compare(*views(head, seed)).values()])


@pytest.mark.parametrize("name", HEADS)
def test_gives_a_vector_a_hidden_token_and_says_which_key_is_its_own(name):
    head = build(name)
    students, teachers, hidden = views(head, 0)
    found = head.compare(students, teachers, hidden)
    assert head.gives is PredictionKind.TOKENS
    assert list(found) == ["image", "text", "text+image/text", "text+image/image"]
    for part, prediction in found.items():
        assert isinstance(prediction, TokenPrediction)
        name_of_pass, _, modality = part.partition("/")
        modality = modality or name_of_pass
        own, teacher = hidden[name_of_pass][modality], whole(torch.Generator().manual_seed(0))[modality]
        assert prediction.values.shape == (int(own.sum()), DIM)
        assert not prediction.keys.requires_grad
        assert torch.equal(prediction.keys[prediction.own], teacher.tokens[own])
        assert torch.equal(prediction.index, teacher.index[own.nonzero()[:, 0]])
        assert len(prediction.keys) == int(teacher.valid[:, 1:].sum())


@pytest.mark.parametrize("name", HEADS)
def test_what_is_hidden_and_padding_change_nothing(name):
    head = build(name).eval()
    students, teachers, hidden = views(head, 0)
    expected = head.compare(students, teachers, hidden)
    garbage = {
        p: [dataclasses.replace(s, tokens=s.tokens.masked_fill(~s.valid[..., None], 7.0)) for s in own]
        for p, own in students.items()
    }
    for part, prediction in head.compare(garbage, teachers, hidden).items():
        torch.testing.assert_close(prediction.values, expected[part].values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient(name, objective):
    head = build(name)
    loss: Objective = registry.find("objectives", objective).Config().build()
    loss(head.compare(*views(head, 0)), BATCH, "").total.sum.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", HEADS)
def test_same_seed_same_bits_and_state_survives(name):
    head, again, other = build(name), build(name), build(name, seed=1)
    expected = values(head)
    assert torch.equal(expected, values(again))
    assert not torch.equal(expected, values(other))
    assert not torch.equal(values(head, seed=1)[:3], expected[:3])
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(expected, values(other))


@pytest.mark.parametrize(("table", "name"), [("heads", n) for n in HEADS] + [("masks", n) for n in MASKS])
def test_config_round_trip(table, name):
    cls = registry.find(table, name)
    config = cls.Config()
    assert schema.parse(cls.Config, config.to_dict()) == config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_gives_the_weighted_sum_of_its_parts_means(name):
    cls = registry.find("objectives", name)
    found = build(HEADS[0]).compare(*views(build(HEADS[0]), 0))
    weights = {"image": 0.25, "text+image": 3.0, "text+image/text": 0.0}
    state = cls.Config(weights=weights).build()(found, BATCH, "")
    worth = {"image": 0.25, "text": 1.0, "text+image/text": 0.0, "text+image/image": 3.0}
    expected = sum(worth[k] * p.mean() for k, p in state.parts.items())
    torch.testing.assert_close(state.mean(), expected)
    merged = state.merge(state)
    torch.testing.assert_close(merged.mean(), state.mean())
    assert schema.parse(cls.Config, cls.Config(weights=weights).to_dict()) == cls.Config(weights=weights)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_hidden_is_a_zero_that_can_be_differentiated(name):
    loss = registry.find("objectives", name).Config().build()
    nothing = torch.zeros(0, DIM, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    state = loss({"image": TokenPrediction(nothing, none, keys=torch.randn(3, DIM), own=none)}, BATCH, "")
    state.total.sum.backward()
    assert state.mean().item() == 0
    assert loss({}, BATCH, "").mean().item() == 0


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_hides_its_share_and_never_what_may_not_be(name, generator):
    mask = registry.find("masks", name).Config(share=0.4).build()
    lengths = [0, 1, 2, 7, 20, 31]
    words = torch.where(torch.arange(32) < torch.tensor(lengths)[:, None], torch.arange(32), -1)
    hidden = mask(Maskable(words, words), generator)
    assert hidden.dtype == torch.bool
    assert not hidden[words < 0].any()
    for n, count in zip(lengths, hidden.sum(1).tolist(), strict=True):
        assert abs(count - 0.4 * n) < 1
    again = mask(Maskable(words, words), torch.Generator().manual_seed(0))
    assert torch.equal(again, hidden)
    assert not torch.equal(mask(Maskable(words, words), generator), hidden)
