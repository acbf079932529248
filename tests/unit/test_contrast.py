from __future__ import annotations

import pathlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.batch import Batch, Prediction
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.contrast_loss import PairLayout, infonce_sums, sigmoid_sums
from mmzoo.objectives.contrast import InfoNce, SigLip, Smoothing
from mmzoo.state import LossState

BATCH = Batch(tuple("abcdefghij"))


def leaves(
    generator: torch.Generator, *sizes: int, width: int = 5, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    made = [F.normalize(torch.randn(n, width, generator=generator, dtype=dtype), dim=1) for n in sizes]
    return [x.requires_grad_() for x in made]


def slow_infonce(a: Tensor, b: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    logits, own = scale * a @ b.T, torch.arange(len(a))
    options = {"reduction": "sum", "label_smoothing": smoothing}
    return (F.cross_entropy(logits, own, **options) + F.cross_entropy(logits.T, own, **options)) / 2


def slow_siglip(a: Tensor, b: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -F.logsigmoid(signs * (scale * a @ b.T + offset)).sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_infonce_is_cross_entropy_both_ways(generator, chunk, smoothing, scale):
    a, b, c, d = leaves(generator, 7, 7, 4, 4)
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    layout = PairLayout(((7,), (4,)))
    worth = torch.tensor([0.7, 1.9], dtype=torch.float64)
    sums = infonce_sums(torch.cat([a, c]), torch.cat([b, d]), s, layout, smoothing, chunk)
    expected = torch.stack([slow_infonce(a, b, s, smoothing), slow_infonce(c, d, s, smoothing)])
    torch.testing.assert_close(sums, expected, rtol=1e-11, atol=1e-11)
    found = torch.autograd.grad(sums @ worth, [a, b, c, d, s])
    true = torch.autograd.grad(expected @ worth, [a, b, c, d, s])
    torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-11)


def test_smoothing_may_leave_the_right_column_out(generator):
    """Against fairseq's form: (1 - e - e') NLL + e' sum_j -log p_j, e' = e / (m - 1), unlike pairs."""
    a, b, c, d = leaves(generator, 6, 6, 3, 3, dtype=torch.float32)
    predictions = {
        name: Prediction(x, torch.arange(len(x)), torch.tensor(5.0))
        for name, x in (("a", a), ("b", b), ("c", c), ("d", d))
    }
    options = InfoNce.Config(
        pairs=[("a", "b"), ("c", "d")], label_smoothing=0.1, smooth_over=Smoothing.OTHERS
    )
    found = options.build()(predictions, BATCH, "").total.sum

    def slow(logits: Tensor) -> Tensor:
        negative = -logits.log_softmax(1)
        share = 0.1 / (len(logits) - 1)
        return ((1 - 0.1 - share) * negative.diagonal() + share * negative.sum(1)).sum()

    expected = sum((slow(5 * x @ y.T) + slow(5 * y @ x.T)) / 2 for x, y in ((a, b), (c, d)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, [a, d]), torch.autograd.grad(expected, [a, d]))


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_siglip_is_logsigmoid(generator, chunk):
    a, b, c, d = leaves(generator, 7, 7, 4, 4)
    s = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    o = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([0.7, 1.9], dtype=torch.float64)
    sums = sigmoid_sums(torch.cat([a, c]), torch.cat([b, d]), s, o, PairLayout(((7,), (4,))), chunk)
    expected = torch.stack([slow_siglip(a, b, s, o), slow_siglip(c, d, s, o)])
    torch.testing.assert_close(sums, expected, rtol=1e-11, atol=1e-11)
    inputs = [a, b, c, d, s, o]
    found, true = torch.autograd.grad(sums @ worth, inputs), torch.autograd.grad(expected @ worth, inputs)
    torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-11)


def test_without_gradient_the_same_sums(generator):
    a, b = leaves(generator, 6, 6)
    s, o = (
        torch.tensor(10.0, dtype=torch.float64, requires_grad=True),
        torch.tensor(-1.0, dtype=torch.float64),
    )
    layout = PairLayout(((6,),))
    with torch.no_grad():
        plain = infonce_sums(a, b, s, layout, 0.0, 4), sigmoid_sums(a, b, s, o, layout, 4)
    assert not plain[0].requires_grad
    torch.testing.assert_close(plain[0], infonce_sums(a, b, s, layout, 0.0, 4).detach())
    torch.testing.assert_close(plain[1], sigmoid_sums(a, b, s, o, layout, 4).detach())


def test_extreme_logits_stay_exact_in_float32():
    a = torch.eye(3)[[0, 0, 1]]
    b = torch.stack([-torch.eye(3)[0], torch.eye(3)[0], -torch.eye(3)[1]])
    scale = torch.tensor(100.0)
    found = infonce_sums(a, b, scale, PairLayout(((3,),)), 0.0, 2)[0]
    true = slow_infonce(a.double(), b.double(), scale.double(), 0.0)
    torch.testing.assert_close(found.double(), true, rtol=1e-6, atol=1e-6)


def predictions(
    generator: torch.Generator, scale: Tensor | None, offset: Tensor | None = None
) -> dict[str, Prediction]:
    rows = {
        "image": [0, 1, 3, 4, 8],
        "text": [1, 3, 4, 7, 8, 9],
        "audio": [0, 8],
        "image+text": [0, 1, 3, 4, 7, 8, 9],
    }
    made = dict(zip(rows, leaves(generator, *map(len, rows.values()), dtype=torch.float32), strict=True))
    return {m: Prediction(made[m], torch.tensor(i), scale, offset) for m, i in rows.items()}


def test_rows_of_a_pair_are_the_samples_that_have_both(generator):
    scale = torch.tensor(5.0, requires_grad=True)
    given = predictions(generator, scale)
    state = InfoNce.Config(chunk=2).build()(given, BATCH, "")
    image, text, audio = (given[m].values for m in ("image", "text", "audio"))
    expected = {
        "audio~image": (audio[[0, 1]], image[[0, 4]]),
        "audio~text": (audio[[1]], text[[4]]),
        "image~text": (image[[1, 2, 3, 4]], text[[0, 1, 2, 4]]),
    }
    assert list(state.parts) == list(expected)
    total = torch.zeros(())
    for name, (a, b) in expected.items():
        slow = slow_infonce(a, b, scale, 0.0)
        torch.testing.assert_close(state.parts[name].sum, slow)
        assert state.parts[name].count.item() == len(a)
        total = total + slow
    assert state.total.count.item() == 7
    torch.testing.assert_close(state.mean(), total / 7)
    inputs = [image, text, audio, scale]
    torch.testing.assert_close(
        torch.autograd.grad(state.total.sum, inputs), torch.autograd.grad(total, inputs)
    )


def test_configured_pairs_and_joint_passes(generator):
    scale, offset = torch.tensor(10.0), torch.tensor(-2.0)
    given = predictions(generator, scale, offset)
    config = SigLip.Config(pairs=[("image+text", "audio")])
    objective = config.build()
    assert objective.passes(("image", "text", "audio")) == ("image+text", "audio")
    state = objective(given, BATCH, "")
    slow = slow_siglip(given["image+text"].values[[0, 5]], given["audio"].values, scale, offset)
    assert list(state.parts) == ["image+text~audio"]
    torch.testing.assert_close(state.total.sum, slow)
    state.total.sum.backward()
    assert given["text"].values.grad is not None
    assert not given["text"].values.grad.any()


def test_order_of_rows_does_not_matter(generator):
    given = predictions(generator, torch.tensor(5.0))
    order = torch.tensor([4, 2, 0, 1, 3])
    image = Prediction(given["image"].values[order], given["image"].index[order], given["image"].scale)
    config = InfoNce.Config(pairs=[("image", "text")])
    found = config.build()({**given, "image": image}, BATCH, "")
    torch.testing.assert_close(found.total.sum, config.build()(given, BATCH, "").total.sum)


@pytest.mark.parametrize("kind", [InfoNce, SigLip])
def test_no_pair_in_the_batch_is_a_zero_that_can_be_differentiated(generator, kind):
    values, scale = leaves(generator, 2)[0], torch.tensor(3.0, requires_grad=True)
    given = {"image": Prediction(values.float(), torch.tensor([0, 1]), scale, torch.tensor(0.0))}
    state = kind.Config().build()(given, BATCH, "")
    assert state.mean().item() == 0
    assert state.parts == {}
    state.total.sum.backward()
    assert torch.equal(values.grad, torch.zeros_like(values))
    assert scale.grad.item() == 0
    empty = kind.Config().build()({}, BATCH, "")
    empty.total.sum.backward()
    assert empty.mean().item() == 0


def test_states_of_disjoint_batches_merge(generator):
    given = predictions(generator, torch.tensor(5.0))
    state = InfoNce.Config().build()(given, BATCH, "")
    twice = LossState.zero(state.total.sum).merge(state).merge(state)
    torch.testing.assert_close(twice.mean(), state.mean())
    assert twice.parts["image~text"].count.item() == 8


def test_half_precision_vectors_are_contrasted_in_float32(generator):
    given = {
        m: Prediction(p.values.bfloat16(), p.index, p.scale)
        for m, p in predictions(generator, torch.tensor(9.0)).items()
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = InfoNce.Config(pairs=[("image", "text")]).build()(given, BATCH, "")
    slow = slow_infonce(
        given["image"].values[1:].float(), given["text"].values[[0, 1, 2, 4]].float(), torch.tensor(9.0), 0.0
    )
    torch.testing.assert_close(state.total.sum, slow)


@pytest.mark.parametrize(
    ("case", "loss"),
    [("onepeace_a", "vl:itc_loss"), ("onepeace_a", "al:atc_loss"), ("onepeace_c", "vl:itc_loss")],
)
def test_onepeace_contrast(shared: pathlib.Path, case: str, loss: str):
    """Golden: ONE-PEACE's image-text and audio-text contrast from its own projected vectors."""
    import json

    from safetensors.torch import load_file

    golden = load_file(shared / f"parity/{case}.safetensors")
    stage, name = loss.split(":")
    expected = json.loads((shared / f"parity/{case}.json").read_text())["losses"][stage][name]
    other = {"vl": "image", "al": "audio"}[stage]
    rows, scale = torch.arange(3), golden["logit_scale_exp"][0]
    given = {m: Prediction(golden[f"proj.{m}"], rows, scale) for m in (other, "text")}
    found = InfoNce.Config().build()(given, Batch(("a", "b", "c")), "").mean().item()
    assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("temperature", [0.006, 0.1])
def test_mindeye_contrast(shared: pathlib.Path, temperature: float):
    """Golden: the reference's symmetric contrast at two fixed temperatures."""
    from safetensors.torch import load_file

    golden = load_file(shared / "parity/mindeye2_a.safetensors")
    a, b = (F.normalize(golden[k].flatten(1), dim=1) for k in ("out.clip_proj", "in.clip_target"))
    found = infonce_sums(a, b, torch.tensor(1 / temperature), PairLayout(((12,),)), 0.0, 5)[0] / 12
    torch.testing.assert_close(found, golden[f"loss.nce_t{temperature}"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"pairs": [("image", "image")]}, "pairs: 'image' with itself; expected two different passes"),
        ({"pairs": [("a", "b"), ("b", "a")]}, "pairs: [b, a] twice; expected each pair once"),
        ({"chunk": 0}, "chunk: 0; expected a positive number of rows"),
        ({"label_smoothing": 1.0}, "label_smoothing: 1.0; expected a share in [0, 1)"),
    ],
)
def test_options_out_of_range_are_named(options, line):
    with pytest.raises(ConfigError) as error:
        InfoNce.Config(**options)
    assert str(error.value).startswith(line)


def test_unknown_pass_gets_its_close_match():
    with pytest.raises(
        ConfigError, match=r"pairs: 'imag\+text'; expected modalities .* Did you mean 'image'\?"
    ):
        InfoNce.Config(pairs=[("imag+text", "text")]).build().passes(("image", "text"))


def test_wrong_predictions_are_named(generator):
    with pytest.raises(ConfigError, match="predictions without scale; expected a head that learns a scale"):
        InfoNce.Config().build()(predictions(generator, None), BATCH, "")
    with pytest.raises(ConfigError, match=r"Set head\.offset_init"):
        SigLip.Config().build()(predictions(generator, torch.tensor(1.0)), BATCH, "")
    uneven = {
        "a": Prediction(torch.ones(1, 2), torch.tensor([0])),
        "b": Prediction(torch.ones(1, 3), torch.tensor([0])),
    }
    with pytest.raises(ShapeError, match=r"a \(1, 2\), b \(1, 3\); expected one vector a row"):
        InfoNce.Config().build()(uneven, BATCH, "")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_8192_pairs_need_under_200_mib(loss: str):
    """Forward and backward in a fresh process: the logits alone would take 256 MiB."""
    import subprocess
    import sys

    script = pathlib.Path(__file__).resolve().parents[2] / "benchmarks/contrast.py"
    command = [sys.executable, str(script), "--peak-of", loss, "8192"]
    extra = float(subprocess.check_output(command, text=True).split()[-1])
    assert 16 < extra < 200
