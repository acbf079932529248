"""Cards, download, verify, convert and ship as a person uses them: what is said, what is left."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import pytest
import torch
import yaml
from file_server import Script, serve
from safetensors.torch import load_file, save_file

from mmzoo import recipe, zoo
from mmzoo.checkpoints import cards
from mmzoo.checkpoints.cards import Card, Layout
from mmzoo.cli import catalog, ship, transfers
from mmzoo.cli import list as listing
from mmzoo.cli.main import main
from mmzoo.errors import CheckpointError, ConfigError
from mmzoo.zoo import foreign, golden
from mmzoo.zoo.verify import Outcome, verify

NAME = "five_senses_tiny"


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("MMZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MMZOO_OFFLINE", raising=False)


@pytest.fixture(scope="module")
def onepeace(shared: pathlib.Path) -> dict[str, torch.Tensor]:
    """Return a small model's weights as the reference names them."""
    tensors = load_file(shared / "parity/onepeace_a.safetensors")
    state = {k[3:]: v for k, v in tensors.items() if k.startswith("sd.")}
    return {k: v for k, v in state.items() if not k.startswith("decoder_") and "_mask_" not in k}


@pytest.fixture
def released(onepeace: dict[str, torch.Tensor], tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "released.pt"
    torch.save({"model": onepeace, "cfg": None}, path)
    return path


def known(monkeypatch: pytest.MonkeyPatch, *found: Card) -> None:
    monkeypatch.setattr(cards, "cards", lambda: {c.name: c for c in found})


def test_every_card_says_what_it_must():
    for card in cards.cards().values():
        assert card.summary, card.name
        assert card.licence == "Apache-2.0"
        assert card.modalities, card.name
        assert card.shipped or card.urls, card.name
        assert all(m.protocol and m.value for m in card.metrics), card.name
        assert len([c for c in cards.cards().values() if c.arch == card.arch and c.default]) == 1
        if card.shipped:
            assert card.bytes == (card.shipped / "model.safetensors").stat().st_size
    names = [c.urls[0] for c in cards.cards().values() if c.layout is not Layout.MMZOO]
    assert len(set(names)) == 18


def test_a_card_that_is_wrong_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    (tmp_path / "a.b.yaml").write_text("# x\narch: a\ntag: c\n")
    with pytest.raises(ConfigError, match=r"the card of a\.c; expected a\.b"):
        cards.cards.__wrapped__()
    (tmp_path / "a.b.yaml").write_text("# x\narch: a\ntag: b\nsha: 1\n")
    with pytest.raises(ConfigError, match=r"card a\.b: sha: unknown key|sha"):
        cards.cards.__wrapped__()


def test_checkpoints_are_listed_by_pattern_modality_and_task():
    found = listing.select(["onepeace*"], "checkpoints", "audio", "retrieval")
    assert [e.name for e in found] == ["onepeace_4b.laion2b", "onepeace_4b.laion2b_ft_audiocaps_clotho"]
    assert found[0].facts["here"] == "to fetch"
    (shipped,) = catalog_entry(f"{NAME}.five_senses")
    assert shipped.facts["here"] == "shipped"
    with pytest.raises(ConfigError, match="Did you mean 'grounding'"):
        listing.select(["onepeace*"], None, None, "groundin")


def catalog_entry(name: str) -> list[catalog.Entry]:
    return [e for e in catalog.entries("checkpoints") if e.name == name]


def test_info_explains_a_checkpoint_and_knows_former_names(capsys: pytest.CaptureFixture[str]):
    assert main(["info", "ONE-PEACE"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("checkpoints/onepeace_4b.laion2b")
    assert "not published: the layout is what is verified" in out
    assert main(["info", f"checkpoints/{NAME}.five_senses", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["training"]["commands"][0] == "mmzoo train five_senses"
    assert len(facts["sha256"]) == 64
    assert any("validation" in line for line in facts["training"]["log"])


def test_the_shipped_weights_are_what_their_card_says():
    found = verify(NAME)
    assert {f.outcome for f in found} == {Outcome.OK}, found
    assert [f.check for f in found][:3] == ["bytes", "sha256", "layout"]
    assert {f.check for f in found[3:]} == {
        f"golden align/{m}" for m in ("image", "audio", "text", "fmri", "skeleton")
    }
    folder = cards.find(NAME).shipped
    assert folder is not None
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 10_000_000


def test_a_changed_weight_fails_hash_and_golden(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "copy"
    assert main(["download", NAME, "-o", str(folder)]) == 0
    state = load_file(folder / "model.safetensors")
    state["trunk.norm.norms.audio.weight"] *= 1.01
    config = json.loads((folder / "config.json").read_text())
    save_file(state, folder / "model.safetensors")
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 1
    checks = {c["check"]: c["outcome"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["sha256"] == checks["layout"] == "failed", "a file with the wrong hash is not loaded"
    config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(folder), "--json"]) == 1
    checks = {c["check"]: c["outcome"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["sha256"] == "ok"
    assert checks["golden align/audio"] == "failed"
    assert checks["golden align/image"] == "ok"


def test_golden_outputs_of_another_model_are_an_error(tmp_path: pathlib.Path):
    model = zoo.load(NAME)
    golden.write(model, tmp_path)
    kept = golden.read(tmp_path)
    assert kept is not None
    assert max(golden.errors(model, kept).values()) < 1e-6
    with pytest.raises(CheckpointError, match="other outputs"):
        golden.errors(model, golden.Golden(0, 1e-4, {"align/image": [0.0]}))
    short = {name: values[:-1] for name, values in kept.outputs.items()}
    assert set(golden.errors(model, golden.Golden(0, 1e-4, short)).values()) == {float("inf")}


def test_a_card_is_downloaded_from_its_mirrors_checked_by_layout_and_verified(
    released: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    gone, right = Script(b"", statuses=[(404, {})]), Script(released.read_bytes(), cuts=3, cut_after=50_000)
    with serve(gone) as first, serve(right) as second:
        known(monkeypatch, Card(arch="op", tag="x", layout=Layout.ONEPEACE, urls=[first, second]))
        assert main(["download", "op", "--json"]) == 0
        file = json.loads(capsys.readouterr().out)["files"][0]
        assert (file["sha256"], file["checked"], file["cached"]) == (right.sha256, ["layout"], False)
        assert main(["download", "op"]) == 0
        said = capsys.readouterr()
    assert "(was here)" in said.out
    assert "nobody has published its sha256, so only its layout is checked" in said.err
    found = {f.check: f for f in verify("op")}
    assert found["layout"].outcome is Outcome.OK
    assert found["sha256"].outcome is Outcome.UNKNOWN
    cached = cards.find("op").cached
    damaged = bytearray(cached.read_bytes())
    damaged[-5000] ^= 1
    cached.write_bytes(damaged)
    assert {f.check: f for f in verify("op")}["sha256"].outcome is Outcome.FAILED


def test_another_layout_never_reaches_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    torch.save({"model": {"a.b": torch.zeros(2)}}, tmp_path / "x.pt")
    with serve(Script((tmp_path / "x.pt").read_bytes())) as url:
        known(monkeypatch, Card(arch="op", tag="x", layout=Layout.ONEPEACE, urls=[url]))
        assert main(["download", "op"]) == 2
    assert "tensors called a.b" in capsys.readouterr().err
    assert not cards.find("op").cached.exists()


def test_addresses_and_files_download_where_told(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    body = b"weights" * 1000
    digest = hashlib.sha256(body).hexdigest()
    with serve(Script(body)) as url:
        assert main(["download", url, "--sha256", digest, "-o", f"{tmp_path}/new/"]) == 0
        assert (tmp_path / "new/weights.bin").read_bytes() == body
        assert main(["download", url, "--sha256", "0" * 64, "-o", str(tmp_path / "bad.bin")]) == 1
        assert not (tmp_path / "bad.bin").exists()
        assert main(["download", url, "--sha256", "zz"]) == 2
    source = tmp_path / "new/weights.bin"
    assert main(["download", f"file:{source}", "-o", str(tmp_path / "copy.bin")]) == 0
    assert (tmp_path / "copy.bin").read_bytes() == body
    assert main(["download", f"file:{source}"]) == 2
    monkeypatch.setenv("MMZOO_OFFLINE", "1")
    assert main(["download", "https://example.invalid/x.bin"]) == 2
    assert main(["download", "onepeace_4b.laion2b_ft_cocoo"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmzoo: error")]
    assert len(errors) == 5
    assert "MMZOO_OFFLINE is set" in errors[-2]
    assert "Did you mean 'laion2b_ft_coco'" in errors[-1]


def test_weights_go_to_an_export_and_back_unchanged(
    released: pathlib.Path, onepeace: dict[str, torch.Tensor], tmp_path: pathlib.Path
):
    export, back = tmp_path / "export", tmp_path / "back.pt"
    assert main(["convert", str(released), str(export)]) == 0
    assert main(["convert", str(export), str(back), "--to", "onepeace"]) == 0
    found = torch.load(back, weights_only=True)["model"]
    for name, tensor in onepeace.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name
    extra = sorted(found.keys() - onepeace.keys())
    assert all(name.endswith(("rp_bucket", "position_idx", "version")) for name in extra)
    assert foreign.count_onepeace(back, Layout.ONEPEACE) == len(zoo.load(export).state_dict())


def test_only_models_of_its_parts_are_written_as_onepeace(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "x.pt"
    assert main(["convert", "five_senses_tiny", str(target), "--to", "onepeace"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        "mmzoo: error: mmzoo convert --to onepeace: this model has parts that ONE-PEACE has"
    )
    assert line.endswith("expected a model of an onepeace_… preset. Write it with --to mmzoo.\n")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_converted_leaves_nothing(
    released: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(released), str(released)]) == 2
    assert main(["convert", str(released), str(tmp_path / "folder"), "--to", "onepeace"]) == 2
    assert main(["convert", NAME, str(tmp_path / "five.pt"), "--to", "onepeace"]) == 2
    said = capsys.readouterr().err
    assert "something is there" in said
    assert "expected a name in .safetensors, .pt, .pth" in said
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "home"] == before


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock: dict[str, Any] = {"now": 0.0}
    monkeypatch.setattr(transfers.time, "monotonic", lambda: clock["now"])
    plain = transfers.Bar("w")
    for second in range(0, 31):
        clock["now"] = float(second)
        plain(second * 1_000_000, 40_000_000)
    plain.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "w   25%  10MB of 40MB  1MB/s  left 30s",
        "w   50%  20MB of 40MB  1MB/s  left 20s",
        "w   75%  30MB of 40MB  1MB/s  left 10s",
    ]
    terminal = Terminal()
    monkeypatch.setattr(transfers.sys, "stderr", terminal)
    monkeypatch.delenv("MMZOO_NO_PROGRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    bar = transfers.Bar("w")
    bar(0, 100)
    clock["now"] += 1
    bar(100, 100)
    bar.close()
    assert "████████████████████████  100%  100B of 100B" in terminal.text
    assert terminal.text.count("\r") == 2
    assert terminal.text.endswith("\n")


def test_the_card_written_by_ship_is_the_committed_one():
    tree = yaml.safe_load((cards.FOLDER / f"{NAME}.five_senses.yaml").read_text())
    by_name = {m["metric"]: m["value"] for m in tree["metrics"]}
    assert by_name["align/mean/R@1"] > 50
    directions = [v for k, v in by_name.items() if "->" in k]
    assert len(directions) == 20
    assert sum(directions) / 20 == pytest.approx(by_name["align/mean/R@1"], abs=0.01)
    assert tree["training"]["steps"] == 900


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a folder that looks like a finished run of a small model."""
    built = recipe.build(recipe.load("five_senses", small))
    run = tmp_path_factory.mktemp("ship") / "run"
    meta = {**built.learner.meta, "recipe": {**built.config.to_dict(), "run_dir": str(run)}}
    zoo.export(built.model, run / "export", meta)
    (run / "config.yaml").write_text("{}")
    (run / "command.txt").write_text(f"mmzoo train five_senses run_dir={run} seed=3\n")
    (run / "env.json").write_text(json.dumps({"versions": {"torch": "2.11"}, "cpu": "a cpu"}))
    lines = [f"2026-01-01 INFO    mmzoo.learners.progress: step {n}/40  loss 1.0" for n in range(1, 41)]
    (run / "train.log").write_text("\n".join([*lines, lines[-1] + "  validation", "other: step"]))
    return run


def evaluated(run: pathlib.Path, recall: float) -> None:
    metrics = {f"align/mean/R@{k}": recall for k in (1, 5, 10)}
    (run / "eval.json").write_text(json.dumps({"test": {"split": "test", "metrics": metrics}}))


def test_a_run_is_put_into_the_package_whole_or_not_at_all(
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "weights")
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "cards")
    evaluated(finished, 1.0)
    assert ship.main([str(finished), "five.small"]) == 2
    assert "in float16; expected 1.0000, as the run measured" in capsys.readouterr().err
    assert list(cards.SHIPPED.iterdir()) == []
    assert not cards.FOLDER.exists()
    evaluated(finished, 0.0)
    assert ship.main([str(finished), "five"]) == 2
    assert ship.main([str(finished), "five.small"]) == 0
    (card,) = cards.cards.__wrapped__().values()
    folder = cards.SHIPPED / "five.small"
    assert card.name == "five.small"
    assert (card.bytes, card.shipped) == ((folder / "model.safetensors").stat().st_size, folder)
    assert card.training["commands"][0] == "mmzoo train five_senses seed=3"
    assert card.training["log"][0] == "step 1/40 loss 1.0"
    assert card.training["log"][-1] == "step 40/40 loss 1.0 validation"
    assert len(card.metrics) == 24
    state = load_file(folder / "model.safetensors")
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float16}
    assert str(finished) not in (folder / "config.json").read_text()
    for source in (folder.as_uri(), f"local-dir:{folder}"):
        kept, half = zoo.load(source).state_dict(), zoo.load(finished).state_dict()
        for name, tensor in half.items():
            assert torch.equal(kept[name], tensor.half().to(tensor.dtype)), name
