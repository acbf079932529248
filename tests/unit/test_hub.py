"""Publishing on a stand-in hub and loading from it: the same bytes and numbers, one line where it fails."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest
import torch
import yaml
from hub_server import Hub, serve_hub

import mmzoo
from mmzoo import recipe, zoo
from mmzoo.cli.main import main
from mmzoo.errors import CheckpointError, ConfigError, DownloadError
from mmzoo.zoo import hub as client
from mmzoo.zoo.verify import Outcome, verify

REPO = "me/five"
# huggingface_hub hands its HTTP client a stream in a way that the client no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Hub]:
    held = Hub(token="secret")
    with serve_hub(held) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("MMZOO_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.delenv("MMZOO_OFFLINE", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(client, "BACKOFF_S", 0.001)
        yield held


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return what push needs of a finished run."""
    built = recipe.build(recipe.load("five_senses", small))
    folder = tmp_path_factory.mktemp("hub") / "run"
    meta = {**built.learner.meta, "recipe": {**built.config.to_dict(), "run_dir": str(folder)}}
    zoo.export(built.model, folder / "export", meta)
    (folder / "config.yaml").write_text("{}")
    metrics = {"align/mean/R@1": 0.25, "loss": 2.0}
    found = {"test": {"split": "test", "metrics": metrics, "checkpoint": str(folder)}}
    (folder / "eval.json").write_text(json.dumps(found))
    return folder


def push(run: pathlib.Path, *more: str, repo: str = REPO) -> int:
    return main(["push", str(run), f"hf://{repo}", *more])


def test_what_is_pushed_comes_back_the_same(
    hub: Hub, run: pathlib.Path, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
):
    assert push(run, "--private") == 0
    commit = hub.heads[REPO, "main"]
    assert capsys.readouterr().out.strip().endswith(f"/{REPO}/commit/{commit}")
    assert hub.private[REPO]
    files = hub.repos[REPO][commit]
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "eval/test.json", "golden.json", "model.safetensors",
        "preprocessor_config.json",
    }  # fmt: skip
    assert files["model.safetensors"] == (run / "export/model.safetensors").read_bytes()
    assert str(run).encode() not in b"".join(files.values()), "paths of a machine are nobody's business"
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["library_name"] == "mmzoo"
    assert front["pipeline_tag"] == "feature-extraction"
    assert front["license"] == "apache-2.0"
    assert {"fmri", "skeleton"} < set(front["tags"])
    assert b"| test | align/mean/R@1 | 0.25 |" in files["README.md"]
    prep = json.loads(files["preprocessor_config.json"])["modalities"]
    assert prep["image"]["size"] == [32, 32]

    mine, theirs = zoo.load(run).state_dict(), mmzoo.create_model(f"hf://{REPO}").state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert {f.outcome for f in verify(f"hf://{REPO}") if f.check.startswith("golden")} == {Outcome.OK}
    reads = [r for r in hub.requests if "/resolve/" in r[1]]
    assert {r[2] for r in reads} == {"Bearer secret"}
    assert len(reads) == 5, "what is here is not fetched again"


def test_what_was_fetched_loads_offline_and_starts_a_run(
    hub: Hub, run: pathlib.Path, small: list[str], monkeypatch: pytest.MonkeyPatch
):
    push(run)
    zoo.load(f"hf://{REPO}")
    monkeypatch.setenv("MMZOO_OFFLINE", "1")
    asked = len(hub.requests)
    built = recipe.build(recipe.load("five_senses", [*small, f"init_from=hf://{REPO}"]))
    mine = zoo.load(run).state_dict()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in built.model.state_dict().items())
    assert len(hub.requests) == asked
    with pytest.raises(CheckpointError, match="v9 is not here, and the network is forbidden"):
        zoo.load(f"hf://{REPO}@v9")


def test_a_branch_is_a_revision_of_its_own(hub: Hub, run: pathlib.Path):
    push(run)
    push(run, repo=f"{REPO}@v2")
    assert set(hub.heads) == {(REPO, "main"), (REPO, "v2")}
    folder, _ = client.fetch(client.parse(f"hf://{REPO}@v2"))
    assert folder.name == hub.heads[REPO, "v2"]


def test_a_dry_run_writes_the_folder_and_asks_nobody(
    hub: Hub, run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "five"
    assert push(run, "--dry-run", "-o", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == sorted(
        p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()
    )
    assert hub.requests == []
    assert zoo.load(out).config.trunk.dim == 16
    assert push(run, "--dry-run", "-o", str(out)) == 2
    assert "a folder with files" in capsys.readouterr().err
    assert push(run, "-o", str(out)) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_corrupt_files_of_the_hub_are_refused(hub: Hub, run: pathlib.Path, name: str):
    push(run)
    hub.corrupt.add(name)
    with pytest.raises(CheckpointError, match=r"hash|sha256"):
        zoo.load(f"hf://{REPO}")
    assert not list((client.parse(REPO).folder).rglob(name))
    hub.corrupt.clear()
    assert zoo.load(f"hf://{REPO}").config.trunk.dim == 16


def test_a_busy_hub_is_asked_again_and_a_silent_one_given_up(hub: Hub, run: pathlib.Path):
    push(run)
    hub.failures[:] = [503, 429]
    assert zoo.load(f"hf://{REPO}").config.trunk.dim == 16
    hub.failures[:] = [500] * 20
    with pytest.raises(DownloadError, match="expected an answer of the hub"):
        zoo.load(f"hf://{REPO}")


def test_what_cannot_be_had_is_one_line(
    hub: Hub, run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(["download", "hf://me/none"]) == 2
    line = capsys.readouterr().err
    assert "hf://me/none: no such repository or revision, or no right to it (404)" in line
    assert line.count("\n") == 1
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert push(run) == 2
    assert "set HF_TOKEN" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected hf://org/repo"):
        client.parse("hf://five")
    hub.repos["me/data"] = {}
    hub.commit("me/data", "main", {"README.md": b"x"})
    with pytest.raises(CheckpointError, match=r"no config.json and no model.safetensors"):
        zoo.load("hf://me/data")


def test_a_repository_downloads_to_a_folder(hub: Hub, run: pathlib.Path, tmp_path: pathlib.Path):
    push(run)
    assert main(["download", f"hf://{REPO}", "-o", str(tmp_path / "copy")]) == 0
    assert zoo.load(tmp_path / "copy").config.trunk.dim == 16
    assert main(["download", f"hf://{REPO}", "--sha256", "0" * 64]) == 2
