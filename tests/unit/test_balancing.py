"""Balancing in training: same numbers by default, exact resume, several processes, figures."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from mmzoo import recipe, registry, schema
from mmzoo.errors import ConfigError
from mmzoo.learners.balance.balancing import Balancing, Place
from mmzoo.learners.callbacks import run_callbacks
from mmzoo.learners.history import read_history
from mmzoo.learners.keeper import Interrupted
from mmzoo.learners.meter import Meter
from mmzoo.learners.multitask import MultitaskLearner
from mmzoo.learners.optim import lr_factor
from mmzoo.learners.tasks import Task, TaskConfig
from mmzoo.recipe import Built
from mmzoo.state import LossState, Sum
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.trunk import Trunk
from tests.unit.test_learner import Press, Recorder, close, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]
ROWS = sorted(registry.table("balancers"))
FAST = ("mgda", "gradnorm", "stch")
"""Methods trained in the short run of the tests; the others are slow ones."""
TWO = [
    "+tasks.who={target: action, head: linear, objective: cross_entropy, passes: [image]}",
    "+tasks.where={target: setting, head: linear, objective: cross_entropy, passes: [image, fmri]}",
    "++tasks.where.weight=0.5",
]


@pytest.fixture
def three(small: list[str]) -> list[str]:
    """Three tasks on two modalities, two steps."""
    less = ["~model.modalities.audio", "~model.modalities.skeleton", "trainer.max_steps=2"]
    return [*small, *less, *TWO, "trainer.val_every_steps=50", "model.trunk.drop_path_prob=0.3"]


def figures(built: Built, prefix: str) -> dict[str, float]:
    return {k: float(v) for k, v in built.learner.last_losses.items() if k.startswith(prefix)}


def test_the_default_is_the_weighted_sum_bit_for_bit(three: list[str]):
    """What the learner did before it could balance, written out by hand, gives the same gradients."""
    built, recorder = fit([*three, "trainer.max_steps=1", "trainer.grad_clip=0"])
    again = recipe.build(recipe.load("five_senses", [*three, "trainer.max_steps=1"]))
    batch = next(iter(again.datamodule.loader("train")))
    again.model.train()
    torch.manual_seed(0)
    output = again.model(batch, list(again.learner.tasks), MixerContext(training=True))
    total = torch.zeros(())
    for task in again.learner.tasks.values():
        total = total + task.config.weight * task.loss(output, batch).mean()
    total.backward()
    assert float(total.detach()) == recorder.losses[0]
    expected = {n: p.grad for n, p in again.model.named_parameters() if p.grad is not None}
    assert expected.keys() == recorder.grads[0].keys()
    assert all(torch.equal(g, recorder.grads[0][n]) for n, g in expected.items())
    assert not built.learner.balancer.state_dict()


@pytest.mark.parametrize("kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in ROWS])
def test_every_method_trains(three: list[str], kind: str):
    built, recorder = fit([*three, f"learner.balance={kind}"])
    assert len(recorder.losses) == 2
    assert all(bool(p.isfinite().all()) for p in built.model.parameters())
    assert registry.name_of("balancers", type(built.learner.balancer)) == kind
    found = figures(built, "train/balance/")
    assert set(found) == (
        set() if kind == "static" else {f"train/balance/{t}" for t in ("align", "who", "where")}
    )


def test_equal_gradient_weights_are_the_static_sum(three: list[str]):
    """PCGrad with nothing in conflict is the plain sum: the path by task gradients changes no number."""
    still = [*three, "learner.optim.lr=1e-30", "trainer.grad_clip=0"]
    _, plain = fit(still)
    built, found = fit([*still, "learner.balance=pcgrad", "learner.cosine_every=1"])
    if min(figures(built, "train/cosine/").values()) > 0:
        close(found.grads[-1], plain.grads[-1], 1e-4)
    private = {n: g for n, g in found.grads[-1].items() if not n.startswith("trunk.")}
    close(private, {n: plain.grads[-1][n] for n in private}, 1e-4)
    assert found.losses == pytest.approx(plain.losses, rel=1e-6)


def test_a_balancers_own_numbers_are_not_clipped_with_the_model(three: list[str]):
    """Losses times a thousand: the gradient of IMTL's scales is a thousand times the limit of 1."""
    heavy = [f"++tasks.{task}.weight=1000.0" for task in ("align", "who", "where")]
    once = [
        *three,
        *heavy,
        "trainer.max_steps=1",
        "learner.balance.type=imtl",
        "learner.balance.losses=hybrid",
    ]
    built, _ = fit(once)
    grads = [p.grad.double().flatten() for p in built.model.parameters() if p.grad is not None]
    assert float(torch.cat(grads).norm()) == pytest.approx(1.0, rel=1e-4)
    (scale,) = built.learner.balancer.parameters()
    assert scale.grad is not None
    assert float(scale.grad.norm()) > 1000


COMPILED = """
import sys, torch
from mmzoo import recipe
built = recipe.build(recipe.load("five_senses", sys.argv[2:] + ["trainer.compile=true"]))
built.trainer.fit(built.learner, datamodule=built.datamodule)
torch.save(built.model.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [["learner.balance=mgda"], ["learner.cosine_every=1"]])
def test_compiled_blocks_are_balanced_the_same(three: list[str], tmp_path: pathlib.Path, options: list[str]):
    """In a process of its own: compilers do not see through the run-time checks of shapes."""
    calm = [*three, *options, "learner.optim.eps=1e-3", "model.trunk.drop_path_prob=0"]
    built, _ = fit(calm)
    words = [sys.executable, "-c", COMPILED, str(tmp_path / "x.pt"), *calm]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close(torch.load(tmp_path / "x.pt"), dict(built.model.state_dict()), 1e-4)


@pytest.mark.parametrize(
    ("options", "several"),
    [([], False), (["learner.balance=famo"], False), (["learner.balance=pcgrad"], True)],
)
def test_compiled_blocks_keep_what_a_backward_pass_a_task_needs(
    three: list[str], options: list[str], *, several: bool, monkeypatch: pytest.MonkeyPatch
):
    from torch._functorch import config as functorch

    monkeypatch.setattr(Trunk, "compile_blocks", lambda self: None)
    with functorch.patch(donated_buffer=True):
        recipe.build(recipe.load("five_senses", [*three, *options, "trainer.compile=true"]))
        assert functorch.donated_buffer != several


def test_accumulation_and_checkpointing_change_no_number(three: list[str]):
    still = [*three, "learner.optim.lr=1e-30", "trainer.grad_clip=0", "learner.balance=mgda"]
    _, single = fit([*still, "trainer.max_steps=2"])
    _, double = fit([*still, "trainer.max_steps=1", "trainer.accumulate=2"])
    a, b = single.grads
    mean = {n: sum((g[n] for g in (a, b) if n in g), torch.zeros(())) / 2 for n in double.grads[0]}
    close(double.grads[0], mean, 1e-5)
    _, recomputed = fit([*still, "trainer.checkpointing=block"])
    for x, y in zip(recomputed.grads, single.grads, strict=True):
        close(x, y, 1e-4)


@pytest.mark.parametrize("kind", ["rlw", "pcgrad"])
def test_a_rank_without_any_part_can_run_its_backward_pass(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Other ranks have samples of both passes, this one of neither."""
    everywhere = "mmzoo.learners.balance.balancing.present"
    monkeypatch.setattr(everywhere, lambda losses: tuple(range(len(losses))))
    options = schema.parse(MultitaskLearner.Config, {"balance": kind, "balance_over": "parts"})
    task = Task("where", schema.parse(TaskConfig, {"objective": "cross_entropy", "target": "setting"}))
    balancing = Balancing(options, {"where": task}, {"where": ("image", "fmri")})
    model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 1)})
    state = LossState(Sum(model["trunk"](torch.zeros(2)).sum() * 0.0, torch.zeros(())))
    total, _ = balancing.total({"where": state}, [], lambda part: part.mean(), model, Place(0, 0, 0))
    total.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_parts_are_balanced_where_asked(three: list[str]):
    parts = [*three, "learner.balance_over=parts", "learner.balance=uncertainty"]
    built, _ = fit(parts)
    names = {"align/fmri~image", "align/fmri~text", "align/image~text", "where/image", "where/fmri", "who"}
    assert {k.removeprefix("train/balance/") for k in figures(built, "train/balance/")} == names
    assert set(built.learner.balancer.names) == names


def test_a_line_holds_figures_of_its_own_step_and_the_true_rate(three: list[str], tmp_path: pathlib.Path):
    """Seldom compared cosines stand in lines of their own; a second look back at a batch is not counted."""
    words = ["learner.balance=famo", "learner.cosine_every=3", "trainer.max_steps=4"]
    optim = ["learner.optim.name=lion", "learner.optim.lr_scales={heads: 0.0, modalities: 0.25}"]
    config = recipe.load("five_senses", [*three, *words, *optim, "learner.optim.lr=0.01"])
    watch = run_callbacks(config.trainer, tmp_path / "metrics.jsonl", tmp_path / "checkpoints")
    meter = next(c for c in watch if isinstance(c, Meter))
    built = recipe.build(config, callbacks=watch)
    seen: list[int] = []
    built.model.watch_tokens(lambda tokens: seen.append(tokens) if built.model.training else None)
    counted: list[int] = []
    read = meter.read
    meter.read = lambda world_size=1: (counted.append(meter.tokens), read(world_size))[1]
    built.trainer.fit(built.learner, datamodule=built.datamodule)
    lines = [line for line in read_history(tmp_path / "metrics.jsonl") if "lr" in line]
    assert [line["step"] for line in lines] == [1, 3, 4]
    assert [any(k.startswith("train/cosine/") for k in line) for line in lines] == [True, True, False]
    assert [line["lr"] for line in lines] == pytest.approx(
        [0.01 * lr_factor(line["step"] - 1, 4, config.learner.optim) for line in lines]
    )
    assert len(seen) == 8  # each batch forward, and once more looking back
    assert counted == [seen[0], seen[2] + seen[4], seen[6]]


@pytest.mark.parametrize("kind", ["static", "cagrad", "dwa"])
def test_cosines_are_logged_every_few_steps(three: list[str], kind: str):
    built, _ = fit([*three, f"learner.balance={kind}", "learner.cosine_every=1"])
    found = figures(built, "train/cosine/")
    assert set(found) == {
        f"train/cosine/{a}|{b}" for a, b in (("align", "who"), ("align", "where"), ("who", "where"))
    }
    assert all(-1 <= v <= 1 for v in found.values())
    none, _ = fit([*three, f"learner.balance={kind}"])
    assert figures(none, "train/cosine/") == {}
    # training itself is the same, watched or not
    close(dict(built.model.state_dict()), dict(none.model.state_dict()), 1e-5)


def test_cosines_are_those_of_separate_backward_passes(three: list[str]):
    built, _ = fit([*three, "learner.cosine_every=1", "trainer.max_steps=1", "learner.optim.lr=1e-30"])
    found = figures(built, "train/cosine/")
    again = recipe.build(recipe.load("five_senses", three))
    batch = next(iter(again.datamodule.loader("train")))
    again.model.train()
    rows: dict[str, Tensor] = {}
    for name, task in again.learner.tasks.items():
        again.model.zero_grad()
        torch.manual_seed(0)
        output = again.model(batch, list(again.learner.tasks), MixerContext(training=True))
        task.loss(output, batch).mean().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in again.model.trunk.parameters()]
        rows[name] = torch.cat([g.flatten().clone() for g in grads])
    for key, value in found.items():
        a, b = key.removeprefix("train/cosine/").split("|")
        assert value == pytest.approx(float(torch.cosine_similarity(rows[a], rows[b], dim=0)), abs=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        "famo",
        "db_mtl",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("uncertainty", "gradnorm", "pcgrad")),
    ],
)
def test_an_interrupted_run_repeats_the_uninterrupted_one(
    three: list[str], tmp_path: pathlib.Path, kind: str
):
    options = [*three, "trainer.max_steps=5", "trainer.val_every_steps=5", f"learner.balance={kind}"]
    config = recipe.load("five_senses", options).trainer

    def keep(name: str) -> list[pl.Callback]:
        return run_callbacks(config, tmp_path / name / "metrics.jsonl", tmp_path / name / "checkpoints")

    whole, first = fit(options, *keep("whole"))
    with pytest.raises(Interrupted):
        fit(options, *keep("parts"), Press(3))
    again, rest = fit(options, *keep("parts"), resume=tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert rest.losses == first.losses[3:]
    for name, tensor in whole.learner.state_dict().items():
        assert torch.equal(again.learner.state_dict()[name], tensor), name


def test_shared_parameters_must_exist(three: list[str]):
    with pytest.raises(ConfigError, match=r"learner\.shared: no parameter under 'trunkk'; expected some"):
        fit([*three, "learner.balance=mgda", "learner.shared=[trunkk]"])
    with pytest.raises(ConfigError, match="cosine_every"):
        recipe.load("five_senses", [*three, "learner.cosine_every=-1"])


def test_a_batch_without_any_task_is_no_error(three: list[str]):
    for kind in ("gls", "imtl"):
        built = recipe.build(recipe.load("five_senses", [*three, f"learner.balance={kind}"]))
        loader = built.datamodule.loader("train")
        batches = [batch.select([]) for batch in list(loader)[:2]]
        recorder = Recorder()
        built.trainer.callbacks.append(recorder)
        given = torch.utils.data.DataLoader(batches, batch_size=None)
        built.trainer.fit(built.learner, given, built.datamodule.loader("val"))
        assert recorder.losses == [0.0, 0.0]


def test_the_short_spelling_names_the_method(three: list[str]):
    for given in ("balance=Nash-MTL", "learner.balance=nash_mtl", "balance.type=nash_mtl"):
        config = recipe.load("five_senses", [*three, given])
        assert registry.name_of("balancers", config.learner.balance.owner) == "nash_mtl"
    config = recipe.load("five_senses", [*three, "balance=cagrad", "balance.c=0.3"])
    assert config.learner.balance.c == 0.3
    with pytest.raises(ConfigError, match=r"'pcgrat' is unknown.*pcgrad"):
        recipe.load("five_senses", [*three, "balance=pcgrat"])


def command(options: list[str], folder: pathlib.Path) -> dict[str, Tensor]:
    """Train by the command line, in processes of its own; return the last checkpoint's state."""
    still = [f"model.modalities.fmri.{name}=0" for name in ("dropout", "subject_dropout")]
    words = [f"runs_root={folder}", "learner.optim.eps=1e-3", *still, *options]
    done = subprocess.run(
        [sys.executable, "-m", "mmzoo", "train", "five_senses", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "five_senses").iterdir()
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("train/balance/who" in line for line in lines)
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uncertainty", "famo", "cagrad", "db_mtl"])
def test_two_processes_balance_as_one(three: list[str], tmp_path: pathlib.Path, kind: str):
    steps = [*three, "trainer.max_steps=3", "trainer.val_every_steps=3", f"learner.balance={kind}"]
    steps.remove("model.trunk.drop_path_prob=0.3")
    one = command([*steps, "data.loader.batch_size=16"], tmp_path / "one")
    two = command([*steps, "trainer.devices=2", "trainer.strategy=ddp"], tmp_path / "two")
    close(two, one, 2e-4)


def test_gradients_are_not_compared_in_pieces_or_unscaled():
    task = Task("a", TaskConfig(objective=schema.parse(registry.find("objectives", "infonce").Config, {})))

    class FSDPStrategy: ...

    def check(balance: str, strategy: object, precision: str) -> None:
        options = schema.parse(MultitaskLearner.Config, {"balance": {"type": balance}})
        Balancing(options, {"a": task}, {}).check(strategy, precision)

    with pytest.raises(ConfigError, match=r"trainer.strategy: fsdp shards .* Set trainer.strategy=ddp"):
        check("pcgrad", FSDPStrategy(), "32-true")
    with pytest.raises(ConfigError, match=r"trainer.precision: 16-mixed scales .* bf16-mixed"):
        check("pcgrad", object(), "16-mixed")
    check("pcgrad", object(), "bf16-mixed")
    check("famo", FSDPStrategy(), "16-mixed")
