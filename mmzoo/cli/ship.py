"""Put a run's weights into the package with their card: `python -m mmzoo.cli.ship RUN ARCH.TAG`.

Writes `weights/ARCH.TAG/` (model.safetensors in float16, config.json, golden.json) and
`models/cards/ARCH.TAG.yaml` (size, sha256, metrics, commands, an excerpt of the log). The figures on the card
are measured with the stored weights; they must not be worse than the run's own by more than `SLACK`, and the
files must fit into `LIMIT_BYTES`.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mmzoo import run_folder, zoo
from mmzoo.checkpoints import cards, files
from mmzoo.cli import catalog, console, finish, sources
from mmzoo.cli.results import Results
from mmzoo.errors import CheckpointError, ConfigError, MmzooError
from mmzoo.run_folder import RunFolder
from mmzoo.zoo import golden
from mmzoo.zoo.publish import published

LIMIT_BYTES = 10_000_000
SLACK = 0.005
"""Largest loss of a share (recall, accuracy) through storing in half precision."""
LOCAL = ("run_dir=", "overwrite=", "resume=", "runs_root=", "tag=")
"""Overrides that say where a run lies, not what it does."""
EXCERPT = 12
"""Lines of the log on the card."""


def ship(run: Path, name: str) -> Path:
    """Write weights and card of a run; return the card."""
    arch, _, tag = name.partition(".")
    if not tag:
        raise ConfigError.at(
            "ship", repr(name), "ARCH.TAG", "Name the data, e.g. five_senses_tiny.five_senses."
        )
    folder = RunFolder(run)
    kept = run_folder.read_json(folder.evaluation)
    if not kept:
        raise CheckpointError.at(str(run), "no eval.json", "a finished run", "Finish it.")
    cards.SHIPPED.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cards.SHIPPED))
    try:
        _write_weights(run, made)
        found = _measure(made)
        _check(found, kept[found.split]["metrics"], made)
        target = cards.SHIPPED / name
        made.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    card = cards.FOLDER / f"{name}.yaml"
    run_folder.write_text(card, _card(arch, tag, folder, found))
    return card


def _write_weights(run: Path, folder: Path) -> None:
    """Write the run's best weights in half precision, and what the model makes of them."""
    model, config = zoo.load_with_config(run)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    if not all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        do = "Store it in float32 elsewhere."
        raise CheckpointError.at(str(run), "weights beyond 65,504", "what float16 can hold", do)
    files.write_export(folder, state, {**published(config), "stored_as": "float16"})
    (folder / files.WEIGHTS).chmod(0o644)
    golden.write(zoo.load(folder), folder)


def _measure(folder: Path) -> Results:
    found = sources.trained(str(folder), [])
    return finish.measure(found.built, finish.report_split(found.built), found.source)


def _check(found: Results, before: Mapping[str, float], folder: Path) -> None:
    size = sum(p.stat().st_size for p in folder.iterdir())
    if size > LIMIT_BYTES:
        raise CheckpointError.at(
            str(folder), f"{size:,} bytes", f"at most {LIMIT_BYTES:,}", "Shrink the model."
        )
    for name, value in found.metrics.items():
        if "/mean/R@" in name and value < before[name] - SLACK:
            expected = f"{before[name]:.4f}, as the run measured"
            raise CheckpointError.at(name, f"{value:.4f} in float16", expected, "Store it in float32.")


def _card(arch: str, tag: str, folder: RunFolder, found: Results) -> str:
    weights = cards.SHIPPED / f"{arch}.{tag}" / files.WEIGHTS
    config = files.read_config(weights.parent)
    known = cards.cards().get(f"{arch}.{tag}")
    tree = {
        "arch": arch,
        "tag": tag,
        "default": True,
        "licence": "Apache-2.0",
        "origin": "trained with mmzoo",
        "layout": cards.Layout.MMZOO.value,
        "modalities": config["modalities"],
        "tasks": sorted({catalog.task_kind(t) for t in config["recipe"]["tasks"].values()}),
        "bytes": weights.stat().st_size,
        "sha256": config["sha256"],
        "metrics": _metrics(config["recipe"], found),
        "fine_tune": known.fine_tune if known else {},
        "training": _training(f"{arch}.{tag}", folder, config),
    }
    recipe = config["recipe"]["name"]
    summary = f"# {arch} as `mmzoo train {recipe}` leaves it; stored in half precision inside the package."
    return f"{summary}\n{_dump(tree)}"


def _dump(tree: Mapping[str, Any]) -> str:
    """Return YAML with one line a metric and one line a line of the log."""
    facts = {k: v for k, v in tree.items() if k != "training"}
    head = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=300)
    return head + yaml.safe_dump({"training": tree["training"]}, sort_keys=False, width=300)


def _metrics(recipe: Mapping[str, Any], found: Results) -> list[dict[str, Any]]:
    """Return the means over all directions and, of R@1, every direction."""
    where = f"{recipe['name']} {found.split}"
    how = (
        f"{found.samples} samples, each the query once in every direction; cosine; weights stored in float16"
    )
    shown = [n for n in found.metrics if "/mean/" in n and not n.endswith("chance")]
    shown += [n for n in found.metrics if "->" in n and n.endswith("/R@1")]
    return [
        {
            "data": where,
            "metric": name,
            "value": round(found.metrics[name] * (1 if name.endswith("MedR") else 100), 2),
            "protocol": how + (", rank" if name.endswith("MedR") else ", per cent"),
        }
        for name in shown
    ]


def _training(name: str, folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    words = shlex.split((folder.path / "command.txt").read_text(encoding="utf-8"))
    command = shlex.join(w for w in words if not w.startswith(LOCAL))
    environment = run_folder.read_json(folder.path / "env.json")
    return {
        "commands": [command, f"python -m mmzoo.cli.ship RUN {name}"],
        "seed": config["recipe"]["seed"],
        "steps": config["recipe"]["trainer"]["max_steps"],
        "torch": environment.get("versions", {}).get("torch"),
        "cpu": environment.get("cpu"),
        "log": _excerpt(folder.log.read_text(encoding="utf-8")),
    }


def _excerpt(text: str) -> list[str]:
    """Return evenly spaced step lines and all validations."""
    lines = [line.split(": ", 1)[1] for line in text.splitlines() if ".progress: step" in line]
    steps = [line for line in lines if "validation" not in line]
    spaced = steps[:: max(1, len(steps) // EXCERPT)]
    return [" ".join(line.split()) for line in lines if line in spaced or "validation" in line]


def main(argv: Sequence[str] | None = None) -> int:
    """Ship what the command line names."""
    what = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m mmzoo.cli.ship", description=what)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("name", help="ARCH.TAG")
    args = parser.parse_args(argv)
    try:
        console.say(str(ship(args.run, args.name)))
    except MmzooError as error:
        console.note(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
