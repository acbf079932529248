"""The Python in the guides runs, and the modality and head it makes work in a model."""

from __future__ import annotations

import pathlib
import re
import sys
import types

import torch

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
