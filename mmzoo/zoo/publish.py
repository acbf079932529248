"""A trained model in the hub's conventions: weights, configs, golden output and a README with front matter.

`write` makes the folder, `push` uploads it through huggingface_hub, `zoo.load("hf://org/repo")` reads it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmzoo import zoo
from mmzoo.checkpoints import files
from mmzoo.checkpoints.disk import write_atomic
from mmzoo.errors import CheckpointError
from mmzoo.zoo import golden, hub

PREPROCESSOR, README = "preprocessor_config.json", "README.md"
LOCAL = {
    "run_dir": "",
    "runs_root": "runs",
    "tag": "",
    "overwrite": False,
    "resume": "never",
    "init_from": "",
}
"""Options of a recipe that say where it ran on somebody's machine, and what they become."""
PIPELINES = {"image": "image-classification", "audio": "audio-classification", "text": "text-classification"}
USE = """\
```python
import mmzoo

model = mmzoo.create_model("hf://{repo}")
```

```console
$ mmzoo verify hf://{repo}
$ mmzoo embed hf://{repo} DATA -o vectors.npz
$ mmzoo train RECIPE init_from=hf://{repo}
```
"""
SHOWN = ("/mean/", "/top1", "/mean_class", "/mAP")
"""Parts of the names of the figures that a README shows."""


@dataclass(frozen=True)
class Publication:
    """What the README says beside what the weights' config knows."""

    repo: str
    licence: str = "apache-2.0"
    evaluation: Mapping[str, Any] | None = None
    """split -> what `mmzoo eval` found"""


def published(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what it says of the machine that it was trained on."""
    tree = config.get("recipe")
    return {**config, "recipe": {**tree, **LOCAL}} if isinstance(tree, Mapping) else dict(config)


def write(source: str | Path, folder: Path, about: Publication) -> Path:
    """Write the folder of a repository from a run, an export or a checkpoint; weights first, README last."""
    if folder.exists() and any(folder.iterdir()):
        do = "Choose another -o PATH."
        raise CheckpointError.at(str(folder), "a folder with files", "a new or empty one", do)
    model, config = zoo.load_with_config(source)
    config = published(config)
    zoo.export(model, folder, config)
    config = files.read_config(folder)
    golden.write(model, folder)
    _write_json(folder / PREPROCESSOR, {"library_name": "mmzoo", "modalities": config["preprocessing"]})
    for split, found in (about.evaluation or {}).items():
        _write_json(folder / "eval" / f"{split}.json", {**found, "checkpoint": files.WEIGHTS})
    write_atomic(folder / README, readme(config, about).encode())
    return folder


def push(source: str | Path, repo: hub.Repo, about: Publication, *, private: bool = False) -> str:
    """Upload a model to the hub, made there if need be; return the address of the commit."""
    with tempfile.TemporaryDirectory(prefix="mmzoo-push-") as scratch:
        folder = write(source, Path(scratch) / "repo", about)
        return upload(folder, repo, private=private)


def upload(folder: Path, repo: hub.Repo, *, private: bool = False) -> str:
    """Upload a folder as one commit; return its address."""
    where, client = f"hf://{repo.name}", hub.api()
    hub.ask(where, lambda: client.create_repo(repo.name, private=private, exist_ok=True))
    if repo.revision != "main":
        hub.ask(where, lambda: client.create_branch(repo.name, branch=repo.revision, exist_ok=True))
    message = f"Upload with mmzoo {zoo.__version__}"
    made = hub.ask(
        where,
        lambda: client.upload_folder(
            repo_id=repo.name, folder_path=folder, revision=repo.revision, commit_message=message
        ),
    )
    return str(made.commit_url)


def readme(config: Mapping[str, Any], about: Publication) -> str:
    """Return the model's card for the hub: front matter, what it is, how to use it, figures."""
    front = yaml.safe_dump(_front_matter(config, about), sort_keys=False, allow_unicode=True)
    counted = config.get("parameters", {}).get("total")
    size = f"{counted:,} parameters" if counted else "an mmzoo model"
    parts = [
        f"---\n{front}---\n\n# {about.repo.rsplit('/', 1)[-1]}\n",
        f"{', '.join(config['modalities'])}: {size}, trained by the recipe `{_recipe(config)}`.\n",
        USE.format(repo=about.repo),
        *_figures(about),
        "`config.json` holds every option of the model and its recipe, `preprocessor_config.json` what is\n"
        "done to each input, `golden.json` what the model makes of a fixed input.\n",
    ]
    return "\n".join(parts)


def _front_matter(config: Mapping[str, Any], about: Publication) -> dict[str, Any]:
    tree = config.get("recipe") or {}
    data = (tree.get("data") or {}).get("type", "")
    return {
        "library_name": "mmzoo",
        "pipeline_tag": _pipeline(config),
        "license": about.licence,
        **({"datasets": [data]} if data else {}),
        "tags": ["mmzoo", "multimodal", *config["modalities"]],
    }


def _pipeline(config: Mapping[str, Any]) -> str:
    """Return the hub's word for what the model does."""
    heads = [spec["head"].get("type") for spec in config["model"].get("heads", {}).values()]
    if "contrastive" in heads or len(config["modalities"]) != 1 or not heads:
        return "feature-extraction"
    return PIPELINES.get(config["modalities"][0], "feature-extraction")


def _recipe(config: Mapping[str, Any]) -> str:
    return str((config.get("recipe") or {}).get("name", "its own"))


def _figures(about: Publication) -> list[str]:
    rows = [
        f"| {split} | {name} | {value:.4g} |"
        for split, found in (about.evaluation or {}).items()
        for name, value in found["metrics"].items()
        if any(part in name for part in SHOWN)
    ]
    return ["| split | figure | value |\n| --- | --- | ---: |\n" + "\n".join(rows) + "\n"] if rows else []


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
