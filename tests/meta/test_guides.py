"""The Python in the guides runs and does what they say; what else they name exists."""

from __future__ import annotations

import pathlib
import re
import shlex
import sys
import types

import pytest
import torch

from mmzoo import configs, recipe, zoo
from mmzoo.batch import Batch, Target
from mmzoo.heads.contrastive import ContrastiveHead
from mmzoo.models.multimodal import HeadSpec, MultimodalModel
from mmzoo.trunk.trunk import Trunk

GUIDES = pathlib.Path(__file__).resolve().parents[2] / "docs/guide"


def run(name: str) -> types.ModuleType:
    blocks = re.findall(r"```python\n(.*?)```", (GUIDES / name).read_text(), re.S)
    module = types.ModuleType(f"guide_{name.replace('-', '_').removesuffix('.md')}")
    sys.modules[module.__name__] = module
    code = "\n".join(blocks)
    exec(compile(code, name, "exec"), module.__dict__)
    return module


def test_the_modality_of_the_guide_trains_in_a_model(generator: torch.Generator):
    eeg = run("add-a-modality.md").EegAdapter
    config = eeg.Config()
    model = MultimodalModel(
        MultimodalModel.Config(
            modalities={"eeg": config},
            trunk=Trunk.Config(dim=16, depth=1, num_heads=2),
            heads={"align": HeadSpec(head=ContrastiveHead.Config())},
        )
    )
    rows = eeg.fake_input(config, 4, generator)
    vectors = model.embed(Batch(tuple("abcd"), {"eeg": rows}))["eeg"].values
    alone = model.embed(
        Batch(("a",), {"eeg": type(rows)(rows.values[:1, :, :64], rows.index[:1], rows.sizes[:1])})
    )
    assert torch.allclose(alone["eeg"].values, vectors[:1], atol=1e-5)
    vectors.square().sum().backward()
    assert all(p.grad is not None for p in model.adapters["eeg"].parameters())


def test_the_head_and_objective_of_the_guide_agree_with_their_formula(generator: torch.Generator):
    guide = run("add-a-head.md")
    head = guide.CountHead(guide.CountHead.Config(), dim=8, passes=("x",))
    tokens = torch.randn(3, 5, 8, generator=generator)
    valid = torch.tensor([[True] * 5, [True, False, True, False, False], [True] * 5])
    sequence = guide.TokenSequence(tokens, valid, torch.arange(3), "x")
    found = head(sequence, "x")
    expected = torch.nn.functional.softplus(head.project(tokens[1, [0, 2]].mean(0)))
    assert torch.allclose(found.values[1], expected, atol=1e-6)
    batch = Batch(tuple("abc"), {}, {"n": Target(torch.tensor([2.0, 4.0]), torch.tensor([0, 2]))})
    state = guide.CountError(guide.CountError.Config())({"x": found}, batch, "n")
    wanted = ((found.values[0, 0] - 2) ** 2 + (found.values[2, 0] - 4) ** 2) / 2
    assert torch.allclose(state.mean(), wanted)


def test_the_python_guide_trains_without_lightning(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path))
    guide = run("python.md")
    assert guide.vectors["text"].shape == (2, 128)
    assert guide.similarity[0, 0].item() == pytest.approx(1, abs=1e-5)
    assert guide.losses[-1] < guide.losses[0]
    assert len(guide.first) == 48
    assert list(guide.first.inputs) == ["image", "audio", "text", "fmri", "skeleton"]


def test_the_checkpoint_guide_loads_and_publishes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    built = recipe.build(recipe.load("five_senses"))
    zoo.export(built.model, tmp_path / "runs/five_senses/demo/export", built.learner.meta)
    guide = run("checkpoints.md")
    assert guide.vectors.shape == (2, 128)
    assert guide.classes == list(built.info.labels["action"])
    assert (tmp_path / "published" / "model.safetensors").is_file()
    assert torch.equal(guide.again.encode(text=["a red shirt", "rain"])["text"], guide.vectors)


def test_the_fine_tuning_guide_writes_an_adapter_that_loads(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    guide = run("fine-tune.md")
    text = {"text": ["a red shirt", "rain"]}
    tuned, again, base = (m.encode(**text)["text"] for m in (guide.tuned, guide.again, guide.base))
    torch.testing.assert_close(again, tuned, atol=1e-5, rtol=1e-5)
    assert float((tuned - base).abs().max()) > 1e-3
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 500_000


def test_the_zoo_guide_finds_the_shipped_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path))
    monkeypatch.setenv("MMZOO_OFFLINE", "1")
    guide = run("zoo.md")
    assert guide.vectors["text"].shape == (1, 128)
    assert "onepeace_4b.laion2b" in guide.names
    assert all(finding.outcome.value == "ok" for finding in guide.findings)


def test_the_many_tasks_guide_balances():
    guide = run("many-tasks.md")
    assert torch.allclose(guide.combined.shared, torch.tensor([1.0, 1.0]))  # the shorter one is shortest


def test_the_driving_guide_predicts_and_scores():
    guide = run("driving.md")
    assert guide.boxes.shape == (4, 24, 11)
    assert set(guide.losses) == {"boxes", "map", "occupancy"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in guide.losses.values())


def test_the_routing_guide_upcycles_and_extracts():
    guide = run("routing.md")
    assert guide.same
    assert 2 <= guide.experts < 16


def test_the_decoder_guide_predicts_every_pixel():
    guide = run("dense-decoders.md")
    assert guide.depth.shape == (2, 1, 64, 64)
    assert guide.gates.shape == (2, 3)
    assert (guide.gates > 0).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("name", sorted(p.name for p in GUIDES.glob("*.md")))
def test_commands_of_the_guides_fit_the_options(name: str, monkeypatch: pytest.MonkeyPatch):
    """Every `mmzoo train RECIPE key=value` that is shown composes and checks; the runs that some start from
    are the reader's."""
    monkeypatch.delenv("MMZOO_DATA", raising=False)
    monkeypatch.setattr(zoo, "check_source", lambda source: None)
    for line in re.findall(r"mmzoo train ([^`\n]+)", (GUIDES / name).read_text()):
        words = shlex.split(line, comments=True)
        if words[0] in configs.list_configs("recipe"):
            recipe.load(words[0], [w for w in words[1:] if "=" in w or w.startswith("~")])


def test_the_parity_guide_names_tests_that_exist():
    text = (GUIDES / "parity.md").read_text()
    named = re.findall(r"`((?:unit/|parity/)?test_\w+\.py)`", text)
    tests = GUIDES.parents[1] / "tests"
    assert len(named) > 10
    assert not [n for n in named if not (tests / n).is_file() and not (tests / "unit" / n).is_file()]
