"""Answers to choose from in a manifest, and several captions: read, trained, resumed, scored."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import soundfile
import torch
from PIL import Image

from mmzoo import recipe, registry, schema
from mmzoo.cli.main import main
from mmzoo.datamodules.manifest import Manifest
from mmzoo.errors import ConfigError, DataError
from mmzoo.learners.callbacks import run_callbacks
from mmzoo.learners.evaluate import evaluate
from mmzoo.learners.keeper import Interrupted
from mmzoo.modalities.base import Preprocess
from mmzoo.recipe import Built

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning uses what torch deprecates
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),  # of the learner, as meant
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
Reads = dict[str, Preprocess]
PITCHES = {"low": 200.0, "middle": 700.0, "high": 2000.0}
RATE_HZ = 8000


@pytest.fixture
def reads() -> Reads:
    config = registry.find("modalities", "text").Config().preprocess
    config.tokenizer = registry.find("tokenizers", "bytes").Config()
    return {"text": config.build()}


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Write tones, a spectrogram-like picture of each, four captions, and a question with its answers."""
    folder, draw = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    time, names = np.arange(RATE_HZ // 4) / RATE_HZ, list(PITCHES)
    rows: list[dict[str, Any]] = []
    for i in range(32):
        name = names[i % 3]
        wave = 0.5 * np.sin(2 * np.pi * PITCHES[name] * (time + draw.random())) + 0.02 * draw.standard_normal(
            len(time)
        )
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), RATE_HZ)
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        choices = draw.permutation(names).tolist() if i % 4 else [name, names[(i + 1) % 3]]
        rows.append(
            {
                "id": f"t{i}",
                "sound": f"{i}.wav",
                "picture": f"{i}.png",
                "question": "how high?",
                "choices": choices,
                "answer": name,
                "captions": [f"a {name} tone", f"number {i}", f"{name} {i}", f"{i} is {name}"],
                "split": "train" if i < 20 else "val" if i < 26 else "test",
            }
        )
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def manifest(path: pathlib.Path, reads: Reads, choices: dict[str, Any], **options: Any) -> Manifest:
    whole = {"split": {"val_share": 0.0, "test_share": 0.0}}
    tree = {"path": str(path), "choices": {"column": "choices", **choices}, **whole, **options}
    return Manifest(schema.parse(Manifest.Config, tree), reads)


def told(data: Manifest, split: str = "train") -> list[tuple[list[str], int | None]]:
    """Return each sample's texts and its answer."""
    decode = registry.find("tokenizers", "bytes").Config().build().decode
    source = data.source(split)
    samples = [source.get(i, None) for i in range(len(source))]
    answers = [int(s.targets["answer"]) if "answer" in s.targets else None for s in samples]
    return [
        ([decode(item.values.tolist()) for item in s.entries("text")], answer)
        for s, answer in zip(samples, answers, strict=True)
    ]


def test_rows_become_samples_with_entries(tones: pathlib.Path, reads: Reads) -> None:
    """Other columns are left alone: the question is no label, the answers are no captions."""
    template = {"template": "{question} answer: {choice}"}
    data = manifest(tones / "rows.jsonl", reads, template, inputs={"audio": "sound"}, targets=[])
    info = data.info()
    assert info.labels == {"answer": ("0", "1", "2")}
    assert info.several == {"text": 3}
    assert set(info.modalities) == {"audio", "text"}
    rows = [json.loads(line) for line in (tones / "rows.jsonl").read_text().splitlines()]
    for (texts, answer), row in zip(told(data), rows, strict=False):
        assert texts == [f"how high? answer: {choice}" for choice in row["choices"]]
        assert row["choices"][answer] == row["answer"]


@pytest.mark.parametrize(
    ("answer", "options", "place"),
    [
        ("b", {}, 1),
        (2, {}, 2),
        ("2", {}, 2),
        ("", {}, None),
        ("1", {"answer_is": "number"}, 1),
        ("c", {"answer_is": "text"}, 2),
    ],
)
def test_an_answer_is_a_text_or_a_number(
    tmp_path: pathlib.Path, reads: Reads, answer: Any, options: dict[str, Any], place: int | None
) -> None:
    row = {"image": "x.png", "choices": ["a", "b", "c"], "answer": answer}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    data = manifest(tmp_path / "x.jsonl", reads, options, inputs={"image": "image"})
    assert told(data) == [(["a", "b", "c"], place)]


def test_a_table_has_them_in_one_cell(tmp_path: pathlib.Path, reads: Reads) -> None:
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["image", "q", "choices", "answer", "kind"],
                ["x.png", "what, now?", "yes| no |maybe", "no", "k"],
            ]
        )
    data = manifest(tmp_path / "x.csv", reads, {"template": "{q} {choice}"})
    assert data.info().labels == {"kind": ("k",), "answer": ("0", "1", "2")}
    assert told(data) == [(["what, now? yes", "what, now? no", "what, now? maybe"], 1)]


def test_questions_may_stand_alone(tmp_path: pathlib.Path, reads: Reads) -> None:
    row = {"question": "2 + 2?", "choices": ["four", "five"], "answer": "four"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    data = manifest(tmp_path / "x.jsonl", reads, {"template": "{question} {choice}"})
    assert data.info().modalities == ("text",)
    assert told(data) == [(["2 + 2? four", "2 + 2? five"], 0)]


@pytest.mark.parametrize(
    ("choices", "answer", "line"),
    [
        (["a", "b"], "c", r"x\.jsonl row 1 answer: 'c'; expected one of 'a', 'b', or its number from 0"),
        (["a", "b"], 2, r"row 1 answer: '2'; expected one of 'a', 'b'"),
        (["a"], "a", r"x\.jsonl row 1 choices: 1 answers; expected two or more"),
        ([], "a", r"row 1 choices: 0 answers; expected two or more"),
        (["a", "b", "a"], "a", r"'a' twice in 'a', 'b', 'a'; expected each answer once"),
        (["2", "1", "0"], "2", r"'2', one of '2', '1', '0' and a number too.*Set data\.choices\.answer_is"),
    ],
)
def test_wrong_answers_are_named(
    tmp_path: pathlib.Path, reads: Reads, choices: list[str], answer: Any, line: str
) -> None:
    row = {"image": "x.png", "choices": choices, "answer": answer}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=line):
        manifest(tmp_path / "x.jsonl", reads, {}, inputs={"image": "image"}).info()


def test_wrong_options_are_named(tones: pathlib.Path, reads: Reads) -> None:
    path = tones / "rows.jsonl"
    with pytest.raises(ConfigError, match=r"choices\.column: no column 'choice'.*Did you mean 'choices'"):
        manifest(path, reads, {"column": "choice"}).info()
    with pytest.raises(ConfigError, match=r"choices\.template: no column 'qestion'.*Did you mean 'question'"):
        manifest(path, reads, {"template": "{qestion} {choice}"}).info()
    with pytest.raises(ConfigError, match=r"choices\.template: '\{question\}'; expected a sentence with"):
        manifest(path, reads, {"template": "{question}"})
    with pytest.raises(ConfigError, match=r"text from another column too; expected from the answers alone"):
        manifest(path, reads, {}, inputs={"text": "captions"}).info()


def test_inspection_proposes_choices(tones: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (tones / "rows.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in row.items() if k != "captions"} for row in rows]
    (tones / "plain.jsonl").write_text("\n".join(map(json.dumps, plain)))
    assert main(["data", "inspect", str(tones / "plain.jsonl"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["choices"] == {"column": "choices", "template": "{question} answer: {choice}"}
    assert report["classes"]["answer"].keys() <= {"0", "1", "2"}
    assert report["modalities"]["text"]["count"] == 32


def test_pictures_to_choose_from(tones: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A sentence and two pictures: which does it describe?"""
    config = registry.find("modalities", "image").Config().preprocess
    config.size = (16, 16)
    row = {"text": "the red one", "choices": ["3.png", "4.png"], "answer": 1}
    (tones / "pictures.jsonl").write_text(json.dumps(row))
    image = {"image": config.build()}
    data = manifest(tones / "pictures.jsonl", image, {"modality": "image"}, inputs={"text": "text"})
    sample = data.source("train").get(0, None)
    assert data.info().several == {"image": 2}
    for name, item in zip(row["choices"], sample.several["image"], strict=True):
        expected = image["image"](image["image"].open(str(tones / name)))
        assert torch.equal(item.values, expected.values)


# -- from end to end

TRUNK = [
    "model.trunk.dim=32",
    "model.trunk.depth=2",
    "model.trunk.num_heads=2",
    "model.trunk.ffn.hidden_dim=32",
    "model.trunk.layer_scale_init=0.1",
    "model.trunk.drop_path_prob=0.1",
    "model.modalities.text.preprocess.tokenizer={type: bytes}",
    "model.modalities.text.num_bias_tables=1",
]
SHORT = [
    "trainer.max_epochs=-1",
    "trainer.max_steps=6",
    "trainer.accumulate=1",
    "trainer.precision=32-true",
    "trainer.checkpointing=none",
    "trainer.threads=1",
    "data.loader.batch_size=4",
    "learner.optim.lr=1e-3",
]
RECIPES = {
    "onepeace_avqa": [
        "data.inputs={audio: sound}",
        "model.modalities.audio={type: mel, patch_mels: 64}",
        "tasks.classify.head.pool_heads=2",
    ],
    "onepeace_coco": [
        "data.inputs={image: picture, text: captions}",
        "model.modalities.image.preprocess.size=[16, 16]",
        "model.modalities.image.num_bias_tables=1",
    ],
}


def options(name: str, tones: pathlib.Path, *more: str) -> list[str]:
    return [f"data.path={tones / 'rows.jsonl'}", *RECIPES[name], *TRUNK, *SHORT, *more]


class Watch(pl.Callback):
    """Keeps each step's loss and who was in the batch; presses Ctrl-C during a step."""

    def __init__(self, stop: int = 0) -> None:
        self.seen: list[tuple[tuple[str, ...], float]] = []
        self.stop = stop

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.stop - 1:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        self.seen.append((batch.ids, float(pl_module.last_losses["train/loss"])))


def fit(name: str, overrides: Sequence[str], *callbacks: pl.Callback, resume: str | None = None) -> Built:
    built = recipe.build(recipe.load(name, overrides), callbacks=callbacks)
    built.trainer.fit(built.learner, datamodule=built.datamodule, ckpt_path=resume, weights_only=True)
    return built


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_run_stopped_in_mid_epoch_repeats_the_whole(
    name: str, tones: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = options(name, tones)
    config = recipe.load(name, given).trainer

    def keep(part: str) -> list[pl.Callback]:
        return run_callbacks(config, tmp_path / part / "metrics.jsonl", tmp_path / part / "checkpoints")

    whole, watch = Watch(), Watch()
    first = fit(name, given, whole)
    with pytest.raises(Interrupted, match="stopped at step 3"):
        fit(name, given, *keep("parts"), Watch(stop=3))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    again = fit(name, given, *keep("parts"), watch, resume=str(last))
    assert watch.seen == whole.seen[3:]
    for key, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, first.model.state_dict()[key]), key
    figures = evaluate(again.learner, again.datamodule, "test").metrics
    if name == "onepeace_avqa":
        # 6 held out: two with two answers each (i = 28, and 24 is of val), the others with three
        assert figures["classify/chance"] == pytest.approx((1 / 2 + 5 / 3) / 6)
        assert 0 <= figures["classify/top1"] <= 1
    else:
        assert figures["align/mean/chance"] == pytest.approx(1 / 6)
        assert {"align/image->text/any/R@1", "align/text->image/each/R@1", "align/mean/R@1"} <= set(figures)


def test_commands_with_choices(
    tones: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = options("onepeace_avqa", tones, "trainer.max_steps=2", f"run_dir={run}")
    assert main(["train", "onepeace_avqa", *given, "--dry-run"]) == 0
    assert "label answer" in capsys.readouterr().out
    assert main(["train", "onepeace_avqa", *given]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert "classify/top1" in capsys.readouterr().out
