"""fMRI: repeats and noise, rows grouped by subject against row-by-row formulas, new subjects."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmzoo.batch import DataInfo, ModalityInput
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.modalities.fmri import FmriAdapter, FmriPreprocess, Scan, module_key
from mmzoo.schema import parse

SUBJECTS = {"sub-01": 13, "a.b.c": 7, "keys": 9}


def adapter(**options: object) -> FmriAdapter:
    torch.manual_seed(0)
    small = {"hidden_dim": 16, "num_tokens": 3, "token_dim": 4, "subjects": dict(SUBJECTS)}
    return FmriAdapter(parse(FmriAdapter.Config, small | options), name="fmri", dim=8, num_heads=2).eval()


def scans(subjects: list[str], filler: float = 0.0) -> ModalityInput:
    sizes = torch.tensor([[SUBJECTS[s]] for s in subjects])
    values = torch.randn(len(subjects), int(sizes.max()), generator=torch.Generator().manual_seed(1))
    values = torch.where(torch.arange(values.shape[1]) < sizes, values, filler)
    return ModalityInput(values, torch.arange(len(subjects)), sizes, subjects=tuple(subjects))


def preprocess(**options: object) -> FmriPreprocess:
    return FmriPreprocess(parse(FmriPreprocess.Config, options))


def block(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    y = state[f"{name}.linear.weight"] @ x + state[f"{name}.linear.bias"]
    scaled = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt()
    return F.gelu(scaled * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"])


def test_mixed_batch_equals_the_formula_row_by_row() -> None:
    model = adapter()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state, x = model.state_dict(), scans(["keys", "sub-01", "a.b.c", "sub-01", "keys"], filler=9.0)
    out = model(x)
    assert out.valid.all()
    assert out.tokens.shape == (5, 4, 8)
    assert (out.num_prefix, out.biases, out.grids) == (1, (), None)
    assert x.subjects is not None
    for row, subject in enumerate(x.subjects):
        prefix = f"subjects.{module_key(subject)}"
        code = block(x.values[row, : SUBJECTS[subject]], state, prefix)
        for name in (f"{prefix}.blocks.0", "core.0", "core.1"):
            code = code + block(code, state, name)
        scaled = (code - code.mean()) / (code.var(correction=0) + 1e-5).sqrt()
        active = F.gelu(scaled * state["norm.weight"] + state["norm.bias"])
        content = (state["to_tokens.weight"] @ active + state["to_tokens.bias"]).reshape(3, 4)
        tokens = content @ state["projection.weight"].T + state["projection.bias"]
        expected = torch.cat([state["cls_token"][0], tokens])
        torch.testing.assert_close(out.tokens[row], expected, rtol=1e-4, atol=1e-5)


def test_one_subject_alone_equals_the_mixed_batch() -> None:
    model = adapter()
    x = scans(["keys", "sub-01", "keys"], filler=3.0)
    alone = model(ModalityInput(x.values[[0, 2]], x.index[:2], x.sizes[[0, 2]], subjects=("keys", "keys")))
    torch.testing.assert_close(model(x).tokens[[0, 2]], alone.tokens, rtol=0, atol=1e-6)


def test_unknown_subjects_and_wrong_voxel_counts_are_refused() -> None:
    model, x = adapter(), scans(["keys"])
    unknown = (
        r"fmri: subject 'sub-9' is unknown to the model; expected one of sub-01, a\.b\.c, keys\. Call add"
    )
    with pytest.raises(ShapeError, match=unknown):
        model(ModalityInput(x.values, x.index, x.sizes, subjects=("sub-9",)))
    with pytest.raises(ShapeError, match=r"fmri: 9 voxels of subject 'sub-01'; expected 13\. Use the mask"):
        model(ModalityInput(x.values, x.index, x.sizes, subjects=("sub-01",)))
    with pytest.raises(ShapeError, match="scans without subjects; expected a subject for each row"):
        model(ModalityInput(x.values, x.index, x.sizes))


def test_a_new_subject_trains_alone_and_leaves_the_rest_bit_identical() -> None:
    model = adapter().train()
    model.add_subject("new.one", 11)
    assert model.config.subjects["new.one"] == 11
    model.freeze_except("new.one")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = ModalityInput(torch.randn(4, 11), torch.arange(4), torch.full((4, 1), 11), subjects=("new.one",) * 4)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    model.train()(x).tokens.square().sum().backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith(f"subjects.{module_key('new.one')}.")}
    assert not model.core.training
    assert model.training
    assert model.adapter_of("new.one").dropout.training
    model.eval()
    assert not model.adapter_of("new.one").dropout.training
    model.train()
    model.unfreeze()
    assert model.core.training
    assert all(p.requires_grad for p in model.parameters())


def test_adding_goes_into_state_and_options() -> None:
    grown = adapter()
    grown.add_subject("x/y z", 5)
    fresh = FmriAdapter(
        parse(FmriAdapter.Config, grown.config.to_dict()), name="fmri", dim=8, num_heads=2
    ).eval()
    fresh.load_state_dict(grown.state_dict())
    x = ModalityInput(torch.randn(2, 5), torch.arange(2), torch.full((2, 1), 5), subjects=("x/y z",) * 2)
    assert torch.equal(fresh(x).tokens, grown(x).tokens)
    with pytest.raises(
        ConfigError, match=r"fmri\.add_subject: 'keys' with 4 voxels; expected a new name \(known: sub"
    ):
        grown.add_subject("keys", 4)
    with pytest.raises(ShapeError, match="subject 'nobody' is unknown"):
        grown.freeze_except("nobody")


def test_names_become_distinct_modules() -> None:
    names = ["a.b", "a%2Eb", "a b", "a/b", "Ä", "", "keys", "of-keys"]
    keys = [module_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert not any("." in key for key in keys)


def test_resolve_fills_subjects_only_where_none_are_named() -> None:
    info = DataInfo(subjects={"s1": 4, "s2": 6})
    assert FmriAdapter.resolve(FmriAdapter.Config(), info).subjects == {"s1": 4, "s2": 6}
    named = FmriAdapter.Config(subjects={"s9": 3})
    assert FmriAdapter.resolve(named, info).subjects == {"s9": 3}


def test_dropout_works_in_training_only() -> None:
    model, x = adapter(), scans(["keys"] * 2)
    assert torch.equal(model(x).tokens, model(x).tokens)
    model.train()
    assert not torch.equal(model(x).tokens, model(x).tokens)


def test_repeats_average_or_sample(generator: torch.Generator) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    scan = Scan(values, "s")
    item = preprocess()(scan, generator=generator)
    assert item.subject == "s"
    np.testing.assert_allclose(item.values.numpy(), values.mean(0))
    make = preprocess(repeats="sample")
    np.testing.assert_allclose(make(scan).values.numpy(), values.mean(0))
    drawn = [make(scan, generator=generator).values.tolist() for _ in range(30)]
    assert {d[0] for d in drawn} == {0.0, 4.0, 8.0}
    assert all(d in values.tolist() for d in drawn)


def test_noise_and_limit(generator: torch.Generator) -> None:
    scan = Scan(torch.zeros(20_000), "s")
    make = preprocess(noise_std=0.5)
    noisy = make(scan, generator=generator).values
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.03)
    assert torch.equal(make(scan, generator=torch.Generator().manual_seed(0)).values, noisy)
    assert torch.equal(make(scan).values, torch.zeros(20_000))
    assert preprocess(clip=2.0)(Scan([-9.0, 1.0, 3.0], "s")).values.tolist() == [-2.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "subject"),
    [("sub-01_run-2.npy", "sub-01"), ("train_subj05.npy", "subj05"), ("subtract.npy", None), ("x.npy", None)],
)
def test_decode_takes_the_subject_from_the_name(name: str, subject: str | None) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.int16).reshape(2, 3))
    scan = preprocess().decode(file.getvalue(), name)
    assert scan.subject == subject
    np.testing.assert_array_equal(scan.values, np.arange(6, dtype=np.float32).reshape(2, 3))


def test_decode_refuses_pickles_and_rubbish() -> None:
    file, archive = io.BytesIO(), io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(archive, a=np.zeros(2))
    for data in (file.getvalue(), archive.getvalue(), b"rubbish", b""):
        with pytest.raises(DataError, match=r"x\.npy: unreadable array .*expected a \.npy file of numbers"):
            preprocess().decode(data, "x.npy")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros(3), r"fmri: ndarray; expected a Scan\(values, subject\)"),
        (Scan(np.zeros(3)), r"a scan without a subject; expected .* Put sub-<name> in the file name"),
        (Scan(np.zeros((2, 2, 2)), "s"), r"s: values \(2, 2, 2\); expected \(voxels\) or \(repeats voxels\)"),
    ],
)
def test_raw_scans_are_checked(raw: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        preprocess()(raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim: 0; expected one or more"),
        ({"dropout": 1.0}, r"dropout: 1\.0; expected a probability"),
        ({"subjects": {"s": 0}}, "subjects: s: 0; expected a name and at least one voxel"),
        ({"preprocess": {"noise_std": -1.0}}, r"noise_std -1\.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter(**options)


def test_fake_input_has_all_subjects(generator: torch.Generator) -> None:
    model = adapter()
    x = FmriAdapter.fake_input(model.config, 5, generator)
    assert x.subjects is not None
    assert set(x.subjects) == set(SUBJECTS)
    model(x).tokens.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    with pytest.raises(ConfigError, match="subjects: none; expected subject -> number of voxels"):
        FmriAdapter.fake_input(FmriAdapter.Config(), 2, generator)
