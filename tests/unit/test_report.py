"""Figures, curves, pictures and the page: from a run's files to what a person sees."""

from __future__ import annotations

import builtins
import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo import run_folder
from mmzoo.batch import Item, Sample
from mmzoo.cli import curves, gallery, main, page, plots, results, svg, thumbnails
from mmzoo.cli import html as markup
from mmzoo.cli.results import Matrix, Results
from mmzoo.learners.evaluate import Evaluation
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.motion import SkeletonPreprocess
from mmzoo.modalities.text import TextPreprocess
from mmzoo.run_folder import RunFolder

NAN = float("nan")
FOUND = Results(
    split="test",
    metrics={
        "align/loss": 1.25,
        "align/loss/image~text": 1.0,
        "align/image->text/R@1": 0.5,
        "align/mean/R@1": 0.375,
        "align/mean/MedR": 3.0,
        "classify/top1": 0.9,
    },
    matrices={
        "align/retrieval": Matrix(("image", "text"), ("image", "text"), ((NAN, 0.5), (0.25, NAN))),
        "classify/confusion": Matrix(("cat", "dog"), ("cat", "dog"), ((8.0, 2.0), (0.0, 10.0))),
    },
    samples=20,
    checkpoint="run/checkpoints/best.ckpt",
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run with everything a report is made of."""
    run = RunFolder(tmp_path / "run")
    run.record({"name": "demo & <more>", "seed": 1}, ["seed=1"])
    history = [
        {"step": s, "epoch": 0, "time_s": 2.0 * s, "train/loss": 3.0 / s, "lr": 1e-3 / s, "mfu": 0.4}
        for s in range(1, 9)
    ]
    history.insert(
        4,
        {
            "step": 4,
            "epoch": 0,
            "time_s": 8.5,
            "val/loss": 1.1,
            "val/classify/top1": 0.5,
            "val/classify/loss": 1,
        },
    )
    history.append(
        {
            "step": 8,
            "epoch": 0,
            "time_s": 17.0,
            "val/loss": 0.9,
            "val/classify/top1": 0.75,
            "val/classify/loss": 1,
        }
    )
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in history))
    results.save(run.evaluation, FOUND)
    run_folder.write_json(
        run.path / "model.json", {"parameters": {"trunk": 10, "total": 1234567}, "samples": {"test": 20}}
    )
    run.mark(run_folder.Status.FINISHED)
    run.log.write_text("a line of <log>\n")
    return run


def test_results_survive_the_file(folder: RunFolder):
    kept = results.load(folder.evaluation)["test"]
    assert kept.metrics == FOUND.metrics
    assert (kept.split, kept.samples, kept.checkpoint) == (FOUND.split, FOUND.samples, FOUND.checkpoint)
    assert str(kept.matrices) == str(FOUND.matrices)
    results.save(folder.evaluation, Results("val", {"a/b": 1.0}))
    assert set(results.load(folder.evaluation)) == {"test", "val"}


def test_the_axes_of_matrices_get_their_names():
    found = Evaluation(
        "val",
        {},
        {
            "t/retrieval": np.eye(2),
            "c/image/confusion": np.eye(3),
            "c/odd": np.eye(2),
            "big/confusion": np.eye(201),
        },
        {"t/retrieval": ("image", "text"), "c/confusion": ("a", "b", "c")},
    )
    named = results.from_evaluation(found, 5, "x").matrices
    assert {k: m.rows for k, m in named.items()} == {
        "t/retrieval": ("image", "text"),
        "c/image/confusion": ("a", "b", "c"),
        "c/odd": ("0", "1"),
    }


def test_the_printed_tables_show_headline_figures_and_the_matrix():
    text = results.text(FOUND)
    assert "align/mean/R@1   37.5 %" in text
    assert "align/mean/MedR  3" in text
    assert "->" not in text
    assert "~" not in text
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["image", "text"],
        ["image", "–", "50.0"],
        ["text", "25.0", "–"],
    ]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("a/R@1", 0.1234, "12.3 %"),
        ("a/MedR", 1.0, "1"),
        ("a/loss", 0.5, "0.5"),
        ("a/x", 12.345, "12.35"),
        ("a/top1", 1.0, "100.0 %"),
    ],
)
def test_shares_are_shown_in_per_cent(name: str, value: float, shown: str):
    assert results.show(name, value) == shown


def test_panels_hold_loss_metrics_rate_and_speed(folder: RunFolder):
    found = {p.name: p for p in curves.panels(page.read_history(folder.metrics))}
    assert list(found) == ["loss", "metrics_classify", "learning_rate", "speed"]
    assert found["loss"].curves["validation"] == ((4.0, 1.1), (8.0, 0.9))
    assert found["loss"].curves["train"][:2] == ((1.0, 3.0), (2.0, 1.5))
    assert dict(found["metrics_classify"].curves) == {"top1": ((4.0, 0.5), (8.0, 0.75))}


def test_smoothing_is_a_moving_average_that_looks_back():
    points = tuple((float(i), float(i % 2)) for i in range(40))
    smooth = curves.smoothed(points)
    assert smooth[0] == (0.0, 0.0)
    assert {y for _, y in smooth[1:]} == {0.5}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([3.1, 7.2], [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
        ([1.0, 600.0], [0.0, 200.0, 400.0, 600.0]),
        ([5.0], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
        ([], [-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]),
        ([1e-5, 3e-5, math.inf], [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
    ],
)
def test_ticks_are_round_and_span_the_values(values: list[float], expected: list[float]):
    found = svg.ticks(values)
    assert found[0] <= min((v for v in values if math.isfinite(v)), default=0)
    assert found[-1] >= max((v for v in values if math.isfinite(v)), default=0)
    if len(set(values)) > 1:
        assert found == pytest.approx(expected)


def test_a_chart_is_valid_svg_with_its_points_in_place():
    panel = curves.Panel(
        "p", "a <title>", {"one": ((0.0, 0.0), (10.0, 1.0)), "two": ((5.0, 0.5),)}, percent=True
    )
    root = ET.fromstring(svg.chart(panel))
    space = "{http://www.w3.org/2000/svg}"
    (line,) = root.findall(f"{space}polyline")
    left, right, top, bottom = svg.LEFT, svg.WIDTH - svg.RIGHT, svg.TOP, svg.HEIGHT - svg.BOTTOM
    assert line.get("points") == f"{left:.1f},{bottom:.1f} {right:.1f},{top:.1f}"
    (dot,) = root.findall(f"{space}circle")
    assert (float(dot.get("cx", 0)), float(dot.get("cy", 0))) == ((left + right) / 2, (top + bottom) / 2)
    texts = [t.text for t in root.findall(f"{space}text")]
    assert {"0 %", "100 %", "10", "step", "one", "two"} <= set(texts)


VOID = ("meta", "img", "line", "circle", "polyline")


class Outline(html.parser.HTMLParser):
    """Checks that tags nest, and collects what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_report_is_one_self_contained_page(folder: RunFolder):
    Image.new("RGB", (8, 8)).save(folder.plots / "retrieval.png")
    page.write(folder)
    text = folder.report.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert all(source.startswith("data:image/png;base64,") for source in outline.fetched)
    assert "url(" not in text
    wanted = ["Results", "What it retrieves", "Training", "Model and data", "How to do it again"]
    assert outline.headings == wanted
    for piece in (
        "demo &amp; &lt;more&gt;",
        "37.5 %",
        "1.23M",
        "1,234,567",
        "a line of &lt;log&gt;",
        "seed=1",
        "&quot;python&quot;",
    ):
        assert piece in text
    assert text.count("<svg") == 4


def test_a_run_that_has_hardly_begun_has_a_report_too(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.record({}, [])
    page.write(run)
    outline = Outline()
    outline.feed(run.report.read_text())
    assert outline.headings == ["How to do it again"]


def test_heat_darkens_with_the_share_by_row_for_counts():
    shade = r"<td style='[^']*/ ([\d.]+)\)'>"
    counts = markup.heat(FOUND.matrices["classify/confusion"], percent=False)
    assert [float(v) for v in re.findall(shade, counts)] == [0.72, 0.18, 0.0, 0.9]
    shares = markup.heat(FOUND.matrices["align/retrieval"], percent=True)
    assert [float(v) for v in re.findall(shade, shares)] == [0.9, 0.45]
    assert shares.count(">–</td>") == 2


def test_plots_are_drawn_for_curves_and_matrices(folder: RunFolder):
    plots.draw_all(folder)
    names = {p.name for p in folder.plots.iterdir()}
    wanted = {"loss", "metrics_classify", "learning_rate", "speed", "align_retrieval", "classify_confusion"}
    assert names == {f"{n}.png" for n in wanted}
    for name in names:
        with Image.open(folder.plots / name) as picture:
            assert min(picture.size) > 250
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_without_matplotlib_the_curves_become_svg(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    plots.draw_all(folder)
    names = {p.name for p in folder.plots.iterdir()}
    assert names == {"loss.svg", "metrics_classify.svg", "learning_rate.svg", "speed.svg"}
    ET.fromstring((folder.plots / "loss.svg").read_text())


def test_the_verb_rebuilds_both(folder: RunFolder, capsys: pytest.CaptureFixture[str]):
    assert main.main(["report", str(folder.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == str(folder.report)
    assert len(told["plots"]) == 6
    assert folder.report.is_file()


def test_a_picture_is_shown_as_it_was_before_normalisation():
    prepare = ImagePreprocess.Config(size=(40, 20)).build()
    pixels = np.zeros((40, 20, 3), dtype=np.uint8)
    pixels[:, :10] = (250, 20, 30)
    pixels[:, 10:] = (10, 200, 90)
    shown = np.asarray(thumbnails.thumbnail(prepare(pixels), "image", prepare)).astype(int)
    assert shown.shape == (thumbnails.SIZE, thumbnails.SIZE, 3)
    middle, quarter = thumbnails.SIZE // 2, thumbnails.SIZE // 8
    assert np.abs(shown[middle, middle - quarter] - (250, 20, 30)).max() <= 2
    assert np.abs(shown[middle, middle + quarter] - (10, 200, 90)).max() <= 2
    assert tuple(shown[middle, 2]) == thumbnails.PAPER


def test_sounds_and_scans_are_drawn_where_there_is_something():
    nothing = Preprocess()
    wave = torch.zeros(4000)
    wave[2000:] = torch.sin(torch.arange(2000.0))
    shown = np.asarray(thumbnails.thumbnail(Item(wave), "audio", nothing)).astype(int)
    blue = (shown == thumbnails.PERSONS[0]).all(axis=2).sum(axis=0)
    half = thumbnails.SIZE // 2
    assert blue[8 : half - 4].max() <= 3
    assert blue[half + 4 : -8].min() > thumbnails.SIZE / 2
    tone = torch.zeros(30, 10)
    tone[:, 0] = 5.0
    low = np.asarray(thumbnails.thumbnail(Item(tone), "audio", nothing)).sum(axis=2)
    assert low[-4].min() > low[4].max()
    scan = torch.tensor([5.0] * 8 + [-5.0] * 8)
    up = np.asarray(thumbnails.thumbnail(Item(scan), "fmri", nothing)).astype(int)
    assert up[4, 4, 0] > up[4, 4, 2] + 50
    assert up[-4, 4, 2] > up[-4, 4, 0] + 50


def test_text_is_written_and_cut_to_fit():
    prepare = TextPreprocess.Config(tokenizer=TextPreprocess.Config().tokenizer).build()
    short = np.asarray(thumbnails.thumbnail(prepare("a dog"), "text", prepare))
    long = np.asarray(thumbnails.thumbnail(prepare("a dog " * 40), "text", prepare))
    assert (short != thumbnails.PAPER).any()
    assert (long[:, -3:] == thumbnails.PAPER).all()
    assert (long != thumbnails.PAPER).sum() > 4 * (short != thumbnails.PAPER).sum()
    wide = np.asarray(thumbnails.words("WWWWWW " * 5 + "W" * 60))
    assert (wide[:, -thumbnails.MARGIN :] == thumbnails.PAPER).all()


def test_a_body_is_drawn_bone_by_bone_with_its_head_up():
    prepare = SkeletonPreprocess.Config(num_frames=8).build()
    joints = torch.zeros(3, 8, 25, 1)
    joints[1] = torch.linspace(0, 1, 25)[None, :, None]
    shown = np.asarray(thumbnails.thumbnail(prepare(joints), "skeleton", prepare))
    blue = (shown == thumbnails.PERSONS[0]).all(axis=2)
    assert blue.sum() > 4 * thumbnails.SIZE / 4
    assert not (shown == thumbnails.PERSONS[1]).all(axis=2).any()
    empty = Item(torch.zeros(3, 8, 25, 2), torch.zeros(8, 25, 2, dtype=torch.bool))
    assert thumbnails.thumbnail(empty, "skeleton", prepare).size == (thumbnails.SIZE, thumbnails.SIZE)


def pool_of(vectors: dict[str, dict[str, list[float]]]) -> gallery.Pool:
    ids = dict.fromkeys(i for own in vectors.values() for i in own)
    tensors = {s: {i: torch.tensor(v) for i, v in own.items()} for s, own in vectors.items()}
    return gallery.Pool({i: Sample(i) for i in ids}, tensors)


def test_the_nearest_are_the_nearest():
    pool = pool_of(
        {"a": {"q": [1.0, 0.0]}, "b": {"q": [0.6, 0.8], "x": [1.0, 0.0], "y": [0.0, 1.0], "z": [0.8, 0.6]}}
    )
    assert gallery.nearest(pool, "q", "a", "b") == ["x", "z", "q"]


def test_queries_are_spread_evenly_over_whole_samples_and_never_chosen_by_result():
    whole = {f"s{i:02d}": [1.0] for i in range(20)}
    pool = pool_of({"a": whole, "b": {k: v for k, v in whole.items() if k != "s00"}, "c": whole})
    assert gallery.pick(pool, ["a", "b", "c"]) == [
        ("s01", "a"),
        ("s04", "b"),
        ("s08", "c"),
        ("s12", "a"),
        ("s16", "b"),
    ]
    assert gallery.pick(pool_of({"a": {"x": [1.0]}, "b": {"y": [1.0]}}), ["a", "b"]) == []
