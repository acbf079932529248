"""Distillation objectives against slow formulas, and what they leave out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from mmzoo.batch import Batch, Prediction, PredictionKind, Target, lesson_name
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.objectives.distill import ClassDistillation, Distance, FeatureDistillation, RelationDistillation

IDS = tuple("abcdefgh")


def taught(kind: PredictionKind, **lessons: tuple[Tensor, list[int]]) -> Batch:
    targets = {lesson_name("t", kind, p): Target(v, torch.tensor(i)) for p, (v, i) in lessons.items()}
    return Batch(IDS, targets=targets)


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(x - max(row)) for x in row]
    return [e / sum(exps) for e in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_features_are_compared_by_cosine_or_squares(generator):
    student = torch.randn(4, 5, generator=generator, requires_grad=True)
    teacher = torch.randn(5, 5, generator=generator)
    batch = taught(PredictionKind.FEATURES, image=(teacher, [0, 2, 3, 5, 6]))
    given = {"image": Prediction(student, torch.tensor([0, 1, 3, 6]))}
    rows = [(0, 0), (2, 2), (3, 4)]  # samples 0, 3 and 6
    cosines, squares = [], []
    for i, j in rows:
        z, t = student[i].tolist(), teacher[j].tolist()
        dot, lengths = sum(a * b for a, b in zip(z, t, strict=True)), math.hypot(*z) * math.hypot(*t)
        cosines.append(1 - dot / lengths)
        squares.append(sum((a - b) ** 2 for a, b in zip(z, t, strict=True)) / 5)
    for distance, slow in ((Distance.COSINE, cosines), (Distance.MSE, squares)):
        state = FeatureDistillation.Config(distance=distance).build()(given, batch, "t")
        assert state.total.count.item() == 3
        assert state.mean().item() == pytest.approx(sum(slow) / 3, rel=1e-5)
    state.total.sum.backward()
    assert student.grad is not None
    assert torch.equal(student.grad[1], torch.zeros(5))  # sample 1 has no lesson


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_class_probabilities_are_hintons(temperature, generator):
    student = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float32)
    teacher = 3 * torch.randn(3, 4, generator=generator)
    batch = taught(PredictionKind.CLASSES, image=(teacher, [1, 2, 4]))
    given = {"image": Prediction(student, torch.tensor([1, 2, 4]))}
    state = ClassDistillation.Config(temperature=temperature).build()(given, batch, "t")
    slow = [
        temperature**2 * kl(softmax([x / temperature for x in t]), softmax([x / temperature for x in s]))
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    assert state.mean().item() == pytest.approx(sum(slow) / 3, rel=1e-4)


def test_the_gradient_keeps_its_size_whatever_the_temperature(generator):
    """T² KL at large T has the gradient (s - t) / C of centred logits (Hinton et al., eq. 4)."""
    student = torch.randn(1, 4, generator=generator).requires_grad_()
    teacher = torch.randn(1, 4, generator=generator)
    batch = taught(PredictionKind.CLASSES, image=(teacher, [0]))
    given = {"image": Prediction(student, torch.tensor([0]))}
    ClassDistillation.Config(temperature=300.0).build()(given, batch, "t").total.sum.backward()
    centred = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, centred.detach() / 4, atol=5e-3, rtol=5e-2)


def slow_relation(a: Tensor, b: Tensor, u: Tensor, v: Tensor, scale: float, tau: float) -> float:
    total = 0.0
    for i in range(len(a)):
        forth = [scale * float(a[i] @ b[j]) for j in range(len(a))]
        back = [scale * float(b[i] @ a[j]) for j in range(len(a))]
        true_forth = [float(u[i] @ v[j]) / tau for j in range(len(a))]
        true_back = [float(v[i] @ u[j]) / tau for j in range(len(a))]
        total += kl(softmax(true_forth), softmax(forth)) / 2 + kl(softmax(true_back), softmax(back)) / 2
    return total


def test_relations_are_those_of_rows_and_columns(generator):
    image, text = (unit(torch.randn(n, 6, generator=generator)) for n in (4, 5))
    u, v = torch.randn(4, 9, generator=generator), torch.randn(5, 3 * 3, generator=generator)
    scale = torch.tensor(8.0)
    given = {
        "image": Prediction(image, torch.tensor([0, 1, 3, 5]), scale),
        "text": Prediction(text, torch.tensor([1, 2, 3, 5, 6]), scale),
    }
    batch = taught(PredictionKind.FEATURES, image=(u, [0, 1, 3, 5]), text=(v, [1, 2, 3, 5, 6]))
    state = RelationDistillation.Config(teacher_temperature=0.2).build()(given, batch, "t")
    rows, columns = [1, 2, 3], [0, 2, 3]
    slow = slow_relation(image[rows], text[columns], unit(u)[rows], unit(v)[columns], 8.0, 0.2)
    assert list(state.parts) == ["image~text"]
    assert state.total.count.item() == 3
    assert state.total.sum.item() == pytest.approx(slow, rel=1e-4)
    fixed = RelationDistillation.Config(temperature=1 / 8, teacher_temperature=0.2).build()(given, batch, "t")
    torch.testing.assert_close(fixed.total.sum, state.total.sum)


def test_a_pass_with_itself_leaves_out_the_diagonal(generator):
    image, u = unit(torch.randn(4, 6, generator=generator)), torch.randn(4, 3, generator=generator)
    given = {"image": Prediction(image, torch.arange(4), torch.tensor(5.0))}
    batch = taught(PredictionKind.FEATURES, image=(u, [0, 1, 2, 3]))
    options = RelationDistillation.Config(pairs=[("image", "image")], teacher_temperature=0.5)
    state = options.build()(given, batch, "t")
    slow, w = 0.0, unit(u)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        mine = softmax([5 * float(image[i] @ image[j]) for j in others])
        slow += kl(softmax([float(w[i] @ w[j]) / 0.5 for j in others]), mine)
    assert state.total.sum.item() == pytest.approx(slow, rel=1e-4)


def test_the_same_relations_cost_nothing(generator):
    image, text = (unit(torch.randn(4, 6, generator=generator)) for _ in range(2))
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q  # similarities do not see rotations
    given = {
        m: Prediction(x, torch.arange(4), torch.tensor(10.0)) for m, x in (("image", image), ("text", text))
    }
    batch = taught(
        PredictionKind.FEATURES,
        image=(3 * image @ turned, [0, 1, 2, 3]),
        text=(0.1 * text @ turned, [0, 1, 2, 3]),
    )
    state = RelationDistillation.Config(teacher_temperature=0.1).build()(given, batch, "t")
    assert abs(state.mean().item()) < 1e-5


def test_a_pass_may_learn_from_another(generator):
    audio, image = torch.randn(2, 5, generator=generator), torch.randn(3, 5, generator=generator)
    batch = taught(PredictionKind.FEATURES, image=(image, [0, 1, 2]), audio=(audio, [0, 2]))
    given = {"audio": Prediction(audio, torch.tensor([0, 2]))}
    objective = FeatureDistillation.Config(taught_by={"audio": "image"}, distance=Distance.MSE).build()
    assert objective.lessons(("audio",)) == {"audio": "image"}
    expected = (audio - image[[0, 2]]).square().mean()
    torch.testing.assert_close(objective(given, batch, "t").mean(), expected)


def _share(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    given, batch, values = _case(rank)
    state = _relation()(given, batch, "t")
    state.total.sum.backward()
    torch.save(
        (state.total.sum.detach(), state.total.count, {k: v.grad for k, v in values.items()}),
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


ROWS = {
    0: {"image": [0, 1, 2], "text": [0, 2, 3]},
    1: {"image": [0, 1, 2], "text": [1]},
    2: {"image": [], "text": []},
}


def _relation() -> RelationDistillation:
    return RelationDistillation.Config(pairs=[("image", "text"), ("image", "image")], temperature=0.2).build()


def _case(rank: int) -> tuple[dict[str, Prediction], Batch, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7 + rank)
    values, given, lessons = {}, {}, {}
    for name, rows in ROWS[rank].items():
        if rows:
            values[name] = unit(torch.randn(len(rows), 4, generator=generator)).requires_grad_()
            given[name] = Prediction(values[name], torch.tensor(rows), None)
            lessons[name] = (torch.randn(len(rows), 6, generator=generator), rows)
    return given, taught(PredictionKind.FEATURES, **lessons), values


def test_ranks_share_the_relations_of_the_whole_batch(tmp_path):
    """Sum and gradients over three processes, one of them empty-handed, are those of one process."""
    torch.multiprocessing.start_processes(_share, (3, str(tmp_path)), nprocs=3, start_method="forkserver")
    found = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(3)]
    cases = [_case(rank) for rank in range(3)]
    values = {n: torch.cat([c[2][n].detach() for c in cases if n in c[2]]).requires_grad_() for n in ROWS[0]}
    index = {n: torch.tensor([4 * r + i for r in range(3) for i in ROWS[r][n]]) for n in ROWS[0]}
    name = {n: lesson_name("t", PredictionKind.FEATURES, n) for n in ROWS[0]}
    targets = {
        name[n]: Target(torch.cat([c[1].targets[name[n]].values for c in cases if n in c[2]]), index[n])
        for n in ROWS[0]
    }
    given = {n: Prediction(values[n], index[n]) for n in values}
    whole = _relation()(given, Batch(tuple(map(str, range(12))), targets=targets), "t")
    whole.total.sum.backward()
    torch.testing.assert_close(sum(f[0] for f in found), whole.total.sum.detach())
    assert sum(f[1] for f in found).item() == whole.total.count.item() == 3 + 6
    for n, value in values.items():
        torch.testing.assert_close(torch.cat([f[2][n] for f in found if n in f[2]]), value.grad)


def test_widths_that_differ_are_named(generator):
    batch = taught(PredictionKind.CLASSES, image=(torch.ones(2, 7), [0, 1]))
    given = {"image": Prediction(torch.ones(2, 4), torch.arange(2))}
    with pytest.raises(ShapeError, match="4 of the student, 7 of teacher 't'; expected vectors of one width"):
        ClassDistillation.Config().build()(given, batch, "t")
    features = taught(PredictionKind.FEATURES, image=(torch.ones(2, 7), [0, 1]))
    relation = RelationDistillation.Config(pairs=[("image", "image")]).build()
    with pytest.raises(ConfigError, match="predictions without scale"):
        relation(given, features, "t")


def test_options_out_of_range_are_named():
    with pytest.raises(ConfigError, match="temperature: 0; expected more than 0"):
        ClassDistillation.Config(temperature=0.0)
    with pytest.raises(ConfigError, match="teacher_temperature: -1"):
        RelationDistillation.Config(teacher_temperature=-1.0)
    with pytest.raises(ConfigError, match=r"pairs: none among image; .* Set pairs=\[\[image,image\]\]"):
        RelationDistillation.Config().build().check(("image",))
    with pytest.raises(ConfigError, match=r"pairs: 'imag'; expected a pass of the head"):
        RelationDistillation.Config(pairs=[("imag", "imag")]).build().check(("image",))
    with pytest.raises(ConfigError, match=r"taught_by: 'audo'; .* Did you mean 'audio'"):
        FeatureDistillation.Config(taught_by={"audo": "image"}).build().check(("audio",))
