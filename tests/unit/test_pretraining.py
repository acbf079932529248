"""Denoising inside a model: embedded once, nothing leaks, teachers without gradient, absence honoured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mmzoo import recipe, schema
from mmzoo.batch import Batch, DataInfo, ModalityInput, TokenPrediction
from mmzoo.errors import ConfigError
from mmzoo.layers.contrast import Keys
from mmzoo.layers.contrast_loss import PairLayout, infonce_sums
from mmzoo.layers.denoise_loss import denoising_sum
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.objectives.contrast import InfoNce
from mmzoo.objectives.denoise import DenoisingContrast

PASSES = ["image", "text", "fmri", "text+image", "text+image+fmri"]
OPTIONS = {
    "modalities": {
        "image": {"type": "image", "patch_size": 8, "preprocess": {"size": [32, 32]}},
        "text": {"type": "text", "preprocess": {"tokenizer": "bytes", "max_tokens": 20}, "max_positions": 24},
        "fmri": {"type": "fmri", "hidden_dim": 8, "subjects": {"a": 12, "b": 9}, "subject_dropout": 0.0},
    },
    "trunk": {"dim": 16, "depth": 2, "num_heads": 2},
    "heads": {
        "align": {"head": "contrastive", "passes": ["image", "text"]},
        "denoise": {
            "head": {"type": "denoise", "decoder": {"dim": 8, "depth": 1, "num_heads": 2}},
            "passes": PASSES,
        },
    },
}
ALIGN, DENOISE = InfoNce.Config(pairs=[("image", "text")]).build(), DenoisingContrast.Config().build()


def build(**changes: object) -> MultimodalModel:
    torch.manual_seed(0)
    options = schema.parse(MultimodalModel.Config, {**OPTIONS, **changes})
    return MultimodalModel(MultimodalModel.resolve(options, DataInfo()))


def batch(model: MultimodalModel, seed: int = 0) -> Batch:
    """Six samples: all have text, some lack the picture, some the scan."""
    generator = torch.Generator().manual_seed(seed)
    has = {"image": [0, 1, 3, 4], "text": [0, 1, 2, 3, 4, 5], "fmri": [0, 2, 5]}
    inputs: dict[str, ModalityInput] = {}
    for m, rows in has.items():
        made = model.adapter(m).fake_input(model.config.modalities[m], len(rows), generator)
        inputs[m] = dataclasses.replace(made, index=torch.tensor(rows))
    return Batch(tuple("abcdef"), inputs)


def loss(model: MultimodalModel, given: Batch) -> Tensor:
    found = model(given).predictions
    return ALIGN(found["align"], given, "").mean() + DENOISE(found["denoise"], given, "").mean()


def test_every_modality_is_embedded_once():
    model = build().train()
    calls: list[str] = []
    for name, adapter in model.adapters.items():
        adapter.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(batch(model))
    assert sorted(calls) == ["fmri", "image", "text"]


def test_absent_modalities_give_no_tokens():
    model = build().eval()
    given = batch(model)
    found = model(given).predictions["denoise"]
    assert set(found["image"].index.tolist()) <= {0, 1, 3, 4}
    assert set(found["text+image+fmri/fmri"].index.tolist()) <= {0, 2, 5}
    assert len(found["image"].keys) == int(model.adapter("image")(given.inputs["image"]).valid[:, 1:].sum())
    alone = model(given.select(["text"])).predictions["denoise"]
    assert list(alone) == ["text", "text+image/text", "text+image+fmri/text"]
    nothing = model(given.select([])).predictions["denoise"]
    assert nothing == {}


def test_masks_follow_the_generator_in_training_and_the_samples_in_evaluation():
    model = build()
    given = batch(model)

    def hidden(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.own for p in model(given).predictions["denoise"].values()])

    model.train()
    assert torch.equal(hidden(1), hidden(1))
    assert not torch.equal(hidden(1), hidden(2))
    model.eval()
    assert torch.equal(hidden(1), hidden(2))


def test_a_student_sees_nothing_of_what_is_hidden():
    model = build().eval()
    given = batch(model)
    before = model(given).predictions["denoise"]["image"]
    rows, places = before.index, before.own
    image = given.inputs["image"]
    values = image.values.clone()
    index = image.index.tolist()
    valid = model.adapter("image")(image).valid[:, 1:]
    flat = valid.flatten().nonzero()[:, 0]
    for sample, place in zip(rows.tolist(), places.tolist(), strict=True):
        row, patch = divmod(int(flat[place]), valid.shape[1])
        assert index[row] == sample
        cols = int(image.sizes[row, 2]) // 8
        top, left = divmod(patch, cols)
        values[row, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] += 5.0
    other = dataclasses.replace(
        given, inputs={**given.inputs, "image": dataclasses.replace(image, values=values)}
    )
    after = model(other).predictions["denoise"]["image"]
    torch.testing.assert_close(after.values, before.values)
    assert not torch.allclose(after.keys, before.keys)


def test_teachers_and_still_passes_change_no_gradient():
    """The teacher runs apart without gradient; so do passes in which nothing learns."""
    model = build(freeze=["modalities.fmri", "trunk", "~trunk.ffn.image"]).train()
    given = batch(model)
    torch.manual_seed(3)
    loss(model, given).backward()
    split = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    import mmzoo.models.multimodal as home

    kept, home.still_passes = home.still_passes, lambda *_: []
    try:
        torch.manual_seed(3)
        loss(model, given).backward()
    finally:
        home.still_passes = kept
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(split[name], p.grad, rtol=1e-4, atol=1e-6)
    assert split.keys() == {n for n, p in model.named_parameters() if p.grad is not None}


def test_the_keys_of_other_samples_are_part_of_a_samples_loss(generator: torch.Generator):
    queries, keys = torch.randn(2, 4, generator=generator), torch.randn(6, 4, generator=generator)
    index = torch.tensor([0, 1])
    whole = TokenPrediction(queries, index, keys=keys, own=torch.tensor([0, 4]))
    one = TokenPrediction(queries[:1], index[:1], keys=keys[:3], own=torch.tensor([0]))
    two = TokenPrediction(queries[1:], index[1:], keys=keys[3:], own=torch.tensor([1]))
    none = Batch(("a", "b"), {})
    apart = DENOISE({"image": one}, none, "").merge(DENOISE({"image": two}, none, ""))
    assert DENOISE.depends_on_batch
    assert float(apart.mean()) < float(DENOISE({"image": whole}, none, "").mean())


@pytest.mark.parametrize("frozen", [["trunk"], ["trunk", "modalities.image"]])
def test_a_view_teaches_the_modality_it_shares_and_its_own_embedding(frozen: list[str]):
    tree = {
        "modalities": {"image": OPTIONS["modalities"]["image"]},
        "views": {"image2": "image"},
        "trunk": {"dim": 16, "depth": 1, "num_heads": 2},
        "heads": {"c": {"head": {"type": "linear", "num_classes": 3}, "passes": ["image2"]}},
        "freeze": frozen,
    }
    model = MultimodalModel(schema.parse(MultimodalModel.Config, tree)).train()
    picture = model.adapter("image").fake_input(
        model.config.modalities["image"], 2, torch.Generator().manual_seed(0)
    )
    model(Batch(("a", "b"), {"image2": picture})).predictions["c"]["image2"].values.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_every_parameter_learns():
    model = build().train()
    loss(model, batch(model)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_keys_that_do_not_learn_against_cross_entropy(generator):
    a, b = (torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    own, cross = torch.arange(7), torch.nn.functional.cross_entropy
    for share in (0.0, 0.1):
        expected = 0.5 * (
            cross(scale * a @ b.detach().T, own, reduction="sum", label_smoothing=share)
            + cross(scale * b @ a.detach().T, own, reduction="sum", label_smoothing=share)
        )
        found = infonce_sums(a, b, scale, PairLayout(((7,),)), share, 3, Keys.FIXED).sum()
        torch.testing.assert_close(found, expected)
        for x, y in zip(
            torch.autograd.grad(found, (a, b, scale)),
            torch.autograd.grad(expected, (a, b, scale)),
            strict=True,
        ):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_denoising_sum_against_the_written_out_formula(chunk, generator):
    queries = torch.randn(9, 5, generator=generator, dtype=torch.float64).requires_grad_()
    keys = torch.randn(13, 5, generator=generator, dtype=torch.float64)
    own = torch.randint(13, (9,), generator=generator)
    share, rest = 0.1, 0.1 / 12
    minus_log = -(2.5 * queries @ keys.T).log_softmax(1)
    expected = ((1 - share - rest) * minus_log[torch.arange(9), own] + rest * minus_log.sum(1)).sum()
    found = denoising_sum(queries, keys, own, 2.5, share, chunk)
    torch.testing.assert_close(found, expected)
    (grad,), (wanted,) = torch.autograd.grad(found, queries), torch.autograd.grad(expected, queries)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ({"teachers": {"imag": "image"}}, "head.teachers: 'imag'; expected a pass of the task"),
        (
            {"teachers": {"text+image": "image"}},
            "teachers.text[+]image: 'image'; expected a pass that has",
        ),
        ({"masks": {"audio": "random"}}, "head.masks: 'audio'; expected a modality of the passes"),
        ({"joint_masks": {"text+image/fmri": "random"}}, "head.joint_masks: 'text[+]image/fmri'"),
    ],
)
def test_options_that_fit_no_pass_are_refused(head, found):
    spec = {"head": {"type": "denoise", **head}, "passes": PASSES}
    with pytest.raises(ConfigError, match=found):
        build(heads={"denoise": spec})


def test_a_weight_of_no_pass_is_refused(small: list[str]):
    task = "{head: denoise, passes: [text], objective: {type: denoising_contrast, weights: {txt: 2.0}}}"
    with pytest.raises(ConfigError, match=r"tasks.denoise.objective.weights: 'txt'; .*Did you mean 'text'"):
        recipe.build(recipe.load("five_senses", [*small, f"+tasks.denoise={task}"]))


def test_init_fresh_keeps_the_scale(small: list[str], tmp_path):
    from mmzoo import zoo

    built = recipe.build(recipe.load("five_senses", small))
    with torch.no_grad():
        built.model.heads["align"].log_scale.fill_(1.0)
    zoo.export(built.model, tmp_path / "export", built.learner.meta)
    options = [*small, f"init_from={tmp_path / 'export'}", "seed=5", "init_fresh=[heads.align.log_scale]"]
    again = recipe.build(recipe.load("five_senses", options))
    assert again.model.heads["align"].log_scale.item() == pytest.approx(2.659, abs=1e-3)
    assert torch.equal(again.model.trunk.blocks[0].norm1.weight, built.model.trunk.blocks[0].norm1.weight)
    assert torch.equal(again.model.adapters["text"].positions, built.model.adapters["text"].positions)
