"""Teachers: what they give, what they see, and that a run keeps nothing of them but names and hashes."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import open_clip
import pytest
import pytorch_lightning as pl
import timm
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmzoo import recipe, registry, zoo
from mmzoo.batch import Batch, ModalityInput, PredictionKind, lesson_name
from mmzoo.cli.main import main
from mmzoo.datamodules.collate import collate
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.modalities.image_augment import ImageAugment
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.taught import Taught, View, in_step
from mmzoo.models.teachers.base import sha256_of_weights
from mmzoo.recipe import Built

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),  # of the learner, as meant
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]
CLIP = {
    "type": "open_clip",
    "model": "ViT-S-32",
    "create": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "layers": 1, "width": 32, "heads": 2},
    },
}
RESNET = {"type": "timm", "model": "resnet10t", "create": {}}
CLASSIFY = {
    "target": "label",
    "passes": ["image"],
    "head": {"type": "linear"},
    "objective": {"type": "cross_entropy"},
    "metrics": [{"type": "accuracy"}],
}
BY_CLASS = {"head_of": "classify", "objective": {"type": "class_distillation"}}
BY_FEATURE = {
    "passes": ["image"],
    "head": {"type": "projection"},
    "objective": {"type": "feature_distillation"},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the options of 48 pictures of two classes, with captions."""
    return registry.find("datamodules", "folder").fake(tmp_path_factory.mktemp("pictures"))


def tree(pictures: Any, folder: pathlib.Path, teachers: dict[str, Any], **tasks: Any) -> dict[str, Any]:
    """Return a tiny recipe; its task `classify` has a head of its own."""
    image = {"type": "image", "stem": "conv", "preprocess": {"size": [32, 32], "augment": {"flip_prob": 0.5}}}
    text = {"type": "text", "preprocess": {"tokenizer": "bytes"}}
    loader = {"batch_size": 8, "eval_batch_size": 8}
    return {
        "name": "tiny",
        "model": {
            "modalities": {"image": image, "text": text},
            "trunk": {"dim": 16, "depth": 1, "num_heads": 2},
        },
        "data": {"type": "folder", "root": pictures.root, "captions": pictures.captions, "loader": loader},
        "teachers": teachers,
        "tasks": {"classify": CLASSIFY, **tasks},
        "trainer": {"max_steps": 4, "val_every_steps": 2, "accelerator": "cpu", "threads": 1},
        "run_dir": str(folder),
    }


def write(path: pathlib.Path, what: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(what))
    return str(path)


def built(*args: Any, **tasks: Any) -> Built:
    return recipe.build(recipe.from_dict(tree(*args, **tasks)))


@pytest.fixture(scope="module")
def run(pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a trained run of the tiny recipe without teachers."""
    folder = tmp_path_factory.mktemp("teacher")
    assert main(["train", write(folder / "r.yaml", tree(pictures, folder / "run", {}))]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def student(run: pathlib.Path, pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a run taught classes by a run and features by an open_clip tower."""
    folder = tmp_path_factory.mktemp("student")
    teachers = {"big": {"type": "checkpoint", "model": str(run)}, "clip": CLIP}
    tasks = {"copy": {"teacher": "big", **BY_CLASS}, "mimic": {"teacher": "clip", **BY_FEATURE}}
    assert main(["train", write(folder / "r.yaml", tree(pictures, folder / "run", teachers, **tasks))]) == 0
    return folder / "run"


def first_batch(found: Built) -> Batch:
    return found.learner.taught(next(iter(found.datamodule.loader("val"))))


def test_open_clip_teaches_what_encode_image_and_text_give(pictures, tmp_path):
    relation = {"objective": {"type": "relation_distillation"}, "head": {"type": "contrastive"}}
    tasks = {"relate": {"teacher": "clip", **relation}}
    found = built(pictures, tmp_path, {"clip": CLIP}, **tasks)
    batch = first_batch(found)
    torch.manual_seed(0)  # the teacher's own seed
    whole = open_clip.create_model("ViT-S-32", force_custom_text=True, **CLIP["create"]).eval()
    images = batch.inputs["image@clip"].values
    ids = open_clip.get_tokenizer("ViT-S-32", context_length=16)(["a photo of a cat", "a photo of a dog"])
    with torch.no_grad():
        expected = whole.encode_image(images)
        texts = whole.encode_text(ids)
    given = {p: batch.targets[lesson_name("clip", PredictionKind.FEATURES, p)] for p in ("image", "text")}
    torch.testing.assert_close(given["image"].values, expected)
    labels = batch.targets["label"].values
    torch.testing.assert_close(given["text"].values, texts[labels], atol=1e-5, rtol=1e-5)
    state = found.learner.tasks["relate"].loss(found.model(batch, ["relate"]), batch)
    assert list(state.parts) == ["image~text"]
    assert state.mean() > 0


def test_a_teacher_of_another_size_sees_the_same_picture(pictures, tmp_path):
    found = built(pictures, tmp_path, {"clip": CLIP}, mimic={"teacher": "clip", **BY_FEATURE})
    source = found.datamodule.source("train")
    clip = open_clip.image_transform(32, is_train=False)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        inputs = collate([source.get(seed, generator)]).inputs
        flipped = torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.5
        path = pathlib.Path(source.records[seed].files["image"])
        raw = Image.open(path if path.is_file() else pathlib.Path(pictures.root) / path).convert("RGB")
        raw = raw.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else raw
        level = 1 / 255 / 0.26
        assert float((inputs["image@clip"].values[0] - clip(raw)).abs().max()) < 4 * level


def test_prompts_make_a_zero_shot_classifier(pictures, tmp_path):
    options = {**CLIP, "templates": ["a photo of a {}.", "one {}"]}
    found = built(pictures, tmp_path, {"clip": options}, copy={"teacher": "clip", **BY_CLASS})
    batch = first_batch(found)
    torch.manual_seed(0)
    whole = open_clip.create_model("ViT-S-32", force_custom_text=True, **CLIP["create"]).eval()
    tokenizer = open_clip.get_tokenizer("ViT-S-32", context_length=16)
    with torch.no_grad():
        rows = [
            F.normalize(
                whole.encode_text(tokenizer([t.format(n) for t in options["templates"]])), dim=1
            ).mean(0)
            for n in ("cat", "dog")
        ]
        classes = F.normalize(torch.stack(rows), dim=1)
        images = F.normalize(whole.encode_image(batch.inputs["image@clip"].values), dim=1)
        expected = whole.logit_scale.exp() * images @ classes.T
    given = batch.targets[lesson_name("clip", PredictionKind.CLASSES, "image")]
    torch.testing.assert_close(given.values, expected, atol=1e-4, rtol=1e-4)
    assert found.learner.classroom is not None
    assert not list(found.learner.classroom.teachers["clip"].module.text.parameters())  # nobody reads text


def test_timm_teaches_the_features_before_its_classifier(pictures, tmp_path):
    found = built(pictures, tmp_path, {"net": RESNET}, mimic={"teacher": "net", **BY_FEATURE})
    batch = first_batch(found)
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=0).eval()
    with torch.no_grad():
        expected = net(batch.inputs["image@net"].values)
    assert batch.inputs["image@net"].values.shape[2:] == (176, 176)  # timm's own size
    given = batch.targets[lesson_name("net", PredictionKind.FEATURES, "image")]
    torch.testing.assert_close(given.values, expected)
    assert found.model.config.heads["mimic"].head.embed_dim == 512


def test_a_run_teaches_its_logits_in_the_students_order(run, pictures, tmp_path):
    teachers = {"big": {"type": "checkpoint", "model": str(run)}}
    found = built(pictures, tmp_path, teachers, copy={"teacher": "big", **BY_CLASS})
    batch = first_batch(found)
    model = zoo.load(run)
    expected = model(Batch(batch.ids, {"image": batch.inputs["image@big"]})).predictions["classify"]["image"]
    given = batch.targets[lesson_name("big", PredictionKind.CLASSES, "image")]
    torch.testing.assert_close(given.values, expected.values.detach())
    teacher = found.learner.classroom.teachers["big"]  # pyright: ignore[reportOptionalMemberAccess]
    teacher.learn_classes(("dog", "cat"))
    again = found.learner.taught(next(iter(found.datamodule.loader("val"))))
    turned = again.targets[lesson_name("big", PredictionKind.CLASSES, "image")].values
    assert torch.equal(turned, given.values[:, [1, 0]])


def test_a_run_teaches_mean_tokens_where_it_has_no_embedding(run, pictures, tmp_path):
    teachers = {"big": {"type": "checkpoint", "model": str(run)}}
    found = built(pictures, tmp_path, teachers, mimic={"teacher": "big", **BY_FEATURE})
    batch = first_batch(found)
    model = zoo.load(run)
    sequence = model.tokens(Batch(batch.ids, {"image": batch.inputs["image@big"]}))["image"]
    expected = sequence.tokens[:, 1:].mean(1).detach()
    given = batch.targets[lesson_name("big", PredictionKind.FEATURES, "image")]
    torch.testing.assert_close(given.values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("view", list(View))
def test_student_and_teacher_see_the_same_or_a_clean_picture(view):
    kept = {"crop_scale": (0.2, 0.6), "flip_prob": 0.5, "colour_jitter": 0.4, "pad_crop": 3}
    augment = ImageAugment(**kept, erase_prob=1.0)
    student = ImagePreprocess.Config(size=(24, 24), augment=augment)
    other = ImagePreprocess.Config(size=(24, 24), mean=(0.0,) * 3, std=(1.0,) * 3)
    options = in_step(other, student)
    assert options.augment == ImageAugment(**kept)  # pyright: ignore[reportAttributeAccessIssue]
    alone = student.build()
    taught = Taught(alone, {"t": (options if view is View.SAME else other).build()}, {"t": view})
    raw = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for seed in range(5):
        first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
        item = taught(raw, generator=first)
        assert torch.equal(item.values, alone(raw, generator=second).values)
        assert torch.equal(first.get_state(), second.get_state())
        shown = item.beside["t"].values
        if view is View.CLEAN:
            assert torch.equal(shown, other.build()(raw).values)
            continue
        mean, std = (torch.tensor(x)[:, None, None] for x in (student.mean, student.std))
        whole = item.values != 0  # what is erased is the mean colour
        assert 0.5 < float(whole.float().mean()) < 1
        torch.testing.assert_close((item.values * std + mean)[whole], shown[whole], atol=1e-5, rtol=1e-5)
    assert torch.equal(taught(raw).values, alone(raw).values)


def test_the_student_starts_alike_and_nothing_of_a_teacher_learns(pictures, tmp_path):
    plain = built(pictures, tmp_path, {})
    teachers = {"clip": CLIP, "idle": RESNET}
    found = built(pictures, tmp_path, teachers, copy={"teacher": "clip", **BY_CLASS})
    for a, b in zip(plain.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b)
    classroom = found.learner.classroom
    assert classroom is not None
    assert list(classroom.teachers) == ["clip"]  # nobody asks the other
    module = classroom.teachers["clip"].module
    assert not module.training
    own = {id(p) for p in module.parameters()}
    assert not own & {id(p) for p in found.learner.parameters()}
    batch = found.learner.taught(next(iter(found.datamodule.loader("train"))))
    for name, task in found.learner.tasks.items():
        task.loss(found.model(batch, ["classify"]), batch).mean().backward()
        assert found.model.heads["classify"].layers[1].weight.grad.any(), name
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_a_sample_without_the_modality_is_left_out(pictures, tmp_path, generator):
    found = built(pictures, tmp_path, {"clip": CLIP}, mimic={"teacher": "clip", **BY_FEATURE})
    batch = next(iter(found.datamodule.loader("val")))
    rows = {
        m: ModalityInput(x.values[1:], x.index[1:], x.sizes[1:])
        for m, x in batch.inputs.items()
        if m.startswith("image")
    }
    part = found.learner.taught(Batch(batch.ids, rows, batch.targets))
    state = found.learner.tasks["mimic"].loss(found.model(part, ["mimic"]), part)
    assert state.total.count.item() == len(batch) - 1


def state_of(path: pathlib.Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_keeps_hashes_of_its_teachers_and_nothing_else(student, run):
    state = state_of(student / "checkpoints/last.ckpt")
    assert all(name.startswith("model.") for name in state)
    assert any(name.startswith("model.heads.mimic.") for name in state)  # to resume from
    config = json.loads((student / "export/config.json").read_text())
    assert config["teachers"]["big"]["sha256"] == sha256_of_weights(zoo.load(run))
    assert config["teachers"]["clip"]["source"] == "open_clip ViT-S-32, random weights of seed 0"
    model = zoo.load(student)
    assert list(model.heads) == ["classify"]
    assert not [n for n in model.state_dict() if "mimic" in n]
    assert config["parameters"] == model.num_params()
    for name in ("best", "last"):
        other = zoo.load(student / f"checkpoints/{name}.ckpt")
        assert list(other.heads) == ["classify"]


def test_a_run_is_evaluated_without_its_teachers(student, capsys):
    before = json.loads((student / "eval.json").read_text())["test"]["metrics"]
    assert not [k for k in before if k.startswith(("copy/", "mimic/"))]
    history = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert any("val/copy/loss" in line for line in history)
    for source in (student, student / "checkpoints/best.ckpt"):
        capsys.readouterr()
        assert main(["eval", str(source), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["metrics"]
        assert found == pytest.approx(before, abs=1e-5)


class SaveHalfway(pl.Callback):
    """Saves after the second step."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path, weights_only=False)


def test_a_resumed_run_repeats_the_whole_one(student, tmp_path):
    what, half = yaml.safe_load((student.parent / "r.yaml").read_text()), tmp_path / "half.ckpt"
    whole, resumed = (
        recipe.build(recipe.from_dict(what), callbacks=own) for own in ([SaveHalfway(half)], [])
    )
    whole.trainer.fit(whole.learner, datamodule=whole.datamodule)
    resumed.trainer.fit(
        resumed.learner, datamodule=resumed.datamodule, ckpt_path=str(half), weights_only=True
    )
    assert resumed.trainer.global_step == 4
    expected = whole.learner.state_dict()
    for name, tensor in resumed.learner.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(expected["model.heads.mimic.projections.image.weight"], _at(half))


def _at(path: pathlib.Path) -> Tensor:
    return state_of(path)["model.heads.mimic.projections.image.weight"]


def test_other_weights_of_a_teacher_stop_a_resume(student, pictures, tmp_path):
    what = yaml.safe_load((student.parent / "r.yaml").read_text())
    what["teachers"]["clip"]["seed"] = 1
    changed = recipe.build(recipe.from_dict(what))
    path = str(student / "checkpoints/last.ckpt")
    with pytest.raises(
        CheckpointError, match=r"teachers\.clip: weights .* expected those the run began with"
    ):
        changed.trainer.fit(changed.learner, datamodule=changed.datamodule, ckpt_path=path, weights_only=True)


def test_distillation_is_balanced_like_any_task(pictures, tmp_path):
    what = tree(pictures, tmp_path, {"clip": CLIP}, mimic={"teacher": "clip", **BY_FEATURE})
    what |= {"learner": {"balance": {"type": "pcgrad"}}, "trainer": {**what["trainer"], "max_steps": 1}}
    found = recipe.build(recipe.from_dict(what))
    found.trainer.fit(found.learner, datamodule=found.datamodule)
    assert {"train/classify/loss", "train/mimic/loss"} <= set(found.learner.last_losses)


def test_the_dry_run_says_who_teaches_and_what_it_costs(pictures, tmp_path, capsys):
    path = write(
        tmp_path / "r.yaml",
        tree(pictures, tmp_path / "x", {"clip": CLIP}, copy={"teacher": "clip", **BY_CLASS}),
    )
    assert main(["train", path, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    clip = plan["teachers"]["clip"]
    assert clip["gives"] == {"classes": ["image"]}
    assert clip["flops"] > 1e6
    assert plan["memory"]["teachers"] == 4 * clip["parameters"]
    assert plan["data"]["shapes"]["image@clip"] == [3, 32, 32]
    assert main(["train", path, "--dry-run"]) == 0
    assert "open_clip ViT-S-32, random weights of seed 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("teachers", "task", "line"),
    [
        ({"clip": CLIP}, {"teacher": "clap", **BY_CLASS}, "tasks.x.teacher: 'clap'; .*Did you mean 'clip'"),
        ({"clip": CLIP}, BY_CLASS, "tasks.x.teacher: none; expected one of the teachers .clip."),
        ({"net": RESNET}, {"teacher": "net", **BY_CLASS}, "teachers.net: no classes; expected features"),
        (
            {"net": RESNET},
            {"teacher": "net", **BY_FEATURE, "passes": ["text"]},
            r"teachers.net: no text \(text\); expected one of its inputs \(image\)",
        ),
        (
            {"net": RESNET},
            {"teacher": "net", **BY_FEATURE, "passes": ["image+text"]},
            r"teachers.net: no text \(text\); expected one of its inputs \(image\)",
        ),
        (
            {"clip": CLIP},
            {"teacher": "clip", **BY_FEATURE, "head": {"type": "projection", "embed_dim": 7}},
            r"tasks.x.head.embed_dim: 7 wide; expected the teacher's width \(image 24\)",
        ),
        (
            {"clip": CLIP},
            {"teacher": "clip", **CLASSIFY},
            "tasks.x.objective: a teacher .'clip'. for an objective without lessons",
        ),
        (
            {"clip": CLIP},
            {"teacher": "clip", "head_of": "clasify", "objective": {"type": "class_distillation"}},
            "tasks.x.head_of: no task 'clasify' with a head",
        ),
        (
            {"clip": CLIP},
            {
                "teacher": "clip",
                "head_of": "classify",
                "passes": ["image"],
                "objective": "class_distillation",
            },
            "head_of: head_of beside a head or passes",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(teachers, task, line, pictures, tmp_path, capsys):
    path = write(tmp_path / "r.yaml", tree(pictures, tmp_path / "x", teachers, x=task))
    assert main(["train", path, "--dry-run"]) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if "WARNING" not in text]
    assert [text for text in said if re.search(line, text)], said


def test_other_classes_are_named(run, pictures, tmp_path):
    teachers = {"big": {"type": "checkpoint", "model": str(run)}}
    found = built(pictures, tmp_path, teachers, copy={"teacher": "big", **BY_CLASS})
    teacher = found.learner.classroom.teachers["big"]  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ConfigError, match=r"2 classes of 'label', the student has 3 \('eel' differs\)"):
        teacher.learn_classes(("cat", "dog", "eel"))
