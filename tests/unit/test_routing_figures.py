"""What routing leaves in the log, in an evaluation and in the report."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.cli import curves, results
from mmzoo.learners import routing
from mmzoo.learners.evaluate import Evaluation
from mmzoo.learners.routing import RoutingTracker
from mmzoo.trunk.base import MixerContext
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.packing import pack
from mmzoo.trunk.plan import SeqInfo, TaskSpan
from mmzoo.trunk.routing_stats import ExpertUse, RoutingRecord, routing_use, whole


def plan() -> SeqInfo:
    """Rows 0-3 image, 4-9 text; tasks a: 0-1 and 4-6, b: the others."""
    made = [
        [TokenSequence(torch.zeros(1, n, 4), torch.ones(1, n, dtype=torch.bool), torch.tensor([0]), m)]
        for m, n in (("image", 4), ("text", 6))
    ]
    seq = pack(made, ("image", "text")).seq
    spans = (TaskSpan("a", 0, 2), TaskSpan("b", 2, 4), TaskSpan("a", 4, 7), TaskSpan("b", 7, 10))
    return dataclasses.replace(seq, task_spans=spans)


def record(experts: list[int]) -> RoutingRecord:
    probs = torch.full((10, 4), 0.1)
    probs[torch.arange(10), torch.tensor(experts)] = 0.7
    return RoutingRecord(torch.tensor(experts)[:, None], probs, plan())


EXPERTS = [0, 0, 1, 1, 2, 2, 0, 3, 3, 1]


def test_use_is_counted_by_task_and_modality():
    use = record(EXPERTS).use()
    assert {k: v.chosen.tolist() for k, v in use.items()} == {
        ("a", "image"): [2, 0, 0, 0],
        ("b", "image"): [0, 2, 0, 0],
        ("a", "text"): [1, 0, 2, 0],
        ("b", "text"): [0, 1, 0, 2],
    }
    assert sum(v.tokens for v in use.values()) == 10


def test_figures_are_one_for_even_use_and_tell_a_collapse():
    even = ExpertUse.of(torch.tensor([[0], [1], [2], [3]]), torch.full((4, 4), 0.25)).figures()
    assert even == pytest.approx({"load_entropy": 1, "entropy": 1, "max_load": 1, "used": 1})
    one = ExpertUse.of(torch.tensor([[2], [2]]), torch.eye(4)[[2, 2]]).figures()
    assert one == pytest.approx({"load_entropy": 0, "entropy": 0, "max_load": 4, "used": 0.25})


def test_batches_merge_to_the_whole():
    tracker = RoutingTracker()
    tracker.update({"3/routing": record(EXPERTS), "other": 1})
    tracker.update({"3/routing": record(EXPERTS[::-1]), "3/heads/routing": record(EXPERTS)})
    use = tracker.merged()
    assert set(use) == {"3", "3/heads"}
    assert sum(part.tokens for part in use["3"].values()) == 20
    found = routing.figures(use)
    assert found["routing/3/used"] == 1
    share = torch.tensor([3, 3, 2, 2]) / 10
    wanted = -sum(p * math.log(p) for p in share.tolist()) / math.log(4)
    assert found["routing/3/heads/load_entropy"] == pytest.approx(wanted)
    matrix = routing.matrices(use)["routing/3/heads/experts"]
    assert routing.row_names(use)["routing/3/heads/experts"] == ("a/image", "b/image", "a/text", "b/text")
    assert matrix.sum(1).tolist() == pytest.approx([1] * 4)
    assert matrix[0].tolist() == [1, 0, 0, 0]


def test_a_step_logs_shares_and_each_sources_entropy():
    stats = {"1/routing": record(EXPERTS)}
    found = routing.step_figures(stats)
    assert [found[f"routing/1/expert{i}"] for i in range(4)] == pytest.approx([0.3, 0.3, 0.2, 0.2])
    assert found["routing/1/a/image/load_entropy"] == 0
    assert routing.step_figures({}) == {}
    assert set(routing_use(stats)) == {"1"}


def test_the_report_draws_shares_and_names_their_rows():
    use = {"1": record(EXPERTS).use()}
    labels = routing.row_names(use)
    found = results.from_evaluation(Evaluation("val", {}, routing.matrices(use), labels), 10, "best.ckpt")
    matrix = found.matrices["routing/1/experts"]
    assert matrix.rows == ("a/image", "b/image", "a/text", "b/text")
    assert matrix.columns == ("0", "1", "2", "3")
    history = [{"step": s, "train/routing/1/expert0": 0.2, "train/routing/1/expert1": 0.8} for s in (1, 2)]
    panel = next(p for p in curves.panels(history) if p.name == "experts_1")
    assert list(panel.curves) == ["expert 0", "expert 1"]


def test_the_report_draws_the_largest_load_above_one():
    history = [{"step": s, "train/routing/1/max_load": 3.0, "train/routing/1/used": 0.5} for s in (1, 2)]
    panel = next(p for p in curves.panels(history) if p.name == "max_load")
    assert panel.curves == {"block 1": ((1.0, 3.0), (2.0, 3.0))}
    assert not panel.percent


def test_a_soft_routers_use_is_its_weights():
    """Every token takes all four experts, so counts would call any use even."""
    experts = torch.tensor([[0, 1, 2, 3]]).expand(10, 4)
    weights = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(10, 4)
    use = RoutingRecord(experts, weights, plan(), weights).use()
    assert sum(float(v.chosen.sum()) for v in use.values()) == pytest.approx(10.0)
    for part in use.values():
        assert part.share.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
        assert part.figures()["max_load"] == pytest.approx(2.8)


def test_soft_routing_is_logged_and_balanced_by_its_weights():
    config = schema.parse(MoeFeedForward.Config, {"num_experts": 4, "hidden_dim": 8, "router": "soft"})
    made, x = config.build(dim=4, modalities=("image", "text")), torch.randn(10, 4)
    torch.nn.init.normal_(made.router.gate.weight)
    context = MixerContext()
    _, aux = made(x, seq=plan(), ctx=context)
    share = whole(routing_use(context.stats)["0"]).share
    wanted = (x @ made.router.gate.weight.T).softmax(1).mean(0)
    torch.testing.assert_close(share.float(), wanted)
    aux["load_balance"].backward()
    assert bool(made.router.gate.weight.grad.any())
