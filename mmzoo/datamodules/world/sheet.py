"""A picture of some events in all five senses, for the README and for looking at what a change did."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, Shaped

from mmzoo.datamodules.world import body, brain, scene
from mmzoo.datamodules.world.caption import caption
from mmzoo.datamodules.world.cast import PARTNER, PEOPLE
from mmzoo.datamodules.world.events import ATTRIBUTES, CLIP_S, Event, WorldConfig, make_events
from mmzoo.datamodules.world.render import Renderer, voxel_slices
from mmzoo.errors import DataError

INK, MUTED = "#22262e", "#8a919e"
_ROI_COLOURS = ("#3b6fb6", "#3f9c8f", "#c98a2b", "#b0486a")
_SUBJECT = "sub-01"


def varied_events(config: WorldConfig, number: int, split: str = "test") -> list[Event]:
    """Pick events that differ from those already picked in as many attributes as can be."""
    events = make_events(config, split)
    picked = [events[0]]
    while len(picked) < min(number, len(events)):
        seen = [{getattr(e, name) for e in picked} for name in ATTRIBUTES]
        counts = [sum(e.setting == s for e in picked) for s in range(len(ATTRIBUTES["setting"]))]
        fresh = [
            sum(getattr(e, name) not in values for name, values in zip(ATTRIBUTES, seen, strict=True))
            - 0.1 * counts[e.setting]
            - (100 if e in picked else 0)
            for e in events
        ]
        picked.append(events[int(np.argmax(fresh))])
    return picked


def contact_sheet(path: Path, config: WorldConfig, events: Sequence[Event]) -> Path:
    """Draw a row for each event (image, skeleton, audio, fMRI, text) and write a PNG; needs the `report`
    extra."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        do = "Install it: pip install 'mmzoo[report]'."
        raise DataError.at("contact_sheet", "matplotlib is missing", "the report extra", do) from error
    arrays = Renderer(config)(events)
    height = 1.42 * len(events) + 0.35
    figure = Figure(figsize=(10.4, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(events), 5, width_ratios=(1.0, 1.25, 1.7, 1.7, 1.8), hspace=0.12, wspace=0.1,
        left=0.01, right=0.99, top=1 - 0.32 / height, bottom=0.08 / height,
    )  # fmt: skip
    for row, event in enumerate(events):
        axes = [figure.add_subplot(grid[row, column]) for column in range(5)]
        if row == 0:
            for axis, title in zip(axes, ("image", "skeleton", "audio", "fMRI", "text"), strict=True):
                axis.set_title(title, fontsize=10, color=INK, pad=6)
        axes[0].imshow(arrays["image"][row], interpolation="nearest")
        _skeleton(axes[1], event, arrays["skeleton"][row])
        _audio(axes[2], arrays["audio"][row], config.sample_rate_hz)
        _scan(axes[3], arrays["fmri"][row], config)
        _text(axes[4], event)
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
    figure.savefig(path)
    return path


def _skeleton(axis: Any, event: Event, clip: Float[np.ndarray, "3 t 25 2"]) -> None:
    moment, people = scene.telling_frame(event), (PEOPLE[event.colour], PARTNER)
    for slot in range(1 + event.is_pair):
        shirt = np.array(people[slot].shirt) / 255.0
        colour = shirt if shirt.min() < 0.9 else np.full(3, 0.72)
        for back, strength in zip(scene.STROBE, (0.12, 0.3, 1.0), strict=True):
            x, y = clip[0, moment - back, :, slot], clip[1, moment - back, :, slot]
            for joint, parent in enumerate(body.PARENTS):
                if parent >= 0:
                    ends = [joint, parent]
                    axis.plot(x[ends], y[ends], color=colour, alpha=strength, lw=2.0, solid_capstyle="round")
        for joint in (7, 11, 15, 19):
            axis.plot(clip[0, :, joint, slot], clip[1, :, joint, slot], color=colour, alpha=0.35, lw=0.6)
        axis.plot(*clip[:2, moment, 3, slot], "o", color=colour, ms=6)
    axis.margins(0.1)
    axis.set_aspect("equal", adjustable="datalim")


def _audio(axis: Any, wave: Int16[np.ndarray, " n"], rate_hz: int) -> None:
    """Draw the spectrogram in decibels, the waveform below it."""
    window, hop = 256, 64
    frames = np.lib.stride_tricks.sliding_window_view(wave / 32768.0, window)[::hop] * np.hanning(window)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)).T + 1e-3)
    extent = (0, CLIP_S, 0, rate_hz / 2000)
    axis.imshow(level, origin="lower", aspect="auto", cmap="magma", extent=extent, vmin=-45, vmax=level.max())
    below = 0.22 * rate_hz / 2000
    time = np.arange(len(wave)) / rate_hz
    shape = -below * (1.0 - 0.8 * wave / max(1, int(np.abs(wave).max())))
    axis.plot(time, shape, lw=0.4, color=INK)
    axis.set_xlim(0, CLIP_S)
    axis.set_ylim(-2 * below, rate_hz / 2000)


def _scan(axis: Any, scans: Shaped[np.ndarray, "r v"], config: WorldConfig) -> None:
    """Draw one subject's voxels, the mean of the repeats, coloured by region."""
    values = scans[:, voxel_slices()[_SUBJECT]].astype(np.float32).mean(axis=0)
    roi = brain.make_subject(_SUBJECT, config.world_seed, config.ncsnr).roi
    at = np.arange(len(values))
    for region, (name, colour) in enumerate(zip(brain.ROIS, _ROI_COLOURS, strict=True)):
        mine = roi == region
        axis.vlines(at[mine], 0, values[mine], color=colour, lw=0.8)
        axis.text(at[mine].mean(), -4.3, name, ha="center", va="bottom", fontsize=7, color=colour)
    axis.axhline(0, color=MUTED, lw=0.4)
    axis.set_ylim(-4.4, 3.6)
    axis.set_xlim(-4, len(values) + 4)


def _text(axis: Any, event: Event) -> None:
    said = "\n".join(textwrap.wrap(f"“{caption(event)}”", 30))
    axis.text(0.02, 0.60, said, fontsize=8.5, color=INK, va="center", transform=axis.transAxes)
    names = " · ".join(event.name(name) for name in ATTRIBUTES)
    axis.text(0.02, 0.08, names, fontsize=6.5, color=MUTED, va="center", transform=axis.transAxes)
