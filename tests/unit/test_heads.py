from __future__ import annotations

import math
import pathlib

import pytest
import torch
import torch.nn.functional as F

from mmzoo.batch import DataInfo, TokenSequence
from mmzoo.errors import ConfigError
from mmzoo.heads.classifier import LinearHead, MlpHead, MultiLabelHead
from mmzoo.heads.contrastive import ContrastiveHead
from mmzoo.heads.pooling import AttentionPool, ClsPool, MeanPool, Pooling

INFO = DataInfo(labels={"animal": ("cat", "dog", "owl"), "place": ("sea", "sky")})


@pytest.fixture
def rows(generator):
    """Three rows: full; shorter; one whose CLS and a token are missing."""
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]]).bool()
    tokens = torch.randn(3, 5, 6, generator=generator)
    return TokenSequence(tokens, valid, torch.arange(3), "image", num_prefix=1)


def test_cls_is_the_first_real_token(rows):
    expected = torch.stack([rows.tokens[0, 0], rows.tokens[1, 0], rows.tokens[2, 1]])
    assert torch.equal(ClsPool()(rows), expected)


def test_mean_is_over_real_tokens_behind_the_prefix(rows):
    x = rows.tokens
    expected = torch.stack([x[0, 1:].mean(0), x[1, 1], x[2, [1, 3]].mean(0)])
    torch.testing.assert_close(MeanPool()(rows), expected)


def test_mean_of_a_row_that_is_all_prefix_is_its_prefix(generator):
    tokens = torch.randn(1, 2, 4, generator=generator)
    only = TokenSequence(tokens, torch.tensor([[True, False]]), torch.arange(1), "image", num_prefix=1)
    assert torch.equal(MeanPool()(only)[0], tokens[0, 0])


def test_attention_pool_is_softmax_without_root_d(rows):
    torch.manual_seed(0)
    pool = AttentionPool(6, 2)
    torch.nn.init.normal_(pool.query)
    found = pool(rows)
    for row, own in enumerate([[1, 2, 3, 4], [1], [1, 3]]):
        x = rows.tokens[row, own]
        heads = []
        for h in range(2):
            part = slice(3 * h, 3 * h + 3)
            key, value = x @ pool.key.weight[part].T, x @ pool.value.weight[part].T + pool.value.bias[part]
            heads.append(F.softmax(key @ pool.query[h], dim=0) @ value)
        expected = pool.norm(pool.out(torch.cat(heads)))
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


def test_attention_pool_heads_must_divide_the_width():
    config = LinearHead.Config(num_classes=2, pooling=Pooling.ATTENTION)
    with pytest.raises(ConfigError, match=r"head\.pool_heads: 4; expected a divisor of the trunk's width 6"):
        config.build(dim=6, passes=("image",))


def test_contrastive_values_are_unit_and_projected_by_pass(rows):
    head = ContrastiveHead.Config(embed_dim=4).build(dim=6, passes=("image", "image+text"))
    for name in head.passes:
        own = head.projections[name]
        for row, token in enumerate([0, 0, 1]):
            z = own.weight @ rows.tokens[row, token] + own.bias
            torch.testing.assert_close(head(rows, name).values[row], z / z.norm())
    assert not torch.allclose(head(rows, "image").values, head(rows, "image+text").values)


def test_scale_starts_at_the_inverse_temperature_and_is_clamped(rows):
    head = ContrastiveHead.Config().build(dim=6, passes=("image",))
    found = head(rows, "image")
    assert found.scale.item() == pytest.approx(1 / 0.07)
    assert found.offset is None
    for start, bound in ((9.0, 100.0), (-2.0, 1.0)):
        with torch.no_grad():
            head.log_scale.fill_(start)
        assert head.eval()(rows, "image").scale.item() == pytest.approx(bound, rel=1e-6)
        assert head.log_scale.item() == start
        scale = head.train()(rows, "image").scale
        assert head.log_scale.item() == pytest.approx(math.log(bound))
        (grad,) = torch.autograd.grad(scale, head.log_scale)
        assert grad.item() == pytest.approx(bound, rel=1e-5)


def test_offset_for_siglip(rows):
    head = ContrastiveHead.Config(scale_init=10.0, offset_init=-10.0).build(dim=6, passes=("image",))
    found = head(rows, "image")
    assert found.offset is head.offset
    assert (found.scale.item(), found.offset.item()) == (pytest.approx(10.0), -10.0)


@pytest.mark.parametrize("case", ["onepeace_a", "onepeace_c"])
def test_onepeace_projections(shared: pathlib.Path, case: str):
    """Golden: ONE-PEACE's projected vectors from its own trunk outputs and weights."""
    from safetensors.torch import load_file

    golden = load_file(shared / f"parity/{case}.safetensors")
    dim = golden["proj.text"].shape[1]
    head = ContrastiveHead.Config().build(dim=dim, passes=("text", "image", "audio")).eval()
    state = {
        f"projections.{m}.{w}": golden[f"sd.{m}_proj.{w}"] for m in head.passes for w in ("weight", "bias")
    }
    head.load_state_dict({**state, "log_scale": golden["sd.logit_scale"]})
    for name in head.passes:
        tokens = golden[f"out.{name}.{name}"]
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool)
        found = head(TokenSequence(tokens, valid, torch.arange(3), name, num_prefix=1), name)
        torch.testing.assert_close(found.values, golden[f"proj.{name}"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.scale, golden["logit_scale_exp"][0])


def test_mlp_is_linear_norm_gelu_linear(rows):
    head = MlpHead.Config(num_classes=3, ratio=1.5).build(dim=6, passes=("image",))
    first, norm, _, _, last = head.layers
    hidden = first(MeanPool()(rows))
    assert hidden.shape[1] == 9
    centred = hidden - hidden.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    gelu = scaled * 0.5 * (1 + torch.erf(scaled / math.sqrt(2)))
    torch.testing.assert_close(head(rows, "image").values, gelu @ last.weight.T + last.bias)


def test_multilabel_starts_at_its_prior(rows):
    head = MultiLabelHead.Config(num_classes=3, prior_prob=0.01).build(dim=6, passes=("image",))
    torch.nn.init.zeros_(head.layers[-1].weight)
    torch.testing.assert_close(head(rows, "image").values.sigmoid(), torch.full((3, 3), 0.01))


def test_classes_come_from_the_data():
    for kind in (LinearHead, MlpHead, MultiLabelHead):
        config = kind.Config()
        assert kind.resolve(config, INFO, "animal").num_classes == 3
        assert config.num_classes == 0
        assert kind.resolve(kind.Config(num_classes=2), INFO, "place").num_classes == 2
        assert kind.resolve(kind.Config(num_classes=9), DataInfo(), "").num_classes == 9
    assert ContrastiveHead.resolve(ContrastiveHead.Config(), INFO, "") == ContrastiveHead.Config()


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (
            lambda: LinearHead.Config().build(dim=4, passes=("image",)),
            "head.num_classes: 0; expected a number of classes",
        ),
        (
            lambda: LinearHead.resolve(LinearHead.Config(), INFO, "anmal"),
            "head: no labels of target 'anmal'; expected a label",
        ),
        (
            lambda: LinearHead.resolve(LinearHead.Config(), INFO, ""),
            "head: no labels of target ''; expected a label",
        ),
        (
            lambda: LinearHead.resolve(LinearHead.Config(num_classes=4), INFO, "animal"),
            "head.num_classes: 4, but target 'animal' has 3; expected the same number",
        ),
        (lambda: LinearHead.Config(num_classes=-1), "num_classes: -1; expected 0 or more"),
        (lambda: LinearHead.Config(dropout_prob=1.0), "dropout_prob: 1.0; expected a probability"),
        (lambda: MlpHead.Config(ratio=0.0), "ratio: 0.0; expected a positive number"),
        (lambda: MultiLabelHead.Config(prior_prob=0.0), "prior_prob: 0.0; expected a probability"),
        (
            lambda: ContrastiveHead.Config(scale_init=200.0),
            "scale_init: 200 with scale_max 100; expected 1 <= scale_init",
        ),
        (lambda: ContrastiveHead.Config(embed_dim=-1), "embed_dim: -1; expected 0 or a positive width"),
    ],
)
def test_errors_are_one_clear_line(act, line):
    with pytest.raises(ConfigError) as error:
        act()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_unknown_pass_is_named(rows):
    with pytest.raises(ConfigError, match="head: pass 'text'; expected one of image"):
        ContrastiveHead.Config().build(dim=6, passes=("image",))(rows, "text")
