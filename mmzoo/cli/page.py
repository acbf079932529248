"""report.html of a run: what was trained on what, how it went, what came out, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmzoo.cli import console, curves, html, results, svg
from mmzoo.cli.results import Results
from mmzoo.learners.history import read_history
from mmzoo.run_folder import RunFolder, read_json, write_text

LOG_LINES = 400
MOST_CARDS = 6


def write(folder: RunFolder) -> None:
    """Write the report from the files of the run."""
    history, found = read_history(folder.metrics), results.load(folder.evaluation)
    config = _yaml(folder.config)
    model = read_json(folder.path / "model.json")
    body = [
        _head(folder, config),
        html.cards(_cards(found, history, model)),
        html.section("Results", *(_results(r) for r in found.values())),
        html.section("What it retrieves", _picture(folder)),
        html.section("What it sees in every pixel", _panels(folder)),
        html.section("What it sees around the vehicle", _scenes(folder)),
        html.section("Training", html.grid(_charts(history))),
        html.section("Model and data", _model(model), _data(model)),
        html.section(
            "How to do it again",
            html.details(
                "Command", _text(folder.path / "command.txt") + _text(folder.path / "overrides.txt")
            ),
            html.details("Configuration", _text(folder.config)),
            html.details("Environment", _text(folder.path / "env.json")),
            html.details("Log", _tail(folder.log)),
        ),
    ]
    write_text(folder.report, html.page(f"{config.get('name', folder.path.name)} · mmzoo", body))


def _head(folder: RunFolder, config: Mapping[str, Any]) -> str:
    status = folder.status()
    env = read_json(folder.path / "env.json")
    words = [str(folder.path), status.get("status", "unknown"), env.get("time", ""), env.get("cpu", "")]
    words += env.get("gpus", [])
    line = " · ".join(html.escape(w) for w in words if w)
    return f"<h1>{html.escape(config.get('name', folder.path.name))}</h1><div class='soft'>{line}</div>"


def _cards(
    found: Mapping[str, Results], history: Sequence[Mapping[str, Any]], model: Mapping[str, Any]
) -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = []
    for split, result in found.items():
        shares = {
            k: v for k, v in results.headline(result).items() if not k.endswith(("loss", "chance", "MedR"))
        }
        items += [
            (f"{name} ({split})", results.show(name, value)) for name, value in list(shares.items())[:3]
        ]
    items = items[:MOST_CARDS]
    total = model.get("parameters", {}).get("total")
    if total:
        items.append(("parameters", console.short(total)))
    if history:
        last = history[-1]
        items += [("steps", f"{last['step']:,}"), ("training time", console.clock(last["time_s"]))]
        speeds = [line for line in history if line.get("mfu")]
        if speeds:
            middle = sorted(line["mfu"] for line in speeds)[len(speeds) // 2]
            items.append(("median MFU", f"{middle:.0%}"))
    return items


def _results(found: Results) -> str:
    rows = [(name, results.show(name, value)) for name, value in results.headline(found).items()]
    caption = f"{found.split}: {found.samples:,} samples, weights {Path(found.checkpoint).name}"
    parts = [html.figure(html.table(("figure", "value"), rows, right=(1,)), caption)]
    for name, matrix in found.matrices.items():
        retrieval, routing = results.is_retrieval(name), results.is_routing(name)
        corner = "given ↓ found →" if retrieval else "from ↓ expert →" if routing else "true ↓ predicted →"
        heat = html.heat(matrix, percent=retrieval or routing, corner=corner)
        parts.append(html.figure(heat, title=results.title(name)))
    pairs = {k: v for k, v in found.metrics.items() if results.PAIR in k}
    every = html.details("Every pair", "\n".join(f"{k}  {results.show(k, v)}" for k, v in pairs.items()))
    return html.grid(parts) + every


def _picture(folder: RunFolder) -> str:
    caption = (
        "Held-out events: left what is given, right the three nearest in each other sense; green is right."
    )
    return html.picture(folder.plots / "retrieval.png", caption)


def _panels(folder: RunFolder) -> str:
    caption = "Held-out images: for each task the truth, then what was found; grey has no label."
    return html.picture(folder.plots / "dense.png", caption)


def _scenes(folder: RunFolder) -> str:
    caption = "Held-out scenes from above: the truth, then what was found; voxels are brighter the higher."
    return html.picture(folder.plots / "scenes.png", caption)


def _charts(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return [html.figure(svg.chart(panel), title=panel.title) for panel in curves.panels(history)]


def _model(model: Mapping[str, Any]) -> str:
    rows = [(part, f"{count:,}") for part, count in model.get("parameters", {}).items()]
    return html.table(("part", "parameters"), rows, right=(1,))


def _data(model: Mapping[str, Any]) -> str:
    rows = [("samples: " + split, f"{count:,}") for split, count in model.get("samples", {}).items()]
    rows += [(f"classes of {name}", f"{count:,}") for name, count in model.get("labels", {}).items()]
    rows += [(f"voxels of {name}", f"{count:,}") for name, count in model.get("subjects", {}).items()]
    return html.table(("data", "number"), rows, right=(1,))


def _yaml(path: Path) -> dict[str, Any]:
    node = yaml.safe_load(_text(path) or "{}")
    return node if isinstance(node, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _tail(path: Path) -> str:
    return "\n".join(_text(path).splitlines()[-LOG_LINES:])
