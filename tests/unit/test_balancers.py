"""Every balancing method against a problem whose answer is known by other means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmzoo import registry, schema
from mmzoo.errors import ConfigError, MmzooError
from mmzoo.learners.balance.base import Balancer, GradientBalancer, LossBalancer, Moment, cosines
from mmzoo.learners.balance.conflict import GradVac
from mmzoo.learners.balance.directions import Level, alignment, bargain
from mmzoo.learners.balance.step import Parameters, gradient_step, loss_step

NAMES = ("a", "b", "c")
ROWS = sorted(registry.table("balancers"))
GRADIENT = [k for k in ROWS if issubclass(registry.find("balancers", k), GradientBalancer)]
LOSSES = torch.tensor([0.5, 2.0, 8.0])


def now(step: int = 0, epoch: int = 0, present: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> Moment:
    return Moment(present, torch.Generator().manual_seed(seed), step, epoch)


def make(kind: str, names: tuple[str, ...] = NAMES, **options: object) -> Balancer:
    cls = registry.find("balancers", kind)
    assert issubclass(cls, Balancer)
    return schema.parse(cls.Config, options).build(names)


def by_loss(kind: str, names: tuple[str, ...] = NAMES, **options: object) -> LossBalancer:
    made = make(kind, names, **options)
    assert isinstance(made, LossBalancer)
    return made


def by_gradient(kind: str, names: tuple[str, ...] = NAMES, **options: object) -> GradientBalancer:
    made = make(kind, names, **options)
    assert isinstance(made, GradientBalancer)
    return made


def weights(balancer: LossBalancer, losses: Tensor, at: Moment | None = None) -> Tensor:
    return loss_step(balancer, losses.clone().requires_grad_(), at or now())[1]


def shared(
    balancer: GradientBalancer, grads: Tensor, at: Moment | None = None, losses: Tensor = LOSSES
) -> Tensor:
    return balancer(grads, losses[: len(grads)], at or now(present=tuple(range(len(grads))))).shared


def gradients(seed: int, count: int = 3, width: int = 6) -> Tensor:
    """Return gradients of different lengths, some of them in conflict."""
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return made * torch.tensor([0.5, 1.0, 3.0, 2.0])[:count, None]


def test_the_table_holds_all_methods():
    assert set(ROWS) == {
        *("equal", "static", "uncertainty", "automatic", "dwa", "rlw", "gls", "famo", "stch"),
        *("pcgrad", "gradvac", "cagrad", "mgda", "gradnorm", "imtl", "nash_mtl", "aligned_mtl", "db_mtl"),
    }
    assert len(GRADIENT) == 9


# ---- loss space


def test_static_sums_and_equal_takes_the_weights_out():
    assert weights(by_loss("static"), LOSSES).tolist() == [1, 1, 1]
    equal = registry.find("balancers", "equal").Config().build(NAMES, weights=(0.5, 2.0, 4.0))
    assert weights(equal, LOSSES * torch.tensor([0.5, 2.0, 4.0])).tolist() == [2.0, 0.5, 0.25]
    assert float(equal(LOSSES[[0, 2]], now(present=(0, 2)))) == 0.5 / 0.5 + 8.0 / 4.0


@pytest.mark.parametrize(
    ("kind", "best"),
    [("uncertainty", torch.exp), ("automatic", lambda p: 2 * p**4 / (1 + p**2))],
    ids=["uncertainty", "automatic"],
)
def test_learned_weights_settle_where_the_formula_says(kind: str, best: Callable[[Tensor], Tensor]):
    """Descend on the balancer's own numbers, losses held: stationary where `best` gives the losses."""
    balancer = by_loss(kind)
    assert balancer.lr > 0
    optimizer = torch.optim.LBFGS(balancer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def descend() -> Tensor:
        optimizer.zero_grad()
        loss = balancer(LOSSES, now())
        loss.backward()
        return loss

    optimizer.step(descend)
    (learned,) = balancer.parameters()
    torch.testing.assert_close(best(learned.detach()), LOSSES, rtol=1e-3, atol=1e-3)


def test_learned_weights_at_first():
    found = weights(by_loss("uncertainty"), LOSSES)
    torch.testing.assert_close(found, torch.full((3,), math.exp(0.5) / 2))
    assert weights(by_loss("automatic"), LOSSES).tolist() == [0.5] * 3


def test_geometric_mean_makes_every_task_fall_by_the_same_share():
    found = weights(by_loss("gls"), LOSSES)
    torch.testing.assert_close(found * LOSSES, torch.full((3,), 2.0 / 3))  # (0.5 2 8)^(1/3) = 2
    units = torch.tensor([1e-3, 1.0, 50.0])
    a, b = (by_loss("gls")(x, now()) for x in (LOSSES, LOSSES * units))
    assert float(b / a) == pytest.approx(float(units.prod() ** (1 / 3)), rel=1e-5)
    with pytest.raises(ConfigError, match=r"learner\.balance: loss -1 of b; expected losses of 0 or more"):
        by_loss("gls")(torch.tensor([1.0, -1.0, 2.0]), now())


def test_random_weights_are_a_softmax_drawn_from_the_step():
    a, b, c = (weights(by_loss("rlw"), LOSSES, now(seed=s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    drawn = torch.stack([weights(by_loss("rlw"), LOSSES, now(seed=s)) for s in range(200)])
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(200))
    torch.testing.assert_close(drawn.mean(dim=0), torch.full((3,), 1 / 3), atol=0.05, rtol=0)


def test_dwa_follows_the_ratio_of_two_periods():
    balancer = by_loss("dwa", temperature=2.0)
    ones = [weights(balancer, LOSSES * s, now(epoch=e)) for e, s in ((0, 1.0), (0, 3.0), (1, 1.0), (1, 1.0))]
    assert all(w.tolist() == [1.0] * 3 for w in ones)
    fall = torch.tensor([1.0, 0.5, 0.25])
    weights(balancer, LOSSES * fall, now(epoch=1))
    found = weights(balancer, LOSSES, now(epoch=2))
    last, before = LOSSES * (2 + fall) / 3, LOSSES * 2
    torch.testing.assert_close(found, 3 * (last / before / 2.0).softmax(dim=0))
    by_steps = by_loss("dwa", period_steps=2)
    falls = torch.tensor([1.0, 0.5, 0.25])
    for step in range(4):
        losses = LOSSES * falls if step >= 2 else LOSSES
        assert weights(by_steps, losses, now(step=step)).tolist() == [1.0] * 3
    torch.testing.assert_close(weights(by_steps, LOSSES, now(step=4)), 3 * (falls / 2.0).softmax(dim=0))


def test_stch_is_a_soft_maximum_after_its_warm_up():
    balancer = by_loss("stch", mu=0.1, warmup_steps=2)
    for step in range(2):
        torch.testing.assert_close(weights(balancer, LOSSES, now(step=step)), 1 / LOSSES)
    relative = torch.tensor([0.5, 0.9, 0.6])
    losses = LOSSES * relative
    found = weights(balancer, losses, now(step=2)) * losses
    torch.testing.assert_close(found, 3 * (relative.log() / 0.1).softmax(dim=0))
    assert int(found.argmax()) == 1


def test_famo_weighs_by_its_formula_and_gives_weight_to_who_fell_least():
    balancer = by_loss("famo", lr=0.1, decay=0.0)
    torch.testing.assert_close(weights(balancer, LOSSES), (1 / LOSSES) / (1 / LOSSES).sum())
    scale = 3 / (1 / LOSSES).sum()
    torch.testing.assert_close(balancer(LOSSES, now()), scale / 3 * LOSSES.log().sum())
    balancer.after_step(LOSSES * torch.tensor([0.5, 0.9, 0.7]), now())
    z = balancer.get_buffer("z")
    # the first step of Adam has the length lr along the gradient's sign; b fell least
    assert z.tolist() == pytest.approx([-0.1, 0.1, math.copysign(0.1, float(z[2]))], rel=1e-3)


def test_famo_makes_all_tasks_fall_by_the_same_share():
    """Losses e^x and e^{y/2}: equal falls of their logarithms need weights of 1 to 4."""
    x = torch.zeros(2, requires_grad=True)
    slopes = torch.tensor([1.0, 0.5])
    balancer = by_loss("famo", ("a", "b"), lr=0.1, decay=0.0)
    at = now(present=(0, 1))
    for _ in range(100):
        (grad,) = torch.autograd.grad(balancer((slopes * x).exp(), at), x)
        with torch.no_grad():
            x -= 0.01 * grad
        balancer.after_step((slopes * x).exp().detach(), at)
    z = balancer.get_buffer("z")
    assert float((z[1] - z[0]).exp()) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("kind", ["gls", "stch", "famo", "db_mtl"])
def test_a_loss_of_zero_has_no_weight_even_if_rounding_makes_it_negative(kind: str):
    balancer = make(kind)
    losses = torch.tensor([-3e-8, 2.0, 8.0])
    if isinstance(balancer, GradientBalancer):
        found = balancer(gradients(0) * torch.tensor([[1e-6], [1.0], [1.0]]), losses, now())
        assert float(found.weights[0]) == 0
        assert float(found.shared.norm()) < 100
    else:
        assert isinstance(balancer, LossBalancer)
        found = weights(balancer, losses)
        assert float(found[0]) == 0
        assert bool(found.isfinite().all())


# ---- gradient space


def test_pcgrad_takes_out_exactly_what_conflicts():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    expected = (a - (a @ b) / (b @ b) * b) + (b - (b @ a) / (a @ a) * a)
    torch.testing.assert_close(shared(by_gradient("pcgrad", ("a", "b")), torch.stack([a, b])), expected)
    agree = torch.tensor([[1.0, 0.2], [0.5, 1.0]])
    torch.testing.assert_close(shared(by_gradient("pcgrad", ("a", "b")), agree), agree.sum(dim=0))


def test_pcgrad_equals_the_vector_algorithm():
    grads = gradients(3)
    generator = torch.Generator().manual_seed(5)
    rows: list[Tensor] = []
    for i in range(3):
        row = grads[i].clone()
        for j in torch.randperm(3, generator=generator).tolist():
            if j != i and row @ grads[j] < 0:
                row -= row @ grads[j] / (grads[j] @ grads[j]) * grads[j]
        rows.append(row)
    torch.testing.assert_close(
        shared(by_gradient("pcgrad"), grads, now(seed=5)), torch.stack(rows).sum(dim=0)
    )


def test_gradvac_raises_cosines_to_the_target():
    balancer = by_gradient("gradvac", ("a", "b"), beta=0.0)
    assert isinstance(balancer, GradVac)
    balancer.target.fill_(0.3)
    a, b = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([-1.0, 1.0, 0.0])
    total = shared(balancer, torch.stack([a, b]))
    raised: list[Tensor] = []
    for own, other in ((a, b), (b, a)):  # the point own + t other, t > 0, whose cosine with other is 0.3
        low, high = 0.0, 10.0
        for _ in range(60):
            middle = (low + high) / 2
            cosine = torch.cosine_similarity(own + middle * other, other, dim=0)
            low, high = (middle, high) if cosine < 0.3 else (low, middle)
        raised.append(own + low * other)
    torch.testing.assert_close(total, sum(raised, torch.zeros(3)), rtol=1e-4, atol=1e-5)
    follows = by_gradient("gradvac", ("a", "b"), beta=0.5)
    shared(follows, torch.stack([a, b]))
    target = follows.get_buffer("target")
    assert float(target[0, 1]) == pytest.approx(0.5 * float(torch.cosine_similarity(a, b, dim=0)), rel=1e-5)


def simplex_grid(size: int, parts: int = 60) -> np.ndarray:
    cuts = itertools.combinations_with_replacement(range(parts + 1), size - 1)
    return np.array([np.diff([0, *c, parts]) / parts for c in cuts])


@pytest.mark.parametrize("seed", range(4))
def test_mgda_finds_the_shortest_vector_of_the_hull(seed: int):
    grads = gradients(seed)
    found = shared(by_gradient("mgda"), grads)
    grid = torch.from_numpy(simplex_grid(3)).float() @ grads
    assert float(found.norm()) <= float(grid.norm(dim=1).min()) + 1e-6
    # optimality: no gradient lies behind the plane through the point
    assert bool((grads @ found >= found @ found - 1e-5).all())


def test_mgda_closed_form_of_two_and_its_normalisations():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    share = ((b - a) @ b / ((a - b) @ (a - b))).clamp(0, 1)
    found = shared(by_gradient("mgda", ("a", "b")), torch.stack([a, b]))
    torch.testing.assert_close(found, share * a + (1 - share) * b)
    balancer = by_gradient("mgda", ("a", "b"), normalise="l2")
    found = balancer(torch.stack([a, b]), LOSSES[:2], now(present=(0, 1)))
    torch.testing.assert_close(found.weights, torch.tensor([0.5, 0.5]))  # unit vectors: the middle
    by_size = by_gradient("mgda", ("a", "b"), normalise="loss")
    orthogonal = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    share = by_size(orthogonal, torch.tensor([1.0, 2.0]), now(present=(0, 1))).weights
    torch.testing.assert_close(share, torch.tensor([0.2, 0.8]))  # of lengths 2 and 1: w ~ 1 / length^2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_the_best_for_the_worst_off_within_its_radius(seed: int, c: float):
    grads = gradients(seed).double()
    d = shared(by_gradient("cagrad", c=c), grads, losses=LOSSES.double()) * (1 + c**2)
    mean = grads.mean(dim=0)
    radius = c * mean.norm()
    assert float((d - mean).norm()) == pytest.approx(float(radius), rel=1e-5)
    # it maximises min_i g_i.d over the ball: no other point of it does better, and the dual agrees
    others = torch.randn(5000, grads.shape[1], generator=torch.Generator().manual_seed(1)).double()
    others = mean + radius * others / others.norm(dim=1, keepdim=True)
    reached = float((grads @ d).min())
    assert reached >= float((others @ grads.T).min(dim=1).values.max()) - 1e-6
    grid = torch.from_numpy(simplex_grid(3)).double() @ grads
    dual = float((grid @ mean + radius * grid.norm(dim=1)).min())
    assert reached <= dual + 1e-9
    assert reached == pytest.approx(dual, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_imtl_projects_equally_onto_all_directions(seed: int):
    grads = gradients(seed, count=4)
    balancer = by_gradient("imtl", ("a", "b", "c", "d"))
    found = balancer(grads, torch.ones(4), now(present=(0, 1, 2, 3)))
    along = grads @ found.shared / grads.norm(dim=1)
    torch.testing.assert_close(along, along[:1].expand(4), rtol=1e-4, atol=1e-5)
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-5)


def test_imtl_hybrid_learns_scales_that_make_all_losses_one():
    balancer = by_gradient("imtl", losses="hybrid")
    (learned,) = balancer.parameters()
    with torch.no_grad():
        learned.copy_(-LOSSES.log())
    found = balancer(gradients(0), LOSSES, now())
    assert found.extra is not None
    found.extra.backward()
    torch.testing.assert_close(learned.grad, torch.zeros(3), atol=1e-6, rtol=0)  # stationary
    assert found.private is not None
    torch.testing.assert_close(found.private * LOSSES, torch.ones(3))
    scaled = gradients(0) / LOSSES[:, None]
    torch.testing.assert_close(found.shared, shared(by_gradient("imtl"), scaled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_nash_weights_are_the_inverse_of_their_gains(seed: int):
    grads = gradients(seed)
    found = by_gradient("nash_mtl", max_norm=0)(grads, LOSSES, now())
    gains = grads @ found.shared
    assert bool((found.weights > 0).all())
    assert bool((gains > 0).all())
    scale = (grads @ grads.T).norm()
    torch.testing.assert_close(found.weights * gains / scale, torch.ones(3), rtol=1e-4, atol=1e-4)


def test_nash_closed_form_of_orthogonal_gradients_and_repetition():
    lengths = np.array([1.0, 2.0, 4.0])
    found = bargain(np.diag(lengths**2))
    np.testing.assert_allclose(found, np.sqrt(np.linalg.norm(lengths**2)) / lengths, rtol=1e-6)
    balancer = by_gradient("nash_mtl", every=2, max_norm=0)
    first = balancer(gradients(0), LOSSES, now()).weights
    assert torch.equal(balancer(gradients(1), LOSSES, now()).weights, first)
    assert not torch.equal(balancer(gradients(1), LOSSES, now()).weights, first)


def test_nash_weights_hold_for_all_parameters_and_the_limit_for_the_shared_ones():
    free, wide = (by_gradient("nash_mtl", max_norm=limit) for limit in (0.0, 1e3))
    one = by_gradient("nash_mtl")
    found = free(gradients(0), LOSSES, now())
    assert float(found.shared.norm()) > 1
    for balancer, factor in ((one, 1 / float(found.shared.norm())), (wide, 1.0)):
        limited = balancer(gradients(0), LOSSES, now())
        torch.testing.assert_close(limited.shared, factor * found.shared)
        torch.testing.assert_close(limited.weights @ gradients(0), limited.shared)
        assert limited.private is not None
        torch.testing.assert_close(limited.private, found.weights)
    model = TwoTasks()
    with torch.no_grad():
        model.trunk.weight.fill_(1.0)  # all three points lie on one side
    total, weights, _ = gradient_step(one, model.losses(), None, Parameters.of(model, ["trunk"]), now())
    total.backward()
    assert model.trunk.weight.grad is not None
    assert float(model.trunk.weight.grad.norm()) == pytest.approx(1.0, rel=1e-5)
    scale = one.get_buffer("solution").float() / weights
    torch.testing.assert_close(scale, scale[:1].expand(3))
    assert float(scale[0]) > 1
    for own, loss, w in zip(model.own, model.losses(), one.get_buffer("solution").float(), strict=True):
        torch.testing.assert_close(own.grad, w * torch.autograd.grad(loss, own, retain_graph=True)[0])


@pytest.mark.parametrize("level", list(Level))
def test_aligned_gradients_have_equal_singular_values(level: Level):
    grads = gradients(2).double()
    made = alignment((grads @ grads.T).numpy(), level)
    aligned = grads.T @ torch.from_numpy(made)
    values = torch.linalg.svdvals(grads)
    wanted = {
        Level.MIN: values.min(),
        Level.MEDIAN: values.median(),
        Level.RMSE: values.square().mean().sqrt(),
    }
    torch.testing.assert_close(torch.linalg.svdvals(aligned), wanted[level].expand(3))
    np.testing.assert_allclose(made, made.T, atol=1e-9)  # keeps the principal directions
    found = shared(by_gradient("aligned_mtl", scale=level.value), grads, losses=LOSSES.double())
    torch.testing.assert_close(found, aligned.sum(dim=1), rtol=1e-6, atol=1e-9)


def test_aligned_drops_directions_that_are_not_there():
    grads = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = shared(by_gradient("aligned_mtl", ("a", "b")), grads)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0]))
    assert shared(by_gradient("aligned_mtl", ("a", "b")), torch.zeros(2, 3)).tolist() == [0, 0, 0]


def test_gradnorm_is_stationary_where_norms_are_even_and_progress_is():
    balancer = by_gradient("gradnorm")
    grads = gradients(1)
    balancer(grads, LOSSES, now())
    (learned,) = balancer.parameters()
    with torch.no_grad():
        learned.copy_(-grads.norm(dim=1).log())
    found = balancer(grads, LOSSES / 2, now())  # all losses halved: equal rates
    assert found.extra is not None
    assert float(found.extra.detach()) == pytest.approx(0, abs=1e-5)
    sizes = found.weights * grads.norm(dim=1)
    torch.testing.assert_close(sizes, sizes.mean().expand(3))
    assert float(found.weights.sum()) == pytest.approx(3.0, rel=1e-5)
    assert found.private is not None
    assert torch.equal(found.private, found.weights)


def test_gradnorm_bears_tasks_without_loss():
    balancer = by_gradient("gradnorm")
    grads = gradients(5)
    for losses in ([0.0, -4e-8, 2.0], [0.5, -4e-8, 1.0], [0.25, 3.0, 1.0]):
        combined = balancer(grads, torch.tensor(losses), now())
        balancer.zero_grad()
        assert combined.extra is not None
        combined.extra.backward()
        (learned,) = balancer.parameters()
        assert learned.grad is not None
        assert learned.grad.isfinite().all()
        assert combined.shared.isfinite().all()
    assert balancer.state_dict()["first"].tolist() == [
        0.5,
        3.0,
        2.0,
    ]  # what a task lost when it first lost anything


def test_gradnorm_gives_who_lags_the_larger_gradient():
    balancer = by_gradient("gradnorm")
    balancer(torch.eye(3), LOSSES, now())
    found = balancer(torch.eye(3), LOSSES * torch.tensor([0.5, 0.5, 1.0]), now())
    assert found.extra is not None
    rates = torch.tensor([0.75, 0.75, 1.5])
    assert float(found.extra.detach()) == pytest.approx(float((1 - rates**1.5).abs().sum()), rel=1e-5)
    found.extra.backward()
    (learned,) = balancer.parameters()
    assert learned.grad is not None
    assert float(learned.grad[2]) < 0 < float(learned.grad[0])


def test_db_mtl_sums_equally_long_means_of_log_gradients():
    grads = gradients(0)
    balancer = by_gradient("db_mtl", beta=0.9, decay=0.5)
    first = balancer(grads, LOSSES, now())
    log = grads / LOSSES[:, None]
    most = log.norm(dim=1).max()
    torch.testing.assert_close(first.shared, (most * log / log.norm(dim=1, keepdim=True)).sum(dim=0))
    assert first.private is not None
    torch.testing.assert_close(first.private, 1 / LOSSES)
    second = balancer(2 * grads.flip(0), LOSSES, now())
    share = 0.9 / 2**0.5
    mean = share * log + (1 - share) * 2 * grads.flip(0) / LOSSES[:, None]
    most = mean.norm(dim=1).max()
    torch.testing.assert_close(second.shared, (most * mean / mean.norm(dim=1, keepdim=True)).sum(dim=0))


# ---- all of them


class TwoTasks(nn.Module):
    """Shared linear map, one private vector a task; losses are distances to three points."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 2, bias=False)
        self.own = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(3)])

    def losses(self) -> Tensor:
        points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.5, -0.5]])
        x = self.trunk(torch.ones(1, 2))[0]
        return torch.stack([(x * w - p).square().sum() + 0.1 for w, p in zip(self.own, points, strict=True)])


@pytest.mark.parametrize("kind", ROWS)
def test_a_task_that_is_absent_gets_no_gradient_and_all_figures_are_finite(kind: str):
    balancer = make(kind)
    for step, rows in enumerate([(0, 1, 2), (0, 2), (1,), (0, 1, 2)]):
        torch.manual_seed(step)
        model = TwoTasks()
        losses = model.losses()[list(rows)]
        if isinstance(balancer, GradientBalancer):
            at = now(step, present=rows)
            total, found, _ = gradient_step(balancer, losses, None, Parameters.of(model, ["trunk"]), at)
        else:
            assert isinstance(balancer, LossBalancer)
            total, found = loss_step(balancer, losses, now(step, present=rows))
        total.backward()
        assert found.shape == (len(rows),)
        for i, own in enumerate(model.own):
            assert (own.grad is not None and bool(own.grad.any())) == (i in rows)
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ROWS)
def test_two_tasks_with_one_loss_descend_along_it(kind: str):
    balancer = make(kind, ("a", "b"))
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    loss = x.square().sum()
    losses, at = torch.stack([loss, loss]), now(present=(0, 1))
    if isinstance(balancer, GradientBalancer):
        (g,) = torch.autograd.grad(loss, x)
        found = balancer(torch.stack([g, g]), losses.detach(), at).shared
    else:
        assert isinstance(balancer, LossBalancer)
        (found,) = torch.autograd.grad(balancer(losses, at), x)
    assert float(torch.cosine_similarity(found, x.detach(), dim=0)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", GRADIENT)
@pytest.mark.parametrize(
    ("factor", "found"),
    [
        (math.nan, "loss nan with a gradient of norm nan"),
        (1e30, r"loss \S+e\+(29|30) with a gradient of norm inf"),
    ],
)
def test_what_is_not_finite_names_the_task_and_the_step(kind: str, factor: float, found: str):
    model, balancer = TwoTasks(), by_gradient(kind)
    losses = model.losses()[[0, 2]] * torch.tensor([1.0, factor])
    line = rf"^tasks\.c: {found} at step 8; expected finite numbers\. Lower learner\.optim\.lr"
    before = {name: value.clone() for name, value in balancer.state_dict().items()}
    with pytest.raises(MmzooError, match=line):
        gradient_step(balancer, losses, None, Parameters.of(model, ["trunk"]), now(7, present=(0, 2)))
    assert all(torch.equal(value, before[name]) for name, value in balancer.state_dict().items())


def sequence(balancer: Balancer, steps: range) -> list[Tensor]:
    found: list[Tensor] = []
    for step in steps:
        losses = (LOSSES * (1 + 0.1 * step)).requires_grad_()
        at = now(step, epoch=step // 2, seed=step)
        if isinstance(balancer, GradientBalancer):
            found.append(balancer(gradients(step), losses.detach(), at).shared.detach())
        else:
            assert isinstance(balancer, LossBalancer)
            found.append(loss_step(balancer, losses, at)[1])
        balancer.after_step(losses.detach() * torch.tensor([0.5, 0.9, 0.7]), at)
    return found


@pytest.mark.parametrize("kind", ROWS)
def test_state_survives_saving(kind: str):
    expected = sequence(make(kind), range(6))
    parts, again = make(kind), make(kind)
    sequence(parts, range(3))
    again.load_state_dict(parts.state_dict())
    for a, b in zip(sequence(again, range(3, 6)), expected[3:], strict=True):
        assert torch.equal(a, b)


def test_gradients_ride_on_the_scalar_whatever_it_is_scaled_by():
    model = TwoTasks()
    parameters = Parameters.of(model, ["trunk"])
    aux = model.trunk.weight.square().sum()
    total, found, grads = gradient_step(by_gradient("mgda"), model.losses(), aux, parameters, now())
    (total / 4).backward()
    losses = model.losses()
    expected = [torch.autograd.grad(loss, model.trunk.weight, retain_graph=True)[0] for loss in losses]
    mixed = sum((w * g for w, g in zip(found, expected, strict=True)), torch.zeros(2, 2))
    assert model.trunk.weight.grad is not None
    torch.testing.assert_close(4 * model.trunk.weight.grad, mixed + 2 * model.trunk.weight.detach())
    torch.testing.assert_close(grads, torch.stack(expected).flatten(1))
    for own, loss in zip(model.own, losses, strict=True):
        assert own.grad is not None
        torch.testing.assert_close(4 * own.grad, torch.autograd.grad(loss, own, retain_graph=True)[0])
    torch.testing.assert_close(total.detach(), losses.sum().detach() + aux.detach())


def test_cosines_of_gradients():
    found = cosines(torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(found[0, 1], torch.tensor(0.5**0.5))
    assert found[0, 2] == 0


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("cagrad", {"c": 1.5}, "a share in"),
        ("gradvac", {"beta": -1}, "a share in 0..1"),
        ("dwa", {"temperature": 0}, "a temperature above 0"),
        ("famo", {"lr": 0}, "a positive lr"),
        ("stch", {"mu": 0}, "numbers above 0"),
        ("nash_mtl", {"every": 0}, "at least 1"),
        ("nash_mtl", {"max_norm": -1}, "0 or more"),
        ("db_mtl", {"beta": 1}, "beta in"),
        ("uncertainty", {"lr": 0}, "a positive number"),
        ("automatic", {"start": 0}, "a positive number"),
    ],
)
def test_options_out_of_range_are_told(kind: str, options: dict[str, object], says: str):
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        schema.parse(registry.find("balancers", kind).Config, options)
