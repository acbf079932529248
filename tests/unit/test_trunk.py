"""The trunk as a whole: packed passes against separate ones, options, and what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.attention import Backend
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.trunk import Trunk

DIM, HEADS = 16, 2
NAMES = ("image", "text", "audio")


def trunk(seed: int = 0, **options: Any) -> Trunk:
    """Build a small trunk whose every parameter is random, so that nothing hides behind a zero."""
    config = schema.parse(Trunk.Config, {"dim": DIM, "depth": 2, "num_heads": HEADS, **options})
    made = Trunk(config, modalities=NAMES)
    generator = torch.Generator().manual_seed(seed)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    return made


def sequence(
    modality: str, lengths: list[int], index: list[int] | None = None, *, bias: int = 0, n: int = 0
) -> TokenSequence:
    """Build right-padded tokens with garbage in the padding; bias: how many layers have their own."""
    n = max(n, *lengths)
    generator = torch.Generator().manual_seed(len(modality) + sum(lengths))
    tokens = torch.randn(len(lengths), n, DIM, generator=generator)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    biases = tuple(torch.randn(1, HEADS, n, n, generator=generator) for _ in range(bias))
    return TokenSequence(tokens, valid, torch.tensor(index or range(len(lengths))), modality, biases=biases)


def real(s: TokenSequence) -> Tensor:
    return s.tokens[s.valid]


@pytest.mark.parametrize("bias", [0, 1, 2])
def test_passes_in_one_buffer_equal_passes_alone(bias: int):
    model = trunk()
    image, text, audio = (
        sequence("image", [4, 4], bias=bias),
        sequence("text", [3, 5, 1], bias=bias),
        sequence("audio", [6]),
    )
    groups = [[image], [text], [audio], [text, image], [image, text, audio]]
    together = model(groups).groups
    for group, found in zip(groups, together, strict=True):
        alone = model([group]).groups[0]
        for a, b in zip(alone, found, strict=True):
            torch.testing.assert_close(a.tokens, b.tokens, atol=1e-5, rtol=1e-5)


def test_samples_do_not_see_each_other():
    model = trunk()
    text = sequence("text", [3, 5, 2], bias=1)
    whole = model([[text]]).groups[0][0]
    for row in range(3):
        one = TokenSequence(
            text.tokens[row : row + 1],
            text.valid[row : row + 1],
            torch.tensor([0]),
            "text",
            biases=text.biases,
        )
        torch.testing.assert_close(
            real(model([[one]]).groups[0][0]), whole.tokens[row][text.valid[row]], atol=1e-5, rtol=1e-5
        )


def test_padding_changes_nothing():
    model = trunk()
    short = sequence("text", [3, 5])
    wide = TokenSequence(
        torch.full((2, 9, DIM), 1e4), torch.zeros(2, 9, dtype=torch.bool), short.index, "text"
    )
    wide.tokens[:, :5], wide.valid[:, :5] = short.tokens, short.valid
    torch.testing.assert_close(
        real(model([[wide]]).groups[0][0]), real(model([[short]]).groups[0][0]), atol=0, rtol=0
    )


def slow_block(block: Any, x: Tensor, modality: list[str], bias: Tensor) -> Tensor:
    """ONE-PEACE section 2, token by token and head by head."""
    mixer, norm = block.mixer, torch.nn.functional.layer_norm
    h = norm(x, (DIM,), block.norm1.weight, block.norm1.bias)
    wq, wk, wv = mixer.qkv.weight.split(DIM)
    q, k, v = h @ wq.T + mixer.q_bias, h @ wk.T, h @ wv.T + mixer.v_bias
    heads = []
    for i in range(HEADS):
        own = slice(i * DIM // HEADS, (i + 1) * DIM // HEADS)
        logits = q[:, own] @ k[:, own].T / (DIM // HEADS) ** 0.5 + bias[i]
        heads.append(logits.softmax(-1) @ v[:, own])
    y = norm(torch.cat(heads, -1), (DIM,), mixer.norm.weight, mixer.norm.bias)
    x = x + block.gamma_1 * (y @ mixer.out.weight.T + mixer.out.bias)
    h = norm(x, (DIM,), block.norm2.weight, block.norm2.bias)
    rows = []
    for token, name in zip(h, modality, strict=True):
        ffn = block.ffn.networks[name]
        gate, up = (ffn.w_in.weight @ token).chunk(2)
        z = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * up
        z = norm(z, z.shape, ffn.norm.weight, ffn.norm.bias)
        rows.append(ffn.w_out.weight @ z + ffn.w_out.bias)
    return x + block.gamma_2 * torch.stack(rows)


def test_joint_pass_equals_the_formulas_of_the_specification():
    model = trunk()
    text, image = sequence("text", [3], bias=1), sequence("image", [4], bias=1)
    x = torch.cat([text.tokens[0], image.tokens[0]])
    names = ["text"] * 3 + ["image"] * 4
    bias = torch.stack([torch.block_diag(text.biases[0][0, h], image.biases[0][0, h]) for h in range(HEADS)])
    for block in model.blocks:
        x = slow_block(block, x, names, bias)
    norms = model.norm.norms
    wanted = [
        torch.nn.functional.layer_norm(t, (DIM,), norms[n].weight, norms[n].bias)
        for t, n in zip(x, names, strict=True)
    ]
    found = model([[text, image]]).groups[0]
    torch.testing.assert_close(torch.cat([real(s) for s in found]), torch.stack(wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["segments", "bmm", "dense"])
def test_backends_give_the_same_gradients(backend: str):
    def run(name: str) -> list[Tensor]:
        model = trunk(mixer={"type": "attention", "backend": name})
        text, image = sequence("text", [3, 5], bias=1), sequence("image", [4, 4], bias=1)
        text.biases[0].requires_grad_()
        out = model([[text], [text, image]]).groups
        loss = sum(((g + 1) * s.tokens.sin()).sum() for g, group in enumerate(out) for s in group)
        learned = [p for n, p in model.named_parameters() if "audio" not in n]
        return list(torch.autograd.grad(loss, [*learned, text.biases[0]]))

    for a, b in zip(run(backend), run("dense"), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def test_causal_tokens_do_not_see_later_ones():
    model = trunk()
    text = sequence("text", [5])
    before = model([[text]], is_causal=True).groups[0][0].tokens
    text.tokens[0, 3, 0] += 1
    after = model([[text]], is_causal=True).groups[0][0].tokens
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.isclose(before[0, 3:], after[0, 3:]).all(-1).any()


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    model = trunk(depth=1, drop_path_prob=0.0, final_norm="none")
    block = model.blocks[0]
    block.drop_path_prob = 0.5
    text = sequence("text", [3] * 400)
    text = TokenSequence(text.tokens[:1].expand(400, -1, -1).contiguous(), text.valid, text.index, "text")
    model.eval()
    base = model([[text]]).groups[0][0].tokens[0]
    model.train()
    torch.manual_seed(0)
    out = model([[text]]).groups[0][0].tokens.detach()
    kinds = torch.unique(out.flatten(1).round(decimals=4), dim=0)
    assert len(kinds) == 4  # each branch there or not, for all tokens of a sample together
    skipped = (out == text.tokens).all(-1).all(-1).float().mean()
    assert 0.18 < skipped < 0.32
    assert not torch.isclose(base, out[0]).all()


@pytest.mark.parametrize("mode", ["block", "ffn"])
def test_checkpointing_changes_no_gradient(mode: str):
    def run(mode: str) -> list[Tensor]:
        model = trunk(drop_path_prob=0.3)
        model.set_checkpointing(mode)
        torch.manual_seed(1)
        text = sequence("text", [3, 5], bias=1)
        text.biases[0].requires_grad_()
        out = model([[text]], is_causal=True).groups[0][0].tokens
        learned = [p for n, p in model.named_parameters() if "image" not in n and "audio" not in n]
        return list(torch.autograd.grad(out.sin().sum(), [*learned, text.biases[0]]))

    for a, b in zip(run(mode), run("none"), strict=True):
        assert torch.equal(a, b)


def test_unknown_checkpointing_is_refused():
    with pytest.raises(ConfigError, match="'blok'; expected one of none, block, ffn"):
        trunk().set_checkpointing("blok")


def test_flops_are_the_closed_formula():
    lengths = [5, 7, 7]
    t, squares = sum(lengths), sum(n * n for n in lengths)
    gated = trunk(depth=3)
    assert gated.flops(lengths) == 3 * (32 * DIM**2 * t + 4 * DIM * squares)
    plain = trunk(depth=3, ffn={"type": "shared", "activation": "gelu", "sub_norm": False})
    assert plain.flops(lengths) == 3 * (24 * DIM**2 * t + 4 * DIM * squares)


def test_released_size_has_the_published_number_of_parameters():
    """onepeace.md section 0: one layer of the 4B model has 94,430,208 parameters, the final norms 9,216."""
    config = Trunk.Config(dim=1536, depth=1, num_heads=24)
    with torch.device("meta"):
        model = Trunk(config, modalities=NAMES)
    assert model.num_params() == 94_430_208 + 9_216


def test_initial_weights_are_truncated_at_one_sigma():
    torch.manual_seed(0)
    model = Trunk(Trunk.Config(dim=64, depth=1, num_heads=2, layer_scale_init=1e-6), modalities=("text",))
    weight = model.blocks[0].mixer.qkv.weight.detach()
    assert float(weight.abs().max()) <= 0.02
    assert float(weight.std()) == pytest.approx(0.0108, rel=0.02)
    assert (model.blocks[0].gamma_1 == 1e-6).all()
    assert (model.blocks[0].mixer.out.bias == 0).all()


def test_bfloat16_autocast_is_near_float32():
    model = trunk()
    groups = [[sequence("text", [3, 5], bias=1)], [sequence("image", [4])]]
    exact = real(model(groups).groups[0][0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = real(model(groups).groups[0][0])
        half = [[TokenSequence(s.tokens.bfloat16(), s.valid, s.index, s.modality) for s in g] for g in groups]
        assert model(half).groups[0][0].tokens.dtype == torch.float32
    assert (rough.float() - exact).norm() / exact.norm() < 3e-2


def test_stats_of_the_context_come_back():
    ctx = MixerContext(stats={"seen": 1})
    assert trunk()([[sequence("text", [2])]], ctx).stats is ctx.stats


def test_no_real_token_at_all():
    text = TokenSequence(
        torch.ones(1, 2, DIM), torch.zeros(1, 2, dtype=torch.bool), torch.tensor([0]), "text"
    )
    assert (trunk()([[text]]).groups[0][0].tokens == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "trunk.num_heads: 3 heads for dim 16; expected a divisor of dim"),
        ({"drop_path_prob": 1.0}, "trunk.drop_path_prob: 1.0; expected 0 <= p < 1"),
        ({"depth": -1}, "trunk.depth: -1; expected 0 or more"),
        (
            {"ffn": {"type": "modality", "hidden_dim": 0}},
            "trunk.ffn.hidden_dim: 0; expected a positive width",
        ),
    ],
)
def test_config_errors(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        trunk(**options)


def test_biases_must_fit_the_trunk():
    with pytest.raises(ShapeError, match="trunk: 3 biases; expected none, one, or 2"):
        trunk()([[sequence("text", [2], bias=3)]])
    bad = sequence("text", [2])
    bad = TokenSequence(bad.tokens, bad.valid, bad.index, "text", biases=(torch.zeros(1, 4, 2, 2),))
    with pytest.raises(ShapeError, match="a bias for 4 heads; expected 2"):
        trunk()([[bad]])


def test_width_must_fit():
    narrow = TokenSequence(
        torch.zeros(1, 1, 8), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), "text"
    )
    with pytest.raises(ShapeError, match="tokens of width 8; expected 16"):
        trunk()([[narrow]])


def test_what_a_mixer_cannot_honour_is_refused():
    model = copy.deepcopy(trunk())
    mixer = type(model.blocks[0].mixer)

    class Plain(mixer):
        supports_causal = False
        supports_bias = False

    model.blocks[0].mixer.__class__ = Plain
    with pytest.raises(
        ConfigError, match=r"trunk.mixer \(Plain\): a causal mask; expected a mixer with supports_causal"
    ):
        model([[sequence("text", [2])]], is_causal=True)
    with pytest.raises(ConfigError, match="an additive bias; expected a mixer with supports_bias"):
        model([[sequence("text", [2], bias=1)]])


def test_backend_is_an_option_of_the_mixer():
    model = trunk(mixer={"backend": "dense"})
    assert all(block.mixer.backend is Backend.DENSE for block in model.blocks)


COMPILED = """
import copy, sys, torch
from mmzoo.batch import TokenSequence
from mmzoo.trunk.trunk import Trunk

def sequence(name, lengths):
    n = max(lengths)
    bias = torch.randn(1, 2, n, n).requires_grad_()
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(len(lengths), n, 16)
    return TokenSequence(tokens, valid, torch.arange(len(lengths)), name, biases=(bias,))

torch.manual_seed(0)
options = Trunk.Config(dim=16, depth=1, num_heads=2, drop_path_prob=0.3, layer_scale_init=1.0)
eager = Trunk(options, modalities=("image", "text"))
compiled = copy.deepcopy(eager)
compiled.compile_blocks(sys.argv[1])
batches = [
    [[sequence("image", [4, 4])], [sequence("text", [3, 5, 2])]],
    [[sequence("image", [6, 6, 6])], [sequence("text", [2, 7])]],
    [[sequence("text", [4, 1, 1, 6])], [sequence("text", [5, 3]), sequence("image", [4, 4])]],
]
for groups in batches:
    results = []
    for model in (eager, compiled):
        torch.manual_seed(1)
        out = model(groups).groups
        loss = sum(((g + 1) * s.tokens.sin()).sum() for g, group in enumerate(out) for s in group)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
assert 0 < graphs < 16, graphs
print("graphs", graphs)
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_compute_the_same(backend: str):
    """In a process of its own: the run-time shape checks of the tests cannot be compiled."""
    command = [sys.executable, "-c", COMPILED, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("graphs")


def test_a_tap_is_what_a_shorter_trunk_without_norm_gives():
    whole = trunk(depth=3).eval()
    text, image = sequence("text", [3, 5]), sequence("image", [4, 4])
    groups = [[text], [image], [text, image]]
    found = whole(groups, taps=(0, 2))
    assert list(found.taps) == [0, 2]
    short = trunk(depth=2, final_norm="none").eval()
    short.load_state_dict({k: v for k, v in whole.state_dict().items() if k in short.state_dict()})
    for tapped, wanted in zip(found.taps[2], short(groups).groups, strict=True):
        for a, b in zip(tapped, wanted, strict=True):
            torch.testing.assert_close(a.tokens, b.tokens)
            assert a.modality == b.modality
    untouched = found.taps[0][0][0].tokens
    assert torch.equal(untouched, text.tokens.masked_fill(~text.valid[..., None], 0.0))
    assert torch.equal(found.groups[2][1].tokens, whole(groups).groups[2][1].tokens)


def test_a_tap_beyond_the_depth_is_refused():
    with pytest.raises(ConfigError, match="a tap after 3 blocks; expected 0 to 2"):
        trunk()([[sequence("text", [3])]], taps=(1, 3))
