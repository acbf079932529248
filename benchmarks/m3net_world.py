"""M3Net on simulated streets: three tasks jointly, one at a time, without MAFI, without channel scaling.

`python -m benchmarks.m3net_world --steps 400 --out m3net.json`: every model has the same backbone, budget and
data; scenes of validation are never trained on. Prints a table; figures are in per cent, higher is better.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import torch

from mmzoo.datamodules.world_driving.views import DrivingConfig, Scenes, frequencies, lidar_channels, scenes
from mmzoo.layers.channel_scaling import Gate
from mmzoo.models.m3net.grid import GridConfig
from mmzoo.models.m3net.losses import LossConfig, Truth, losses
from mmzoo.models.m3net.metrics import BoxScore, MapScore, OccupancyScore
from mmzoo.models.m3net.model import BOXES, MAP, OCCUPANCY, TASKS, Fusion, M3Net, M3NetConfig

HEADLINE = {BOXES: "nds", MAP: "miou", OCCUPANCY: "miou"}
RUNS: dict[str, tuple[list[str], Fusion, Gate]] = {
    "joint": (list(TASKS), Fusion.MAFI, Gate.LINEAR),
    "boxes alone": ([BOXES], Fusion.MAFI, Gate.LINEAR),
    "map alone": ([MAP], Fusion.MAFI, Gate.LINEAR),
    "occupancy alone": ([OCCUPANCY], Fusion.MAFI, Gate.LINEAR),
    "joint, MAFI off": (list(TASKS), Fusion.CONV, Gate.LINEAR),
    "joint, TCS off": (list(TASKS), Fusion.MAFI, Gate.OFF),
}


def model_config(world: DrivingConfig, tasks: list[str], fusion: Fusion, gate: Gate) -> M3NetConfig:
    """Return a model small enough for a CPU, on the world's grid."""
    grid = GridConfig(
        cells=world.cells, range_m=world.range_m, map_cells=world.map_cells, map_range_m=world.map_range_m
    )
    return M3NetConfig(
        camera_channels=world.camera_channels, lidar_channels=lidar_channels(world), neck_channels=24,
        dim=32, num_heads=4, layers=2, hidden_dim=64, num_boxes=24, levels=world.levels,
        tasks=tasks, grid=grid, fusion=fusion, gate=gate,
    )  # fmt: skip


def truth_of(batch: Scenes) -> Truth:
    """Return what is true of a batch, as the losses take it."""
    return Truth(batch.boxes, batch.classes, batch.map, batch.occupancy)


def train(model: M3Net, data: Sequence[Scenes], steps: int, seed: int) -> float:
    """Train with AdamW, one cycle of the rate; return the mean of the last twentieth's losses."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.2)
    counts = torch.stack([frequencies(b.occupancy) for b in data]).sum(dim=0)
    seen: list[float] = []
    model.train()
    for step in range(steps):
        batch = data[step % len(data)]
        out = model(batch.camera, batch.lidar)
        total = torch.stack(
            list(losses(out, truth_of(batch), model.config.grid, LossConfig(), counts).values())
        ).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        seen.append(float(total.detach()))
    tail = seen[-max(1, steps // 20) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def evaluate(model: M3Net, data: Sequence[Scenes]) -> dict[str, float]:
    """Return every figure, named `task/figure`."""
    model.eval()
    boxes, maps = BoxScore(model.config.num_classes), MapScore()
    voxels = OccupancyScore(model.config.occupancy_classes)
    for batch in data:
        out = model(batch.camera, batch.lidar)
        for i in range(len(batch.boxes)) if out.boxes else ():
            found, scores, kinds = (out.boxes[k][i] for k in ("boxes", "scores", "classes"))
            boxes.update(found, scores, kinds, (batch.boxes[i], batch.classes[i]))
        if out.map:
            maps.update(out.map["logits"].sigmoid(), batch.map)
        if out.occupancy is not None:
            voxels.update(out.occupancy.argmax(dim=1), batch.occupancy)
    parts = {BOXES: boxes.compute(), MAP: maps.compute(), OCCUPANCY: voxels.compute()}
    return {f"{task}/{k}": v for task, figures in parts.items() for k, v in figures.items()}


def batches(world: DrivingConfig, count: int, size: int, start: int) -> list[Scenes]:
    """Simulate scenes number `start` on, in batches."""
    return [scenes(world, 0, range(first, first + size)) for first in range(start, start + count, size)]


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train and evaluate every variant."""
    world = DrivingConfig(cells=options.cells)
    data = batches(world, options.scenes, options.batch, 0)
    held_out = batches(world, options.val_scenes, options.batch, 1_000_000)
    found: dict[str, dict[str, float]] = {}
    for name in options.runs:
        tasks, fusion, gate = RUNS[name]
        torch.manual_seed(options.seed)
        model = M3Net(model_config(world, tasks, fusion, gate))
        start = time.process_time()
        last = train(model, data, options.steps, options.seed)
        found[name] = {**evaluate(model, held_out), "loss": last, "cpu_s": time.process_time() - start}
        parameters = sum(p.numel() for p in model.parameters())
        found[name]["parameters"] = parameters
        line = "  ".join(f"{t} {found[name].get(f'{t}/{k}', float('nan')):5.1f}" for t, k in HEADLINE.items())
        sys.stdout.write(f"{name:18s} {line}  {parameters:,} parameters  {found[name]['cpu_s']:.0f} CPU s\n")
        sys.stdout.flush()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.m3net_world", description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=512)
    parser.add_argument("--val-scenes", type=int, default=64)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="RUN")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args(arguments)
    found = run(options)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
